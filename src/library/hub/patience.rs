//! What is done when something fails that may go better next time: wait, longer each time, and give up in the end.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::Progress;
use crate::error::{Error, Result};

/// How often to try again, and how long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts in a row that bring nothing.
    pub attempts: u32,
    /// The first wait; each further one is twice as long, up to 8 times.
    pub wait: Duration,
    /// A server that asks for a longer wait is not waited for.
    pub longest: Duration,
    /// A connection on which nothing comes for so long is dropped.
    pub silence: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Retry { attempts: 5, wait: seconds(1), longest: seconds(300), silence: seconds(20) }
    }
}

/// Why an attempt failed.
pub enum Fault {
    /// Might go better next time; `wait` is what the server asked for.
    Passing {
        error: Error,
        wait: Option<Duration>,
    },
    Final(Error),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Fault::Final(e)
    }
}

impl Fault {
    pub fn passing(error: Error) -> Self {
        Fault::Passing { error, wait: None }
    }
}

/// Tells progress and hears whether to stop.
pub struct Watch<'a> {
    pub tell: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl Watch<'_> {
    pub fn tell(&mut self, progress: Progress) -> Result<()> {
        match (self.tell)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled("the download was stopped")
                .try_("pull again: what came is kept and not fetched twice")),
        }
    }

    /// Waits, but not for someone who wants to stop.
    pub fn wait(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.tell(Progress::Tick)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

/// Counts attempts that brought nothing.
pub struct Patience {
    retry: Retry,
    failed: u32,
}

impl Patience {
    pub fn new(retry: Retry) -> Self {
        Patience { retry, failed: 0 }
    }

    /// Something came: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or gives up with the fault's error.
    pub fn after(&mut self, fault: Fault, watch: &mut Watch) -> Result<()> {
        let (error, asked) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Passing { error, wait } => (error, wait),
        };
        self.failed += 1;
        let wait = asked.unwrap_or(self.retry.wait * (1 << (self.failed - 1).min(3)));
        if self.failed >= self.retry.attempts || wait > self.retry.longest {
            let tried = format!("{} attempts", self.failed);
            return Err(match asked.filter(|w| *w > self.retry.longest) {
                Some(wait) => {
                    error.try_(format!("again in {} s, as the server asks", wait.as_secs()))
                }
                None if error.hint().is_some() => error,
                None => error.try_(format!("again later: what came is kept ({tried} failed)")),
            });
        }
        watch.tell(Progress::Note(&format!(
            "{error}; trying again in {:.0} s",
            wait.as_secs_f32().ceil()
        )))?;
        watch.wait(wait)
    }
}
