//! The pauses between attempts, and random numbers for them.

use std::time::{Duration, Instant};

use super::super::{cancelled, signals};
use crate::error::{Error, Result};

/// The first pause and the longest one that the client chooses itself.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The pauses between attempts: each about twice as long as the one before, never shorter than the
/// server asks for, and different for each client, so that many do not return at once.
pub struct Backoff {
    failed: u32,
    since: Instant,
    patience: Duration,
}

impl Backoff {
    /// For a client that gives up after `patience`.
    pub fn new(patience: Duration) -> Self {
        Backoff { failed: 0, since: Instant::now(), patience }
    }

    /// The next pause, for a random number from 0 to 1; `None` if it would end after patience does.
    pub fn next(&mut self, asked: Option<Duration>, random: f64) -> Option<Duration> {
        let full = (PAUSE.0 * (1 << self.failed.min(10))).min(PAUSE.1);
        self.failed += 1;
        let own = full.mul_f64(0.5 + 0.5 * random);
        let wait = asked.map_or(own, |asked| own.max(asked.mul_f64(1.0 + 0.1 * random)));
        (self.since.elapsed() + wait <= self.patience).then_some(wait)
    }
}

/// Waits, unless a signal arrives.
///
/// # Errors
/// [`Kind::Cancelled`](crate::error::Kind::Cancelled) after a signal.
pub fn pause(wait: Duration) -> Result<()> {
    let until = Instant::now() + wait;
    while signals::received().is_none() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    cancelled()
}

fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes)
        .map_err(|e| Error::device(format!("the system gives no random numbers: {e}")))
}

/// A random number from 0 to 1.
pub fn random() -> Result<f64> {
    let mut bytes = [0; 4];
    fill_random(&mut bytes)?;
    Ok(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

/// `bytes` random bytes in hexadecimal.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    fill_random(&mut random)?;
    Ok(random.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_differ_and_are_never_shorter_than_asked() {
        let mut backoff = Backoff::new(Duration::from_secs(600));
        let mut next = |asked: Option<u64>, random| {
            backoff.next(asked.map(Duration::from_secs), random).unwrap().as_secs_f64()
        };
        assert_eq!((next(None, 0.0), next(None, 1.0), next(None, 0.0)), (0.25, 1.0, 1.0));
        assert_eq!((next(Some(60), 0.0), next(Some(0), 1.0)), (60.0, 8.0));
        assert!((66.0..66.1).contains(&next(Some(60), 1.0)));
        (0..100).for_each(|_| assert!(next(None, 1.0) <= 30.0));
        assert_eq!(
            Backoff::new(Duration::from_secs(5)).next(Some(Duration::from_secs(9)), 0.),
            None
        );
        assert_eq!(Backoff::new(Duration::ZERO).next(None, 0.0), None);
    }
}
