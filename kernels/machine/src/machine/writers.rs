//! The writes of each block to global memory, to find blocks that overwrite each other's results.

use crate::memory::Memory;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of memory that share an allocation of cells.
const PAGE: u64 = 1 << 20;

type Page = OnceLock<Box<[AtomicU64]>>;

/// For every two bytes, the value that was stored there last, and in the higher bits the number of
/// the block that stored it, plus one. Stores of single bytes are not tracked.
pub(crate) struct Writers {
    ranges: Vec<(u64, Vec<Page>)>,
}

impl Writers {
    pub(crate) fn new(memory: &Memory) -> Writers {
        let pages = |bytes: u64| (0..bytes.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Writers { ranges: memory.spans().map(|(start, end)| (start, pages(end - start))).collect() }
    }

    /// Records a store of a block. Returns another block that stored another value there.
    pub(crate) fn store(&self, address: u64, bytes: &[u8], block: u32) -> Option<u32> {
        let (start, pages) =
            &self.ranges[self.ranges.partition_point(|r| r.0 <= address).checked_sub(1)?];
        let mut other = None;
        for (at, pair) in (address - start..).step_by(2).zip(bytes.chunks_exact(2)) {
            let page = pages.get((at / PAGE) as usize)?.get_or_init(cells);
            let new = (block as u64 + 1) << 16 | u16::from_le_bytes([pair[0], pair[1]]) as u64;
            let old = page[(at % PAGE / 2) as usize].swap(new, Ordering::Relaxed);
            if old != 0 && old >> 16 != new >> 16 && old as u16 != new as u16 {
                other = Some((old >> 16) as u32 - 1);
            }
        }
        other
    }
}

/// Zeroed memory, which is allocated only when it is accessed.
fn cells() -> Box<[AtomicU64]> {
    let plain = vec![0u64; PAGE as usize / 2].into_boxed_slice();
    // SAFETY: `AtomicU64` has the layout of `u64`.
    unsafe { Box::from_raw(Box::into_raw(plain) as *mut [AtomicU64]) }
}
