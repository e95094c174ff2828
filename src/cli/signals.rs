//! Signals that end a run: the first one asks it to stop at its next operation, the second ends the
//! process at once. They are SIGINT, SIGTERM and, where a lost terminal would end the process,
//! SIGHUP.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// The signal that was received, if any.
pub fn received() -> Option<u8> {
    RECEIVED.get().map(|r| r.load(Ordering::Relaxed) as u8).filter(|&signal| signal != 0)
}

/// Ignores the signals: another process looks at them.
#[cfg(feature = "server")]
pub fn ignore() {
    for signal in ending_signals() {
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
}

/// Starts to record the signals. If that fails, the system's default handling stays: the process
/// ends.
pub fn listen() {
    let received = RECEIVED.get_or_init(Default::default);
    let second = Arc::new(AtomicBool::new(false));
    for signal in ending_signals() {
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

fn ending_signals() -> Vec<i32> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if !ignores_hangup() {
        signals.push(signal_hook::consts::SIGHUP);
    }
    signals
}

/// Whether this process was started so that it ignores SIGHUP, as `nohup` does. Where the system
/// cannot be asked it counts as ignored, so that the handling of the system stays.
#[cfg(unix)]
fn ignores_hangup() -> bool {
    let ignored = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    ignored().is_none_or(|mask| mask & 1 << (signal_hook::consts::SIGHUP - 1) != 0)
}

/// From now on, a write beyond the largest size of a file (`ulimit -f`) is an error of that write
/// instead of the end of the process.
pub fn survive_limits() {
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}
