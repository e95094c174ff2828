//! The context of a device.

use std::sync::Arc;

use super::api::{self, Device, Handle};
use super::health::ContextHealth;
use crate::error::Result;

/// The primary context of a device. It is current in the thread that opened it.
pub struct Context {
    device: Device,
    raw: Handle,
    pub health: ContextHealth,
}

// SAFETY: a context may be used from any thread; `bind` makes it current there first.
unsafe impl Send for Context {}
// SAFETY: as above; the driver has its own locks.
unsafe impl Sync for Context {}

impl Context {
    pub fn open(ordinal: i32) -> Result<Arc<Context>> {
        let health = ContextHealth::default();
        // SAFETY: writes one number.
        let device = api::made(0, |to| unsafe { api::device(to, ordinal) });
        let device = health.check(device, "opening the device")?;
        // Threads that wait for the GPU sleep. A context that exists already keeps its own flags.
        // SAFETY: the device is valid.
        let _ = unsafe { api::primary_flags(device, api::CONTEXT_BLOCKING_SYNC) };
        // SAFETY: the device is valid; the context is released when `Context` is dropped.
        let raw = api::made(std::ptr::null_mut(), |to| unsafe { api::primary_retain(to, device) });
        let raw = health.check(raw, "making a context on the GPU")?;
        let context = Arc::new(Context { device, raw, health });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current in the calling thread.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive.
        self.health.check(unsafe { api::set_current(self.raw) }, "using the GPU's context")
    }

    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(u64, u64)> {
        // SAFETY: writes two numbers.
        let sizes = api::made((0, 0), |(free, total)| unsafe { api::memory_info(free, total) });
        let (free, total) = self.health.check(sizes, "asking for free memory")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; everything that belongs to it has an `Arc` of it, so none is
        // left.
        let _ = unsafe { api::primary_release(self.device) };
    }
}
