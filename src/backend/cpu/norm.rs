//! Layer norm and RMS norm.
//!
//! They are limited by memory: a layer norm of 4608 x 3072 moves 113 MB, which takes 1.2 ms at
//! 98 GB/s. So a row is read once from memory, and the second pass over it finds it in the
//! first-level cache. Variances take two passes, because the one-pass formula cancels.

use super::kernels::{How, Kernels, kernels};
use super::matrix::{In, Out};
use super::share::for_rows;
use super::simd::{self, Kernel, Simd};
use super::step::{CpuOperation, CpuStep};
use crate::error::Result;
use crate::op::{LayerNorm, LayerNormModulate, RmsNorm};

/// `sum((x - mean)^POWER)` over `n` elements, with POWER 1 or 2, in four interleaved vector sums
/// and a scalar tail.
#[inline(always)]
pub(super) unsafe fn sum<S: Simd, const POWER: u32>(x: *const f32, n: usize, mean: f32) -> f32 {
    let mut i = 0;
    // SAFETY: the caller passes n readable elements and runs with the features of S.
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
        // SAFETY: the operands have n elements, as the struct requires.
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

/// See [`LayerNormModulate`]; `out` may be `x`.
pub(crate) fn layer_norm_modulate(how: How, x: In, shift: In, scale: In, eps: f32, out: Out) {
    let How::Simd(lanes) = how else {
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

/// See [`LayerNorm`]; `weight` and `bias` have as many elements as `x` has columns; `out` may be
/// `x`.
pub(crate) fn layer_norm(how: How, x: In, weight: &[f32], bias: &[f32], eps: f32, out: Out) {
    let How::Simd(lanes) = how else { return reference::layer_norm(x, weight, bias, eps, out) };
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

/// See [`RmsNorm`]; `weight` has as many elements as `x` has columns; `out` may be `x`.
pub(crate) fn rms_norm(how: How, x: In, weight: &[f32], eps: f32, out: Out) {
    let How::Simd(lanes) = how else { return reference::rms_norm(x, weight, eps, out) };
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

impl CpuOperation for LayerNormModulate {
    const KERNELS: Kernels = kernels!(f32 "layer_norm_modulate");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (shift, scale) = (step.view(self.shift)?, step.view(self.scale)?);
        let (x, out) = (step.tensor(self.x)?, step.out(self.out)?);
        layer_norm_modulate(step.how(), x, shift, scale, self.eps, out);
        Ok(())
    }
}

impl CpuOperation for LayerNorm {
    const KERNELS: Kernels = kernels!(f32 "layer_norm");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (weight, bias) = (step.vector(self.weight)?, step.vector(self.bias)?);
        let (x, out) = (step.tensor(self.x)?, step.out(self.out)?);
        layer_norm(step.how(), x, weight, bias, self.eps, out);
        Ok(())
    }
}

impl CpuOperation for RmsNorm {
    const KERNELS: Kernels = kernels!(f32 "rms_norm");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (x, out) = (step.tensor(self.x)?, step.out(self.out)?);
        rms_norm(step.how(), x, step.vector(self.weight)?, self.eps, out);
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::matrix::{In, Out};
    use crate::backend::cpu::plain::{at, group_row, put};

    /// Mean and 1 / sqrt(variance + eps) of a row.
    fn moments(x: In, row: usize, eps: f32) -> (f64, f64) {
        let n = x.cols() as f64;
        let mean = (0..x.cols()).map(|c| f64::from(at(x, row, c))).sum::<f64>() / n;
        let variance =
            (0..x.cols()).map(|c| (f64::from(at(x, row, c)) - mean).powi(2)).sum::<f64>() / n;
        (mean, 1.0 / (variance + f64::from(eps)).sqrt())
    }

    /// `out = (1 + scale[group]) * norm(x) + shift[group]`
    pub(crate) fn layer_norm_modulate(x: In, shift: In, scale: In, eps: f32, out: Out) {
        for r in 0..x.rows() {
            let (mean, inverse) = moments(x, r, eps);
            let (of_shift, of_scale) =
                (group_row(r, x.rows(), shift.rows()), group_row(r, x.rows(), scale.rows()));
            for c in 0..x.cols() {
                let norm = (f64::from(at(x, r, c)) - mean) * inverse;
                let y = (1.0 + f64::from(at(scale, of_scale, c))) * norm
                    + f64::from(at(shift, of_shift, c));
                put(out, r, c, y as f32);
            }
        }
    }

    /// `out = norm(x) * weight + bias`
    pub(crate) fn layer_norm(x: In, weight: &[f32], bias: &[f32], eps: f32, out: Out) {
        for r in 0..x.rows() {
            let (mean, inverse) = moments(x, r, eps);
            for c in 0..x.cols() {
                let norm = (f64::from(at(x, r, c)) - mean) * inverse;
                put(out, r, c, (norm * f64::from(weight[c]) + f64::from(bias[c])) as f32);
            }
        }
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight`
    pub(crate) fn rms_norm(x: In, weight: &[f32], eps: f32, out: Out) {
        for r in 0..x.rows() {
            let squares: f64 = (0..x.cols()).map(|c| f64::from(at(x, r, c)).powi(2)).sum();
            let inverse = 1.0 / (squares / x.cols() as f64 + f64::from(eps)).sqrt();
            for (c, w) in weight.iter().enumerate() {
                put(out, r, c, (f64::from(at(x, r, c)) * inverse * f64::from(*w)) as f32);
            }
        }
    }
}
