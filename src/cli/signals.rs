//! SIGINT and SIGTERM: the first asks the run to stop at its next operation, the second ends the process at once.

use std::sync::atomic::{AtomicU8, Ordering};

static RECEIVED: AtomicU8 = AtomicU8::new(0);

/// The signal that asked us to stop, if one came.
pub fn received() -> Option<u8> {
    Some(RECEIVED.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
}

/// From now on the two signals are noted.
#[cfg(unix)]
pub fn listen() {
    extern "C" fn note(signal: libc::c_int) {
        if RECEIVED.swap(signal as u8, Ordering::Relaxed) != 0 {
            // SAFETY: `_exit` may be called in a signal handler, and does not return to what it interrupted.
            unsafe { libc::_exit(128 + signal) }
        }
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler touches one lock-free atomic and `_exit`, both allowed in a signal handler, and lives as long
        // as the program.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// The system's own handling stays: the process ends, and the next run sweeps what it left.
#[cfg(not(unix))]
pub fn listen() {}
