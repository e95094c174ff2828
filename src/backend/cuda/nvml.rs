//! Device memory that all programs use, as reported by NVML, which needs no context. It is measured
//! before and after our context is made: the difference is what the context and the code of the
//! kernels take.

use std::ffi::{CString, c_char, c_int, c_void};

use libloading::Library;

/// The library's handle to a device.
type Handle = *mut c_void;

#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// The library, initialised, and one device.
pub(super) struct Nvml {
    nvml: Library,
    device: Handle,
}

impl Nvml {
    /// The device at PCI address `bus`; `None` if the library is missing or does not list it (then
    /// an estimate is used).
    pub fn open(bus: &str) -> Option<Nvml> {
        let names: &[&str] =
            if cfg!(windows) { &["nvml.dll"] } else { &["libnvidia-ml.so.1", "libnvidia-ml.so"] };
        // SAFETY: loads the system's management library, which runs its initialisers.
        let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok())?;
        let bus = CString::new(bus).ok()?;
        let mut device: Handle = std::ptr::null_mut();
        // SAFETY: the signatures are those of nvml.h; every pointer is valid for the call.
        let opened = unsafe {
            let init = library.get::<unsafe extern "C" fn() -> c_int>(b"nvmlInit_v2\0").ok()?;
            type Find = unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int;
            let find = library.get::<Find>(b"nvmlDeviceGetHandleByPciBusId_v2\0").ok()?;
            init() == 0 && find(bus.as_ptr(), &mut device) == 0
        };
        opened.then_some(Nvml { nvml: library, device })
    }

    /// Bytes in use by all processes.
    pub fn used(&self) -> Option<u64> {
        let mut memory = Memory::default();
        type Ask = unsafe extern "C" fn(Handle, *mut Memory) -> c_int;
        // SAFETY: as in `open`; the call fills the struct.
        let answer = unsafe {
            self.nvml.get::<Ask>(b"nvmlDeviceGetMemoryInfo\0").ok()?(self.device, &mut memory)
        };
        (answer == 0).then_some(memory.used)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: the signature is that of nvml.h; initialised in `open`.
        unsafe {
            if let Ok(shutdown) =
                self.nvml.get::<unsafe extern "C" fn() -> c_int>(b"nvmlShutdown\0")
            {
                shutdown();
            }
        }
    }
}
