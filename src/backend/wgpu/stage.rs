//! Brings weights from files to the device beside the computation: a thread reads them into staging buffers and queues their copies.
//!
//! The device has one queue, so copies stand in it between steps: a copy is queued behind all steps that were submitted when its weight was asked for
//! (whoever lay at that place before was last read by them), and the first step that names the weight is submitted after it. The staging buffers
//! are few, and each is filled again only when its copy is done: uploads never pile up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::gpu::{Buffer, Shared};
use crate::backend::WeightKey;
use crate::backend::form::Piece;
use crate::error::{Error, Result};

/// Staging buffers: one is filled while the others wait in the queue.
pub(super) const CHUNKS: usize = 4;

/// What the backend wants done.
struct Request {
    key: WeightKey,
    to: wgpu::Buffer,
    at: u64,
    pieces: Vec<Piece>,
}

#[derive(Default)]
struct Desk {
    requests: VecDeque<Request>,
    /// Asked for, and not yet queued whole.
    waiting: HashSet<WeightKey>,
    failed: HashMap<WeightKey, Error>,
    /// The key being worked on.
    busy: Option<WeightKey>,
    stop: bool,
}

#[derive(Default)]
struct Inner {
    desk: Mutex<Desk>,
    changed: Condvar,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, desk: MutexGuard<'a, Desk>) -> MutexGuard<'a, Desk> {
        self.changed.wait(desk).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's handle.
pub(super) struct Stage {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Stage {
    /// Starts the thread, with `CHUNKS` staging buffers of `chunk_bytes` each.
    pub fn new(shared: &Shared, chunk_bytes: usize) -> Result<Stage> {
        let inner = Arc::<Inner>::default();
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let chunks = (0..CHUNKS)
            .map(|_| {
                let buffer = shared.buffer(chunk_bytes as u64, usage, "staging")?;
                Ok(Chunk { buffer, copied: None })
            })
            .collect::<Result<Vec<_>>>()?;
        let worker = Worker {
            shared: shared.clone(),
            inner: inner.clone(),
            chunks,
            next: 0,
            bytes: vec![0; chunk_bytes],
        };
        let thread = std::thread::Builder::new()
            .name("wgpu-stage".into())
            .spawn(move || worker.work())
            .map_err(|e| Error::device(format!("could not start a thread: {e}")).at("wgpu"))?;
        Ok(Stage { inner, thread: Some(thread) })
    }

    /// Asks for a weight at byte `at` of `to`. Whatever reads the place before must have been submitted.
    pub fn want(&self, key: WeightKey, to: wgpu::Buffer, at: u64, pieces: Vec<Piece>) {
        let mut desk = self.inner.lock();
        desk.waiting.insert(key);
        desk.requests.push_back(Request { key, to, at, pieces });
        drop(desk);
        self.inner.changed.notify_all();
    }

    /// Waits until all copies of `key` are queued: what is submitted from now on finds it in its place.
    pub fn arrive(&self, key: WeightKey) -> Result<()> {
        let mut desk = self.inner.lock();
        while desk.waiting.contains(&key) {
            desk = self.inner.wait(desk);
        }
        desk.failed.get(&key).map_or(Ok(()), |e| Err(e.clone()))
    }

    /// `key` is not wanted any more. What is under way is waited for: its place may be given to another.
    pub fn cancel(&self, key: WeightKey) {
        let mut desk = self.inner.lock();
        desk.requests.retain(|r| r.key != key);
        while desk.busy == Some(key) {
            desk = self.inner.wait(desk);
        }
        desk.waiting.remove(&key);
        desk.failed.remove(&key);
    }

    /// Waits until nothing is under way here. What was asked for but not begun is dropped.
    pub fn settle(&self) {
        let mut desk = self.inner.lock();
        desk.requests.clear();
        while desk.busy.is_some() {
            desk = self.inner.wait(desk);
        }
        desk.waiting.clear();
        desk.failed.clear();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.inner.lock().stop = true;
        self.inner.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Chunk {
    buffer: Buffer,
    /// The copy out of it.
    copied: Option<wgpu::SubmissionIndex>,
}

struct Worker {
    shared: Shared,
    inner: Arc<Inner>,
    chunks: Vec<Chunk>,
    next: usize,
    /// What is read from a file: mapped memory may be of a kind that is slow to read back and only takes whole slices.
    bytes: Vec<u8>,
}

impl Worker {
    fn work(mut self) {
        loop {
            let mut desk = self.inner.lock();
            let request = loop {
                if desk.stop {
                    return;
                }
                match desk.requests.pop_front() {
                    Some(request) => break request,
                    None => desk = self.inner.wait(desk),
                }
            };
            desk.busy = Some(request.key);
            drop(desk);

            // Somebody waits for an answer, whatever happens here.
            let tried = std::panic::AssertUnwindSafe(|| self.bring(&request));
            let brought = std::panic::catch_unwind(tried).unwrap_or_else(|_| {
                Err(Error::device("the thread that brings weights failed").at("wgpu"))
            });
            let mut desk = self.inner.lock();
            desk.busy = None;
            desk.waiting.remove(&request.key);
            if let Err(e) = brought {
                desk.failed.insert(request.key, e);
            }
            drop(desk);
            self.inner.changed.notify_all();
        }
    }

    /// Queues every copy of one weight.
    fn bring(&mut self, request: &Request) -> Result<()> {
        let room = self.bytes.len();
        for piece in &request.pieces {
            if piece.unit > room {
                return Err(Error::model(
                    "a row of a weight is larger than what is copied at a time",
                )
                .found(format!("{} bytes", piece.unit))
                .expected(format!("at most {room}"))
                .try_("--device cpu"));
            }
            // Copies begin and end at multiples of four bytes, and so do pieces and the rows they are made of.
            let most = if piece.unit == 1 { room / 4 * 4 } else { room / piece.unit * piece.unit };
            for from in (0..piece.bytes).step_by(most) {
                let n = most.min(piece.bytes - from);
                piece.read(from, &mut self.bytes[..n])?;
                self.copy(&request.to, request.at + (piece.to + from) as u64, n)?;
            }
        }
        Ok(())
    }

    /// Copies the first `n` of `bytes` to the device.
    fn copy(&mut self, to: &wgpu::Buffer, at: u64, n: usize) -> Result<()> {
        let chunk = &mut self.chunks[self.next];
        self.next = (self.next + 1) % CHUNKS;
        if let Some(copied) = chunk.copied.take() {
            self.shared.wait(copied)?;
        }
        self.shared.map(&chunk.buffer.raw, wgpu::MapMode::Write)?;
        let size = (n as u64).next_multiple_of(4);
        let broken = |e: &dyn std::fmt::Display| {
            Error::device("a staging buffer could not be mapped").found(e).at("wgpu")
        };
        let mut view =
            chunk.buffer.raw.slice(..size).get_mapped_range_mut().map_err(|e| broken(&e))?;
        view.slice(..n).copy_from_slice(&self.bytes[..n]);
        drop(view);
        chunk.buffer.raw.unmap();
        let mut encoder =
            self.shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&chunk.buffer.raw, 0, to, at, size);
        chunk.copied = Some(self.shared.queue.submit([encoder.finish()]));
        self.shared.health.alive()
    }
}
