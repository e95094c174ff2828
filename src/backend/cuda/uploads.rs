//! Copies weights from files to the device while steps run: a thread reads them into pinned memory
//! and queues the copies on a stream of its own.
//!
//! For each weight, in this order: the copy stream waits for the point of the compute stream at
//! which the weight was requested, because steps before that point may read the weight that was at
//! this place before. Its pieces pass through a ring of pinned chunks; a chunk is filled again
//! after its copy is done. An event marks the end, and the first step that uses the weight makes
//! the compute stream wait for that event. No step waits for a weight that it does not use.
//!
//! Weights that pass in every run are kept in pinned memory of their own, in the form of the
//! device, as far as the limit allows: then a run costs one copy over the bus, but no read and no
//! conversion.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::driver::{Context, Event, EventPool, Pinned, PinnedPart, Stream};
use super::slabs::Slabs;
use crate::backend::WeightKey;
use crate::backend::courier::Courier;
use crate::backend::form::{Piece, Source};
use crate::dtype::DType;
use crate::dtype::int8::Int8;
use crate::error::{Error, Result};
use crate::op::Use;
use crate::tensor::HostPart;

/// Bytes of one pinned chunk: large enough that the fixed cost of a copy does not show (10 us
/// against 0.3 ms at 25 GB/s), small enough to start soon.
pub(super) const CHUNK: usize = 8 << 20;
/// Chunks: one is filled while another is copied, and one waits on either side.
pub(super) const CHUNKS: usize = 4;

/// One weight to copy.
struct Parcel {
    /// Device address of the weight's place.
    to: u64,
    pieces: Vec<Piece>,
    /// The copies wait for this point of the compute stream.
    after: Event,
    /// The weight passes again in later runs, so a pinned copy pays.
    keep: bool,
}

/// The copies of weights: requests, the thread that serves them, and its stream.
pub(super) struct Uploads {
    // Dropped first: its thread uses the others.
    courier: Courier<Parcel, Event>,
    stream: Arc<Stream>,
    events: Arc<EventPool>,
    /// Upper bound of the pinned memory for kept copies, in bytes.
    keep_bytes: Arc<AtomicU64>,
    /// The memory of kept copies.
    slabs: Arc<Mutex<Slabs>>,
}

impl Uploads {
    /// Starts the thread. Weights that pass again may fill `keep_bytes` of pinned memory, besides
    /// the ring of chunks.
    pub fn new(
        context: &Arc<Context>,
        events: &Arc<EventPool>,
        keep_bytes: u64,
    ) -> Result<Uploads> {
        let keep_bytes = Arc::new(AtomicU64::new(keep_bytes));
        let chunks = (0..CHUNKS)
            .map(|_| Ok((Pinned::new(context, CHUNK)?, Event::new(context, false)?)))
            .collect::<Result<Vec<_>>>()?;
        let threads = crate::host::threads().min(4);
        let readers = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("cuda-read-{i}"))
            .build()
            .map_err(|e| Error::device(format!("could not start a thread: {e}")).at("cuda"))?;
        let stream = Arc::new(Stream::new(context)?);
        let slabs = Arc::new(Mutex::new(Slabs::new(context)));
        let mut copier = Copier {
            context: context.clone(),
            slabs: slabs.clone(),
            bound: None,
            stream: stream.clone(),
            events: events.clone(),
            keep_bytes: keep_bytes.clone(),
            readers,
            chunks,
            next: 0,
            kept: HashMap::new(),
        };
        let courier = Courier::start("cuda", move |parcel| copier.bring(parcel))?;
        Ok(Uploads { courier, stream, events: events.clone(), keep_bytes, slabs })
    }

    /// From now on, kept copies may take `bytes` of pinned memory; `passing` bytes of weights are
    /// going to be kept.
    pub fn limit_kept(&self, bytes: u64, passing: u64) {
        self.keep_bytes.store(bytes, Ordering::Relaxed);
        lock(&self.slabs).prepare(passing.min(bytes));
    }

    /// Asks for the weight `key` at device address `to`. Steps that are queued on `compute` now are
    /// done before its first byte is overwritten.
    pub fn request(
        &self,
        key: WeightKey,
        to: u64,
        pieces: Vec<Piece>,
        keep: bool,
        compute: &Stream,
    ) -> Result<()> {
        let after = self.events.take()?;
        after.record(compute)?;
        self.courier.request(key, Parcel { to, pieces, after, keep });
        Ok(())
    }

    /// Makes everything that is queued on `compute` from now on wait for the copies of `key`. The
    /// first call for `key` blocks until these copies are queued.
    pub fn wait_for(&self, key: WeightKey, compute: &Stream) -> Result<()> {
        if let Some(event) = self.courier.wait_for(key)? {
            compute.wait(&event)?;
            self.events.put(event);
        }
        Ok(())
    }

    /// Withdraws the request for `key`. Copies that are queued go on: later copies to the same
    /// place are queued behind them.
    pub fn cancel(&self, key: WeightKey) {
        self.courier.cancel(key);
    }

    /// Withdraws all requests, and waits until the copy stream is idle.
    pub fn cancel_all(&self) {
        self.courier.cancel_all();
        self.stream.drain();
    }
}

/// Identifies the bytes of a piece by what they are made from and how.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Origin {
    /// Addresses of sources, and ranges within them.
    ranges: Vec<(usize, Range<usize>)>,
    form: Converted,
}

/// How the bytes on the device differ from those of the file.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Converted {
    Not,
    /// Type and stride on the device.
    Rows(DType, usize),
    /// Integers and their stride on the device.
    Integers(Int8, usize),
    /// The factors of integers.
    Scales(Int8),
}

impl Origin {
    /// The origin of `piece`, and the part that it is made of; none if more than one part is
    /// involved, as with vectors, which are small.
    fn of(piece: &Piece) -> Option<(Origin, &HostPart)> {
        let (part, form) = match &piece.source {
            Source::Stored(part) => (part, Converted::Not),
            Source::Rows { part, segment, how: Use::Matrix } => {
                (part, Converted::Rows(segment.dtype, segment.stride))
            }
            Source::Integers { part, segment, int8, .. } => {
                (part, Converted::Integers(*int8, segment.stride))
            }
            Source::IntegerScales { part, int8, .. } => (part, Converted::Scales(*int8)),
            _ => return None,
        };
        let ranges = part
            .ranges()
            .map(|(source, range)| (Arc::as_ptr(source).cast::<()>() as usize, range))
            .collect();
        Some((Origin { ranges, form }, part))
    }
}

fn lock(slabs: &Mutex<Slabs>) -> MutexGuard<'_, Slabs> {
    slabs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The state of the courier's thread.
struct Copier {
    context: Arc<Context>,
    slabs: Arc<Mutex<Slabs>>,
    /// Whether `context` could be made current in this thread; `None` before the first upload.
    bound: Option<Result<()>>,
    stream: Arc<Stream>,
    events: Arc<EventPool>,
    keep_bytes: Arc<AtomicU64>,
    readers: rayon::ThreadPool,
    chunks: Vec<(Pinned, Event)>,
    next: usize,
    /// Pinned copies, each with its part, so that no other source is allocated at the same address.
    kept: HashMap<Origin, (PinnedPart, HostPart)>,
}

impl Drop for Copier {
    fn drop(&mut self) {
        // The chunks are freed next: nothing may read them then.
        let _ = self.context.bind();
        self.stream.drain();
    }
}

impl Copier {
    /// Queues every copy of one weight, and returns the event that marks their end.
    fn bring(&mut self, parcel: Parcel) -> Result<Event> {
        let Parcel { to, pieces, after, keep } = parcel;
        let queued = self.queue(to, &pieces, &after, keep);
        self.events.put(after);
        queued
    }

    fn queue(&mut self, to: u64, pieces: &[Piece], after: &Event, keep: bool) -> Result<Event> {
        self.bound.get_or_insert_with(|| self.context.bind()).clone()?;
        self.stream.wait(after)?;
        for piece in pieces {
            self.piece(to + piece.to as u64, piece, keep)?;
        }
        let event = self.events.take()?;
        event.record(&self.stream)?;
        Ok(event)
    }

    /// Queues the copies of one piece: from a pinned copy if there is one or may be one, or through
    /// the ring of chunks.
    fn piece(&mut self, to: u64, piece: &Piece, keep: bool) -> Result<()> {
        let read = |from: usize, out: &mut [u8]| piece.read(from, out);
        let Some((origin, part)) = Origin::of(piece) else {
            return self.pass(to, piece.bytes, piece.unit, &read);
        };
        let allowed = self.keep_bytes.load(Ordering::Relaxed);
        let pinned = lock(&self.slabs).bytes();
        if pinned > allowed {
            self.stream.drain(); // they may be being copied
            self.kept.clear();
            lock(&self.slabs).clear();
        }
        if keep && !self.kept.contains_key(&origin) {
            let taken = lock(&self.slabs).take(piece.bytes, allowed);
            match taken {
                Ok(Some(mut own)) => {
                    fill(&self.readers, own.bytes_mut(), piece.unit, &read)?;
                    self.kept.insert(origin.clone(), (own, part.clone()));
                }
                Ok(None) => {}
                // If the system refuses to pin more memory, the ring of chunks serves as well.
                Err(_) => self.keep_bytes.store(pinned.min(allowed), Ordering::Relaxed),
            }
        }
        match self.kept.get(&origin) {
            // SAFETY: the place is as large as this weight; steps that read it before are waited
            // for; the bytes live as long as the stream.
            Some((own, _)) => unsafe { self.stream.upload(to, own.bytes()) },
            None => self.pass(to, piece.bytes, piece.unit, &read),
        }
    }

    /// Copies `bytes` bytes, made by `read` in multiples of `unit` bytes, through the ring of
    /// chunks.
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
            // SAFETY: as in `piece`; the chunk is not changed before the event is reached.
            unsafe { self.stream.upload(to + from as u64, &chunk.bytes()[..n]) }?;
            copied.record(&self.stream)?;
        }
        Ok(())
    }
}

type Read<'a> = dyn Fn(usize, &mut [u8]) -> Result<()> + Sync + 'a;

/// Fills `out` with several threads: a single thread copies 5 to 10 GB/s from the page cache, which
/// is slower than PCIe.
fn fill(readers: &rayon::ThreadPool, out: &mut [u8], unit: usize, read: &Read) -> Result<()> {
    let grain = (1usize << 20).div_ceil(unit) * unit;
    if out.len() <= grain {
        return read(0, out);
    }
    readers.install(|| {
        out.par_chunks_mut(grain).enumerate().try_for_each(|(i, part)| read(i * grain, part))
    })
}
