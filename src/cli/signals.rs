//! SIGINT and SIGTERM: the first signal asks the run to stop at its next operation, the second ends
//! the process at once.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// The signal that was received, if any.
pub fn received() -> Option<u8> {
    RECEIVED.get().map(|r| r.load(Ordering::Relaxed) as u8).filter(|&signal| signal != 0)
}

/// Starts to record the two signals. If that fails, the system's default handling stays: the
/// process ends.
pub fn listen() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let received = RECEIVED.get_or_init(Default::default);
    let second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the first signal only sets `second`, the next one finds it set and
        // ends the process.
        let _ = signal_hook::flag::register_conditional_shutdown(
            signal,
            128 + signal,
            Arc::clone(&second),
        );
        let _ = signal_hook::flag::register(signal, Arc::clone(&second));
        let _ = signal_hook::flag::register_usize(signal, Arc::clone(received), signal as usize);
    }
}
