//! Pinned memory for copies of weights that pass in every run, in large pieces.
//!
//! Pinning takes about a quarter of a second a GiB, and can hold back work of other streams. So a
//! thread pins as much as a plan needs while the text encoders run, and not one block after the
//! other in the first step.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::driver::{Context, Pinned, PinnedPart};
use crate::error::Result;

/// Bytes that are pinned at a time: copies can begin before all is pinned.
const SLAB: u64 = 256 << 20;
/// Parts begin at multiples of this many bytes.
const ALIGN: usize = 256;

#[derive(Default)]
struct State {
    /// Each with the bytes of it that are in use.
    slabs: Vec<(Arc<Pinned>, usize)>,
    /// Bytes of all slabs, including those that are being pinned.
    bytes: u64,
    /// Whether the thread is going to add a slab.
    pinning: bool,
    /// The thread must end.
    stop: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slabs, and the thread that pins them.
pub(super) struct Slabs {
    context: Arc<Context>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Slabs {
    pub fn new(context: &Arc<Context>) -> Slabs {
        Slabs { context: context.clone(), shared: Arc::default(), thread: None }
    }

    /// Starts to pin memory until all slabs together have `bytes` bytes, and returns.
    pub fn prepare(&mut self, bytes: u64) {
        self.finish();
        let missing = bytes.saturating_sub(self.shared.lock().bytes);
        if missing == 0 {
            return;
        }
        self.shared.lock().pinning = true;
        let (context, shared) = (self.context.clone(), self.shared.clone());
        let pin = move || {
            pin(&context, &shared, missing);
            shared.lock().pinning = false;
            shared.changed.notify_all();
        };
        // Without the thread, memory is pinned when it is needed.
        self.thread = std::thread::Builder::new().name("cuda-pin".into()).spawn(pin).ok();
        if self.thread.is_none() {
            self.shared.lock().pinning = false;
        }
    }

    /// Bytes of all slabs.
    pub fn bytes(&self) -> u64 {
        self.shared.lock().bytes
    }

    /// `bytes` bytes that nothing else uses; pinned now if the slabs have no room for them. `None`
    /// if all slabs together would be larger than `most`.
    ///
    /// # Errors
    /// If the system refuses to pin more memory.
    pub fn take(&mut self, bytes: usize, most: u64) -> Result<Option<PinnedPart>> {
        let mut state = self.shared.lock();
        loop {
            let room = |(slab, used): &&mut (Arc<Pinned>, usize)| slab.len() - used >= bytes;
            if let Some((slab, used)) = state.slabs.iter_mut().find(room) {
                let at = *used;
                *used = (at + bytes).next_multiple_of(ALIGN).min(slab.len());
                // SAFETY: no other part has these bytes: `used` only grows.
                return Ok(Some(unsafe { PinnedPart::new(slab.clone(), at, bytes) }));
            }
            if !state.pinning {
                break;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.bytes + bytes as u64 > most {
            return Ok(None);
        }
        let slab = Arc::new(Pinned::new(&self.context, bytes)?);
        state.bytes += bytes as u64;
        state.slabs.push((slab.clone(), bytes));
        // SAFETY: the slab is new, and all of it is in use from now on.
        Ok(Some(unsafe { PinnedPart::new(slab, 0, bytes) }))
    }

    /// Forgets all slabs: their memory is freed with their last part.
    pub fn clear(&mut self) {
        self.finish();
        let mut state = self.shared.lock();
        state.slabs.clear();
        state.bytes = 0;
    }

    /// Ends the thread after the slab that it is pinning.
    fn finish(&mut self) {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.lock().stop = false;
    }
}

impl Drop for Slabs {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Adds slabs of `missing` bytes together. Where the system refuses, fewer: it is asked again, and
/// then the error is returned, when memory is taken.
fn pin(context: &Arc<Context>, shared: &Shared, missing: u64) {
    let mut missing = missing;
    if context.bind().is_err() {
        return;
    }
    while missing > 0 && !shared.lock().stop {
        let bytes = missing.min(SLAB);
        let Ok(slab) = Pinned::new(context, bytes as usize) else { return };
        missing -= bytes;
        let mut state = shared.lock();
        state.slabs.push((Arc::new(slab), 0));
        state.bytes += bytes;
        shared.changed.notify_all();
    }
}
