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
//!   they
//!   fit in L2
//! - row panels of x (10.5 KiB each), and within them panels of w (24 KiB), which fit in L1
//!   together
//!
//! Lower bound: 2 M N K / peak seconds. For each tile of 14 x 32 and each word, 28 multiply-adds
//! (14 cycles if two start per cycle) need 2 loads of w and 14 broadcasts of x (8 cycles), so the
//! multipliers are the limit; L2 delivers 9 bytes a cycle. Measured at 1280 x 3072 x 3072: the
//! tiles take 87 % of the time, decoding and packing 6 % (bound by memory), the epilogue 4 %; tiles
//! alone run at 97 % of the peak. The block length hardly matters (128 to 384 words: within 1 %).
//! With few rows (`dot`) there are 2M operations per weight element, and the bytes of w are the
//! limit instead; that code reads w once, unpacked.
//!
//! Every sum runs over k in order within a block, and over the blocks in order, for any division
//! into tasks: results do not depend on the number of threads.

pub mod dot;
pub mod finish;
pub mod integers;
#[cfg(target_arch = "x86_64")]
mod kernel_avx2;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512bf16;
mod kernel_portable;
pub mod rows;
#[cfg(test)]
pub mod testing;

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::isa::Isa;
use super::matrix::{In, Out};
use finish::{Finish, Tail};
use rows::{Expanded, Row, WeightRows};

#[cfg(target_arch = "x86_64")]
pub use kernel_avx2::AVX2;
#[cfg(target_arch = "x86_64")]
pub use kernel_avx512::AVX512;
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
    /// `tile(words, a, b, c, more)`: `c[mr x nr] (+)= a . b^T` over packed panels. Adds to c if
    /// `more`, else overwrites it.
    pub tile: unsafe fn(usize, *const u32, *const u32, *mut f32, bool),
    /// `pack(rows, lanes, k, count, to)`: elements `k .. k + count` of at most `lanes` rows, as
    /// `[word][lane]`. Lanes without a row are zero.
    pub pack: unsafe fn(&[Row], usize, usize, usize, *mut u32),
    /// `expand(row, k, out)`: elements `k .. k + out.len()`, as f32, of a row that `pack` cannot
    /// load.
    pub expand: unsafe fn(&Expanded, usize, &mut [f32]),
    /// `finish(tile, width, how)`; see [`finish::finish`].
    pub finish: unsafe fn(*const f32, usize, Finish),
    /// Sums of few rows of x; see [`dot::Dot`].
    pub dot: unsafe fn(dot::Dot),
}

/// The largest `mr` and `nr`.
pub const MAX_LANES: usize = 32;
/// Words of k in a block.
pub const KC: usize = 192;
/// Maximum number of rows of w in a task. Arrays on the stack have this size.
pub const NC: usize = 256;
/// Maximum number of rows of x that are packed at once.
const ROWS: usize = 1540;
/// The largest number of rows of x for which w is read unpacked.
pub const FEW: usize = 8;

/// How a product is divided: a function of its shape, the kernel and the number of threads.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    /// Blocks of k.
    k_blocks: usize,
    /// Row panels of x that are packed at once.
    panels: usize,
    /// Row panels of x and rows of w in a task.
    task_panels: usize,
    nc: usize,
    /// The number of blocks of k of a side, 0 without one.
    side_blocks: usize,
    /// Words of the packed x, without and with the packed t of a side behind it.
    x_words: usize,
    packed_words: usize,
    /// Words of the packed w and the sums of one thread.
    w_words: usize,
    c_words: usize,
}

impl Blocks {
    fn new(micro: &Micro, rows: usize, k: usize, side: usize, n: usize, threads: usize) -> Blocks {
        let words = k.div_ceil(micro.per_word);
        let k_blocks = words.div_ceil(KC).max(1);
        let side_words = side.div_ceil(micro.per_word);
        let side_blocks = side_words.div_ceil(KC);
        let all_panels = rows.div_ceil(micro.mr);
        let passes = rows.div_ceil(ROWS).max(1);
        let panels = all_panels.div_ceil(passes);
        // Use enough tasks that threads finish at about the same time: first narrower tasks, then
        // shorter ones (each of which packs w again), as long as packing is little work compared
        // with the arithmetic.
        let tasks =
            |nc: usize, task_panels: usize| n.div_ceil(nc) * panels.div_ceil(task_panels.max(1));
        let (mut nc, mut task_panels) = (NC, panels);
        let want = if threads == 1 { 1 } else { 4 * threads };
        while tasks(nc, task_panels) < want && nc > 4 * micro.nr {
            nc /= 2;
        }
        while tasks(nc, task_panels) < want && task_panels * micro.mr > 128 {
            task_panels = task_panels.div_ceil(2);
        }
        while tasks(nc, task_panels) < want && nc > micro.nr {
            nc = (nc / 2).next_multiple_of(micro.nr);
        }
        let kc = words.max(side_words).min(KC);
        let tile = micro.mr * micro.nr;
        let c_words =
            if k_blocks + side_blocks > 1 { tile * task_panels * (nc / micro.nr) } else { tile };
        Blocks {
            k_blocks,
            panels,
            task_panels,
            nc,
            side_blocks,
            x_words: (panels * micro.mr * words).next_multiple_of(16),
            packed_words: (panels * micro.mr * words).next_multiple_of(16)
                + (panels * micro.mr * side_words).next_multiple_of(16),
            w_words: (nc * kc).next_multiple_of(16),
            c_words: c_words.next_multiple_of(16),
        }
    }

    fn scratch_words(&self, threads: usize) -> usize {
        self.packed_words + threads * (self.w_words + self.c_words)
    }
}

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
        let mut columns = Columns::new(w, bias, col, cols);
        let mut buffer = vec![0.0; if expands { MAX_LANES * KC * micro.per_word } else { 0 }];
        for (i, block) in blocks.iter().enumerate() {
            let words = block.words;
            let w = side.filter(|_| block.side).map_or(w, |s| s.b);
            if i == b.k_blocks && columns.scaled() {
                // The following blocks must not be multiplied with the scales of w, so the existing
                // sums are multiplied now.
                for (m, p) in (0..task_panels).flat_map(|m| (0..w_panels).map(move |p| (m, p))) {
                    // SAFETY: only this slot uses the tile, and earlier blocks wrote it.
                    let tile = unsafe { std::slice::from_raw_parts_mut(tile_at(m, p), mr * nr) };
                    columns.scale_tile(tile, nr, p * nr);
                }
                columns.scale = [1.0; NC];
            }
            // SAFETY: the rows have k elements; the scratch of the slot has `nc x KC` words.
            unsafe { pack_w(micro, block, w, (col, cols), expands, &mut buffer, packed) };
            for m in 0..task_panels {
                for p in 0..w_panels {
                    let tile = tile_at(m, p);
                    let row = (top + m) * mr;
                    // The next panel of x is in L3 or further away; every tile prefetches a part of
                    // it.
                    let share = (mr * words).div_ceil(w_panels);
                    fetch(
                        x_panel(block, (top + m + 1).min(panels - 1)).wrapping_add(p * share),
                        share,
                    );
                    let (w_panel, width) =
                        (packed.wrapping_add(p * nr * words), nr.min(cols - p * nr));
                    // SAFETY: the panels were packed above with `words` words; only this slot uses
                    // the tile.
                    unsafe {
                        (micro.tile)(words, x_panel(block, top + m), w_panel, tile, i > 0);
                        if i + 1 == blocks.len() {
                            let rows = mr.min(count - row);
                            let how = columns.finish(tail, out, first + row, rows, p * nr, width);
                            (micro.finish)(tile, nr, how);
                        }
                    }
                }
            }
        }
    });
}

/// Packs the `rows.1` rows from `rows.0` of `x` to a panel; missing rows are zero.
///
/// # Safety
/// The rows must have the elements of the block, and `to` must have room for the panel.
unsafe fn pack_x(micro: &Micro, block: &KBlock, x: In, rows: (usize, usize), to: *mut u32) {
    let mut lanes = [Row::ZEROS; MAX_LANES];
    let lanes = &mut lanes[..micro.mr];
    for (i, lane) in lanes.iter_mut().enumerate().take(rows.1) {
        *lane = Row::of(x, rows.0 + i);
    }
    // SAFETY: the promise of the caller.
    unsafe { (micro.pack)(lanes, micro.mr, block.from, block.len, to) };
}

/// Packs the `cols` rows from `col` of `w` to panels. With `expands`, rows of types that the
/// loaders cannot read are expanded to `buffer` first.
///
/// # Safety
/// The processor must have what `micro` needs, the rows must have the elements of the block, and
/// `to` must have room for the panels.
unsafe fn pack_w(
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

/// At most `KC` words of k.
struct KBlock {
    /// Elements `from .. from + len`.
    from: usize,
    len: usize,
    first_word: usize,
    words: usize,
    /// The word of the scratch from which its operand is packed.
    base: usize,
    side: bool,
}

impl KBlock {
    fn all(micro: &Micro, k: usize, base: usize, side: bool) -> impl Iterator<Item = KBlock> {
        let per_word = micro.per_word;
        // If there is no k, there is still one block, which sets the sums to 0.
        (0..k.max(1)).step_by(KC * per_word).map(move |from| {
            let len = (k - from).min(KC * per_word);
            KBlock {
                from,
                len,
                first_word: from / per_word,
                words: len.div_ceil(per_word),
                base,
                side,
            }
        })
    }
}

/// Prefetches the cache lines of `words` words from `at` on. This is only a hint, so any address is
/// allowed.
#[inline(always)]
fn fetch(at: *const u32, words: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..words).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults, and every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, words);
}

/// Scales and biases of some columns of the output.
pub struct Columns {
    first: usize,
    scale: [f32; NC],
    bias: [f32; NC],
}

impl Columns {
    /// The same with scales of 1.
    fn of_ones(bias: Option<&[f32]>, first: usize, cols: usize) -> Columns {
        let mut columns = Columns { first, scale: [1.0; NC], bias: [0.0; NC] };
        if let Some(bias) = bias {
            columns.bias[..cols].copy_from_slice(&bias[first..first + cols]);
        }
        columns
    }

    /// The scales and biases of the columns `first .. first + cols`, at most `NC`.
    pub fn new(w: &WeightRows, bias: Option<&[f32]>, first: usize, cols: usize) -> Columns {
        let mut columns = Columns::of_ones(bias, first, cols);
        for (i, s) in columns.scale[..cols].iter_mut().enumerate() {
            *s = w.scale(first + i);
        }
        columns
    }

    /// Whether any scale is not 1.
    fn scaled(&self) -> bool {
        self.scale.iter().any(|s| *s != 1.0)
    }

    /// Multiplies a tile of `width` columns with its scales. `col` is its first column among these.
    fn scale_tile(&self, tile: &mut [f32], width: usize, col: usize) {
        for row in tile.chunks_exact_mut(width) {
            row.iter_mut().zip(&self.scale[col..]).for_each(|(sum, scale)| *sum *= scale);
        }
    }

    /// How to finish a tile of `rows` rows from `row` on, and of `cols` columns from `col` of these
    /// on.
    pub fn finish(
        &self,
        tail: Tail,
        out: Out,
        row: usize,
        rows: usize,
        col: usize,
        cols: usize,
    ) -> Finish<'_> {
        let range = col..col + cols;
        Finish {
            scale: &self.scale[range.clone()],
            bias: &self.bias[range],
            tail,
            out,
            row,
            col: self.first + col,
            rows,
            cols,
        }
    }
}
