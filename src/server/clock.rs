//! The time of the server: it never runs backwards.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds in a second.
pub const SECOND: i64 = 1_000_000_000;

/// The wall clock at the start, and the monotonic clock from there on. Setting the clock of the
/// machine back opens no window of a limit again, and setting it forward expires nothing.
#[derive(Debug)]
pub struct Clock {
    start: i64,
    since: Instant,
    /// Added by tests.
    ahead: AtomicI64,
}

impl Clock {
    /// Starts at `wall` (nanoseconds since 1970), but not before `newest`, the newest instant that
    /// was stored.
    pub fn starting(wall: i64, newest: i64) -> Self {
        Clock { start: wall.max(newest), since: Instant::now(), ahead: AtomicI64::new(0) }
    }

    /// Starts at the time of the machine, but not before `newest`.
    pub fn after(newest: i64) -> Self {
        Clock::starting(wall(), newest)
    }

    /// Nanoseconds since 1970.
    pub fn nanoseconds(&self) -> i64 {
        let elapsed = i64::try_from(self.since.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let now = self.start.saturating_add(elapsed);
        now.saturating_add(self.ahead.load(Ordering::Relaxed))
    }

    /// Seconds since 1970.
    pub fn seconds(&self) -> f64 {
        self.nanoseconds() as f64 / SECOND as f64
    }

    /// Lets `nanoseconds` pass.
    #[cfg(test)]
    pub fn advance(&self, nanoseconds: i64) {
        self.ahead.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// The clock of the machine, in nanoseconds since 1970.
fn wall() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f27_a_clock_that_was_set_back_starts_at_the_newest_stored_instant() {
        let clock = Clock::starting(1_000, 5_000);
        let first = clock.nanoseconds();
        assert!(first >= 5_000);
        assert!(clock.nanoseconds() >= first);
        clock.advance(SECOND);
        assert!(clock.nanoseconds() >= first + SECOND);
        assert!(Clock::after(0).seconds() > 1.7e9);
    }
}
