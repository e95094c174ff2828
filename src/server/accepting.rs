//! The ids of jobs that are being accepted. A client that chooses an id may send it twice at the
//! same time: the files of the second request must not replace those of the first.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The ids that are in use.
#[derive(Debug, Default)]
pub struct Accepting {
    ids: Mutex<HashSet<String>>,
    /// Set when one of them is free again.
    left: Condvar,
}

/// Keeps an id in use while it exists.
#[derive(Debug)]
pub struct Entered<'a> {
    of: &'a Accepting,
    id: String,
}

impl Accepting {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else uses `id`.
    pub fn enter(&self, id: &str) -> Entered<'_> {
        let mut ids = self.lock();
        while !ids.insert(id.to_string()) {
            ids = self.left.wait(ids).unwrap_or_else(PoisonError::into_inner);
        }
        Entered { of: self, id: id.to_string() }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.of.lock().remove(&self.id);
        self.of.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_id_is_used_by_one_request_at_a_time_and_others_do_not_wait() {
        let accepting = Accepting::default();
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let other = accepting.enter("other");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _entered = accepting.enter("one");
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        drop(other);
        drop(accepting.enter("other"));
    }
}
