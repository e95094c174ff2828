//! Matrix products in 8-bit integers: `y = s_x s_w sum(q_x q_w)`, see [`Int8`]. The blocks and
//! loops are those of the products of floats (see [the parent module](super)); a word has four
//! neighbouring k as bytes, or two as 16-bit integers.
//!
//! Rows of x are rotated and quantised once, when they are packed, and so are the rows of w of a
//! task, over all of k, since a row has one scale. No task needs the rows of another, so that
//! nothing is kept: a weight that is stored in another type costs no memory.
//!
//! Lower bound at 1280 x 3072 x 12288 on two cores of 2 x 64 multiply-adds a cycle: 97 ms at 2 GHz.
//! Quantising a weight takes about 1 cycle for an element, its products with 1280 rows 10.
//!
//! Sums are exact, so they do not depend on anything. The kernels multiply bytes without a sign
//! with bytes that have one: w is stored as `q + 128`, and a sum begins with `-128 sum(q_x)`. Only
//! AMX multiplies two bytes with signs.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;

#[cfg(target_arch = "x86_64")]
pub use amx::AMX;
#[cfg(target_arch = "x86_64")]
pub use avx2::{AVX2, avx_vnni};
#[cfg(target_arch = "x86_64")]
pub use avx512::AVX512VNNI;
pub use portable::PORTABLE;

use super::super::amx::Tiles;
use super::super::isa::Isa;
use super::super::matrix::{In, Out};
use super::finish::Tail;
use super::panels::{Cache, fetch, pack_w, pack_x};
use super::{ALIGN, Columns, KBlock, MAX_LANES, Micro, NC, Side, Words, aligned, share};
use crate::backend::int8::{quantise_from, quantise_stored};
use crate::dtype::int8::Int8;
use crate::tensor::HostWeight;
use blocks::{Blocks, KC, PAD};

/// The inner functions for one instruction set. All need a processor with `isa`.
pub struct IntegerMicro {
    /// The instructions that it needs.
    pub isa: Isa,
    /// Elements of k in a word: 4 bytes, or 2 integers of 16 bits.
    pub per_word: usize,
    /// Whether 128 is added to the integers of w.
    pub unsigned: bool,
    /// The most words of k in a block.
    pub kc: usize,
    /// The most rows of x whose sums a task keeps at once.
    pub kept_rows: usize,
    /// The most bytes of the packed rows of w of a task.
    pub w_bytes: usize,
    /// Whether `tile` needs the tiles of AMX.
    pub tiles: bool,
    /// `tile(words, a, b, c, start)`: `c[mr x nr] (+)= a . b^T` over packed panels. Without `start`
    /// it adds to c; with it, sums of row `r` begin with `start[r]`.
    pub tile: unsafe fn(usize, *const u32, *const u32, *mut i32, Option<&[i32]>),
    /// Packs rows of integers.
    pub pack: unsafe fn(IntegerPanel),
    /// The same for rows of x, in the layout that `tile` expects of them: in AMX
    /// `[step][row][word]`.
    pub pack_x: unsafe fn(IntegerPanel),
    /// `scale(tile, width, factors)`: turns the sums of row `r` to floats times `factors[r]`, in
    /// place.
    pub scale: unsafe fn(*mut i32, usize, &[f32]),
    /// The kernels for sides and epilogues, with tiles of the same size.
    pub floats: &'static Micro,
}

/// Rows of integers that are packed to a panel, as `[word][lane]`.
pub struct IntegerPanel<'a> {
    /// The rows, padded to whole vectors.
    pub rows: &'a [*const i8],
    /// Lanes of the panel; those without a row are not used.
    pub lanes: usize,
    /// The first word of each row.
    pub word: usize,
    /// The number of words.
    pub words: usize,
    /// Whether 128 is added to every integer.
    pub unsigned: bool,
    /// Room for `words x lanes` words.
    pub to: *mut u32,
}

/// Sums have 32 bits: no more columns than this can overflow them, with or without the 128.
const MOST_COLUMNS: usize = (i32::MAX / (255 * 127)) as usize;

/// Bytes of scratch that [`product`] needs. `side` is the rank of a side, or 0.
pub fn scratch_bytes(
    m: &IntegerMicro,
    rows: usize,
    k: usize,
    side: usize,
    n: usize,
    threads: usize,
) -> usize {
    let blocks = Blocks::new(m, rows, k, side, n, threads);
    (blocks.shared_words + threads * blocks.slot_words()) * 4 + ALIGN
}

/// A weight as rows of integers, and factors of its rows besides their scales.
#[derive(Clone, Copy)]
pub struct Integers<'a> {
    /// The weight, as it is stored.
    pub weight: &'a HostWeight,
    /// How its rows become integers.
    pub int8: Int8,
    /// One factor for each row.
    pub factors: Option<&'a [f32]>,
}

impl Integers<'_> {
    /// The scale of row `row`, and where its integers are: in `out`, or where they are stored if
    /// that serves as well. `values` and `out` are as long as the row.
    fn row(&self, row: usize, values: &mut [f32], out: &mut [i8]) -> (f32, *const i8) {
        let mut local = row;
        let part = self.weight.parts.iter().find(|part| {
            let within = local < part.rows;
            local -= if within { 0 } else { part.rows };
            within
        });
        let part = part.expect("a row of the weight");
        let bytes = &part.bytes()[local * part.row_bytes()..][..part.row_bytes()];
        let factor = self.factors.map_or(1.0, |f| f[row]);
        if !self.weight.is_stored_as(self.int8) {
            let scale = quantise_stored(self.int8, (part, local, bytes), values, out);
            return (scale * factor, out.as_ptr());
        }
        let scale = part.scale.of(local) * factor;
        if bytes.len().is_multiple_of(PAD) {
            return (scale, bytes.as_ptr().cast());
        }
        out.iter_mut().zip(bytes).for_each(|(q, b)| *q = *b as i8);
        (scale, out.as_ptr())
    }
}

/// What all tasks of one pass over rows of x share.
struct Pass<'a> {
    m: &'a IntegerMicro,
    b: Blocks,
    w: Integers<'a>,
    bias: Option<&'a [f32]>,
    side: Option<Side<'a>>,
    tail: Tail,
    out: Out,
    /// The first row of x, and their number.
    rows: (usize, usize),
    scratch: Words,
}

/// `out = tail(x . w^T + side + bias)` in integers; x: `rows x k`, w: `n x k`, bias: n, out: `rows
/// x n`.
///
/// # Safety
/// The processor must have `m.isa`, and the matrices must be valid as their constructors require.
#[allow(clippy::too_many_arguments, reason = "the operands of the operation")]
pub unsafe fn product(
    m: &IntegerMicro,
    x: In,
    w: Integers,
    bias: Option<&[f32]>,
    side: Option<Side>,
    tail: Tail,
    out: Out,
    scratch: &mut [u8],
) {
    let (rows, k, n) = (x.rows(), x.cols(), out.cols());
    assert!(k <= MOST_COLUMNS, "sums over {k} columns could overflow");
    if rows == 0 || n == 0 {
        return;
    }
    let threads = rayon::current_num_threads();
    let b = Blocks::new(m, rows, k, side.map_or(0, |s| s.t.cols()), n, threads);
    let scratch = aligned(scratch, b.shared_words + threads * b.slot_words());
    let most = b.panels * m.floats.mr;
    for first in (0..rows).step_by(most) {
        let rows = (first, most.min(rows - first));
        let pass = Pass { m, b, w, bias, side, tail, out, rows, scratch };
        // SAFETY: the rows exist, and the scratch is large enough; the caller guarantees the rest.
        unsafe { pass.run(x, threads) };
    }
}

impl Pass<'_> {
    /// Packs the rows of x, then runs all tasks.
    unsafe fn run(&self, x: In, threads: usize) {
        let count = self.rows.1;
        let panels = count.div_ceil(self.m.floats.mr);
        share(threads, panels, |slot, panel| {
            // SAFETY: only this task uses the panel and the slot.
            unsafe { self.pack_x(x, slot, panel, panels) };
        });
        let tall = panels.div_ceil(self.b.task_panels);
        let n = self.out.cols();
        share(threads, tall * n.div_ceil(self.b.nc), |slot, task| {
            let col = task / tall * self.b.nc;
            let cols = self.b.nc.min(n - col);
            let top = task % tall * self.b.task_panels;
            let count = self.b.task_panels.min(panels - top);
            // SAFETY: only this task uses the slot, and only it writes these elements of out.
            unsafe { self.task(slot, (col, cols), (top, count), panels) };
        });
    }

    /// The blocks of k.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (words, kc) = (self.b.words, self.m.kc);
        (0..words).step_by(kc).map(move |first| (first, kc.min(words - first)))
    }

    /// The words of x of one panel in the block of k that begins at word `first` and has `words`.
    fn x_panel(&self, (first, words): (usize, usize), panel: usize, panels: usize) -> *mut u32 {
        self.scratch.at((first * panels + panel * words) * self.m.floats.mr)
    }

    /// The scales of the rows of a panel, and behind those of all panels the starts of their sums.
    fn row_facts(&self, panel: usize) -> (*mut f32, *mut i32) {
        let all = (self.b.panels * self.m.floats.mr).next_multiple_of(16);
        let at = self.b.shared_words - 2 * all + panel * self.m.floats.mr;
        (self.scratch.at(at).cast(), self.scratch.at(at + all).cast())
    }

    /// The memory of a thread: packed w, sums, a row of floats, rows of integers.
    fn slot(&self, slot: usize) -> (*mut u32, *mut i32, *mut f32, *mut i8) {
        let b = &self.b;
        let w = self.scratch.at(b.shared_words + slot * b.slot_words());
        let (sums, floats) = (w.wrapping_add(b.w_words), w.wrapping_add(b.w_words + b.c_words));
        let integers = floats.wrapping_add(b.row_words - MAX_LANES * b.row_bytes / 4);
        (w, sums.cast(), floats.cast(), integers.cast())
    }

    /// Quantises and packs the rows of a panel of x, and packs those of the side.
    unsafe fn pack_x(&self, x: In, slot: usize, panel: usize, panels: usize) {
        let (m, mr, k) = (self.m, self.m.floats.mr, x.cols());
        let (_, _, values, integers) = self.slot(slot);
        let (scales, starts) = self.row_facts(panel);
        let mut lanes = [std::ptr::null(); MAX_LANES];
        for (lane, at) in lanes.iter_mut().enumerate().take(mr) {
            let row = integers.wrapping_add(lane * self.b.row_bytes);
            *at = row.cast_const();
            let number = panel * mr + lane;
            // SAFETY: the slot has a row of floats and `MAX_LANES` rows of integers; the row of x
            // exists, and nothing writes to it.
            unsafe {
                row.write_bytes(0, self.b.row_bytes);
                let (mut scale, mut start) = (0.0, 0);
                if number < self.rows.1 {
                    let values = std::slice::from_raw_parts_mut(values, k);
                    let q = std::slice::from_raw_parts_mut(row, k);
                    scale = quantise_from(self.w.int8, x.row(self.rows.0 + number), values, q);
                    let sum: i32 = q.iter().map(|q| i32::from(*q)).sum();
                    start = if m.unsigned { -128 * sum } else { 0 };
                }
                scales.add(lane).write(scale);
                starts.add(lane).write(start);
            }
        }
        for block in self.blocks() {
            let to = self.x_panel(block, panel, panels);
            let (rows, (word, words)) = (&lanes[..mr], block);
            let panel = IntegerPanel { rows, lanes: mr, word, words, unsigned: false, to };
            // SAFETY: the rows are padded, and only this task uses the panel.
            unsafe { (m.pack_x)(panel) };
        }
        let Some(side) = self.side else { return };
        let count = mr.min(self.rows.1 - panel * mr);
        for block in KBlock::all(m.floats, side.t.cols(), self.b.x_words, true) {
            let rows = (self.rows.0 + panel * mr, count);
            let to = self.side_panel(&block, panel, panels);
            // SAFETY: as above.
            unsafe { pack_x(m.floats, &block, side.t, rows, to) };
        }
    }

    fn side_panel(&self, block: &KBlock, panel: usize, panels: usize) -> *mut u32 {
        let at = block.first_word * panels + panel * block.words;
        self.scratch.at(block.base + at * self.m.floats.mr)
    }

    /// Quantises and packs the rows of w of a task, over all of k, as `[block][panel][word][lane]`.
    /// Their scales replace those of `columns`.
    unsafe fn pack_w(&self, slot: usize, (col, cols): (usize, usize), columns: &mut Columns) {
        let (m, nr, k) = (self.m, self.m.floats.nr, self.w.weight.cols);
        let (packed, _, values, integers) = self.slot(slot);
        let w_panels = cols.div_ceil(nr);
        for p in 0..w_panels {
            let count = nr.min(cols - p * nr);
            let mut lanes = [std::ptr::null(); MAX_LANES];
            for (lane, at) in lanes.iter_mut().enumerate().take(count) {
                let row = integers.wrapping_add(lane * self.b.row_bytes);
                // SAFETY: the slot has a row of floats and `MAX_LANES` rows of integers.
                let (values, q) = unsafe {
                    row.add(k).write_bytes(0, self.b.row_bytes - k);
                    let q = std::slice::from_raw_parts_mut(row, k);
                    (std::slice::from_raw_parts_mut(values, k), q)
                };
                (columns.scale[p * nr + lane], *at) = self.w.row(col + p * nr + lane, values, q);
            }
            for (word, words) in self.blocks() {
                let (rows, unsigned) = (&lanes[..count], m.unsigned);
                let to = packed.wrapping_add((word * w_panels + p * words) * nr);
                let panel = IntegerPanel { rows, lanes: nr, word, words, unsigned, to };
                // SAFETY: the rows are padded, and the packed w has room for all panels.
                unsafe { (m.pack)(panel) };
            }
        }
    }

    /// The columns `col .. col + cols` of out, for the row panels `top .. top + count`.
    unsafe fn task(
        &self,
        slot: usize,
        (col, cols): (usize, usize),
        (top, count): (usize, usize),
        panels: usize,
    ) {
        let (m, mr, nr) = (self.m, self.m.floats.mr, self.m.floats.nr);
        let w_panels = cols.div_ceil(nr);
        let (packed, sums, ..) = self.slot(slot);
        let mut columns = Columns::of_ones(self.bias, col, cols);
        let keeps = self.b.words > m.kc || self.side.is_some();
        // SAFETY: the promises of the caller.
        unsafe { self.pack_w(slot, (col, cols), &mut columns) };
        // SAFETY: the level `isa::Amx` means that AMX can be used.
        let tiles = m.tiles.then(|| unsafe { Tiles::configure() });
        for first in (0..count).step_by(self.b.kept_panels) {
            let kept = first..count.min(first + self.b.kept_panels);
            for block in self.blocks() {
                let all = kept.clone().flat_map(|i| (0..w_panels).map(move |p| (i, p)));
                for (i, (panel, p)) in all.enumerate() {
                    // With one block and no side, a tile is finished at once, and the next takes
                    // its memory.
                    let number = if keeps { i } else { 0 };
                    let tile = sums.wrapping_add(number * mr * nr);
                    let w = packed.wrapping_add((block.0 * w_panels + p * block.1) * nr);
                    // Every tile prefetches a part of the next panel of x.
                    let part = (mr * block.1).div_ceil(w_panels);
                    let next = self.x_panel(block, (top + panel + 1).min(panels - 1), panels);
                    fetch(Cache::L2, next.wrapping_add(p * part), part);
                    // SAFETY: the panels were packed with these words, the facts of their rows were
                    // written, and only this slot uses the tile.
                    unsafe {
                        self.tile(block, top + panel, panels, w, tile);
                        let last = block.0 + block.1 == self.b.words;
                        if last && self.side.is_none() {
                            self.finish(&columns, tile.cast(), top + panel, p, cols);
                        }
                    }
                }
            }
        }
        drop(tiles);
        let Some(side) = self.side else { return };
        // SAFETY: as above; the tiles are floats now.
        unsafe { self.add_side(side, &mut columns, slot, (col, cols), (top, count), panels) };
    }

    /// The sums of a tile for one block: panel `panel` of x by the packed `w`. After the last block
    /// they are floats, with the scales of the rows.
    unsafe fn tile(
        &self,
        block: (usize, usize),
        panel: usize,
        panels: usize,
        w: *const u32,
        tile: *mut i32,
    ) {
        let (m, mr, nr) = (self.m, self.m.floats.mr, self.m.floats.nr);
        let x = self.x_panel(block, panel, panels);
        let (scales, starts) = self.row_facts(panel);
        // SAFETY: the promises of the caller.
        unsafe {
            let starts = std::slice::from_raw_parts(starts, mr);
            (m.tile)(block.1, x, w, tile, (block.0 == 0).then_some(starts));
            if block.0 + block.1 == self.b.words {
                (m.scale)(tile, nr, std::slice::from_raw_parts(scales, mr));
            }
        }
    }

    /// Adds the product of the side to all tiles of a task, and finishes them.
    unsafe fn add_side(
        &self,
        side: Side,
        columns: &mut Columns,
        slot: usize,
        (col, cols): (usize, usize),
        (top, count): (usize, usize),
        panels: usize,
    ) {
        let (floats, mr, nr) = (self.m.floats, self.m.floats.mr, self.m.floats.nr);
        let w_panels = cols.div_ceil(nr);
        let (packed, sums, ..) = self.slot(slot);
        let sums: *mut f32 = sums.cast();
        let blocks: Vec<KBlock> =
            KBlock::all(floats, side.t.cols(), self.b.x_words, true).collect();
        for (i, block) in blocks.iter().enumerate() {
            // SAFETY: the rows of the side have the elements of the block; the packed w is not
            // needed any more, and has room for a block.
            unsafe {
                pack_w(floats, block, side.b, (col, cols), false, &mut [], packed);
            }
            for (panel, p) in (0..count).flat_map(|i| (0..w_panels).map(move |p| (i, p))) {
                let tile = sums.wrapping_add((panel * w_panels + p) * mr * nr);
                let x = self.side_panel(block, top + panel, panels);
                let w = packed.wrapping_add(p * nr * block.words);
                // SAFETY: the panels were packed above, and only this slot uses the tile.
                unsafe {
                    if i == 0 {
                        let tile = std::slice::from_raw_parts_mut(tile, mr * nr);
                        columns.scale_tile(tile, nr, p * nr, false);
                    }
                    (floats.tile)(block.words, x, w, tile, true);
                    if i + 1 == blocks.len() {
                        let scaled = Columns { scale: [1.0; NC], ..*columns };
                        self.finish(&scaled, tile, top + panel, p, cols);
                    }
                }
            }
        }
    }

    /// Finishes a tile: panel `panel` of x by panel `p` of the task's rows of w.
    unsafe fn finish(
        &self,
        columns: &Columns,
        tile: *const f32,
        panel: usize,
        p: usize,
        cols: usize,
    ) {
        let (mr, nr) = (self.m.floats.mr, self.m.floats.nr);
        let rows = mr.min(self.rows.1 - panel * mr);
        let width = nr.min(cols - p * nr);
        let row = self.rows.0 + panel * mr;
        let how = columns.finish(self.tail, self.out, row, rows, p * nr, width);
        // SAFETY: the promise of the caller.
        unsafe { (self.m.floats.finish)(tile, nr, how) };
    }
}

/// `IntegerMicro::scale` for any instruction set.
#[inline(always)]
unsafe fn scale(tile: *mut i32, width: usize, factors: &[f32]) {
    for (r, factor) in factors.iter().enumerate() {
        // SAFETY: the tile has a row for each factor.
        let row = unsafe { std::slice::from_raw_parts_mut(tile.add(r * width), width) };
        for sum in row {
            *sum = (*sum as f32 * factor).to_bits() as i32;
        }
    }
}

/// `IntegerMicro::pack` for any instruction set: words of four bytes, or of two 16-bit integers.
#[inline(always)]
unsafe fn pack<const PER: usize>(panel: IntegerPanel) {
    let IntegerPanel { rows, lanes, word, words, unsigned, to } = panel;
    let flip = if unsigned { 0x8080_8080 } else { 0 };
    for (lane, row) in rows.iter().enumerate() {
        for i in 0..words {
            let at = row.wrapping_add((word + i) * PER);
            // SAFETY: the rows have these words, and `to` has `words * lanes`.
            unsafe {
                let value = match PER {
                    4 => at.cast::<u32>().read_unaligned() ^ flip,
                    _ => {
                        let [low, high] = at.cast::<[i8; 2]>().read();
                        u32::from(i16::from(low) as u16) | u32::from(i16::from(high) as u16) << 16
                    }
                };
                to.add(i * lanes + lane).write(value);
            }
        }
    }
    for lane in rows.len()..lanes {
        // SAFETY: as above. Lanes without a row must not be left as they were.
        (0..words).for_each(|i| unsafe { to.add(i * lanes + lane).write(0) });
    }
}
