//! Streams of work, and recorded work.

use std::ffi::c_void;
use std::sync::Arc;

use super::api::{self, Handle};
use super::context::Context;
use super::event::Event;
use super::module::Function;
use super::tma;
use crate::backend::cuda::launch::Launch;
use crate::error::Result;

/// Work in order, parallel to the work of other streams.
pub struct Stream {
    context: Arc<Context>,
    pub(super) raw: Handle,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver has its own locks.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        // SAFETY: writes one handle.
        let raw = api::made(std::ptr::null_mut(), |to| unsafe {
            api::stream_create(to, api::STREAM_NON_BLOCKING)
        });
        Ok(Stream { context: context.clone(), raw: context.health.check(raw, "making a stream")? })
    }

    /// Waits on the host until all work is done.
    pub fn synchronize(&self) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the stream is alive.
        self.context
            .health
            .check(unsafe { api::stream_synchronize(self.raw) }, "waiting for the GPU")
    }

    /// As [`Stream::synchronize`], also after an error: before memory is freed.
    pub fn drain(&self) {
        // SAFETY: the stream is alive. An error was returned before, or the next call returns it.
        let _ = unsafe { api::stream_synchronize(self.raw) };
    }

    /// Work that is queued from now on runs after `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: stream and event are alive.
        self.context
            .health
            .check(unsafe { api::stream_wait(self.raw, event.raw, 0) }, "ordering streams")
    }

    /// Queues a copy of `bytes` to the device address `to`.
    ///
    /// # Safety
    /// The bytes are not changed until the copy is done. `to` is the address of at least as many
    /// bytes of device memory, which nothing else uses meanwhile.
    pub unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the caller's promise.
        let queued = unsafe { api::upload(to, bytes.as_ptr().cast(), bytes.len(), self.raw) };
        self.context.health.check(queued, "copying to the GPU")
    }

    /// Copies from the device address `from`, after all that was queued, and waits for it.
    ///
    /// # Safety
    /// `from` is the address of at least as many bytes of device memory.
    pub unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the caller's promise; the copy is waited for, so the bytes exist until it is
        // done.
        let queued =
            unsafe { api::download(bytes.as_mut_ptr().cast(), from, bytes.len(), self.raw) };
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
            api::launch(
                function.raw,
                x,
                y,
                z,
                kernel.threads,
                1,
                1,
                kernel.shared,
                self.raw,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.health.check(queued, kernel.entry)
    }

    /// From now on, work is recorded instead of run.
    pub fn begin_capture(&self) -> Result<()> {
        let mode = api::CAPTURE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        self.context
            .health
            .check(unsafe { api::capture_begin(self.raw, mode) }, "recording a graph")
    }

    /// Ends the recording, and drops what was recorded.
    pub fn discard_capture(&self) {
        // SAFETY: the stream is alive and records; a failed recording gives no graph.
        if let Ok(graph) =
            api::made(std::ptr::null_mut(), |to| unsafe { api::capture_end(self.raw, to) })
            && !graph.is_null()
        {
            // SAFETY: the graph is valid and used by nothing.
            let _ = unsafe { api::graph_destroy(graph) };
        }
    }

    /// Ends the recording, and returns what was recorded.
    pub fn end_capture(&self) -> Result<Graph> {
        let health = &self.context.health;
        // SAFETY: the stream is alive and records.
        let graph = api::made(std::ptr::null_mut(), |to| unsafe { api::capture_end(self.raw, to) });
        let graph = health.check(graph, "recording a graph")?;
        // SAFETY: the graph is valid, and no longer needed once it is instantiated.
        let ready =
            api::made(std::ptr::null_mut(), |to| unsafe { api::graph_instantiate(to, graph, 0) });
        // SAFETY: as above.
        let _ = unsafe { api::graph_destroy(graph) };
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
            .check(unsafe { api::graph_launch(graph.raw, self.raw) }, "running a graph")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new`; queued work goes on until it is done.
        let _ = unsafe { api::stream_destroy(self.raw) };
    }
}

impl Event {
    /// Moves the event to the end of the work that is queued on `stream`.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        self.context.health.check(
            unsafe { api::event_record(self.raw, stream.raw) },
            "marking a point in a stream",
        )
    }
}

/// Recorded work.
pub struct Graph {
    _context: Arc<Context>,
    pub(super) raw: Handle,
}

// SAFETY: an instantiated graph may be launched from any thread, one at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `end_capture`.
        let _ = unsafe { api::graph_exec_destroy(self.raw) };
    }
}
