//! Compiled kernels.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use super::api::{self, Handle};
use super::context::Context;
use crate::backend::cuda::launch::Kernel;
use crate::error::{Error, Result};

/// A PTX module, compiled for the device by its driver.
pub struct Module {
    context: Arc<Context>,
    pub(super) raw: Handle,
}

/// An entry point of a [`Module`].
pub struct Function {
    module: Arc<Module>,
    pub(super) raw: Handle,
    /// Sizes of its parameters in bytes, as the PTX declares them.
    parameters: Vec<usize>,
}

/// What the driver reports about a compiled kernel.
pub struct FunctionFacts {
    /// Per thread.
    pub registers: u32,
    /// Memory of a thread outside its registers, in bytes: spilled registers, or a stack.
    pub local_bytes: u32,
    pub static_shared_bytes: u32,
    /// How many blocks run on a multiprocessor at the same time.
    pub blocks: u32,
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
        let mut log = vec![0u8; 4096];
        let mut options = [api::JIT_ERROR_LOG, api::JIT_ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the text ends in a zero; it, the log and both arrays live through the call. The
        // second value is a number, as the driver requires.
        let loaded = unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            api::module_load(&mut raw, text.as_ptr().cast(), 2, options, values)
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
        let raw = api::made(std::ptr::null_mut(), |to| unsafe {
            api::module_function(to, self.raw, text.as_ptr())
        });
        let raw = health.check(raw, "finding a kernel").map_err(|e| e.at(entry))?;
        // A driver that loads kernels when they are first used would allocate memory for their code
        // later than it is measured. Drivers before CUDA 12.4 load them here anyway, and have no
        // such call.
        // SAFETY: the function is valid.
        let _ = unsafe { api::function_load(raw) };
        Ok(Function { module: self.clone(), raw, parameters })
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
    pub fn allow_shared(&self, bytes: u32) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // Several blocks of such a kernel share a multiprocessor only if most of its L1 is shared
        // memory. This is a wish, which a driver may ignore.
        // SAFETY: the function is valid.
        let _ = unsafe { api::function_set(self.raw, api::FUNCTION_CARVEOUT, 100) };
        if bytes <= 48 << 10 {
            return Ok(());
        }
        // SAFETY: the function is valid.
        let set =
            unsafe { api::function_set(self.raw, api::FUNCTION_DYNAMIC_SHARED, bytes as i32) };
        self.module.context.health.check(set, "asking for shared memory")
    }

    /// What the driver's compiler made of `kernel`, which is this function.
    pub fn facts(&self, kernel: &Kernel) -> Result<FunctionFacts> {
        let health = &self.module.context.health;
        let get = |which| {
            // SAFETY: the function is valid; writes one number.
            let value = api::made(0, |to| unsafe { api::function_get(to, which, self.raw) });
            health.check(value, "asking about a kernel").map(|v| v.max(0) as u32)
        };
        let blocks = api::made(0, |to| {
            let (threads, shared) = (kernel.threads as i32, kernel.shared as usize);
            // SAFETY: the function is valid; writes one number.
            unsafe { api::occupancy(to, self.raw, threads, shared) }
        });
        Ok(FunctionFacts {
            registers: get(api::FUNCTION_REGISTERS)?,
            local_bytes: get(api::FUNCTION_LOCAL_BYTES)?,
            static_shared_bytes: get(api::FUNCTION_STATIC_SHARED)?,
            blocks: health.check(blocks, "asking about a kernel")?.max(0) as u32,
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: loaded in `load`; no function of it is left.
        let _ = unsafe { api::module_unload(self.raw) };
    }
}
