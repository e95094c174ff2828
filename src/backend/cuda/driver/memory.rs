//! Memory of the device, and pinned memory of the host.

use std::sync::Arc;

use super::api;
use super::context::Context;
use crate::error::Result;
use crate::units;

/// Device memory.
pub struct Buffer {
    context: Arc<Context>,
    pub address: u64,
    pub bytes: usize,
}

impl Buffer {
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Buffer> {
        if bytes == 0 {
            return Ok(Buffer { context: context.clone(), address: 0, bytes });
        }
        context.health.alive()?;
        // SAFETY: freed when `Buffer` is dropped; it is written before it is read.
        let address = api::made(0, |to| unsafe { api::memory_alloc(to, bytes) });
        let what = format!("allocating {} of device memory", units::bytes(bytes as u64));
        Ok(Buffer {
            address: context.health.check(address, &what)?,
            context: context.clone(),
            bytes,
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let _ = self.context.bind();
            // SAFETY: allocated in `new`; the driver waits for work that uses it.
            let _ = unsafe { api::memory_free(self.address) };
        }
    }
}

/// Host memory that the GPU can read directly.
pub struct Pinned {
    context: Arc<Context>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain bytes, owned.
unsafe impl Send for Pinned {}
// SAFETY: as above; writing needs `&mut`.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Pinned> {
        // SAFETY: freed when `Pinned` is dropped. Cached (flags 0), as files are read into it.
        let start = api::made(std::ptr::null_mut(), |to| unsafe { api::host_alloc(to, bytes, 0) });
        let what = format!("pinning {} of host memory", units::bytes(bytes as u64));
        let start = context.health.check(start, &what)?.cast::<u8>();
        Ok(Pinned { context: context.clone(), start, bytes })
    }

    /// Its size.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` bytes were allocated and live as long as `self`; memory from outside Rust
        // has some value.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// The caller has waited for every copy from these bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

/// A part of pinned memory that no other part overlaps.
pub struct PinnedPart {
    // Keeps the memory; its bytes are accessed through the parts alone.
    slab: Arc<Pinned>,
    offset: usize,
    bytes: usize,
}

impl PinnedPart {
    /// The bytes `offset .. offset + bytes` of `slab`.
    ///
    /// # Safety
    /// No other part overlaps them, and nothing else reads or writes them.
    pub unsafe fn new(slab: Arc<Pinned>, offset: usize, bytes: usize) -> PinnedPart {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= slab.bytes));
        PinnedPart { slab, offset, bytes }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: within the slab, which lives as long as `self`, and written through `self` alone.
        unsafe { std::slice::from_raw_parts(self.slab.start.add(self.offset), self.bytes) }
    }

    /// The caller has waited for every copy from these bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.slab.start.add(self.offset), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: allocated in `new`; owners wait for copies before they drop it.
        let _ = unsafe { api::host_free(self.start.cast()) };
    }
}
