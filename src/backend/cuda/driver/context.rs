//! The context of a device.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::health::ContextHealth;
use crate::error::Result;

/// The primary context of a device. It is current in the thread that opened it.
pub struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    pub health: ContextHealth,
}

// SAFETY: a context may be used from any thread; `bind` makes it current there first.
unsafe impl Send for Context {}
// SAFETY: as above; the driver has its own locks.
unsafe impl Sync for Context {}

impl Context {
    pub fn open(ordinal: i32) -> Result<Arc<Context>> {
        let health = ContextHealth::default();
        let device = health.check(result::device::get(ordinal), "opening the device")?;
        // Threads that wait for the GPU sleep. A context that exists already keeps its own flags.
        let sleep = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32;
        // SAFETY: the device is valid.
        let _ = unsafe { sys::cuDevicePrimaryCtxSetFlags_v2(device, sleep) };
        // SAFETY: the device is valid; the context is released when `Context` is dropped.
        let raw = health
            .check(unsafe { result::primary_ctx::retain(device) }, "making a context on the GPU")?;
        let context = Arc::new(Context { device, raw, health });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current in the calling thread.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive.
        self.health.check(unsafe { result::ctx::set_current(self.raw) }, "using the GPU's context")
    }

    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self.health.check(result::mem_get_info(), "asking for free memory")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; everything that belongs to it has an `Arc` of it, so none is
        // left.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}
