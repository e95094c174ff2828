//! Finds the shared library and loads it into this process, or makes a folder from which other processes load it.

use std::path::PathBuf;

/// The fake driver in this process. Its settings, counters and devices are the process's, not the handle's: tests that
/// share a process take turns.
#[derive(Clone, Copy)]
pub struct Handle {
    #[cfg(target_os = "linux")]
    functions: linux::Functions,
    #[cfg(not(target_os = "linux"))]
    never: std::convert::Infallible,
}

/// Loads the fake driver, so that whatever asks for `libcuda.so` in this process finds it. Call it before anything uses
/// CUDA; calling it again does nothing. (NVML is not found that way, only through [`folder`].)
pub fn install() -> Result<Handle, String> {
    imp::install()
}

/// A folder for the `LD_LIBRARY_PATH` of other processes: there the fake driver is `libcuda.so`, `libcuda.so.1` and
/// `libnvidia-ml.so.1`. It lies among the temporary files and is the same each time.
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

    /// The library beside the running executable: tests run in `target/<profile>/deps`, programs one folder above.
    fn library() -> Result<PathBuf, String> {
        let program =
            std::env::current_exe().map_err(|e| format!("where does this program lie? {e}"))?;
        let folders =
            program.ancestors().skip(1).take(2).flat_map(|f| [f.join("deps"), f.to_path_buf()]);
        let found = folders.map(|f| f.join(FILE)).find(|f| f.is_file());
        found.ok_or_else(|| {
            format!("no {FILE} beside {}: build the crate fake-cuda", program.display())
        })
    }

    fn last_error() -> String {
        // SAFETY: what it returns stays valid until the next call of its kind in this thread.
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
        // SAFETY: by the contract; function pointers are as large as others.
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
        // SAFETY: loads nothing.
        let known =
            unsafe { libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        if known != library {
            return Err(
                "another libcuda.so is loaded already, or the fake one does not bear that name"
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
            // Another process may be doing the same just now.
            match std::os::unix::fs::symlink(&library, &link) {
                Err(_) if std::fs::read_link(&link).is_ok_and(|to| to == library) => {}
                outcome => outcome.map_err(|e| format!("{}: {e}", link.display()))?,
            }
        }
        Ok(folder)
    }

    impl Handle {
        /// Applies settings such as `memory.0=1G,kernels=skip` on top of those that hold; `default` resets them.
        pub fn configure(&self, settings: &str) -> Result<(), String> {
            // Twice, since only this side can say what is wrong.
            crate::settings::Settings::default().apply(settings)?;
            let text = CString::new(settings).map_err(|e| e.to_string())?;
            // SAFETY: the text lives during the call.
            match unsafe { (self.functions.configure)(text.as_ptr()) } {
                0 => Ok(()),
                code => Err(format!("the fake driver returned {code}")),
            }
        }

        /// What has happened since the last report: JSON objects, one a line. Resets the counters.
        pub fn report(&self) -> String {
            fetch(self.functions.report)
        }

        /// The operations since the log was last fetched, if it is on (`log=1`).
        pub fn log(&self) -> Vec<String> {
            fetch(self.functions.log).lines().map(str::to_string).collect()
        }
    }

    fn fetch(from: unsafe extern "C" fn(*mut u8, usize) -> usize) -> String {
        let mut bytes = Vec::new();
        loop {
            // SAFETY: the buffer is as long as said.
            let length = unsafe { from(bytes.as_mut_ptr(), bytes.len()) };
            if length <= bytes.len() {
                bytes.truncate(length);
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            bytes.resize(length, 0);
        }
    }
}
