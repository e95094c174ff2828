//! Finds the shared library and loads it into this process, or makes a folder from which other
//! processes load it.

use std::path::PathBuf;

/// The fake driver in this process. Its settings, counters and devices belong to the process, not
/// to the handle, so tests that share a process must not run at the same time.
#[derive(Clone, Copy)]
pub struct Handle {
    #[cfg(target_os = "linux")]
    functions: linux::Functions,
    #[cfg(not(target_os = "linux"))]
    never: std::convert::Infallible,
}

/// Loads the fake driver, so that every later load of `libcuda.so` in this process finds it. Call
/// it before anything uses CUDA; calling it again does nothing. (NVML is not found in this way,
/// only with [`folder`].)
pub fn install() -> Result<Handle, String> {
    imp::install()
}

/// A folder for the `LD_LIBRARY_PATH` of other processes: there the fake driver is `libcuda.so`,
/// `libcuda.so.1` and `libnvidia-ml.so.1`. It is among the temporary files and is the same each
/// time.
pub fn folder() -> Result<PathBuf, String> {
    imp::folder()
}

#[cfg(not(target_os = "linux"))]
use elsewhere as imp;
#[cfg(target_os = "linux")]
use linux as imp;

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::*;

    pub fn install() -> Result<Handle, String> {
        Err("the fake CUDA driver works on Linux only".into())
    }

    pub fn folder() -> Result<PathBuf, String> {
        install().map(|h| match h.never {})
    }

    impl Handle {
        pub fn configure(&self, _settings: &str) -> Result<(), String> {
            match self.never {}
        }

        pub fn report(&self) -> String {
            match self.never {}
        }

        pub fn log(&self) -> Vec<String> {
            match self.never {}
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use std::ffi::{CStr, CString, c_char, c_void};
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::os::unix::ffi::OsStrExt;
    use std::sync::OnceLock;

    #[derive(Clone, Copy)]
    pub struct Functions {
        configure: unsafe extern "C" fn(*const c_char) -> i32,
        report: unsafe extern "C" fn(*mut u8, usize) -> usize,
        log: unsafe extern "C" fn(*mut u8, usize) -> usize,
    }

    const FILE: &str = "libfake_cuda.so";

    /// The library next to the running executable: tests run in `target/<profile>/deps`, programs
    /// one folder above.
    fn library() -> Result<PathBuf, String> {
        let program = std::env::current_exe()
            .map_err(|e| format!("the path of this program cannot be read: {e}"))?;
        let folders =
            program.ancestors().skip(1).take(2).flat_map(|f| [f.join("deps"), f.to_path_buf()]);
        let found = folders.map(|f| f.join(FILE)).find(|f| f.is_file());
        found.ok_or_else(|| {
            format!("no {FILE} next to {}: build the crate fake-cuda", program.display())
        })
    }

    fn last_error() -> String {
        // SAFETY: the returned string stays valid until the next such call in this thread.
        let text = unsafe { libc::dlerror() };
        if text.is_null() {
            return "unknown error".into();
        }
        // SAFETY: see above.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// A function of the library.
    ///
    /// # Safety
    ///
    /// `F` must be its type.
    unsafe fn symbol<F: Copy>(library: *mut c_void, name: &CStr) -> Result<F, String> {
        // SAFETY: `library` comes from `dlopen` and is never closed.
        let at = unsafe { libc::dlsym(library, name.as_ptr()) };
        // SAFETY: by the contract; function pointers have the size of other pointers.
        if at.is_null() { Err(last_error()) } else { Ok(unsafe { std::mem::transmute_copy(&at) }) }
    }

    fn load() -> Result<Handle, String> {
        let path = CString::new(library()?.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
        let flags = libc::RTLD_NOW | libc::RTLD_GLOBAL | libc::RTLD_NODELETE;
        // SAFETY: the library runs no code when it is loaded.
        let library = unsafe { libc::dlopen(path.as_ptr(), flags) };
        if library.is_null() {
            return Err(last_error());
        }
        // SAFETY: this call loads nothing.
        let known =
            unsafe { libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        if known != library {
            return Err(
                "another libcuda.so is loaded already, or the fake one does not have that name"
                    .into(),
            );
        }
        // SAFETY: these are the functions of `api/control.rs`.
        let functions = unsafe {
            Functions {
                configure: symbol(library, c"fake_cuda_configure")?,
                report: symbol(library, c"fake_cuda_report")?,
                log: symbol(library, c"fake_cuda_log")?,
            }
        };
        Ok(Handle { functions })
    }

    pub fn install() -> Result<Handle, String> {
        static HANDLE: OnceLock<Result<Handle, String>> = OnceLock::new();
        HANDLE.get_or_init(load).clone()
    }

    pub fn folder() -> Result<PathBuf, String> {
        let library = library()?.canonicalize().map_err(|e| e.to_string())?;
        let mut hasher = DefaultHasher::new();
        library.hash(&mut hasher);
        let folder = std::env::temp_dir().join(format!("fake-cuda-{:016x}", hasher.finish()));
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for name in ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1"] {
            let link = folder.join(name);
            // Another process may be doing the same at this moment.
            match std::os::unix::fs::symlink(&library, &link) {
                Err(_) if std::fs::read_link(&link).is_ok_and(|to| to == library) => {}
                outcome => outcome.map_err(|e| format!("{}: {e}", link.display()))?,
            }
        }
        Ok(folder)
    }

    impl Handle {
        /// Applies settings such as `memory.0=1G,kernels=skip` in addition to the current ones;
        /// `default` resets them.
        pub fn configure(&self, settings: &str) -> Result<(), String> {
            // The settings are parsed here, too, because only this side can return the error
            // message.
            crate::settings::Settings::default().apply(settings)?;
            let text = CString::new(settings).map_err(|e| e.to_string())?;
            // SAFETY: the text lives during the call.
            match unsafe { (self.functions.configure)(text.as_ptr()) } {
                0 => Ok(()),
                code => Err(format!("the fake driver returned {code}")),
            }
        }

        /// What has happened since the last report, as JSON objects, one per line. Resets the
        /// counters.
        pub fn report(&self) -> String {
            fetch(self.functions.report)
        }

        /// The operations since the last call, if the log is on (`log=1`).
        pub fn log(&self) -> Vec<String> {
            fetch(self.functions.log).lines().map(str::to_string).collect()
        }
    }

    fn fetch(from: unsafe extern "C" fn(*mut u8, usize) -> usize) -> String {
        let mut bytes = Vec::new();
        loop {
            // SAFETY: the buffer has this length.
            let length = unsafe { from(bytes.as_mut_ptr(), bytes.len()) };
            if length <= bytes.len() {
                bytes.truncate(length);
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            bytes.resize(length, 0);
        }
    }
}
