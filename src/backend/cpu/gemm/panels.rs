//! Packs rows to panels, and prefetches panels.

use super::super::matrix::In;
use super::rows::{Row, WeightRows};
use super::{KBlock, MAX_LANES, Micro};

/// Packs the `rows.1` rows from `rows.0` of `x` to a panel; missing rows are zero.
///
/// # Safety
/// The rows must have the elements of the block, and `to` must have room for the panel.
pub unsafe fn pack_x(micro: &Micro, block: &KBlock, x: In, rows: (usize, usize), to: *mut u32) {
    let mut lanes = [Row::ZEROS; MAX_LANES];
    let lanes = &mut lanes[..micro.mr];
    for (i, lane) in lanes.iter_mut().enumerate().take(rows.1) {
        *lane = Row::of(x, rows.0 + i);
    }
    // SAFETY: the promise of the caller.
    unsafe { (micro.pack_x)(lanes, micro.mr, block.from, block.len, to) };
}

/// Packs the `cols` rows from `col` of `w` to panels. With `expands`, rows of types that the
/// loaders cannot read are expanded to `buffer` first.
///
/// # Safety
/// The processor must have what `micro` needs, the rows must have the elements of the block, and
/// `to` must have room for the panels.
pub unsafe fn pack_w(
    micro: &Micro,
    block: &KBlock,
    w: &WeightRows,
    (col, cols): (usize, usize),
    expands: bool,
    buffer: &mut [f32],
    to: *mut u32,
) {
    let nr = micro.nr;
    for p in 0..cols.div_ceil(nr) {
        let mut lanes = [Row::ZEROS; MAX_LANES];
        let lanes = &mut lanes[..nr.min(cols - p * nr)];
        let (mut from, mut base) = (block.from, 0);
        if expands && !block.side {
            // Then all lanes start at this block.
            (from, base) = (0, block.from);
        }
        for (i, lane) in lanes.iter_mut().enumerate() {
            let row = col + p * nr + i;
            *lane = w.row(row).from(base);
            if expands && let Some(stored) = w.expanded(row) {
                let values = &mut buffer[i * block.len..(i + 1) * block.len];
                // SAFETY: the processor has what `micro` needs.
                unsafe { (micro.expand)(&stored, block.from, values) };
                *lane = Row::of_f32(values.as_ptr());
            }
        }
        let panel = to.wrapping_add(p * nr * block.words);
        // SAFETY: the promise of the caller.
        unsafe { (micro.pack)(lanes, nr, from, block.len, panel) };
    }
}

/// Prefetches part `part.0` of `part.1` of the elements of `rows` that a block needs. Without it,
/// the rows would be read in pieces of a few hundred bytes, which processors do not foresee.
pub fn fetch_w(rows: &[Row], block: &KBlock, part: (usize, usize)) {
    let (from, to) = (rows.len() * part.0 / part.1, rows.len() * (part.0 + 1) / part.1);
    for row in &rows[from..to] {
        let words = (block.len * row.dtype.size()).div_ceil(4);
        fetch(Cache::L2, row.at(block.from).cast(), words);
    }
}

/// The nearest cache to which [`fetch`] brings words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// The first level.
    L1,
    /// The second level.
    L2,
}

/// Prefetches the cache lines of `words` words from `at` on. This is only a hint, so any address is
/// allowed.
#[inline(always)]
pub fn fetch(to: Cache, at: *const u32, words: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..words).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        let at = at.wrapping_add(line).cast();
        // SAFETY: a prefetch never faults, and every x86-64 processor has it.
        unsafe {
            match to {
                Cache::L1 => _mm_prefetch::<_MM_HINT_T0>(at),
                Cache::L2 => _mm_prefetch::<_MM_HINT_T1>(at),
            }
        };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (to, at, words);
}
