//! Clocks and memory counters, for benchmarks.

use super::backend::CudaBackend;
use super::driver::{Buffer, Event, Pinned};
use crate::error::Result;

/// A point in a backend's queue, for timing.
pub struct Mark(Event);

impl CudaBackend {
    /// Device memory that is free now, in bytes.
    pub fn free_bytes(&self) -> Result<u64> {
        self.context.bind()?;
        Ok(self.context.memory()?.0)
    }

    /// Marks the current end of the queue of steps.
    pub fn mark(&mut self) -> Result<Mark> {
        let event = Event::new(&self.context, true)?;
        event.record(&self.compute)?;
        Ok(Mark(event))
    }

    /// Seconds that the GPU took from one point to another; waits for the later one.
    pub fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        to.0.synchronize()?;
        to.0.seconds_since(&from.0)
    }

    /// Seconds that copying `bytes` from pinned memory to the GPU takes, with nothing else to do:
    /// the rate that streaming is measured against.
    pub fn time_upload(&mut self, bytes: usize) -> Result<f64> {
        let from = Pinned::new(&self.context, bytes)?;
        let to = Buffer::new(&self.context, bytes)?;
        // SAFETY: the buffer is as large; both outlive the copies, which are waited for.
        unsafe { self.compute.upload(to.address, from.bytes())? };
        let start = self.mark()?;
        // SAFETY: as above.
        unsafe { self.compute.upload(to.address, from.bytes())? };
        let end = self.mark()?;
        let seconds = self.seconds(&start, &end);
        self.compute.synchronize()?;
        seconds
    }
}
