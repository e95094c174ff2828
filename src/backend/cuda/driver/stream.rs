//! Streams of work, and recorded work.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::context::Context;
use super::event::Event;
use super::module::Function;
use super::tma;
use crate::backend::cuda::launch::Launch;
use crate::error::Result;

/// Work in order, parallel to the work of other streams.
pub struct Stream {
    context: Arc<Context>,
    pub(super) raw: sys::CUstream,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver has its own locks.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Stream { context: context.clone(), raw: context.health.check(raw, "making a stream")? })
    }

    /// Waits on the host until all work is done.
    pub fn synchronize(&self) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the stream is alive.
        self.context
            .health
            .check(unsafe { result::stream::synchronize(self.raw) }, "waiting for the GPU")
    }

    /// As [`Stream::synchronize`], also after an error: before memory is freed.
    pub fn drain(&self) {
        // SAFETY: the stream is alive. An error was returned before, or the next call returns it.
        let _ = unsafe { result::stream::synchronize(self.raw) };
    }

    /// Work that is queued from now on runs after `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are alive.
        self.context.health.check(
            unsafe { result::stream::wait_event(self.raw, event.raw, flags) },
            "ordering streams",
        )
    }

    /// Queues a copy of `bytes` to the device address `to`.
    ///
    /// # Safety
    /// The bytes are not changed until the copy is done. `to` is the address of at least as many
    /// bytes of device memory, which nothing else uses meanwhile.
    pub unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the caller's promise.
        self.context
            .health
            .check(unsafe { result::memcpy_htod_async(to, bytes, self.raw) }, "copying to the GPU")
    }

    /// Copies from the device address `from`, after all that was queued, and waits for it.
    ///
    /// # Safety
    /// `from` is the address of at least as many bytes of device memory.
    pub unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the caller's promise; the copy is waited for, so the bytes exist until it is
        // done.
        let queued = unsafe { result::memcpy_dtoh_async(bytes, from, self.raw) };
        let queued = self.context.health.check(queued, "copying from the GPU");
        let done = self.synchronize(); // also after an error: nothing may write to `bytes` later
        queued.and(done)
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// The addresses in `launch` are those of device memory that is as large as the kernel uses
    /// with these parameters.
    pub unsafe fn launch(&self, function: &Function, launch: &Launch) -> Result<()> {
        let kernel = launch.kernel;
        let given = (launch.buffers.len(), launch.maps.len(), launch.params.len());
        assert_eq!(given, (kernel.buffers, kernel.maps, kernel.params), "{}", kernel.entry);
        self.context.health.alive()?;
        let maps = launch
            .maps
            .iter()
            .map(|m| tma::encode(&self.context.health, m))
            .collect::<Result<Vec<_>>>()?;
        // The parameters consist of 32-bit words: their copy is aligned for these.
        let words: Vec<u32> = launch
            .params
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let buffers =
            launch.buffers.iter().map(|b| std::ptr::from_ref(b).cast_mut().cast::<c_void>());
        let maps = maps.iter().map(|m| std::ptr::from_ref(m).cast_mut().cast::<c_void>());
        let mut arguments: Vec<*mut c_void> =
            buffers.chain(maps).chain([words.as_ptr().cast_mut().cast::<c_void>()]).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: the driver copies the arguments, whose number and sizes tests compare with the
        // PTX; the rest is the caller's promise.
        let queued = unsafe {
            result::launch_kernel(
                function.raw,
                (x, y, z),
                (kernel.threads, 1, 1),
                kernel.shared,
                self.raw,
                &mut arguments,
            )
        };
        self.context.health.check(queued, kernel.entry)
    }

    /// From now on, work is recorded instead of run.
    pub fn begin_capture(&self) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        self.context
            .health
            .check(unsafe { result::stream::begin_capture(self.raw, mode) }, "recording a graph")
    }

    /// Ends the recording, and drops what was recorded.
    pub fn discard_capture(&self) {
        // SAFETY: the stream is alive and records; a failed recording gives no graph.
        if let Ok(graph) = unsafe { result::stream::end_capture(self.raw) }
            && !graph.is_null()
        {
            // SAFETY: the graph is valid and used by nothing.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }

    /// Ends the recording, and returns what was recorded.
    pub fn end_capture(&self) -> Result<Graph> {
        let health = &self.context.health;
        // SAFETY: the stream is alive and records.
        let graph =
            health.check(unsafe { result::stream::end_capture(self.raw) }, "recording a graph")?;
        // SAFETY: the graph is valid, and no longer needed once it is instantiated.
        let ready = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above.
        let _ = unsafe { result::graph::destroy(graph) };
        Ok(Graph { _context: self.context.clone(), raw: health.check(ready, "making a graph")? })
    }

    /// Queues all work that was recorded in `graph`.
    ///
    /// # Safety
    /// The memory that the recorded work uses is still allocated.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the caller's promise.
        self.context
            .health
            .check(unsafe { result::graph::launch(graph.raw, self.raw) }, "running a graph")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new`; queued work goes on until it is done.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}

impl Event {
    /// Moves the event to the end of the work that is queued on `stream`.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        self.context.health.check(
            unsafe { result::event::record(self.raw, stream.raw) },
            "marking a point in a stream",
        )
    }
}

/// Recorded work.
pub struct Graph {
    _context: Arc<Context>,
    pub(super) raw: sys::CUgraphExec,
}

// SAFETY: an instantiated graph may be launched from any thread, one at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `end_capture`.
        let _ = unsafe { result::graph::exec_destroy(self.raw) };
    }
}
