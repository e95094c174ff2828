//! Progress of a download, and the request to stop it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// What a running [`pull`](super::pull) reports. The receiver returns `Break` to stop it; the part
/// of a file that was received is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PullProgress<'a> {
    /// The list of files is known.
    Planned {
        /// The number of files.
        files: usize,
        /// Their size together.
        bytes: u64,
        /// How many of these bytes are in the cache already.
        cached: u64,
    },
    /// A part of a file was received.
    Bytes {
        /// The file's name in the repository.
        file: &'a str,
        /// Bytes of the file that are in the cache.
        file_done: u64,
        /// The size of the file, if the hub reports it.
        file_bytes: Option<u64>,
        /// Bytes of all files that are in the cache.
        done: u64,
        /// The size of all files.
        bytes: u64,
    },
    /// A line for the user.
    Note(&'a str),
    /// Nothing to show; the receiver can return `Break`.
    Tick,
}

/// Sends progress to the receiver, and turns its `Break` into an error.
pub(super) struct Reporter<'a> {
    pub receiver: &'a mut dyn FnMut(PullProgress) -> ControlFlow<()>,
}

impl Reporter<'_> {
    /// Sends `progress`. Returns an error of kind `Cancelled` if the receiver asks to stop.
    pub fn report(&mut self, progress: PullProgress) -> Result<()> {
        match (self.receiver)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled("the download was stopped")
                .try_("pull again: what was received is kept and not downloaded twice")),
        }
    }

    /// Waits for `time`, or until the receiver asks to stop.
    pub fn wait(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.report(PullProgress::Tick)?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}
