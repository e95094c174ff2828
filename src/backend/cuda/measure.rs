//! Clocks, memory counters and facts about kernels, for benchmarks and reports.

use super::backend::CudaBackend;
use super::driver::{Buffer, Event, Pinned};
use crate::error::Result;

/// A point in a backend's queue, for timing.
pub struct Mark(Event);

/// What the driver's compiler made of a kernel for the GPU at hand.
#[derive(Debug, Clone)]
pub struct KernelFacts {
    /// Its entry point.
    pub name: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Memory of a thread outside its registers, in bytes; 0 unless registers were spilled.
    pub local_bytes: u32,
    /// Shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// How many blocks run on a multiprocessor at the same time.
    pub blocks: u32,
}

impl CudaBackend {
    /// Facts about every kernel that was compiled for this GPU.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn kernel_facts(&self) -> Result<Vec<KernelFacts>> {
        self.context.bind()?;
        let compiled = super::kernels().into_iter().filter_map(|kernel| {
            Some((kernel, self.functions.get(&(kernel.module, kernel.entry))?))
        });
        let facts = compiled.map(|(kernel, function)| {
            let facts = function.facts(kernel)?;
            Ok(KernelFacts {
                name: kernel.entry,
                threads: kernel.threads,
                registers: facts.registers,
                local_bytes: facts.local_bytes,
                shared_bytes: facts.static_shared_bytes + kernel.shared,
                blocks: facts.blocks,
            })
        });
        facts.collect()
    }

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
