//! The ids of jobs that are being accepted. A client that chooses an id may send it twice at the
//! same time: the files of the second request must not replace those of the first.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fault::Fault;

/// How long a request waits for another one with its id.
const WAITING: Duration = Duration::from_secs(2);

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
    ///
    /// # Errors
    /// 503 if that takes long: few requests are accepted at a time, and others wait for this one.
    pub fn enter(&self, id: &str) -> Result<Entered<'_>, Fault> {
        let waited = self.left.wait_timeout_while(self.lock(), WAITING, |ids| ids.contains(id));
        let (mut ids, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !ids.insert(id.to_string()) {
            let message = "another request with this id or idempotency key is being accepted";
            return Err(Fault::new(503, "busy", message).retry_after(1));
        }
        Ok(Entered { of: self, id: id.to_string() })
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

    use super::*;

    #[test]
    fn one_id_is_used_by_one_request_at_a_time_and_others_do_not_wait() {
        let accepting = Accepting::default();
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let other = accepting.enter("other").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _entered = accepting.enter("one").unwrap();
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        let refused = accepting.enter("other").unwrap_err();
        assert_eq!((refused.status, refused.retry_after), (503, Some(1)));
        drop(other);
        drop(accepting.enter("other").unwrap());
    }
}
