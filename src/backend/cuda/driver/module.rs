//! Compiled kernels.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::context::Context;
use crate::backend::cuda::launch::Kernel;
use crate::error::{Error, Result};

/// A PTX module, compiled for the device by its driver.
pub struct Module {
    context: Arc<Context>,
    pub(super) raw: sys::CUmodule,
}

/// An entry point of a [`Module`].
pub struct Function {
    module: Arc<Module>,
    pub(super) raw: sys::CUfunction,
    /// Bytes of dynamic shared memory that the kernel may use.
    shared: u32,
    /// Sizes of its parameters in bytes, as the PTX declares them.
    parameters: Vec<usize>,
}

// SAFETY: functions and modules may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Module {}

impl Module {
    /// Compiles `ptx`, the text of the module `name`.
    pub fn load(context: &Arc<Context>, name: &str, ptx: &str) -> Result<Arc<Module>> {
        let text = CString::new(ptx)
            .map_err(|_| Error::device("the text of a kernel contains a zero byte").at(name))?;
        use sys::CUjit_option as Option_;
        let mut log = vec![0u8; 4096];
        let mut options =
            [Option_::CU_JIT_ERROR_LOG_BUFFER, Option_::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the text ends in a zero; it, the log and both arrays live through the call. The
        // second value is a number, as the driver requires.
        let loaded = unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            sys::cuModuleLoadDataEx(&mut raw, text.as_ptr().cast(), 2, options, values).result()
        };
        if let Err(e) = context.health.check(loaded, "compiling kernels for this GPU") {
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            let said = String::from_utf8_lossy(&log[..end]);
            let first: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).take(3).collect();
            let e = e.at(name).try_("install another version of the driver, or use {device=cpu}");
            return Err(if first.is_empty() { e } else { e.found(first.join("; ")) });
        }
        Ok(Arc::new(Module { context: context.clone(), raw }))
    }

    /// The entry point `entry`, whose parameters have `parameters` bytes.
    pub fn function(self: &Arc<Module>, entry: &str, parameters: Vec<usize>) -> Result<Function> {
        let health = &self.context.health;
        let text = CString::new(entry)
            .map_err(|_| Error::device("the name of a kernel contains a zero byte").at(entry))?;
        // SAFETY: the module is alive, the name ends in a zero.
        let raw = health
            .check(unsafe { result::module::get_function(self.raw, text) }, "finding a kernel");
        Ok(Function {
            module: self.clone(),
            raw: raw.map_err(|e| e.at(entry))?,
            shared: 48 << 10,
            parameters,
        })
    }
}

impl Function {
    /// Whether its parameters are those of `kernel`: the driver copies as many bytes as the PTX
    /// declares, however many it receives.
    pub fn takes(&self, kernel: &Kernel) -> bool {
        let (pointers, rest) = self.parameters.split_at(kernel.buffers.min(self.parameters.len()));
        let (maps, params) = rest.split_at(kernel.maps.min(rest.len()));
        pointers.len() == kernel.buffers
            && pointers.iter().all(|&n| n == 8)
            && maps.len() == kernel.maps
            && maps.iter().all(|&n| n == 128)
            && params == [kernel.params]
    }

    /// Allows the kernel `bytes` bytes of dynamic shared memory: more than 48 KiB must be
    /// requested.
    pub fn allow_shared(&mut self, bytes: u32) -> Result<()> {
        if bytes <= self.shared {
            return Ok(());
        }
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is valid.
        let set =
            unsafe { result::function::set_function_attribute(self.raw, limit, bytes as i32) };
        self.module.context.health.check(set, "asking for shared memory")?;
        self.shared = bytes;
        Ok(())
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: loaded in `load`; no function of it is left.
        let _ = unsafe { result::module::unload(self.raw) };
    }
}
