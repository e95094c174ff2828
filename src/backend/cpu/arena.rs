//! The single allocation for activations and scratch.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use crate::error::{Error, Result};

/// Memory that starts at a page, so that no two tensors share a cache line and large arenas can use
/// huge pages.
pub(super) struct Arena {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the arena owns plain bytes; the steps that use them decide who uses which bytes at what
// time.
unsafe impl Send for Arena {}
// SAFETY: as above; a shared arena only returns addresses.
unsafe impl Sync for Arena {}

/// 2 MiB, the size of a huge page of x86-64 and AArch64, if the arena is at least that large.
const HUGE: usize = 2 << 20;
const PAGE: usize = 4096;

impl Arena {
    /// Allocates `bytes` bytes. In a debug build, every word is a NaN, so that memory that was
    /// never written shows in a result.
    pub(super) fn new(bytes: usize) -> Result<Arena> {
        let align = if bytes >= HUGE { HUGE } else { PAGE };
        let refused = || {
            Error::memory(format!("could not allocate {bytes} bytes for activations"))
                .at("cpu")
                .try_("request a smaller image or fewer images at once, or free memory")
        };
        let layout = Layout::from_size_align(bytes.max(1), align).map_err(|_| refused())?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) }).ok_or_else(refused)?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            // SAFETY: the range was just allocated. The call is advice; if it fails, only speed
            // changes.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: the range was just allocated. In release builds the bytes are set to zero,
        // because reading uninitialised memory is undefined even if the kernel ignores the values.
        // Fresh pages of a large allocation cost the same either way.
        unsafe { start.as_ptr().write_bytes(if cfg!(debug_assertions) { 0xff } else { 0 }, bytes) };
        Ok(Arena { start, layout })
    }

    pub(super) fn len(&self) -> usize {
        self.layout.size()
    }

    /// The address of `bytes` bytes from `offset`; `what` names them in an error.
    pub(super) fn place(
        &self,
        offset: usize,
        bytes: usize,
        what: impl std::fmt::Display,
    ) -> Result<*mut u8> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.len() => Ok(self.start.as_ptr().wrapping_add(offset)),
            _ => Err(Error::memory(format!("{what} is outside the arena"))
                .at("cpu")
                .found(format!("{bytes} bytes at {offset}"))
                .expected(format!("an end within {}", self.len()))),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn an_arena_is_aligned_bounded_and_refused_when_absurd() {
        let arena = Arena::new(3 * HUGE + 5).unwrap();
        assert_eq!(arena.start.as_ptr() as usize % HUGE, 0);
        assert!(arena.place(3 * HUGE, 5, "x").is_ok());
        assert_eq!(arena.place(3 * HUGE, 6, "x").unwrap_err().kind(), Kind::Memory);
        assert_eq!(arena.place(usize::MAX, 2, "x").unwrap_err().kind(), Kind::Memory);
        let refused = Arena::new(1 << 60).err().expect("an exbibyte");
        assert_eq!(refused.kind(), Kind::Memory);
        assert!(refused.to_string().contains("1152921504606846976"), "{refused}");
    }
}
