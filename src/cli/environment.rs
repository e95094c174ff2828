//! Variables of this process's environment that libraries read.

/// Makes Mesa's Vulkan drivers print nothing on stderr about themselves, unless the user asked for
/// it. Must be called before the process has a second thread.
#[allow(unsafe_code, reason = "drivers are told only by the environment")]
pub fn quiet_drivers() {
    for (name, value) in [("MESA_VK_IGNORE_CONFORMANCE_WARNING", "true"), ("MESA_LOG", "null")] {
        let asked = ["MESA_DEBUG", "MESA_LOG_FILE", name];
        if asked.iter().all(|name| std::env::var_os(name).is_none()) {
            // SAFETY: `main` calls this first, so no other thread reads the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }
}
