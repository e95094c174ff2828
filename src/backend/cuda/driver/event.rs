//! Points in the work of a stream.

use std::sync::{Arc, Mutex, PoisonError};

use super::api::{self, Handle};
use super::context::Context;
use crate::error::Result;

/// A point in a stream's work.
pub struct Event {
    pub(super) context: Arc<Context>,
    pub(super) raw: Handle,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that was not recorded yet. The time between two `timed` events can be measured.
    pub fn new(context: &Arc<Context>, timed: bool) -> Result<Event> {
        // A thread that waits sleeps: other threads read files meanwhile.
        let sleep = api::EVENT_BLOCKING_SYNC;
        let flags = if timed { sleep } else { sleep | api::EVENT_DISABLE_TIMING };
        // SAFETY: writes one handle.
        let raw = api::made(std::ptr::null_mut(), |to| unsafe { api::event_create(to, flags) });
        let raw = context.health.check(raw, "making an event")?;
        Ok(Event { raw, context: context.clone() })
    }

    /// Waits on the host until the event is reached.
    pub fn synchronize(&self) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the event is alive.
        self.context
            .health
            .check(unsafe { api::event_synchronize(self.raw) }, "waiting for the GPU")
    }

    /// Seconds from `earlier` to this one; both were recorded and reached.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64> {
        // SAFETY: both are alive.
        let milliseconds =
            api::made(0.0, |to| unsafe { api::event_elapsed(to, earlier.raw, self.raw) });
        Ok(f64::from(self.context.health.check(milliseconds, "reading a clock")?) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`; the driver keeps it while queued work refers to it.
        let _ = unsafe { api::event_destroy(self.raw) };
    }
}

/// Events without timing, to use again: making one costs a call of the driver.
pub struct EventPool {
    pub(super) context: Arc<Context>,
    spare: Mutex<Vec<Event>>,
}

impl EventPool {
    pub fn new(context: &Arc<Context>) -> EventPool {
        EventPool { context: context.clone(), spare: Mutex::default() }
    }

    /// An event that nothing waits for.
    pub fn take(&self) -> Result<Event> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(|| Event::new(&self.context, false), Ok)
    }

    /// Takes back `event`: all work that must wait for it is queued.
    pub fn put(&self, event: Event) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}
