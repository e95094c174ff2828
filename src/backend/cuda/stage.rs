//! Brings weights from files to the device beside the computation: a thread reads them into pinned memory and queues copies on a stream of its own.
//!
//! The order of things, for one weight: the copy stream waits for the point in the compute stream at which the weight was asked for (whoever lay at that
//! place before was last read ahead of it); its pieces pass through a ring of pinned chunks, each chunk filled again only after its copy is done; an
//! event marks the end, and the first step that names the weight makes the compute stream wait for that event. Nothing ever waits for a weight that it
//! does not name.
//!
//! Weights that pass in every run are kept in pinned memory of their own, in the form that the device wants, as far as the budget for it goes: then a run
//! costs one copy over the bus, no read and no conversion at all.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use rayon::prelude::*;

use super::driver::{Context, Event, Pinned, Stream};
use crate::backend::WeightKey;
use crate::backend::form::{Piece, Source};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::Use;
use crate::tensor::HostPart;

/// Bytes of one pinned chunk: large enough that a copy's fixed cost does not show (10 us against 0.3 ms at 25 GB/s), small enough to start soon.
pub(super) const CHUNK: usize = 8 << 20;
/// Chunks: one is filled while another is copied, and one waits on either side.
pub(super) const CHUNKS: usize = 4;

/// What the backend wants done.
struct Request {
    key: WeightKey,
    /// Device address of the weight's place.
    to: u64,
    pieces: Vec<Piece>,
    /// The copies wait for this point of the compute stream.
    after: Event,
    /// Worth a pinned copy: it will pass again.
    keep: bool,
}

/// Where a weight is on its way.
enum State {
    Waiting,
    /// All copies are queued; the event marks their end.
    Queued(Event),
    Failed(Error),
}

#[derive(Default)]
struct Shared {
    requests: VecDeque<Request>,
    states: HashMap<WeightKey, State>,
    /// The key being worked on.
    busy: Option<WeightKey>,
    /// Events to use again.
    events: Vec<Event>,
    stop: bool,
}

struct Inner {
    shared: Mutex<Shared>,
    changed: Condvar,
    /// How much pinned memory the copies that are kept may take.
    keep_bytes: AtomicU64,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The thread's handle.
pub(super) struct Stage {
    context: Arc<Context>,
    stream: Arc<Stream>,
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Stage {
    /// Starts the thread; weights that pass again may fill `keep_bytes` of pinned memory beside the ring of chunks.
    pub fn new(context: &Arc<Context>, keep_bytes: u64) -> Result<Stage> {
        let keep_bytes = AtomicU64::new(keep_bytes);
        let inner =
            Arc::new(Inner { shared: Mutex::default(), changed: Condvar::new(), keep_bytes });
        let chunks = (0..CHUNKS)
            .map(|_| Ok((Pinned::new(context, CHUNK)?, Event::new(context, false)?)))
            .collect::<Result<Vec<_>>>()?;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        let start = |e: &dyn std::fmt::Display| {
            Error::device(format!("could not start a thread: {e}")).at("cuda")
        };
        let readers = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("cuda-read-{i}"));
        let stream = Arc::new(Stream::new(context)?);
        let worker = Worker {
            stream: stream.clone(),
            context: context.clone(),
            inner: inner.clone(),
            readers: readers.build().map_err(|e| start(&e))?,
            chunks,
            next: 0,
            kept: HashMap::new(),
            kept_bytes: 0,
        };
        let thread =
            std::thread::Builder::new().name("cuda-stage".into()).spawn(move || worker.work());
        Ok(Stage {
            context: context.clone(),
            stream,
            inner,
            thread: Some(thread.map_err(|e| start(&e))?),
        })
    }

    /// From now on, copies that are kept may take `bytes` of pinned memory.
    pub fn allow(&self, bytes: u64) {
        self.inner.keep_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Asks for a weight; `compute` is where its steps run.
    pub fn want(
        &self,
        key: WeightKey,
        to: u64,
        pieces: Vec<Piece>,
        keep: bool,
        compute: &Stream,
    ) -> Result<()> {
        let used = self.inner.lock().events.pop();
        let after = used.map_or_else(|| Event::new(&self.context, false), Ok)?;
        after.record(compute)?;
        let mut shared = self.inner.lock();
        shared.states.insert(key, State::Waiting);
        shared.requests.push_back(Request { key, to, pieces, after, keep });
        drop(shared);
        self.inner.changed.notify_all();
        Ok(())
    }

    /// Makes what is queued on `compute` from now on wait until `key` has come. The first call waits until its copies are queued.
    pub fn arrive(&self, key: WeightKey, compute: &Stream) -> Result<()> {
        let mut shared = self.inner.lock();
        loop {
            match shared.states.get(&key) {
                None => return Ok(()), // came before
                Some(State::Waiting) => {
                    shared = self
                        .inner
                        .changed
                        .wait(shared)
                        .unwrap_or_else(|poisoned| poisoned.into_inner());
                }
                Some(State::Failed(e)) => return Err(e.clone()),
                Some(State::Queued(_)) => {
                    if let Some(State::Queued(event)) = shared.states.remove(&key) {
                        compute.wait(&event)?;
                        shared.events.push(event);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// `key` is not wanted any more. What is under way goes on: later copies to the same place are queued behind it.
    pub fn cancel(&self, key: WeightKey) {
        let mut shared = self.inner.lock();
        shared.requests.retain(|r| r.key != key);
        if shared.busy != Some(key) {
            shared.states.remove(&key);
        } else {
            // The worker looks whether anybody still waits when it is through.
            while shared.busy == Some(key) {
                shared = self
                    .inner
                    .changed
                    .wait(shared)
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            shared.states.remove(&key);
        }
    }

    /// Waits until nothing is under way, neither here nor on the copy stream. What was asked for but not begun is dropped.
    pub fn settle(&self) {
        let mut shared = self.inner.lock();
        shared.requests.clear();
        while shared.busy.is_some() {
            shared =
                self.inner.changed.wait(shared).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        shared.states.clear();
        drop(shared);
        self.stream.drain();
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

/// The bytes of a piece, known by where they come from and what they are made into.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Origin {
    /// Addresses of sources, and ranges of them.
    ranges: Vec<(usize, Range<usize>)>,
    /// Type and stride on the device where that is not how the file has it.
    form: Option<(DType, usize)>,
}

impl Origin {
    /// That of `piece`, and the part that it is all made of; none where more goes into it, as into vectors, which are small.
    fn of(piece: &Piece) -> Option<(Origin, &HostPart)> {
        let (part, form) = match &piece.source {
            Source::Stored(part) => (part, None),
            Source::Rows { part, segment, how: Use::Matrix } => {
                (part, Some((segment.dtype, segment.stride)))
            }
            _ => return None,
        };
        let ranges = part
            .ranges()
            .map(|(source, range)| (Arc::as_ptr(source).cast::<()>() as usize, range))
            .collect();
        Some((Origin { ranges, form }, part))
    }
}

struct Worker {
    context: Arc<Context>,
    inner: Arc<Inner>,
    stream: Arc<Stream>,
    readers: rayon::ThreadPool,
    chunks: Vec<(Pinned, Event)>,
    next: usize,
    /// Each with its part, so that no other source can come to lie at the same address.
    kept: HashMap<Origin, (Pinned, HostPart)>,
    kept_bytes: u64,
}

impl Worker {
    fn work(mut self) {
        let bound = self.context.bind();
        loop {
            let mut shared = self.inner.lock();
            let request = loop {
                if shared.stop {
                    drop(shared);
                    self.stream.drain(); // the chunks are freed next
                    return;
                }
                match shared.requests.pop_front() {
                    Some(request) => break request,
                    None => {
                        shared = self
                            .inner
                            .changed
                            .wait(shared)
                            .unwrap_or_else(|poisoned| poisoned.into_inner())
                    }
                }
            };
            shared.busy = Some(request.key);
            let used = shared.events.pop();
            drop(shared);

            // Somebody waits for an answer, whatever happens here.
            let tried = std::panic::AssertUnwindSafe(|| {
                bound.clone().and_then(|()| self.bring(&request, used))
            });
            let arrived = std::panic::catch_unwind(tried).unwrap_or_else(|_| {
                Err(Error::device("the thread that brings weights failed").at("cuda"))
            });
            let mut shared = self.inner.lock();
            shared.busy = None;
            shared.states.insert(
                request.key,
                match arrived {
                    Ok(event) => State::Queued(event),
                    Err(e) => State::Failed(e),
                },
            );
            shared.events.push(request.after);
            drop(shared);
            self.inner.changed.notify_all();
        }
    }

    /// Queues every copy of one weight; the event that marks their end.
    fn bring(&mut self, request: &Request, used: Option<Event>) -> Result<Event> {
        self.stream.wait(&request.after)?;
        for piece in &request.pieces {
            self.piece(request.to + piece.to as u64, piece, request.keep)?;
        }
        let event = used.map_or_else(|| Event::new(&self.context, false), Ok)?;
        event.record(&self.stream)?;
        Ok(event)
    }

    /// Queues the copies of one piece: from pinned memory of its own if it has some or may have, or through the ring of chunks.
    fn piece(&mut self, to: u64, piece: &Piece, keep: bool) -> Result<()> {
        let read = |from: usize, out: &mut [u8]| piece.read(from, out);
        let Some((origin, part)) = Origin::of(piece) else {
            return self.pass(to, piece.bytes, piece.unit, &read);
        };
        let allowed = self.inner.keep_bytes.load(Ordering::Relaxed);
        if self.kept_bytes > allowed {
            self.stream.drain(); // they may be being copied
            self.kept.clear();
            self.kept_bytes = 0;
        }
        if keep
            && !self.kept.contains_key(&origin)
            && self.kept_bytes + piece.bytes as u64 <= allowed
        {
            // A system that refuses to pin so much is no reason to stop: the ring of chunks does as well.
            match Pinned::new(&self.context, piece.bytes) {
                Ok(mut own) => {
                    fill(&self.readers, own.bytes_mut(), piece.unit, &read)?;
                    self.kept_bytes += piece.bytes as u64;
                    self.kept.insert(origin.clone(), (own, part.clone()));
                }
                Err(_) => self.inner.keep_bytes.store(self.kept_bytes, Ordering::Relaxed),
            }
        }
        match self.kept.get(&origin) {
            // SAFETY: the place was given to this weight, which is as large; whoever read there before is waited for; the bytes live as long as the stream.
            Some((own, _)) => unsafe { self.stream.upload(to, own.bytes()) },
            None => self.pass(to, piece.bytes, piece.unit, &read),
        }
    }

    /// Copies `bytes` bytes, made by `read` in multiples of `unit` bytes, through the ring of chunks.
    fn pass(&mut self, to: u64, bytes: usize, unit: usize, read: &Read) -> Result<()> {
        if unit > CHUNK {
            return Err(Error::model("a row of a weight is larger than what is copied at a time")
                .found(unit)
                .expected(format!("at most {CHUNK} bytes")));
        }
        let most = CHUNK / unit * unit;
        for from in (0..bytes).step_by(most) {
            let n = most.min(bytes - from);
            let (chunk, copied) = &mut self.chunks[self.next];
            self.next = (self.next + 1) % CHUNKS;
            copied.synchronize()?; // an event that was never recorded is reached
            let out = &mut chunk.bytes_mut()[..n];
            fill(&self.readers, out, unit, &|at, out| read(from + at, out))?;
            // SAFETY: as in `piece`; the chunk is not touched again before the event.
            unsafe { self.stream.upload(to + from as u64, &chunk.bytes()[..n]) }?;
            copied.record(&self.stream)?;
        }
        Ok(())
    }
}

type Read<'a> = dyn Fn(usize, &mut [u8]) -> Result<()> + Sync + 'a;

/// Fills `out` by several readers: one alone copies from the page cache at 5 to 10 GB/s, less than the bus takes.
fn fill(readers: &rayon::ThreadPool, out: &mut [u8], unit: usize, read: &Read) -> Result<()> {
    let grain = (1usize << 20).div_ceil(unit) * unit;
    if out.len() <= grain {
        return read(0, out);
    }
    readers.install(|| {
        out.par_chunks_mut(grain).enumerate().try_for_each(|(i, part)| read(i * grain, part))
    })
}
