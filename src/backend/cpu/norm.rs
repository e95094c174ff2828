//! Normalisations: layer norm, RMS norm, the norm and rotation of queries and keys, group norm.
//!
//! All are limited by memory (a 4608 x 3072 layer norm moves 113 MB: 1.2 ms at 98 GB/s), so a row
//! is read once from memory, and the second pass over it reads the L1 cache. Variances use two
//! passes, because the one-pass formula loses precision by cancellation.

use rayon::prelude::*;

use super::matrix::{In, Out};
use super::reference;
use super::share::for_rows;
use super::simd::{self, Kernel, Lanes, Simd};
use super::variants::How;

/// The vectors of a variant, or `None` for the reference.
fn lanes(how: How) -> Option<Lanes> {
    match how {
        How::Simd(lanes) => Some(lanes),
        _ => None,
    }
}

/// `sum((x - mean)^POWER)` over `n` elements, with POWER 1 or 2, in four interleaved vector sums
/// and a scalar tail.
#[inline(always)]
unsafe fn sum<S: Simd, const POWER: u32>(x: *const f32, n: usize, mean: f32) -> f32 {
    let mut i = 0;
    // SAFETY: the caller gives n readable elements and runs with the features of S.
    unsafe {
        let m = S::splat(mean);
        let mut sums = [S::splat(0.0); 4];
        while i + S::LANES <= n {
            let d = S::sub(S::load(x.add(i)), m);
            // Using the sums in turn keeps an addition from waiting for the one before.
            let [a, b, c, e] = sums;
            sums = [b, c, e, if POWER == 2 { S::fma(d, d, a) } else { S::add(d, a) }];
            i += S::LANES;
        }
        let mut total = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
        while i < n {
            total += (*x.add(i) - mean).powi(POWER as i32);
            i += 1;
        }
        total
    }
}

/// One row: `out = (x - mean) / sqrt(variance + eps) * (gain + offset) + shift`. Without `shift` it
/// is the RMS norm, whose mean is 0. x, gain, shift and out have n elements; out may be x.
struct NormRow {
    x: *const f32,
    gain: *const f32,
    offset: f32,
    shift: Option<*const f32>,
    eps: f32,
    out: *mut f32,
    n: usize,
}

impl Kernel for NormRow {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.n;
        // SAFETY: the operands have n elements, as the struct demands.
        unsafe {
            let mean = match self.shift {
                Some(_) => sum::<S, 1>(self.x, n, 0.0) / n as f32,
                None => 0.0,
            };
            let variance = sum::<S, 2>(self.x, n, mean) / n as f32;
            let (inverse, mean) = (S::splat(1.0 / (variance + self.eps).sqrt()), S::splat(mean));
            let offset = S::splat(self.offset);
            simd::map::<S>(self.x, self.out, n, |i, x| {
                let norm = S::mul(S::sub(x, mean), inverse);
                let gain = S::add(simd::at::<S>(self.gain, i, n), offset);
                match self.shift {
                    Some(shift) => S::fma(norm, gain, simd::at::<S>(shift, i, n)),
                    None => S::mul(norm, gain),
                }
            });
        }
    }
}

/// See `Op::LayerNormModulate`; `out` may be x.
pub(crate) fn layer_norm_modulate(how: How, x: In, shift: In, scale: In, eps: f32, out: Out) {
    let Some(lanes) = lanes(how) else {
        return reference::layer_norm_modulate(x, shift, scale, eps, out);
    };
    let group = |r: usize, m: In| m.row_ptr(r / (x.rows() / m.rows()));
    for_rows(x.rows(), x.cols(), |rows| {
        for r in rows {
            let (gain, shift) = (group(r, scale), Some(group(r, shift)));
            let row = NormRow {
                x: x.row_ptr(r),
                gain,
                offset: 1.0,
                shift,
                eps,
                out: out.row_ptr(r),
                n: x.cols(),
            };
            // SAFETY: the variant was chosen for this processor; the rows have as many columns as
            // x.
            unsafe { lanes.run(row) };
        }
    });
}

/// See `Op::LayerNorm`; weight and bias have as many elements as x columns; `out` may be x.
pub(crate) fn layer_norm(how: How, x: In, weight: &[f32], bias: &[f32], eps: f32, out: Out) {
    let Some(lanes) = lanes(how) else { return reference::layer_norm(x, weight, bias, eps, out) };
    assert!(weight.len() == x.cols() && bias.len() == x.cols());
    for_rows(x.rows(), x.cols(), |rows| {
        for r in rows {
            let (gain, shift) = (weight.as_ptr(), Some(bias.as_ptr()));
            let row = NormRow {
                x: x.row_ptr(r),
                gain,
                offset: 0.0,
                shift,
                eps,
                out: out.row_ptr(r),
                n: x.cols(),
            };
            // SAFETY: the variant was chosen for this processor; lengths were checked above.
            unsafe { lanes.run(row) };
        }
    });
}

/// See `Op::RmsNorm`; weight has as many elements as x columns; `out` may be x.
pub(crate) fn rms_norm(how: How, x: In, weight: &[f32], eps: f32, out: Out) {
    let Some(lanes) = lanes(how) else { return reference::rms_norm(x, weight, eps, out) };
    assert_eq!(weight.len(), x.cols());
    for_rows(x.rows(), x.cols(), |rows| {
        for r in rows {
            let gain = weight.as_ptr();
            let row = NormRow {
                x: x.row_ptr(r),
                gain,
                offset: 0.0,
                shift: None,
                eps,
                out: out.row_ptr(r),
                n: x.cols(),
            };
            // SAFETY: the variant was chosen for this processor; lengths were checked above.
            unsafe { lanes.run(row) };
        }
    });
}

/// The operands of `Op::QkNormRope`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QkNormRopeArgs<'a> {
    pub qkv: In,
    pub q_gain: &'a [f32],
    pub k_gain: &'a [f32],
    pub rope: In,
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    pub first: usize,
    pub eps: f32,
    pub out: Out,
}

impl QkNormRopeArgs<'_> {
    pub(crate) fn head_dim(&self) -> usize {
        self.qkv.cols() / (3 * self.heads)
    }

    /// For a row of `qkv`: its token within the image, and its row in `out`.
    pub(crate) fn place(&self, row: usize) -> (usize, usize) {
        let n = self.qkv.rows() / self.batch;
        let token = self.first + row % n;
        (token, row / n * self.tokens + token)
    }
}

/// All heads of q and then of k of one row: norm, gain, rotation; v is copied. x and out have 3 *
/// heads * dim elements; out may be x.
struct QkRow<'a> {
    x: *const f32,
    gains: [&'a [f32]; 2],
    rope: *const f32,
    heads: usize,
    dim: usize,
    eps: f32,
    out: *mut f32,
}

impl Kernel for QkRow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (dim, width) = (self.dim, self.heads * self.dim);
        // SAFETY: the operands have the lengths that the struct requires.
        unsafe {
            for (which, gain) in self.gains.iter().enumerate() {
                for head in 0..self.heads {
                    let at = which * width + head * dim;
                    let x = self.x.add(at);
                    let inverse =
                        S::splat(1.0 / (sum::<S, 2>(x, dim, 0.0) / dim as f32 + self.eps).sqrt());
                    // The width of a head is even, so a vector never separates a pair.
                    simd::map::<S>(x, self.out.add(at), dim, |i, x| {
                        let x = S::mul(S::mul(x, inverse), simd::at::<S>(gain.as_ptr(), i, dim));
                        S::rotate(x, simd::at::<S>(self.rope, i, dim))
                    });
                }
            }
            std::ptr::copy(self.x.add(2 * width), self.out.add(2 * width), width);
        }
    }
}

/// See `Op::QkNormRope`; `out` may be `qkv` when it has all tokens.
pub(crate) fn qk_norm_rope(how: How, a: &QkNormRopeArgs) {
    let Some(lanes) = lanes(how) else { return reference::qk_norm_rope(a) };
    let dim = a.head_dim();
    assert!(
        a.q_gain.len() == dim
            && a.k_gain.len() == dim
            && a.rope.cols() == dim
            && dim.is_multiple_of(2)
    );
    for_rows(a.qkv.rows(), a.qkv.cols(), |rows| {
        for r in rows {
            let (token, to) = a.place(r);
            let row = QkRow {
                x: a.qkv.row_ptr(r),
                gains: [a.q_gain, a.k_gain],
                rope: a.rope.row_ptr(token),
                heads: a.heads,
                dim,
                eps: a.eps,
                out: a.out.row_ptr(to),
            };
            // SAFETY: the variant was chosen for this processor; the shapes were checked when the
            // step was recorded and above.
            unsafe { lanes.run(row) };
        }
    });
}

/// The operands of `Op::GroupNorm`. Weight and bias have as many elements as x has columns; `out`
/// may be x.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNormArgs<'a> {
    pub x: In,
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub batch: usize,
    pub groups: usize,
    pub eps: f32,
    pub silu: bool,
    pub out: Out,
}

/// Pixels whose statistics are computed together: about 128 KiB, so that the second pass over them
/// reads the cache.
fn pixels_per_piece(channels: usize) -> usize {
    ((32 << 10) / channels.max(1)).max(1)
}

/// A mean and the sum of squared distances from it, over `count` elements.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// The moments of both sets together (Chan, Golub and LeVeque).
    fn with(self, other: Moments) -> Moments {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let d = other.mean - self.mean;
        Moments {
            count,
            mean: self.mean + d * other.count / count,
            squares: self.squares + other.squares + d * d * self.count * other.count / count,
        }
    }
}

/// Moments of each channel over some pixels. The sums are f32 over at most one piece, which two
/// passes read from the cache.
struct ChannelMoments<'a> {
    x: In,
    pixels: std::ops::Range<usize>,
    /// One element per channel.
    mean: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Kernel for ChannelMoments<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.mean.len();
        let inverse = 1.0 / self.pixels.len() as f32;
        let mut i = 0;
        // SAFETY: x has n columns and the rows `pixels`; mean and squares have n elements.
        unsafe {
            while i < n {
                let mut sums = [S::splat(0.0); 4];
                for (p, row) in self.pixels.clone().enumerate() {
                    sums[p % 4] = S::add(sums[p % 4], simd::at::<S>(self.x.row_ptr(row), i, n));
                }
                let total = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
                let mean = S::mul(total, S::splat(inverse));
                let mut sums = [S::splat(0.0); 4];
                for (p, row) in self.pixels.clone().enumerate() {
                    let d = S::sub(simd::at::<S>(self.x.row_ptr(row), i, n), mean);
                    sums[p % 4] = S::fma(d, d, sums[p % 4]);
                }
                let squares = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
                let width = S::LANES.min(n - i);
                if width == S::LANES {
                    S::store(self.mean.as_mut_ptr().add(i), mean);
                    S::store(self.squares.as_mut_ptr().add(i), squares);
                } else {
                    S::store_first(self.mean.as_mut_ptr().add(i), mean, width);
                    S::store_first(self.squares.as_mut_ptr().add(i), squares, width);
                }
                i += S::LANES;
            }
        }
    }
}

/// `out = (x - mean) * factor + bias` for one pixel, then SiLU if requested; all have n elements.
/// Including the mean in the bias would save a load, but would lose precision where the mean is
/// large compared with the deviation.
struct AffineRow {
    x: *const f32,
    mean: *const f32,
    factor: *const f32,
    bias: *const f32,
    silu: bool,
    out: *mut f32,
    n: usize,
}

impl Kernel for AffineRow {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.n;
        // SAFETY: the operands have n elements, as the struct demands.
        unsafe {
            simd::map::<S>(self.x, self.out, n, |i, x| {
                let d = S::sub(x, simd::at::<S>(self.mean, i, n));
                let y = S::fma(d, simd::at::<S>(self.factor, i, n), simd::at::<S>(self.bias, i, n));
                if self.silu { simd::silu::<S>(y) } else { y }
            });
        }
    }
}

/// See `Op::GroupNorm`.
pub(crate) fn group_norm(how: How, a: &GroupNormArgs) {
    let GroupNormArgs { x, weight, bias, batch, groups, eps, silu, out } = *a;
    let Some(lanes) = lanes(how) else {
        return reference::group_norm(x, weight, bias, batch, groups, eps, silu, out);
    };
    let channels = x.cols();
    assert!(weight.len() == channels && bias.len() == channels);
    let (pixels, width) = (x.rows() / batch, channels / groups);
    for picture in 0..batch {
        let first = picture * pixels;
        let piece = pixels_per_piece(channels);
        let of_pieces: Vec<Vec<Moments>> = (0..pixels.div_ceil(piece))
            .into_par_iter()
            .map(|i| {
                let pixels = first + i * piece..first + pixels.min((i + 1) * piece);
                let (mut mean, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
                let count = pixels.len() as f64;
                // SAFETY: the variant was chosen for this processor; mean and squares have x's
                // columns.
                unsafe {
                    lanes.run(ChannelMoments { x, pixels, mean: &mut mean, squares: &mut squares })
                };
                let channel =
                    |c: usize| Moments { count, mean: mean[c].into(), squares: squares[c].into() };
                (0..groups)
                    .map(|g| {
                        (g * width..(g + 1) * width)
                            .map(channel)
                            .fold(Moments::default(), Moments::with)
                    })
                    .collect()
            })
            .collect();
        let (mut mean, mut factor) = (vec![0.0; channels], vec![0.0; channels]);
        for g in 0..groups {
            let all = of_pieces.iter().map(|p| p[g]).fold(Moments::default(), Moments::with);
            let inverse = 1.0 / (all.squares / all.count + f64::from(eps)).sqrt();
            for c in g * width..(g + 1) * width {
                mean[c] = all.mean as f32;
                factor[c] = (inverse * f64::from(weight[c])) as f32;
            }
        }
        for_rows(pixels, channels, |rows| {
            for r in rows.start + first..rows.end + first {
                let (mean, factor, bias) = (mean.as_ptr(), factor.as_ptr(), bias.as_ptr());
                let (x, out) = (x.row_ptr(r), out.row_ptr(r));
                let row = AffineRow { x, mean, factor, bias, silu, out, n: channels };
                // SAFETY: the variant was chosen for this processor; all operands have x's columns.
                unsafe { lanes.run(row) };
            }
        });
    }
}
