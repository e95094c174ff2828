//! What the process was started with: variables of its environment that libraries read, and whether
//! there is a stdout.

#[cfg(target_os = "linux")]
use std::path::Path;
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes Mesa's Vulkan drivers and the libraries that they use print nothing on stderr, unless the
/// user asked for it. Must be called before the process has a second thread.
#[allow(unsafe_code, reason = "drivers are configured only by the environment")]
pub fn quiet_drivers() {
    for (name, value) in [("MESA_VK_IGNORE_CONFORMANCE_WARNING", "true"), ("MESA_LOG", "null")] {
        let asked = ["MESA_DEBUG", "MESA_LOG_FILE", name];
        if asked.iter().all(|name| std::env::var_os(name).is_none()) {
            // SAFETY: `main` calls this first, so no other thread reads the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }
    // Mesa asks for a display of Wayland, whose library complains if this is not an absolute path.
    #[cfg(target_os = "linux")]
    if !std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|folder| Path::new(&folder).has_root()) {
        let folder = std::env::temp_dir();
        let folder = if folder.has_root() { &folder } else { Path::new("/tmp") };
        // SAFETY: as above.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", folder) };
    }
}

/// Whether the process was started without a stdout. The standard library opens `/dev/null` in its
/// place before `main`, so that every write succeeds.
pub fn stdout_was_closed() -> bool {
    #[cfg(unix)]
    return STDOUT_WAS_CLOSED.load(Ordering::Relaxed);
    #[cfg(not(unix))]
    false
}

#[cfg(unix)]
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The system calls this before the standard library starts.
#[cfg(unix)]
#[used]
#[allow(unsafe_code, reason = "nothing that runs later can tell")]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static AT_START: extern "C" fn() = {
    extern "C" fn look() {
        // SAFETY: only asks for the flags of a number that may not be an open file.
        let is_closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
        STDOUT_WAS_CLOSED.store(is_closed, Ordering::Relaxed);
    }
    look
};
