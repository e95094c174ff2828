//! Matrix products `x . w^T` where w keeps its stored type: blocked and packed, with a small kernel
//! per instruction set.
//!
//! Both operands are packed into panels of 32-bit *words*: a word is one f32, or two neighbouring k
//! as bf16. A panel has `mr` rows of x (or `nr` rows of w) as `[word][row]`, so that a kernel reads
//! both in order. One kernel call computes a tile of `mr x nr` sums over at most `kc` words, with
//! all sums in registers.
//!
//! The loops, from the outermost to the innermost:
//! - at most `ROWS` rows of x, packed once for all tasks (this is the only shared buffer; the limit
//!   bounds the scratch memory for any image size)
//! - tasks, which threads take from a counter: `nc` rows of w by some row panels of x
//! - blocks of `kc` words: the `nc x kc` of w for the task are decoded and packed, 192 KiB, so that
//!   they fit in L2
//! - row panels of x (10.5 KiB each), and within them panels of w (24 KiB), which fit in L1
//!   together
//!
//! Lower bound: 2 M N K / peak seconds. For each tile of 14 x 32 and each word, 28 multiply-adds
//! (14 cycles if two start per cycle) need 2 loads of w and 14 broadcasts of x (8 cycles), so the
//! multipliers are the limit; L2 delivers 9 bytes a cycle. Measured at 1280 x 3072 x 3072: the
//! tiles take 87 % of the time, decoding and packing 6 % (bound by memory), the epilogue 4 %; tiles
//! alone run at 97 % of the peak. The block length hardly matters (128 to 384 words: within 1 %).
//! AMX multiplies ten times as fast, so that reading and packing show: see `kernel_amx`.
//! With few rows (`dot`) there are 2M operations per weight element, and the bytes of w are the
//! limit instead; that code reads w once, unpacked.
//!
//! Every sum runs over k in order within a block, and over the blocks in order, for any division
//! into tasks: results do not depend on the number of threads.

mod blocks;
mod columns;
pub mod dot;
pub mod finish;
pub mod integers;
#[cfg(target_arch = "x86_64")]
mod kernel_amx;
#[cfg(target_arch = "x86_64")]
mod kernel_avx2;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512bf16;
mod kernel_portable;
mod panels;
pub mod rows;
#[cfg(test)]
pub mod testing;

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::amx::Tiles;
use super::isa::Isa;
use super::matrix::{In, Out};
use blocks::{Blocks, KBlock};
use finish::{Finish, Tail};
use panels::{Cache, fetch, fetch_w, pack_w, pack_x};
use rows::{Expanded, Row, WeightRows};

pub use blocks::NC;
pub use columns::Columns;

#[cfg(target_arch = "x86_64")]
pub use kernel_amx::AMX;
#[cfg(target_arch = "x86_64")]
pub use kernel_avx2::AVX2;
#[cfg(target_arch = "x86_64")]
pub use kernel_avx512::{AVX512, AVX512_LARGE};
#[cfg(target_arch = "x86_64")]
pub use kernel_avx512::{BF16, F8E4M3, F8E5M2, F16, F32, load_f32};
#[cfg(target_arch = "x86_64")]
pub use kernel_avx512bf16::AVX512BF16;
pub use kernel_portable::PORTABLE;

/// The inner functions for one instruction set and one arithmetic. All need a processor with `isa`.
pub struct Micro {
    /// The instructions that it needs.
    pub isa: Isa,
    /// Rows of x in a tile.
    pub mr: usize,
    /// Rows of w in a tile.
    pub nr: usize,
    /// Elements of k in a word: 1 (f32) or 2 (bf16).
    pub per_word: usize,
    /// How it divides a product.
    pub blocking: Blocking,
    /// Whether `tile` needs the tiles of AMX.
    pub tiles: bool,
    /// `tile(words, a, b, c, more)`: `c[mr x nr] (+)= a . b^T` over packed panels. Adds to c if
    /// `more`, else overwrites it.
    pub tile: unsafe fn(usize, *const u32, *const u32, *mut f32, bool),
    /// `pack(rows, lanes, k, count, to)`: elements `k .. k + count` of at most `lanes` rows, as
    /// `[word][lane]`. Lanes without a row are zero.
    pub pack: unsafe fn(&[Row], usize, usize, usize, *mut u32),
    /// The same for rows of x. AMX packs those of w as `[step][row][word]`.
    pub pack_x: unsafe fn(&[Row], usize, usize, usize, *mut u32),
    /// `expand(row, k, out)`: elements `k .. k + out.len()`, as f32, of a row that `pack` cannot
    /// load.
    pub expand: unsafe fn(&Expanded, usize, &mut [f32]),
    /// `finish(tile, width, how)`; see [`finish::finish`].
    pub finish: unsafe fn(*const f32, usize, Finish),
    /// Sums of few rows of x; see [`dot::Dot`].
    pub dot: unsafe fn(dot::Dot),
    /// Exchanges rows and columns of a tile, if `tile` makes a row for each row of w.
    pub turn: Option<unsafe fn(*mut f32)>,
}

/// How a kernel divides a product.
#[derive(Debug, Clone, Copy)]
pub struct Blocking {
    /// Panels have a multiple of this many words of k. Those after the last element are zero.
    pub step: usize,
    /// The most words of k in a block, a multiple of `step`.
    pub kc: usize,
    /// The most rows of x in a task.
    pub rows: usize,
}

impl Blocking {
    /// That of kernels with vectors.
    pub const VECTORS: Blocking = Blocking { step: 1, kc: 192, rows: usize::MAX };
}

impl Micro {
    /// The words of `k` elements in a panel.
    pub fn words(&self, k: usize) -> usize {
        k.div_ceil(self.per_word).next_multiple_of(self.blocking.step)
    }

    /// Finishes a tile of `mr x nr` sums.
    ///
    /// # Safety
    /// As for [`finish::finish`].
    pub unsafe fn finish_tile(&self, tile: *mut f32, how: Finish) {
        // SAFETY: the promises of the caller.
        unsafe {
            if let Some(turn) = self.turn {
                turn(tile);
            }
            (self.finish)(tile, self.nr, how);
        }
    }

    /// What `tile` needs in a thread, while the result exists.
    ///
    /// # Safety
    /// The processor must have `self.isa`.
    pub unsafe fn prepare(&self) -> Option<Tiles> {
        // SAFETY: the level `isa::Amx` means that AMX can be used.
        self.tiles.then(|| unsafe { Tiles::configure() })
    }
}

/// The largest `mr` and `nr`.
pub const MAX_LANES: usize = 32;
/// The largest number of rows of x for which w is read unpacked.
pub const FEW: usize = 8;

/// What is added to a product before its epilogue: `t . b^T`, where t is `rows x rank` and b `n x
/// rank`.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// `x` times the down matrix: `rows x rank`.
    pub t: In,
    /// The up matrix: `n x rank`.
    pub b: &'a WeightRows<'a>,
}

/// Bytes of scratch that `product` needs. `side` is the rank of a side, or 0.
pub fn scratch_bytes(
    micro: &Micro,
    rows: usize,
    k: usize,
    side: usize,
    n: usize,
    threads: usize,
) -> usize {
    let words = if rows <= FEW {
        dot::scratch_words(micro, rows, k) + dot::scratch_words(micro, rows, side)
    } else {
        Blocks::new(micro, rows, k, side, n, threads).scratch_words(threads)
    };
    words * 4 + ALIGN
}

/// Scratch is used from the next multiple of this many bytes.
pub const ALIGN: usize = 64;

/// The aligned words of `scratch`, which must have at least `words` of them.
pub fn aligned(scratch: &mut [u8], words: usize) -> Words {
    let skip = scratch.as_ptr().align_offset(ALIGN);
    let found = scratch.len().saturating_sub(skip) / 4;
    assert!(found >= words, "the scratch has {found} words, {words} are needed");
    Words(scratch[skip..].as_mut_ptr().cast())
}

/// Scratch memory that tasks share. Each task uses only its own words.
#[derive(Clone, Copy)]
pub struct Words(pub(in crate::backend::cpu) *mut u32);

// SAFETY: only an address; the code that uses `at` keeps the threads apart.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    #[inline(always)]
    /// The address of `word`.
    pub fn at(&self, word: usize) -> *mut u32 {
        self.0.wrapping_add(word)
    }
}

/// Runs `work(slot, task)` once for every task below `tasks`. Calls that run at the same time have
/// different slots below `threads`.
pub fn share(threads: usize, tasks: usize, work: impl Fn(usize, usize) + Sync) {
    if threads <= 1 || tasks <= 1 {
        return (0..tasks).for_each(|task| work(0, task));
    }
    let next = AtomicUsize::new(0);
    (0..threads.min(tasks)).into_par_iter().with_max_len(1).for_each(|slot| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            work(slot, task);
        }
    });
}

/// `out = tail(x . w^T + side + bias)`; x: `rows x k`, w: `n x k`, bias: n, out: `rows x n`.
///
/// # Safety
/// The processor must have `micro.isa`, and the matrices must be valid as their
/// constructors require.
#[allow(clippy::too_many_arguments, reason = "the operands of the operation")]
pub unsafe fn product(
    micro: &Micro,
    x: In,
    w: &WeightRows,
    bias: Option<&[f32]>,
    side: Option<Side>,
    tail: Tail,
    out: Out,
    scratch: &mut [u8],
) {
    let (rows, k, n) = (x.rows(), x.cols(), out.cols());
    if rows == 0 || n == 0 {
        return;
    }
    if rows <= FEW {
        // SAFETY: as above.
        return unsafe { dot::product(micro, x, w, bias, side, tail, out, scratch) };
    }
    let threads = rayon::current_num_threads();
    let blocks = Blocks::new(micro, rows, k, side.map_or(0, |s| s.t.cols()), n, threads);
    let words = aligned(scratch, blocks.scratch_words(threads));
    let mut first = 0;
    while first < rows {
        let count = (blocks.panels * micro.mr).min(rows - first);
        // SAFETY: rows `first .. first + count` exist, and the scratch is large enough; the caller
        // guarantees the rest.
        unsafe {
            rows_product(
                micro,
                &blocks,
                x,
                w,
                bias,
                side,
                tail,
                out,
                (first, count),
                words,
                threads,
            )
        };
        first += count;
    }
}

/// [`product`] for the rows `first .. first + count`.
#[allow(clippy::too_many_arguments, reason = "the loop levels of one algorithm, not an interface")]
unsafe fn rows_product(
    micro: &Micro,
    b: &Blocks,
    x: In,
    w: &WeightRows,
    bias: Option<&[f32]>,
    side: Option<Side>,
    tail: Tail,
    out: Out,
    (first, count): (usize, usize),
    scratch: Words,
    threads: usize,
) {
    let (mr, nr, n) = (micro.mr, micro.nr, out.cols());
    let panels = count.div_ceil(mr);
    // The blocks of k: first those of x and w, then those of a side, which is packed behind x.
    let blocks: Vec<KBlock> = KBlock::all(micro, x.cols(), 0, false)
        .chain(side.iter().flat_map(|s| KBlock::all(micro, s.t.cols(), b.x_words, true)))
        .collect();
    debug_assert_eq!(blocks.len(), b.k_blocks + b.side_blocks);
    // Packed x is `[k block][panel][word][row]`: a task reads contiguous words of each k block.
    let x_panel = |block: &KBlock, panel: usize| {
        scratch.at(block.base + (block.first_word * panels + panel * block.words) * mr)
    };
    share(threads, panels, |_, panel| {
        for block in &blocks {
            let from = side.filter(|_| block.side).map_or(x, |s| s.t);
            let rows = (first + panel * mr, mr.min(count - panel * mr));
            // SAFETY: the rows have k elements; only this task uses the panel in the scratch.
            unsafe { pack_x(micro, block, from, rows, x_panel(block, panel)) };
        }
    });
    let expands = w.any_expanded();
    // AMX is so fast that waiting for a fetch to L1 shows.
    let near = if micro.tiles { Cache::L2 } else { Cache::L1 };
    let tall = panels.div_ceil(b.task_panels);
    share(threads, tall * n.div_ceil(b.nc), |slot, task| {
        let col = task / tall * b.nc;
        let cols = b.nc.min(n - col);
        let top = task % tall * b.task_panels;
        let task_panels = b.task_panels.min(panels - top);
        let w_panels = cols.div_ceil(nr);
        let packed = scratch.at(b.packed_words + slot * (b.w_words + b.c_words));
        let sums: *mut f32 = packed.wrapping_add(b.w_words).cast();
        let tile_at = |m: usize, p: usize| {
            if blocks.len() > 1 { sums.wrapping_add((m * w_panels + p) * mr * nr) } else { sums }
        };
        // SAFETY: the processor has what `micro` needs.
        let _tiles = unsafe { micro.prepare() };
        let mut columns = Columns::new(w, bias, col, cols);
        let ahead = if micro.tiles && !expands { cols } else { 0 };
        let ahead: Vec<Row> = (0..ahead).map(|i| w.row(col + i)).collect();
        let mut buffer =
            vec![0.0; if expands { MAX_LANES * micro.blocking.kc * micro.per_word } else { 0 }];
        for (i, block) in blocks.iter().enumerate() {
            let words = block.words;
            let w = side.filter(|_| block.side).map_or(w, |s| s.b);
            if i == b.k_blocks && columns.scaled() {
                // The following blocks must not be multiplied with the scales of w, so the existing
                // sums are multiplied now.
                for (m, p) in (0..task_panels).flat_map(|m| (0..w_panels).map(move |p| (m, p))) {
                    // SAFETY: only this slot uses the tile, and earlier blocks wrote it.
                    let tile = unsafe { std::slice::from_raw_parts_mut(tile_at(m, p), mr * nr) };
                    columns.scale_tile(tile, nr, p * nr, micro.turn.is_some());
                }
                columns.scale = [1.0; NC];
            }
            // SAFETY: the rows have k elements; the scratch of the slot has `nc x kc` words.
            unsafe { pack_w(micro, block, w, (col, cols), expands, &mut buffer, packed) };
            for m in 0..task_panels {
                for p in 0..w_panels {
                    let tile = tile_at(m, p);
                    let row = (top + m) * mr;
                    // The next panel of x is in L3 or further away; every tile prefetches a part of
                    // it.
                    let share = (mr * words).div_ceil(w_panels);
                    let next = x_panel(block, (top + m + 1).min(panels - 1));
                    fetch(near, next.wrapping_add(p * share), share);
                    if let Some(next) = blocks.get(i + 1).filter(|next| !next.side) {
                        fetch_w(&ahead, next, (m * w_panels + p, task_panels * w_panels));
                    }
                    let (w_panel, width) =
                        (packed.wrapping_add(p * nr * words), nr.min(cols - p * nr));
                    // SAFETY: the panels were packed above with `words` words; only this slot uses
                    // the tile.
                    unsafe {
                        (micro.tile)(words, x_panel(block, top + m), w_panel, tile, i > 0);
                        if i + 1 == blocks.len() {
                            let rows = mr.min(count - row);
                            let how = columns.finish(tail, out, first + row, rows, p * nr, width);
                            micro.finish_tile(tile, how);
                        }
                    }
                }
            }
        }
    });
}
