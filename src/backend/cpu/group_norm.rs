//! Group norm: moments of each row of pixels and group of channels; then those of the image, and an
//! affine map of every pixel.

use super::args::{GroupNormArgs, GroupStatisticsArgs};
use super::kernels::{How, Kernels, kernels};
use super::matrix::{In, Out};
use super::share::for_rows;
use super::simd::{self, Kernel, Lanes, Simd};
use super::step::{CpuOperation, CpuStep};
use crate::error::Result;
use crate::op::{GroupNorm, GroupStatistics};

/// Pixels whose moments are computed together: about 128 KiB, so that the second pass finds them in
/// the cache.
fn pixels_per_piece(channels: usize) -> usize {
    ((32 << 10) / channels.max(1)).max(1)
}

/// A mean, and the sum of the squared differences from it, over `count` elements.
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

/// Moments of each channel over the pixels of one piece, in f32: the second pass over a piece needs
/// no memory traffic.
struct ChannelMoments<'a> {
    x: In,
    pixels: std::ops::Range<usize>,
    /// One for each channel.
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

/// `out = (x - mean) * factor + bias` for one pixel, then SiLU if `silu` is set; all have n
/// elements. With the mean in the bias there would be one load less, but the difference would
/// cancel if the mean is large compared with the deviation.
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
        // SAFETY: the operands have n elements, as the struct requires.
        unsafe {
            simd::map::<S>(self.x, self.out, n, |i, x| {
                let d = S::sub(x, simd::at::<S>(self.mean, i, n));
                let y = S::fma(d, simd::at::<S>(self.factor, i, n), simd::at::<S>(self.bias, i, n));
                if self.silu { simd::silu::<S>(y) } else { y }
            });
        }
    }
}

/// Moments of all groups in the row of pixels `row`, which has `width` pixels.
fn row_moments(lanes: Lanes, a: &GroupStatisticsArgs, row: usize) -> Vec<Moments> {
    let GroupStatisticsArgs { x, width, groups, .. } = *a;
    let (channels, piece) = (x.cols(), pixels_per_piece(x.cols()));
    let (mut mean, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
    let mut all = vec![Moments::default(); groups];
    for first in (0..width).step_by(piece) {
        let pixels = row * width + first..row * width + width.min(first + piece);
        let count = pixels.len() as f64;
        // SAFETY: the variant was chosen for this processor; mean and squares have x's columns.
        unsafe { lanes.run(ChannelMoments { x, pixels, mean: &mut mean, squares: &mut squares }) };
        for (c, (mean, squares)) in mean.iter().zip(&squares).enumerate() {
            let channel = Moments { count, mean: (*mean).into(), squares: (*squares).into() };
            let group = &mut all[c / (channels / groups)];
            *group = group.with(channel);
        }
    }
    all
}

/// See [`GroupStatistics`].
pub(crate) fn group_statistics(how: How, a: &GroupStatisticsArgs) {
    let How::Simd(lanes) = how else {
        return reference::group_statistics(a);
    };
    let out: Out = a.out;
    for_rows(a.x.rows() / a.width, a.width * a.x.cols(), |rows| {
        for row in rows {
            for (g, moments) in row_moments(lanes, a, row).into_iter().enumerate() {
                // SAFETY: out has a row for each row of pixels, and two columns for each group; no
                // other task writes this row.
                unsafe {
                    out.row_ptr(row).add(2 * g).write(moments.mean as f32);
                    out.row_ptr(row).add(2 * g + 1).write(moments.squares as f32);
                }
            }
        }
    });
}

/// See [`GroupNorm`].
pub(crate) fn group_norm(how: How, a: &GroupNormArgs) {
    let GroupNormArgs { x, statistics, width, weight, bias, groups, eps, silu, out } = *a;
    let How::Simd(lanes) = how else {
        return reference::group_norm(a);
    };
    let channels = x.cols();
    assert!(weight.len() == channels && bias.len() == channels);
    let of_group = channels / groups;
    let count = (width * of_group) as f64;
    let (mut mean, mut factor) = (vec![0.0; channels], vec![0.0; channels]);
    for g in 0..groups {
        let part = |row: usize| {
            // SAFETY: the statistics have two columns for each group.
            let (mean, squares) = unsafe {
                let at = statistics.row_ptr(row).add(2 * g);
                (*at, *at.add(1))
            };
            Moments { count, mean: mean.into(), squares: squares.into() }
        };
        let all = (0..statistics.rows()).map(part).fold(Moments::default(), Moments::with);
        let inverse = 1.0 / (all.squares / all.count + f64::from(eps)).sqrt();
        for c in g * of_group..(g + 1) * of_group {
            mean[c] = all.mean as f32;
            factor[c] = (inverse * f64::from(weight[c])) as f32;
        }
    }
    for_rows(x.rows(), channels, |rows| {
        for r in rows {
            let (mean, factor, bias) = (mean.as_ptr(), factor.as_ptr(), bias.as_ptr());
            let (x, out) = (x.row_ptr(r), out.row_ptr(r));
            let row = AffineRow { x, mean, factor, bias, silu, out, n: channels };
            // SAFETY: the variant was chosen for this processor; all operands have x's columns.
            unsafe { lanes.run(row) };
        }
    });
}

impl CpuOperation for GroupStatistics {
    const KERNELS: Kernels = kernels!(f32 "group_statistics");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (x, out) = (step.tensor(self.x)?, step.out(self.out)?);
        let args = GroupStatisticsArgs { x, width: self.width, groups: self.groups, out };
        group_statistics(step.how(), &args);
        Ok(())
    }
}

impl CpuOperation for GroupNorm {
    const KERNELS: Kernels = kernels!(f32 "group_norm");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let args = GroupNormArgs {
            x: step.tensor(self.x)?,
            statistics: step.tensor(self.statistics)?,
            width: self.width,
            weight: step.vector(self.weight)?,
            bias: step.vector(self.bias)?,
            groups: self.groups,
            eps: self.eps,
            silu: self.silu,
            out: step.out(self.out)?,
        };
        group_norm(step.how(), &args);
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::args::{GroupNormArgs, GroupStatisticsArgs};
    use crate::backend::cpu::plain::{at, put, silu_of};

    /// Mean and summed squared deviation of each row of pixels and group of channels.
    pub(crate) fn group_statistics(a: &GroupStatisticsArgs) {
        let GroupStatisticsArgs { x, width, groups, out } = *a;
        let channels = x.cols() / groups;
        for row in 0..x.rows() / width {
            for group in 0..groups {
                let elements = || {
                    (row * width..(row + 1) * width).flat_map(move |p| {
                        (group * channels..(group + 1) * channels)
                            .map(move |c| f64::from(at(x, p, c)))
                    })
                };
                let mean = elements().sum::<f64>() / (width * channels) as f64;
                let squares = elements().map(|v| (v - mean).powi(2)).sum::<f64>();
                put(out, row, 2 * group, mean as f32);
                put(out, row, 2 * group + 1, squares as f32);
            }
        }
    }

    /// Group normalisation with the statistics of all rows of pixels, affine, then SiLU if asked.
    pub(crate) fn group_norm(a: &GroupNormArgs) {
        let GroupNormArgs { x, statistics, width, weight, bias, groups, eps, silu, out } = *a;
        let channels = x.cols() / groups;
        let (rows, part) = (statistics.rows(), (width * channels) as f64);
        for group in 0..groups {
            let mean_of = |r: usize| f64::from(at(statistics, r, 2 * group));
            let mean = (0..rows).map(mean_of).sum::<f64>() / rows as f64;
            let squares_of = |r: usize| {
                f64::from(at(statistics, r, 2 * group + 1)) + part * (mean_of(r) - mean).powi(2)
            };
            let variance = (0..rows).map(squares_of).sum::<f64>() / (part * rows as f64);
            let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
            for p in 0..x.rows() {
                for c in group * channels..(group + 1) * channels {
                    let y = (f64::from(at(x, p, c)) - mean) * inverse * f64::from(weight[c])
                        + f64::from(bias[c]);
                    put(out, p, c, if silu { silu_of(y) } else { y } as f32);
                }
            }
        }
    }
}
