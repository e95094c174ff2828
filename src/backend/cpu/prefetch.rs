//! A thread that waits for the disk, so that the arithmetic does not.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::backend::WeightKey;
use crate::error::{Error, Result};
use crate::tensor::HostPart;

/// Brings weights into memory in the order in which they were asked for.
pub(super) struct Prefetcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(WeightKey, Vec<HostPart>)>,
    /// What the thread is bringing in now.
    current: Option<WeightKey>,
    /// What could not be brought in, and why.
    failed: Vec<(WeightKey, Error)>,
    closed: bool,
}

impl Shared {
    /// The state stays sound whatever thread panicked: it is only ever a list of wishes.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        while !state.closed {
            let Some((key, parts)) = state.queue.pop_front() else {
                state = self.wait(state);
                continue;
            };
            state.current = Some(key);
            drop(state);
            let mut ranges = parts.iter().flat_map(HostPart::ranges);
            let outcome = ranges.try_for_each(|(source, range)| source.will_need(range));
            state = self.lock();
            if let Err(e) = outcome {
                state.failed.push((key, e));
            }
            state.current = None;
            self.changed.notify_all();
        }
    }
}

/// Closes the list when dropped, also by a panic.
struct Closed<'a>(&'a Shared);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.current = None;
        drop(state);
        self.0.changed.notify_all();
    }
}

impl Prefetcher {
    pub(super) fn new() -> Result<Prefetcher> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = Builder::new()
            .name("prefetch".into())
            .spawn(move || {
                // However the loop ends, nobody waits for it any longer: what is missing is then read on first use.
                let _closed = Closed(&theirs);
                theirs.serve();
            })
            .map_err(|e| {
                Error::device(format!("could not start the prefetch thread: {e}")).at("cpu")
            })?;
        Ok(Prefetcher { shared, thread: Some(thread) })
    }

    /// Asks for `parts`, after everything asked for before.
    pub(super) fn want(&self, key: WeightKey, parts: &[HostPart]) {
        self.shared.lock().queue.push_back((key, parts.to_vec()));
        self.shared.changed.notify_all();
    }

    /// Returns once `key` has been brought in. The computation waits here and not in page faults, which would read the file in small pieces.
    pub(super) fn arrived(&self, key: WeightKey) -> Result<()> {
        let mut state = self.shared.lock();
        while !state.closed
            && (state.current == Some(key) || state.queue.iter().any(|(wanted, _)| *wanted == key))
        {
            state = self.shared.wait(state);
        }
        match state.failed.iter().find(|(failed, _)| *failed == key) {
            Some((_, e)) => Err(e.clone()),
            None => Ok(()),
        }
    }

    /// After this the thread does not touch `key` again: a page brought in after its weight was let go would stay for good, outside the budget.
    pub(super) fn cancel(&self, key: WeightKey) {
        let mut state = self.shared.lock();
        state.queue.retain(|(wanted, _)| *wanted != key);
        while !state.closed && state.current == Some(key) {
            state = self.shared.wait(state);
        }
        state.failed.retain(|(failed, _)| *failed != key);
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.queue.clear();
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has lost nothing but read-ahead
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::tensor::{ByteSource, Scale};
    use std::ops::Range;
    use std::time::Duration;

    /// Records what is asked for; each request takes a while.
    #[derive(Default)]
    struct Slow(Mutex<Vec<usize>>);

    impl ByteSource for Slow {
        fn bytes(&self) -> &[u8] {
            &[]
        }
        fn will_need(&self, range: Range<usize>) -> Result<()> {
            std::thread::sleep(Duration::from_millis(5));
            self.0.lock().unwrap().push(range.start);
            if range.start == 1000 { Err(Error::model("the disk fails here")) } else { Ok(()) }
        }
    }

    fn part(source: &Arc<Slow>, offset: usize) -> HostPart {
        HostPart {
            source: source.clone(),
            offset,
            rows: 1,
            cols: 5,
            dtype: DType::BF16,
            scale: Scale::One,
        }
    }

    #[test]
    fn weights_arrive_in_order_and_cancelled_ones_never_after_cancel_returns() {
        let source = Arc::new(Slow::default());
        let prefetcher = Prefetcher::new().unwrap();
        for i in 0..20 {
            prefetcher.want(WeightKey(i as u64), &[part(&source, i)]);
        }
        // Whatever the thread is at: once cancelled, a weight's entry can no longer appear.
        for i in (0..20).rev().step_by(2) {
            prefetcher.cancel(WeightKey(i as u64));
            let seen = source.0.lock().unwrap().contains(&i);
            std::thread::sleep(Duration::from_millis(1));
            assert_eq!(source.0.lock().unwrap().contains(&i), seen, "weight {i}");
        }
        (0..20).for_each(|i| prefetcher.arrived(WeightKey(i)).unwrap());
        let seen = source.0.lock().unwrap().clone();
        assert!(seen.is_sorted(), "{seen:?}");
        assert!((0..20).step_by(2).all(|i| seen.contains(&i)), "{seen:?}");
        assert!(seen.len() < 20, "nothing was cancelled in time");
        let bad = WeightKey(1000);
        prefetcher.want(bad, &[part(&source, 1000)]);
        assert!(prefetcher.arrived(bad).unwrap_err().to_string().contains("fails here"));
        prefetcher.cancel(bad);
        prefetcher.arrived(bad).unwrap();
    }
}
