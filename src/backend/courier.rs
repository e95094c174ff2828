//! A thread that loads weights to a device while steps run, in the order of the requests.
//!
//! Each device loads in its own way: the CPU reads ahead in a file, a GPU queues copies.
//! Here are the parts that every device needs: a queue, waiting for one weight, cancelling, and
//! errors (panics included) that reach the step that uses the weight.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::backend::WeightKey;
use crate::error::{Error, Result};

/// The state of a requested weight. A weight that was waited for has none.
enum State<A> {
    /// In the queue, or being loaded.
    Waiting,
    /// Brought, with what the device returned; nobody has waited for it yet.
    Arrived(A),
    Failed(Error),
}

struct Desk<P, A> {
    requests: VecDeque<(WeightKey, P)>,
    states: HashMap<WeightKey, State<A>>,
    /// The weight that the thread loads now.
    busy: Option<WeightKey>,
    stop: bool,
}

struct Shared<P, A> {
    desk: Mutex<Desk<P, A>>,
    changed: Condvar,
}

impl<P, A> Shared<P, A> {
    fn lock(&self) -> MutexGuard<'_, Desk<P, A>> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, desk: MutexGuard<'a, Desk<P, A>>) -> MutexGuard<'a, Desk<P, A>> {
        self.changed.wait(desk).unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's loop: takes requests until the courier is dropped.
    fn serve(&self, device: &'static str, mut load: impl FnMut(P) -> Result<A>) {
        loop {
            let mut desk = self.lock();
            let (key, parcel) = loop {
                if desk.stop {
                    return;
                }
                match desk.requests.pop_front() {
                    Some(request) => break request,
                    None => desk = self.wait(desk),
                }
            };
            desk.busy = Some(key);
            drop(desk);

            // A step may wait for this weight: it gets an answer even after a panic.
            let loaded = catch_unwind(AssertUnwindSafe(|| load(parcel))).unwrap_or_else(|_| {
                Err(Error::device("the thread that loads weights panicked").at(device))
            });
            let mut desk = self.lock();
            desk.busy = None;
            desk.states.insert(
                key,
                match loaded {
                    Ok(arrived) => State::Arrived(arrived),
                    Err(e) => State::Failed(e),
                },
            );
            drop(desk);
            self.changed.notify_all();
        }
    }
}

/// Loads parcels `P` (what a device needs to know to load one weight) and keeps an `A` for each
/// until somebody waits for it (for CUDA, an event in the copy stream).
pub(super) struct Courier<P, A> {
    shared: Arc<Shared<P, A>>,
    thread: Option<JoinHandle<()>>,
}

impl<P: Send + 'static, A: Send + 'static> Courier<P, A> {
    /// Starts the thread, which calls `load` for one parcel after another. `load` is dropped in
    /// that thread when the courier is dropped.
    ///
    /// # Errors
    /// [`Kind::Device`](crate::error::Kind::Device) if the system cannot start a thread.
    pub fn start(
        device: &'static str,
        load: impl FnMut(P) -> Result<A> + Send + 'static,
    ) -> Result<Courier<P, A>> {
        let desk =
            Desk { requests: VecDeque::new(), states: HashMap::new(), busy: None, stop: false };
        let shared = Arc::new(Shared { desk: Mutex::new(desk), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("{device}-weights"))
            .spawn(move || theirs.serve(device, load))
            .map_err(|e| Error::device(format!("could not start a thread: {e}")).at(device))?;
        Ok(Courier { shared, thread: Some(thread) })
    }
}

impl<P, A> Courier<P, A> {
    /// Asks for a weight, after everything that was asked for before.
    pub fn request(&self, key: WeightKey, parcel: P) {
        let mut desk = self.shared.lock();
        desk.states.insert(key, State::Waiting);
        desk.requests.push_back((key, parcel));
        drop(desk);
        self.shared.changed.notify_all();
    }

    /// Waits until `key` has been loaded. The first call returns what the device made of it, later
    /// ones `None`.
    ///
    /// # Errors
    /// Those of loading `key`, on every call until it is cancelled.
    pub fn wait_for(&self, key: WeightKey) -> Result<Option<A>> {
        let mut desk = self.shared.lock();
        while let Some(State::Waiting) = desk.states.get(&key) {
            desk = self.shared.wait(desk);
        }
        if let Some(State::Failed(e)) = desk.states.get(&key) {
            return Err(e.clone());
        }
        match desk.states.remove(&key) {
            Some(State::Arrived(arrived)) => Ok(Some(arrived)),
            _ => Ok(None),
        }
    }

    /// Withdraws the request for `key`. If it is being loaded, this waits until that is done: once
    /// it returns, the thread does not touch the weight or its place again.
    pub fn cancel(&self, key: WeightKey) {
        let mut desk = self.shared.lock();
        desk.requests.retain(|(requested, _)| *requested != key);
        while desk.busy == Some(key) {
            desk = self.shared.wait(desk);
        }
        desk.states.remove(&key);
    }

    /// Withdraws all requests, and waits for the one that is being loaded.
    pub fn cancel_all(&self) {
        let mut desk = self.shared.lock();
        desk.requests.clear();
        while desk.busy.is_some() {
            desk = self.shared.wait(desk);
        }
        desk.states.clear();
    }
}

impl<P, A> Drop for Courier<P, A> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread catches panics of `load`, so the result of `join` contains nothing that
            // could be reported.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A courier that records the numbers it loads; each takes a while, and 1000 fails.
    fn slow() -> (Courier<u64, u64>, Arc<Mutex<Vec<u64>>>) {
        let brought = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&brought);
        let courier = Courier::start("test", move |n: u64| {
            std::thread::sleep(Duration::from_millis(5));
            record.lock().unwrap().push(n);
            match n {
                1000 => Err(Error::model("the disk fails here")),
                1001 => panic!("expected in this test"),
                n => Ok(2 * n),
            }
        });
        (courier.unwrap(), brought)
    }

    #[test]
    fn weights_arrive_in_order_and_cancelled_ones_never_after_cancel_returns() {
        let (courier, brought) = slow();
        (0..20).for_each(|n| courier.request(WeightKey::new(n as u32), n));
        for n in (0..20).rev().step_by(2) {
            courier.cancel(WeightKey::new(n as u32));
            let seen = brought.lock().unwrap().contains(&n);
            std::thread::sleep(Duration::from_millis(1));
            assert_eq!(brought.lock().unwrap().contains(&n), seen, "weight {n}");
        }
        for n in 0..20 {
            let expected = (n % 2 == 0).then_some(2 * n);
            assert_eq!(courier.wait_for(WeightKey::new(n as u32)).unwrap(), expected);
            assert_eq!(
                courier.wait_for(WeightKey::new(n as u32)).unwrap(),
                None,
                "the second time"
            );
        }
        let seen = brought.lock().unwrap().clone();
        assert!(seen.is_sorted(), "{seen:?}");
        assert!((0..20).step_by(2).all(|n| seen.contains(&n)), "{seen:?}");
        assert!(seen.len() < 20, "nothing was cancelled in time");
    }

    #[test]
    fn errors_and_panics_reach_everyone_who_waits_until_the_weight_is_cancelled() {
        let (courier, _) = slow();
        for (n, message) in [(1000, "the disk fails here"), (1001, "panicked")] {
            courier.request(WeightKey::new(n as u32), n);
            for _ in 0..2 {
                let e = courier.wait_for(WeightKey::new(n as u32)).unwrap_err();
                assert!(e.to_string().contains(message), "{e}");
            }
            courier.cancel(WeightKey::new(n as u32));
            assert_eq!(courier.wait_for(WeightKey::new(n as u32)).unwrap(), None);
        }
        courier.request(WeightKey::new(1000), 7);
        assert_eq!(courier.wait_for(WeightKey::new(1000)).unwrap(), Some(14), "a new request");
    }

    #[test]
    fn after_cancel_all_nothing_is_brought() {
        let (courier, brought) = slow();
        (0..20).for_each(|n| courier.request(WeightKey::new(n as u32), n));
        courier.cancel_all();
        let seen = brought.lock().unwrap().len();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(brought.lock().unwrap().len(), seen);
        assert!(seen < 20, "nothing was cancelled in time");
    }
}
