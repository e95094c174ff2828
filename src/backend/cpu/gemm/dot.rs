//! Products with few rows of x (the modulation of one step, embeddings). Every weight is used only
//! a few times, so w is read along its rows and decoded in registers, and never packed.
//!
//! Lower bound: the stored bytes of w / memory bandwidth. x (a few rows) is converted once and
//! stays in L1 or L2.

use super::super::matrix::{In, Out};
use super::finish::{Tail, mul_add};
use super::rows::{Row, WeightRows, decode};
use super::{Columns, FEW, Micro, NC, Side, Words, aligned, share};

/// Operands of `sums[m * NC + j] = x[m] . w[j]`, for all rows of x and w.
#[derive(Clone, Copy)]
pub struct Dot<'a> {
    /// Rows of x as words, with zeros from `k` to the end of the row.
    pub x: *const u32,
    /// The number of rows of x (at most `FEW`), and the words from one row to the next, a multiple
    /// of `PAD`.
    pub rows: usize,
    /// Words from one row of x to the next.
    pub stride: usize,
    /// The rows of the weight.
    pub w: &'a [Row],
    /// Elements of a row.
    pub k: usize,
    /// Where the sums are written.
    pub sums: *mut f32,
}

/// Rows of x are padded with zeros to a multiple of this many words.
pub const PAD: usize = 64;
/// Rows of w in a task: few enough that all threads finish at about the same time, and enough to be
/// worth the overhead of a task.
const TASK: usize = 32;

fn stride(micro: &Micro, k: usize) -> usize {
    k.div_ceil(micro.per_word).next_multiple_of(PAD)
}

/// Words of scratch that `product` needs.
pub fn scratch_words(micro: &Micro, rows: usize, k: usize) -> usize {
    rows * stride(micro, k)
}

/// `out = tail(x . w^T + side + bias)` for at most `FEW` rows of x.
///
/// # Safety
/// As for [`product`](super::product).
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
    assert!(rows <= FEW);
    let x_words = scratch_words(micro, rows, k);
    let side_words = side.map_or(0, |s| scratch_words(micro, rows, s.t.cols()));
    let words = aligned(scratch, x_words + side_words);
    // SAFETY: the windows are usable, and the scratch has room for both.
    unsafe {
        words_of(micro, x, words);
        if let Some(side) = side {
            words_of(micro, side.t, Words(words.at(x_words)));
        }
    }
    let expands = w.any_expanded();
    share(rayon::current_num_threads(), n.div_ceil(TASK), |_, task| {
        let col = task * TASK;
        let cols = TASK.min(n - col);
        let mut lanes = [Row::ZEROS; TASK];
        let mut sums = [0f32; FEW * NC];
        let mut columns = Columns::new(w, bias, col, cols);
        let dot = |x: *const u32, k: usize, lanes: &[Row], sums: *mut f32| {
            let dot = Dot { x, rows, stride: stride(micro, k), w: lanes, k, sums };
            // SAFETY: x was prepared above, the rows of w have k elements, `sums` has FEW rows of
            // NC.
            unsafe { (micro.dot)(dot) };
        };
        if expands {
            let mut values = vec![0.0; k];
            for i in 0..cols {
                let lane = match w.expanded(col + i) {
                    Some(stored) => {
                        // SAFETY: the processor has what `micro` needs.
                        unsafe { (micro.expand)(&stored, 0, &mut values) };
                        Row::of_f32(values.as_ptr())
                    }
                    None => w.row(col + i),
                };
                dot(words.at(0), k, &[lane], sums[i..].as_mut_ptr());
            }
        } else {
            for (i, lane) in lanes[..cols].iter_mut().enumerate() {
                *lane = w.row(col + i);
            }
            dot(words.at(0), k, &lanes[..cols], sums.as_mut_ptr());
        }
        if let Some(side) = side {
            let mut more = [0f32; FEW * NC];
            for (i, lane) in lanes[..cols].iter_mut().enumerate() {
                *lane = side.b.row(col + i);
            }
            dot(words.at(x_words), side.t.cols(), &lanes[..cols], more.as_mut_ptr());
            for row in 0..rows {
                let at = row * NC..row * NC + cols;
                columns.scale_tile(&mut sums[at.clone()], cols, 0, false);
                sums[at.clone()].iter_mut().zip(&more[at]).for_each(|(sum, more)| *sum += more);
            }
            columns.scale = [1.0; NC];
        }
        // SAFETY: `sums` has FEW rows of NC, and the windows are usable.
        unsafe { (micro.finish)(sums.as_ptr(), NC, columns.finish(tail, out, 0, rows, 0, cols)) };
    });
}

/// Converts the rows of x to words, padded with zeros.
///
/// # Safety
/// The window must be readable, the processor must have what `micro` needs, and `words` must have
/// room.
unsafe fn words_of(micro: &Micro, x: In, words: Words) {
    let stride = stride(micro, x.cols());
    for row in 0..x.rows() {
        // SAFETY: the row has its elements, and its place in the scratch `stride` words, at least
        // as many as are written.
        unsafe {
            words.at(row * stride).write_bytes(0, stride);
            (micro.pack)(&[Row::of(x, row)], 1, 0, x.cols(), words.at(row * stride));
        }
    }
}

/// Elements of a weight row that are decoded at once.
const CHUNK: usize = 256;
/// Sums that are computed independently of one another and added at the end.
const LANES: usize = 16;

/// `Dot` with f32 words, for any processor: decodes some elements of a row of w, then multiplies
/// them with every row of x.
///
/// # Safety
/// The fields of `d` must be as described; with `FMA`, the processor must have FMA.
#[inline(always)]
pub unsafe fn dot_f32<const FMA: bool>(d: Dot, decode: impl Fn(Row, usize, &mut [f32])) {
    for (j, &row) in d.w.iter().enumerate() {
        let mut sums = [[0f32; LANES]; FEW];
        let mut k = 0;
        while k < d.k {
            let mut buffer = [0f32; CHUNK];
            let n = CHUNK.min(d.k - k);
            decode(row, k, &mut buffer[..n]);
            // Up to the end of the padding of x, which is zero, as is the rest of the buffer.
            let n = n.next_multiple_of(LANES);
            for (m, sum) in sums[..d.rows].iter_mut().enumerate() {
                // SAFETY: rows of x have `stride` words, a multiple of LANES and at least k.
                let x = unsafe {
                    std::slice::from_raw_parts(d.x.add(m * d.stride + k).cast::<f32>(), n)
                };
                let mut s = *sum;
                for (x, w) in x.as_chunks::<LANES>().0.iter().zip(buffer.as_chunks::<LANES>().0) {
                    for l in 0..LANES {
                        s[l] = mul_add::<FMA>(x[l], w[l], s[l]);
                    }
                }
                *sum = s;
            }
            k += n;
        }
        for (m, sum) in sums[..d.rows].iter().enumerate() {
            // SAFETY: `sums` has FEW rows of NC.
            unsafe { d.sums.add(m * NC + j).write(sum.iter().sum()) };
        }
    }
}

/// `dot_f32` with a decoder for any processor.
///
/// # Safety
/// The fields of `d` must be as described.
pub unsafe fn dot_portable(d: Dot) {
    // SAFETY: as above; `dot_f32` asks for elements below k only.
    unsafe { dot_f32::<false>(d, |row, k, out| decode(row, k, out)) }
}
