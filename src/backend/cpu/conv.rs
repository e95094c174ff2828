//! [`Conv2d`] as an implicit matrix product, channels last, and the table of its variants.
//!
//! A row of the product is an output pixel. k runs over the taps of the kernel and, within a tap,
//! over input channels, so that the k of one tap are contiguous in one input pixel. Panels of x are
//! gathered pixel by pixel while they are packed (zeros outside the image, every second coordinate
//! if the input is enlarged): there is no im2col buffer, only `TASK_ROWS` pixels by one block of k
//! for each thread. The weight, stored as `out x (in, ky, kx)`, is reordered and packed once per
//! call; it has at most 9.4 MB for 512 channels.
//!
//! Lower bound: 2 pixels * out * in * 9 / peak seconds. A gathered element is packed 9 times, once
//! per tap, in about 0.15 cycles, compared with out / 64 cycles of bf16 arithmetic: 7 % at 128
//! output channels, 2 % at 512.

use super::gemm::finish::Tail;
use super::gemm::rows::{Row, WeightRows, decode};
use super::gemm::{self, Columns, MAX_LANES, Micro, NC, Words, aligned, share};
use super::isa::Isa;
use super::kernels::{Kernels, Product};
use super::linear::{Variant, linear, linear_scratch};
use super::matrix::{In, Out};
use super::step::{CpuOperation, CpuStep, Sizing};
use crate::error::Result;
use crate::op::{Conv2d, ConvShape};
use crate::tensor::HostWeight;

/// The variants of [`Conv2d`], best first; [`choose`](super::linear::choose) returns one.
pub const CONV2D: &[Variant] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new("conv2d_bf16_amx", &gemm::AMX),
    #[cfg(target_arch = "x86_64")]
    Variant::new("conv2d_bf16_avx512bf16", &gemm::AVX512BF16),
    #[cfg(target_arch = "x86_64")]
    Variant::new("conv2d_f32_avx512", &gemm::AVX512),
    #[cfg(target_arch = "x86_64")]
    Variant::new("conv2d_f32_avx2", &gemm::AVX2),
    Variant::new("conv2d_f32_portable", &gemm::PORTABLE),
];

/// Approximate number of output pixels in a task.
const TASK_ROWS: usize = 112;

/// How a convolution is divided.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    /// Words of one tap, words of all taps, and blocks of them.
    tap_words: usize,
    words: usize,
    k_blocks: usize,
    /// Panels of output channels, and row panels of a task.
    w_panels: usize,
    task_panels: usize,
    /// Words of the packed weight, of the packed x of one thread, of its sums, and of a weight row
    /// while it is reordered.
    w_words: usize,
    x_words: usize,
    c_words: usize,
}

impl Blocks {
    fn new(micro: &Micro, shape: &ConvShape) -> Blocks {
        let kc = micro.blocking.kc;
        let tap_words = micro.words(shape.in_channels);
        let words = tap_words * shape.kernel * shape.kernel;
        let k_blocks = words.div_ceil(kc).max(1);
        let w_panels = shape.out_channels.div_ceil(micro.nr);
        let task_panels = TASK_ROWS.div_ceil(micro.mr);
        let tile = micro.mr * micro.nr;
        let k = shape.in_channels * shape.kernel * shape.kernel;
        // A thread's area is used for f32 weight rows first (stored and reordered), then for packed
        // x and sums.
        let x_words = task_panels * micro.mr * words.min(kc);
        let c_words = if k_blocks > 1 { tile * task_panels * w_panels } else { tile };
        Blocks {
            tap_words,
            words,
            k_blocks,
            w_panels,
            task_panels,
            w_words: (w_panels * micro.nr * words).next_multiple_of(16),
            x_words: x_words.next_multiple_of(16),
            c_words: c_words
                .max((micro.nr + 1) * k - x_words.min((micro.nr + 1) * k))
                .next_multiple_of(16),
        }
    }

    fn scratch_words(&self, threads: usize) -> usize {
        self.w_words + threads * (self.x_words + self.c_words)
    }
}

/// Whether this is a 1 x 1 convolution that uses every pixel once: a plain matrix product.
fn is_linear(shape: &ConvShape) -> bool {
    shape.kernel == 1
        && shape.stride == 1
        && !shape.upsample
        && shape.pad_before + shape.pad_after == 0
}

/// Bytes of scratch that `conv2d` needs on `threads` threads.
pub fn conv2d_scratch(v: &Variant, shape: &ConvShape, threads: usize) -> usize {
    if is_linear(shape) {
        let rows = shape.batch * shape.height * shape.width;
        return linear_scratch(v, rows, shape.in_channels, 0, shape.out_channels, threads);
    }
    Blocks::new(v.micro(), shape).scratch_words(threads) * 4 + gemm::ALIGN
}

/// `out = conv(x) + bias (+ residual)`.
///
/// x: `batch*height*width x in`; w: `out x (in, ky, kx)` in any stored type; bias: `out`; residual
/// and out: `batch*oh*ow x out`. `residual` may be `out` itself. `scratch` has at least
/// `conv2d_scratch` bytes for the threads of the current rayon pool.
#[allow(clippy::too_many_arguments, reason = "the operands of one operation")]
pub fn conv2d(
    x: In,
    w: &HostWeight,
    bias: Option<&[f32]>,
    shape: &ConvShape,
    residual: Option<In>,
    out: Out,
    scratch: &mut [u8],
    v: &Variant,
) {
    let tail = residual.map_or(Tail::None, |residual| Tail::Add { residual });
    if is_linear(shape) {
        return linear(x, w, None, bias, None, tail, out, scratch, v);
    }
    let (height, width) = shape.output();
    let rows = shape.batch * height * width;
    assert!(v.needs <= Isa::detect(), "{} needs {}", v.name, v.needs.name());
    assert_eq!(
        (x.rows(), x.cols()),
        (shape.batch * shape.height * shape.width, shape.in_channels),
        "conv2d: x"
    );
    assert_eq!((out.rows(), out.cols()), (rows, shape.out_channels), "conv2d: out");
    assert_eq!(
        (w.rows, w.cols),
        (shape.out_channels, shape.in_channels * shape.kernel * shape.kernel),
        "conv2d: w"
    );
    assert!(bias.is_none_or(|b| b.len() == w.rows), "conv2d: the bias does not fit");
    tail.check(out);
    if rows == 0 || shape.out_channels == 0 {
        return;
    }
    let micro = v.micro();
    let threads = rayon::current_num_threads();
    let blocks = Blocks::new(micro, shape);
    let scratch = aligned(scratch, blocks.scratch_words(threads));
    let w = WeightRows::new(w);
    pack_weight(micro, &blocks, &w, shape, scratch, threads);
    let row_panels = rows.div_ceil(micro.mr);
    share(threads, row_panels.div_ceil(blocks.task_panels), |slot, task| {
        let first = task * blocks.task_panels;
        let panels = blocks.task_panels.min(row_panels - first);
        // SAFETY: processor and shapes were checked above; only this slot uses the area.
        unsafe {
            pixels(micro, &blocks, x, &w, bias, tail, out, shape, (first, panels), scratch, slot)
        }
    });
}

/// The words `from .. from + words` of a block, and the position of its panels in the packed
/// weight.
fn block_range(b: &Blocks, micro: &Micro, block: usize) -> (usize, usize, usize) {
    let kc = micro.blocking.kc;
    let from = block * kc;
    (from, (b.words - from).min(kc), from * b.w_panels * micro.nr)
}

/// Reorders and packs the whole weight as `[k block][panel][word][channel]`.
fn pack_weight(
    micro: &Micro,
    b: &Blocks,
    w: &WeightRows,
    shape: &ConvShape,
    scratch: Words,
    threads: usize,
) {
    let (nr, taps, channels) = (micro.nr, shape.kernel * shape.kernel, shape.in_channels);
    let k = taps * channels;
    share(threads, b.w_panels, |slot, panel| {
        let area = scratch.at(b.w_words + slot * (b.x_words + b.c_words)).cast::<f32>();
        // SAFETY: the slot's area has space for a stored row and `nr` reordered ones, and only this
        // slot uses it.
        let (stored, ordered) = unsafe {
            (
                std::slice::from_raw_parts_mut(area, k),
                std::slice::from_raw_parts_mut(area.add(k), nr * k),
            )
        };
        let mut lanes = [Row::ZEROS; MAX_LANES];
        let lanes = &mut lanes[..nr.min(shape.out_channels - panel * nr)];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: a row of the weight has k elements.
            unsafe { decode(w.row(panel * nr + i), 0, stored) };
            let ordered = &mut ordered[i * k..(i + 1) * k];
            for tap in 0..taps {
                for c in 0..channels {
                    ordered[tap * channels + c] = stored[c * taps + tap];
                }
            }
            *lane = Row::of_f32(ordered.as_ptr());
        }
        for block in 0..b.k_blocks {
            let (from, words, place) = block_range(b, micro, block);
            let to = scratch.at(place + panel * nr * words);
            each_tap(b, from, words, |tap, word, at, n| {
                let c = word * micro.per_word;
                let count = (channels - c).min(n * micro.per_word);
                // SAFETY: the elements are in `ordered`; only this task writes the panel.
                unsafe {
                    (micro.pack)(lanes, nr, tap * channels + c, count, to.wrapping_add(at * nr))
                };
            });
        }
    });
}

/// Divides the words `from .. from + words` at the taps: calls `f(tap, first word in the tap, first
/// word in the range, words)`.
fn each_tap(b: &Blocks, from: usize, words: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    let mut at = 0;
    while at < words {
        let (tap, word) = ((from + at) / b.tap_words, (from + at) % b.tap_words);
        let n = (b.tap_words - word).min(words - at);
        f(tap, word, at, n);
        at += n;
    }
}

/// Computes the output pixels of row panels `first .. first + panels`, for all channels.
#[allow(clippy::too_many_arguments, reason = "the inner loops of one algorithm, not an interface")]
unsafe fn pixels(
    micro: &Micro,
    b: &Blocks,
    x: In,
    w: &WeightRows,
    bias: Option<&[f32]>,
    tail: Tail,
    out: Out,
    shape: &ConvShape,
    (first, panels): (usize, usize),
    scratch: Words,
    slot: usize,
) {
    let (mr, nr, rows, channels) = (micro.mr, micro.nr, out.rows(), shape.in_channels);
    let packed = scratch.at(b.w_words + slot * (b.x_words + b.c_words));
    let sums: *mut f32 = packed.wrapping_add(b.x_words).cast();
    let source = Source::new(x, shape);
    // SAFETY: the promise of the caller.
    let _tiles = unsafe { micro.prepare() };
    for block in 0..b.k_blocks {
        let (from, words, place) = block_range(b, micro, block);
        for m in 0..panels {
            let to = packed.wrapping_add(m * mr * words);
            let mut pixel = [None; MAX_LANES];
            for (i, pixel) in pixel[..mr].iter_mut().enumerate() {
                let row = (first + m) * mr + i;
                *pixel = (row < rows).then(|| source.corner(row));
            }
            each_tap(b, from, words, |tap, word, at, n| {
                let mut lanes = [Row::ZEROS; MAX_LANES];
                for (lane, pixel) in lanes[..mr].iter_mut().zip(pixel) {
                    *lane = pixel.map_or(Row::ZEROS, |corner| source.row(corner, tap));
                }
                let c = word * micro.per_word;
                let count = (channels - c).min(n * micro.per_word);
                // SAFETY: rows of x have `channels` elements; each slot has an area of its own.
                unsafe { (micro.pack_x)(&lanes[..mr], mr, c, count, to.wrapping_add(at * mr)) };
            });
        }
        for group in (0..b.w_panels).step_by(NC / nr) {
            let group_cols = (group * nr, NC.min(shape.out_channels - group * nr));
            let columns = Columns::new(w, bias, group_cols.0, group_cols.1);
            for p in group..b.w_panels.min(group + NC / nr) {
                for m in 0..panels {
                    let tile = if b.k_blocks > 1 {
                        sums.wrapping_add((p * panels + m) * mr * nr)
                    } else {
                        sums
                    };
                    let row = (first + m) * mr;
                    // SAFETY: both panels have `words` words; each slot has a tile of its own.
                    unsafe {
                        let w_panel = scratch.at(place + p * nr * words);
                        (micro.tile)(
                            words,
                            packed.wrapping_add(m * mr * words),
                            w_panel,
                            tile,
                            block > 0,
                        );
                        if block + 1 == b.k_blocks {
                            let col = (p - group) * nr;
                            let cols = nr.min(group_cols.1 - col);
                            let rows = mr.min(rows - row);
                            let how = columns.finish(tail, out, row, rows, col, cols);
                            micro.finish_tile(tile, how);
                        }
                    }
                }
            }
        }
    }
}

/// Finds the input pixel that a tap of an output pixel reads.
struct Source<'a> {
    x: In,
    shape: &'a ConvShape,
    /// Size of the (enlarged) input, and of the output.
    source: (usize, usize),
    output: (usize, usize),
}

impl<'a> Source<'a> {
    fn new(x: In, shape: &'a ConvShape) -> Self {
        Source { x, shape, source: shape.source(), output: shape.output() }
    }

    /// The image, and the row and column of the padded, enlarged input that the kernel's first tap
    /// reads for output row `row`.
    fn corner(&self, row: usize) -> (usize, usize, usize) {
        let (height, width) = self.output;
        let (image, pixel) = (row / (height * width), row % (height * width));
        (image, pixel / width * self.shape.stride, pixel % width * self.shape.stride)
    }

    /// The input row that `tap` reads, or zeros if that is padding.
    fn row(&self, (image, top, left): (usize, usize, usize), tap: usize) -> Row {
        let s = self.shape;
        let (y, x) = (top + tap / s.kernel, left + tap % s.kernel);
        // Above or left of the image the difference wraps to a huge number, which is outside as
        // well.
        let (y, x) = (y.wrapping_sub(s.pad_before), x.wrapping_sub(s.pad_before));
        if y >= self.source.0 || x >= self.source.1 {
            return Row::ZEROS;
        }
        let (y, x) = if s.upsample { (y / 2, x / 2) } else { (y, x) };
        Row::of_f32(self.x.row_ptr((image * s.height + y) * s.width + x))
    }
}

impl CpuOperation for Conv2d {
    const KERNELS: Kernels =
        Kernels::Product { op: "conv2d", variants: CONV2D, reference: "conv2d_reference" };

    fn scratch_bytes(&self, sizing: &Sizing) -> usize {
        match sizing.choice.product(&Self::KERNELS, (sizing.stored)(self.w)) {
            Product::Fast(v) => conv2d_scratch(v, &self.shape, sizing.threads),
            Product::Reference => 0,
        }
    }

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (x, out) = (step.tensor(self.x)?, step.out(self.out)?);
        let (w, bias, shape) = (step.weight(self.w)?, step.bias(self.bias)?, self.shape);
        let residual = self.residual.map(|r| step.tensor(r)).transpose()?;
        match step.product(w) {
            Product::Reference => reference::conv2d(x, w, bias, shape, residual, out),
            Product::Fast(v) => {
                conv2d(x, w, bias, &shape, residual, out, step.scratch(self)?, v);
            }
        }
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::matrix::{In, Out};
    use crate::backend::cpu::plain::{at, put};
    use crate::op::ConvShape;
    use crate::tensor::HostWeight;

    /// Convolution, `w` as files store it: `out_channels x (in_channels * kernel * kernel)`.
    pub(crate) fn conv2d(
        x: In,
        w: &HostWeight,
        bias: Option<&[f32]>,
        shape: ConvShape,
        residual: Option<In>,
        out: Out,
    ) {
        let w = w.to_f32();
        let k = shape.kernel;
        let (source_h, source_w) = shape.source();
        let (out_h, out_w) = shape.output();
        let zoom = if shape.upsample { 2 } else { 1 };
        for image in 0..shape.batch {
            for (oy, ox) in (0..out_h).flat_map(|y| (0..out_w).map(move |x| (y, x))) {
                let to = (image * out_h + oy) * out_w + ox;
                for oc in 0..shape.out_channels {
                    let mut sum = bias.map_or(0.0, |b| f64::from(b[oc]));
                    for (ky, kx) in (0..k).flat_map(|y| (0..k).map(move |x| (y, x))) {
                        let (y, x_) = (oy * shape.stride + ky, ox * shape.stride + kx);
                        let inside =
                            |p: usize, n: usize| p >= shape.pad_before && p - shape.pad_before < n;
                        if !inside(y, source_h) || !inside(x_, source_w) {
                            continue;
                        }
                        let (y, x_) =
                            ((y - shape.pad_before) / zoom, (x_ - shape.pad_before) / zoom);
                        let from = (image * shape.height + y) * shape.width + x_;
                        for ic in 0..shape.in_channels {
                            let weight = w[((oc * shape.in_channels + ic) * k + ky) * k + kx];
                            sum += f64::from(at(x, from, ic)) * f64::from(weight);
                        }
                    }
                    let residual = residual.map_or(0.0, |r| f64::from(at(r, to, oc)));
                    put(out, to, oc, (sum + residual) as f32);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
