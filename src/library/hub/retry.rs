//! Retries of requests that fail: waits longer each time, and gives up in the end.

use std::time::Duration;

use super::progress::{PullProgress, Reporter};
use crate::error::{Error, Result};

/// How often to retry, and how long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// How many attempts without any progress are made before an error is returned.
    pub attempts: u32,
    /// The wait before the second attempt. Each further wait is twice as long, up to 8 times this.
    pub wait: Duration,
    /// If the server asks for a wait longer than this, the error is returned at once.
    pub max_wait: Duration,
    /// A connection that transfers nothing for this long is closed.
    pub silence: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Retry { attempts: 5, wait: seconds(1), max_wait: seconds(300), silence: seconds(20) }
    }
}

/// Why an attempt failed.
pub(super) enum Fault {
    /// A retry may succeed.
    Temporary {
        error: Error,
        /// The wait that the server asked for.
        wait: Option<Duration>,
    },
    /// A retry would fail in the same way.
    Final(Error),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Fault::Final(e)
    }
}

impl Fault {
    /// A fault that a retry may remove.
    pub fn temporary(error: Error) -> Self {
        Fault::Temporary { error, wait: None }
    }
}

/// Counts attempts in a row that made no progress.
pub(super) struct Attempts {
    retry: Retry,
    failed: u32,
}

impl Attempts {
    pub fn new(retry: Retry) -> Self {
        Attempts { retry, failed: 0 }
    }

    /// Counts from zero again, because an attempt made progress.
    pub fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt. Returns the error of `fault` if there is to be none.
    pub fn wait_after(&mut self, fault: Fault, reporter: &mut Reporter) -> Result<()> {
        let (error, asked) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Temporary { error, wait } => (error, wait),
        };
        self.failed += 1;
        let wait = asked.unwrap_or(self.retry.wait * (1 << (self.failed - 1).min(3)));
        if self.failed >= self.retry.attempts || wait > self.retry.max_wait {
            return Err(match asked.filter(|w| *w > self.retry.max_wait) {
                Some(wait) => {
                    error.try_(format!("pull again in {} s, as the server asks", wait.as_secs()))
                }
                None if error.hint().is_some() => error,
                None => error.try_(format!(
                    "pull again later: what was received is kept ({} attempts failed)",
                    self.failed
                )),
            });
        }
        let seconds = wait.as_secs_f32().ceil();
        reporter.report(PullProgress::Note(&format!("{error}; retrying in {seconds:.0} s")))?;
        reporter.wait(wait)
    }
}
