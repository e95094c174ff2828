//! Operations on pixels, latents and time.

use super::super::args::{GroupNormArgs, GroupStatisticsArgs};
use super::super::matrix::{In, Out};
use super::{at, put, silu_of};
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
                    let (y, x_) = ((y - shape.pad_before) / zoom, (x_ - shape.pad_before) / zoom);
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

/// Mean and summed squared deviation of each row of pixels and group of channels.
pub(crate) fn group_statistics(a: &GroupStatisticsArgs) {
    let GroupStatisticsArgs { x, width, groups, out } = *a;
    let channels = x.cols() / groups;
    for row in 0..x.rows() / width {
        for group in 0..groups {
            let elements = || {
                (row * width..(row + 1) * width).flat_map(move |p| {
                    (group * channels..(group + 1) * channels).map(move |c| f64::from(at(x, p, c)))
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

/// `[cos(1000 t f) | sin(1000 t f)]`, `f_i = 10000^(-i/half)`. The argument reaches 1000, where an
/// f32 has only four digits after the decimal point. It is rounded at the same place as in the
/// reference implementation, which uses f32, so that both compute the same angle.
pub(crate) fn timestep_embed(t: In, out: Out) {
    let half = out.cols() / 2;
    for r in 0..out.rows() {
        let time = 1000.0 * at(t, r, 0);
        for i in 0..half {
            let exponent = -(10000f64.ln() as f32) * i as f32 / half as f32;
            let frequency = f64::from(exponent).exp() as f32;
            let angle = f64::from(time * frequency);
            put(out, r, i, angle.cos() as f32);
            put(out, r, half + i, angle.sin() as f32);
        }
    }
}

/// The pixel row and the channel for a token row and a column of packed latents.
fn unpacked(token: usize, column: usize, height: usize, width: usize) -> (usize, usize) {
    let (across, down) = (width / 2, height / 2);
    let (image, y, x) = (token / (across * down), token / across % down, token % across);
    let (channel, dy, dx) = (column / 4, column / 2 % 2, column % 2);
    ((image * height + 2 * y + dy) * width + 2 * x + dx, channel)
}

/// Latent pixels to tokens.
pub(crate) fn pack(x: In, height: usize, width: usize, out: Out) {
    for r in 0..out.rows() {
        for c in 0..out.cols() {
            let (pixel, channel) = unpacked(r, c, height, width);
            put(out, r, c, at(x, pixel, channel));
        }
    }
}

/// Tokens to latent pixels, then `x * scale + shift`.
pub(crate) fn unpack(x: In, height: usize, width: usize, scale: f32, shift: f32, out: Out) {
    for r in 0..x.rows() {
        for c in 0..x.cols() {
            let (pixel, channel) = unpacked(r, c, height, width);
            put(out, pixel, channel, at(x, r, c) * scale + shift);
        }
    }
}

/// `x += params[0] * v`, or with `cfg` `x += params[0] * (vu + s * (vc - vu))`, conditional rows
/// first.
pub(crate) fn euler_step(x: Out, v: In, params: In, cfg: bool) {
    let (dt, s) = (at(params, 0, 0), at(params, 0, 1));
    let rows = x.rows();
    for r in 0..rows {
        for c in 0..x.cols() {
            let vc = at(v, r, c);
            let velocity = if cfg {
                let vu = at(v, rows + r, c);
                vu + s * (vc - vu)
            } else {
                vc
            };
            put(x, r, c, at(x.read(), r, c) + dt * velocity);
        }
    }
}
