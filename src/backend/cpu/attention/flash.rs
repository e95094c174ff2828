//! Attention with an online softmax: scores exist only for one panel of queries and one block of
//! keys at a time.
//!
//! Keys are processed in blocks of `KEYS`, queries in chunks of `CHUNK` rows, which are divided
//! into panels of `MR` rows (the height of a register tile). For each block of keys and each panel:
//! `S = Q K^T` (panel x block, stays in the L1 cache), a new row maximum m, `P = 2^(S - m)`, `O =
//! 2^(m_old - m) O + P V`. Scores are in units of log2: the scale and log2(e) are multiplied into
//! Q. The K and V of a block (128 KiB in f32 at head_dim 128) are read from the L2 cache once per
//! panel; the 8 panels of a chunk share one read from memory. Work: 4 tokens^2 head_dim operations
//! per head; for 1280 tokens x 24 heads x 128: 20.1 GFLOP.

use super::super::args::AttentionArgs;
use super::super::simd::{self, Simd};
use super::tile::Arith;

/// Keys in a block: a multiple of two vectors for every instruction set.
pub(super) const KEYS: usize = 128;
/// Queries in a chunk: a multiple of every `MR`.
pub(super) const CHUNK: usize = 96;
/// Rows of the largest register tile.
const MAX_MR: usize = 32;

/// Sizes of the packed operands of one head, in words or f32 (both are four bytes).
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub tokens: usize,
    pub dim: usize,
    /// Words along the width of a head.
    pub dim_words: usize,
    /// The width, rounded up to whole pairs of vectors.
    pub dim_padded: usize,
    /// Blocks of keys.
    pub blocks: usize,
    /// Words of a block of keys, and of a block of values.
    pub key_block: usize,
    pub value_block: usize,
}

impl Sizes {
    /// For words of `per_word` elements, of which `step` are multiplied at once.
    pub(super) fn new(
        tokens: usize,
        dim: usize,
        (per_word, step, lanes): (usize, usize, usize),
    ) -> Sizes {
        let dim_words = dim.div_ceil(per_word).next_multiple_of(step);
        let dim_padded = dim.next_multiple_of(2 * lanes);
        Sizes {
            tokens,
            dim,
            dim_words,
            dim_padded,
            blocks: tokens.div_ceil(KEYS),
            key_block: KEYS * dim_words,
            value_block: dim_padded * KEYS / per_word,
        }
    }

    /// Where the relative biases of a head start, after its keys and values.
    fn biases(&self) -> usize {
        self.blocks * (self.key_block + self.value_block)
    }

    /// The keys and values of one head, and its biases for each distance.
    pub(super) fn head(&self, bias: bool) -> usize {
        let biases = if bias { self.tokens + (self.blocks + 1) * KEYS } else { 0 };
        (self.biases() + biases).next_multiple_of(16)
    }

    /// The memory of one thread: queries, sums, scores, and three numbers per row.
    pub(super) fn thread(&self) -> usize {
        (CHUNK * (self.dim_words + self.dim_padded + 2) + MAX_MR * (KEYS + 1)).next_multiple_of(16)
    }
}

/// Packs block `block` of the keys and values of a head to `to`; for block 0 also the biases of the
/// head.
///
/// Keys: panels of two vectors of keys, word (w, key). Values: panels of two vectors of columns,
/// word (w, column), where a word runs along the keys. Everything beyond the last key or column is
/// set to zero, because the kernel multiplies it by zero and adds it.
///
/// # Safety
/// `to` has `sizes.head(..)` words, and no other task uses the parts of this block.
#[inline(always)]
pub(super) unsafe fn pack<A: Arith>(
    a: &AttentionArgs,
    s: &Sizes,
    image: usize,
    head: usize,
    block: usize,
    to: *mut u32,
) {
    let width = 2 * A::S::LANES;
    let first = block * KEYS;
    let keys = KEYS.min(s.tokens - first);
    let (row, col) = (image * s.tokens + first, head * s.dim);
    // SAFETY: rows and columns are within k and v; every write is within the areas of the block,
    // whose sizes `Sizes` returns.
    unsafe {
        let panels = to.add(block * s.key_block);
        for key in 0..keys.next_multiple_of(width) {
            let panel = panels.add(key / width * width * s.dim_words + key % width);
            if key < keys {
                let from = a.k.row_ptr(row + key).add(col);
                scatter::<A>(from, 1.0, s, |w, word| *panel.add(w * width) = word);
            } else {
                (0..s.dim_words).for_each(|w| *panel.add(w * width) = 0);
            }
        }
        let panels = to.add(s.blocks * s.key_block + block * s.value_block);
        let panel_words = KEYS / A::PER_WORD * width;
        for w in 0..keys.next_multiple_of(width) / A::PER_WORD {
            let key = w * A::PER_WORD;
            for d in (0..s.dim_padded).step_by(A::S::LANES) {
                let (mut first, mut second) = (A::S::splat(0.0), A::S::splat(0.0));
                if key < keys && d < s.dim {
                    first = simd::at::<A::S>(a.v.row_ptr(row + key).add(col), d, s.dim);
                }
                if A::PER_WORD == 2 && key + 1 < keys && d < s.dim {
                    second = simd::at::<A::S>(a.v.row_ptr(row + key + 1).add(col), d, s.dim);
                }
                A::store_words(
                    panels.add(d / width * panel_words + w * width + d % width),
                    A::pair(first, second),
                );
            }
        }
        if let (Some(bias), 0) = (a.bias, block) {
            let to = to.add(s.biases()).cast::<f32>();
            for distance in 0..s.tokens + (s.blocks + 1) * KEYS {
                let known = distance < 2 * s.tokens - 1;
                *to.add(distance) = if known {
                    *bias.row_ptr(distance).add(head) * std::f32::consts::LOG2_E
                } else {
                    0.0
                };
            }
        }
    }
}

/// Calls `put` with the number of each word of the head's row at `from`, times `factor`, and the
/// word: zeros after the last element.
#[inline(always)]
unsafe fn scatter<A: Arith>(
    from: *const f32,
    factor: f32,
    s: &Sizes,
    mut put: impl FnMut(usize, u32),
) {
    let mut words = [0u32; 16];
    let per_vector = A::S::LANES / A::PER_WORD;
    // SAFETY: the row has `dim` elements; a vector fits the buffer.
    unsafe {
        for d in (0..s.dim).step_by(A::S::LANES) {
            let x = A::S::mul(simd::at::<A::S>(from, d, s.dim), A::S::splat(factor));
            A::store(words.as_mut_ptr().cast(), 0, x);
            let at = d / A::PER_WORD;
            for (w, word) in words.iter().enumerate().take(per_vector.min(s.dim_words - at)) {
                put(at + w, *word);
            }
        }
    }
    let written = s.dim.div_ceil(A::S::LANES) * per_vector;
    (written..s.dim_words).for_each(|w| put(w, 0));
}

/// The memory of one thread for a chunk.
struct Area {
    queries: *mut u32,
    sums: *mut f32,
    scores: *mut f32,
    /// For each row: the maximum and the sum of weights over the blocks so far, and the factor by
    /// which the latest block multiplies the row's sums.
    maxima: *mut f32,
    totals: *mut f32,
    keep: *mut f32,
}

/// Computes the queries from `chunk * CHUNK` on of a head, with all its packed keys.
///
/// # Safety
/// `packed` was filled by `pack` for all blocks. `area` has `sizes.thread()` words that
/// only this thread uses. The processor has the features of A. MR divides CHUNK and is at most
/// MAX_MR.
#[inline(always)]
pub(super) unsafe fn chunk<A: Arith, const MR: usize>(
    a: &AttentionArgs,
    s: &Sizes,
    image: usize,
    head: usize,
    chunk: usize,
    packed: *const u32,
    area: *mut u32,
) {
    let first = chunk * CHUNK;
    let rows = CHUNK.min(a.queries() - first);
    // SAFETY: `Sizes::thread` is the sum of these areas.
    unsafe {
        let sums = area.add(CHUNK * s.dim_words).cast::<f32>();
        let scores = sums.add(CHUNK * s.dim_padded);
        let maxima = scores.add(MAX_MR * KEYS);
        let area = Area {
            queries: area,
            sums,
            scores,
            maxima,
            totals: maxima.add(CHUNK),
            keep: maxima.add(2 * CHUNK),
        };
        pack_queries::<A, MR>(a, s, image, head, first, rows, area.queries);
        for row in 0..CHUNK {
            *area.maxima.add(row) = f32::NEG_INFINITY;
            *area.totals.add(row) = 0.0;
        }
        (0..CHUNK * s.dim_padded).for_each(|i| *area.sums.add(i) = 0.0);
        let blocks = if a.causal { (first + rows).div_ceil(KEYS) } else { s.blocks };
        for block in 0..blocks {
            for panel in 0..rows.div_ceil(MR) {
                panel_block::<A, MR>(a, s, first, panel, block, packed, &area);
            }
        }
        for row in 0..rows {
            let (window, to) = a.place(image, first + row);
            let inverse = A::S::splat(1.0 / *area.totals.add(row));
            let (from, to) =
                (area.sums.add(row * s.dim_padded), window.row_ptr(to).add(head * s.dim));
            simd::map::<A::S>(from, to, s.dim, |_, x| A::S::mul(x, inverse));
        }
    }
}

/// Packs queries times scale and log2(e) to panels, with zeros beyond the last query.
#[inline(always)]
unsafe fn pack_queries<A: Arith, const MR: usize>(
    a: &AttentionArgs,
    s: &Sizes,
    image: usize,
    head: usize,
    first: usize,
    rows: usize,
    to: *mut u32,
) {
    let scale = a.scale * std::f32::consts::LOG2_E;
    for row in 0..rows.next_multiple_of(MR) {
        // SAFETY: rows and columns are within q; each panel has MR * dim_words words.
        unsafe {
            let panel = to.add(row / MR * MR * s.dim_words);
            let put = |w: usize, word: u32| *panel.add(A::query_at::<MR>(row % MR, w)) = word;
            if row < rows {
                let from = a.q.row_ptr(image * a.queries() + first + row).add(head * s.dim);
                scatter::<A>(from, scale, s, put);
            } else {
                (0..s.dim_words).for_each(|w| put(w, 0));
            }
        }
    }
}

/// Computes one panel of queries with one block of keys.
#[inline(always)]
unsafe fn panel_block<A: Arith, const MR: usize>(
    a: &AttentionArgs,
    s: &Sizes,
    first: usize,
    panel: usize,
    block: usize,
    packed: *const u32,
    area: &Area,
) {
    let lanes = A::S::LANES;
    let width = 2 * lanes;
    let query = first + panel * MR;
    let start = block * KEYS;
    let last_query = (query + MR).min(s.tokens) - 1;
    if a.causal && start > last_query {
        return;
    }
    let keys = if a.causal { KEYS.min(last_query + 1 - start) } else { KEYS }.min(s.tokens - start);
    let padded = keys.next_multiple_of(width);
    // SAFETY: as in `chunk`; the areas of the block have `padded` keys.
    unsafe {
        let queries = area.queries.add(panel * MR * s.dim_words);
        let keys_at = packed.add(block * s.key_block);
        for p in 0..padded / width {
            let b = keys_at.add(p * width * s.dim_words);
            A::scores::<MR>(s.dim_words, queries, b, area.scores.add(p * width));
        }
        for i in 0..MR {
            let row = panel * MR + i;
            // Rows beyond the last query repeat its mask and bias; their results are not used.
            let query = (query + i).min(s.tokens - 1);
            let visible = if a.causal { keys.min((query + 1).saturating_sub(start)) } else { keys };
            let bias = a
                .bias
                .map(|_| packed.add(s.biases()).cast::<f32>().add(start + s.tokens - 1 - query));
            let scores = area.scores.add(i * KEYS);
            let (old, total) = (*area.maxima.add(row), *area.totals.add(row));
            let (new, keep, sum) = softmax_row::<A>(scores, padded, visible, bias, old);
            *area.maxima.add(row) = new;
            *area.totals.add(row) = total * keep + sum;
            *area.keep.add(i) = keep;
        }
        let values = packed.add(s.blocks * s.key_block + block * s.value_block);
        let panel_words = KEYS / A::PER_WORD * width;
        let sums = area.sums.add(panel * MR * s.dim_padded);
        for p in 0..s.dim_padded / width {
            let (b, c) = (values.add(p * panel_words), sums.add(p * width));
            let weights = area.scores.cast::<u32>();
            A::values::<MR>(padded / A::PER_WORD, weights, b, area.keep, c, s.dim_padded);
        }
    }
}

/// Converts a row of scores to weights `2^(score - new maximum)`, in place, as the words of A. Only
/// the first `visible` of `padded` scores count. Returns the new maximum, the factor for everything
/// that was summed with the `old` one, and the sum of the weights.
#[inline(always)]
unsafe fn softmax_row<A: Arith>(
    scores: *mut f32,
    padded: usize,
    visible: usize,
    bias: Option<*const f32>,
    old: f32,
) -> (f32, f32, f32) {
    let lanes = A::S::LANES;
    // SAFETY: the row has `padded` elements, a multiple of two vectors, and the bias as many beyond
    // its start.
    unsafe {
        if let Some(bias) = bias {
            for at in (0..padded).step_by(lanes) {
                let score = A::S::add(A::S::load(scores.add(at)), A::S::load(bias.add(at)));
                A::S::store(scores.add(at), score);
            }
        }
        (visible..padded).for_each(|at| *scores.add(at) = f32::NEG_INFINITY);
        let mut maxima = [A::S::splat(old); 2];
        for at in (0..padded).step_by(2 * lanes) {
            // If the first operand is NaN, the second is returned: the maximum stays a number, and
            // every weight of the row becomes NaN.
            maxima[0] = A::S::max(A::S::load(scores.add(at)), maxima[0]);
            maxima[1] = A::S::max(A::S::load(scores.add(at + lanes)), maxima[1]);
        }
        let new = A::S::max_lane(A::S::max(maxima[0], maxima[1]));
        // The same function as for the weights, so that a row whose maximum does not change is
        // multiplied by exactly one.
        let difference = A::S::sub(A::S::splat(old), A::S::splat(new));
        let keep = A::S::max_lane(simd::exp2::<A::S>(difference));
        let m = A::S::splat(new);
        let mut sums = [A::S::splat(0.0); 2];
        for at in (0..padded).step_by(2 * lanes) {
            let left = simd::exp2::<A::S>(A::S::sub(A::S::load(scores.add(at)), m));
            let right = simd::exp2::<A::S>(A::S::sub(A::S::load(scores.add(at + lanes)), m));
            sums[0] = A::S::add(sums[0], left);
            sums[1] = A::S::add(sums[1], right);
            A::store(scores, at, left);
            A::store(scores, at + lanes, right);
        }
        (new, keep, A::S::sum(A::S::add(sums[0], sums[1])))
    }
}
