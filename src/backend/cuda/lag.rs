//! Keeps the GPU from falling far behind the host.

use std::collections::VecDeque;
use std::sync::Arc;

use super::driver::{Event, EventPool, Stream};
use crate::error::Result;

/// Launches between two marks in the stream.
const LAUNCHES: usize = 16;
/// Marks that the GPU may have yet to pass: enough to keep it busy, few enough that a cancelled run
/// ends within a fraction of a second.
const MARKS: usize = 3;

/// The marks in the stream that the GPU has yet to pass.
pub(super) struct Lag {
    /// Oldest first.
    marks: VecDeque<Event>,
    /// Launches since the last mark.
    since: usize,
    events: Arc<EventPool>,
}

impl Lag {
    pub fn new(events: Arc<EventPool>) -> Lag {
        Lag { marks: VecDeque::new(), since: 0, events }
    }

    /// Counts `launches` that were queued on `stream`, and waits if the GPU is far behind.
    pub fn queued(&mut self, launches: usize, stream: &Stream) -> Result<()> {
        self.since += launches;
        if self.since < LAUNCHES {
            return Ok(());
        }
        self.since = 0;
        let mark = self.events.take()?;
        mark.record(stream)?;
        self.marks.push_back(mark);
        if self.marks.len() > MARKS
            && let Some(oldest) = self.marks.pop_front()
        {
            oldest.synchronize()?;
            self.events.put(oldest);
        }
        Ok(())
    }

    /// Counts launches that are recorded, not run.
    pub fn recorded(&mut self, launches: usize) {
        self.since += launches;
    }

    /// Drops all marks: the stream is about to be waited for.
    pub fn clear(&mut self) {
        self.marks.drain(..).for_each(|mark| self.events.put(mark));
    }
}
