//! Device and pinned memory: pages of this process, in an address range of their own.
//!
//! An address is used once. Freed memory stays unmapped, so that an old pointer is never valid, and
//! between allocations there are at least 64 KiB without memory. Pages get memory when they are
//! first written: until then each one is mapped to a shared page of 0xFF, which every
//! floating-point type reads as NaN, so that even a device of 80 GiB can be poisoned completely at
//! no cost.

use crate::status::{OPERATING_SYSTEM, Outcome};

/// The size of an address range that is reserved at a time.
const STRETCH: u64 = 1 << 41;
/// The poison, which is mapped repeatedly.
const PATTERN: u64 = 8 << 20;
const PAGE: u64 = 4096;
const GAP: u64 = 64 << 10;
/// The offset of an allocation in its first page: aligned as the driver guarantees, and not more.
const INSET: u64 = 256;

pub struct Space {
    next: u64,
    end: u64,
    /// A file of `PATTERN` bytes 0xFF.
    poison: i32,
    /// Whether memory that is allocated from now on is poisoned.
    pub poisoned: bool,
}

fn span(bytes: u64) -> u64 {
    (bytes + INSET).next_multiple_of(PAGE)
}

impl Space {
    pub const fn new() -> Space {
        Space { next: 0, end: 0, poison: -1, poisoned: true }
    }

    /// Allocates new memory, poisoned or zero, aligned to 256 bytes. `bytes` must not be zero.
    pub fn take(&mut self, bytes: u64) -> Outcome<u64> {
        let pages = span(bytes);
        let needed = pages.checked_add(2 * GAP).ok_or(OPERATING_SYSTEM)?;
        if self.end - self.next < needed {
            let stretch = STRETCH.max(needed);
            self.next =
                map(0, stretch, libc::PROT_NONE, libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)?;
            self.end = self.next + stretch;
        }
        self.make_poison()?;
        let start = self.next + GAP;
        let mut at = 0;
        let (largest, more, file) = if self.poisoned {
            (PATTERN, 0, self.poison)
        } else {
            (pages, libc::MAP_ANONYMOUS, -1)
        };
        while at < pages {
            let piece = largest.min(pages - at);
            let flags = libc::MAP_FIXED | libc::MAP_NORESERVE | more;
            map(start + at, piece, libc::PROT_READ | libc::PROT_WRITE, flags, file)?;
            at += piece;
        }
        self.next = (start + pages).next_multiple_of(PAGE);
        Ok(start + INSET)
    }

    /// Unmaps the pages of memory that `take` returned for `bytes`.
    pub fn give(&mut self, address: u64, bytes: u64) -> Outcome {
        let flags = libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        map(address - INSET, span(bytes), libc::PROT_NONE, flags, -1).map(|_| ())
    }

    fn make_poison(&mut self) -> Outcome {
        if self.poison >= 0 {
            return Ok(());
        }
        // SAFETY: the name is a C string, and the new file is written only through its descriptor.
        let file = unsafe { libc::memfd_create(c"poison".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(OPERATING_SYSTEM);
        }
        let bytes = vec![0xFFu8; 1 << 20];
        for _ in 0..PATTERN >> 20 {
            // SAFETY: `bytes` has this length.
            if unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) }
                != bytes.len() as isize
            {
                return Err(OPERATING_SYSTEM);
            }
        }
        self.poison = file;
        Ok(())
    }
}

fn map(at: u64, bytes: u64, protection: i32, flags: i32, file: i32) -> Outcome<u64> {
    // SAFETY: either the kernel chooses the address, or it is in a range that was reserved here.
    let to = unsafe {
        libc::mmap(at as *mut _, bytes as usize, protection, flags | libc::MAP_PRIVATE, file, 0)
    };
    if to == libc::MAP_FAILED { Err(OPERATING_SYSTEM) } else { Ok(to as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_poisoned_lazily_and_addresses_are_never_reused() {
        let mut space = Space::new();
        let bytes = 20 << 30;
        let large = space.take(bytes).unwrap();
        // SAFETY: the addresses below are in the memory that `take` returned, which lives until the
        // end of the test; there is one reference at a time.
        let byte = |at: u64| unsafe { &mut *(at as *mut u8) };
        for at in [0, 1, PATTERN - INSET, bytes / 2, bytes - 1] {
            assert_eq!(*byte(large + at), 0xFF);
        }
        *byte(large + PATTERN) = 7;
        assert_eq!((*byte(large + PATTERN), *byte(large)), (7, 0xFF));
        let small = space.take(1).unwrap();
        assert!(
            small >= large + bytes + GAP && small.is_multiple_of(256) && !small.is_multiple_of(512)
        );
        space.give(large, bytes).unwrap();
        space.give(small, 1).unwrap();
        assert!(space.take(1).unwrap() > small);
    }
}
