//! Tests of the reference against formulas in another form.

use super::super::args::{AttentionArgs, GroupNormArgs, GroupStatisticsArgs, QkNormRopeArgs};
use super::super::attention::reference::attention;
use super::super::conv::reference::conv2d;
use super::super::embed::reference::timestep_embed;
use super::super::group_norm::reference::{group_norm, group_statistics};
use super::super::latents::reference::{euler_step, pack, unpack};
use super::super::linear::reference::linear;
use super::super::norm::reference::{layer_norm, layer_norm_modulate, rms_norm};
use super::super::qk_norm_rope::reference::qk_norm_rope;
use super::*;
use crate::dtype::DType;
use crate::op::{ConvShape, Pairs};
use crate::tensor::{HostWeight, Scale};
use std::sync::Arc;

/// Numbers without a pattern, the same in every run.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn weight(rows: usize, cols: usize, values: &[f32], scale: Scale) -> HostWeight {
    let source = Arc::new(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    HostWeight::whole(source, (rows, cols), DType::F32, scale)
}

#[track_caller]
fn close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*f) - e).abs() <= 2e-6 * (1.0 + e.abs()),
            "element {i}: {f}, expected {e}"
        );
    }
}

#[test]
fn linear_scales_each_stored_row_and_finishes_with_its_tail() {
    let (x, w, bias) = (numbers(1, 6), numbers(2, 12), numbers(3, 4));
    let scale = [0.5f32, 2.0, -1.0, 4.0];
    let host = weight(4, 3, &w, Scale::Rows(scale.into()));
    let (residual, gate) = (numbers(4, 8), numbers(5, 4));
    let y = |r: usize, n: usize| -> f64 {
        let dot = f64::from(x[3 * r]) * f64::from(w[3 * n])
            + f64::from(x[3 * r + 1]) * f64::from(w[3 * n + 1])
            + f64::from(x[3 * r + 2]) * f64::from(w[3 * n + 2]);
        dot * f64::from(scale[n]) + f64::from(bias[n])
    };
    let run = |tail| {
        let mut out = vec![f32::NAN; 8];
        linear(In::dense(&x, 3), &host, Some(&bias), None, tail, Out::dense(&mut out, 4));
        out
    };
    let all = |f: &dyn Fn(usize, usize) -> f64| (0..8).map(|i| f(i / 4, i % 4)).collect::<Vec<_>>();
    close(&run(Tail::None), &all(&y));
    close(&run(Tail::Silu), &all(&|r, n| y(r, n) * (0.5 + 0.5 * (y(r, n) / 2.0).tanh())));
    close(
        &run(Tail::QuickGelu),
        &all(&|r, n| y(r, n) * (0.5 + 0.5 * (1.702 * y(r, n) / 2.0).tanh())),
    );
    let u = |y: f64| 0.797_884_560_802_865_4 * (y + 0.044715 * y.powi(3));
    close(&run(Tail::GeluTanh), &all(&|r, n| y(r, n) / (1.0 + (-2.0 * u(y(r, n))).exp())));
    let (residual_in, gate_in) = (In::dense(&residual, 4), In::dense(&gate, 4));
    let with_gate = run(Tail::GatedAdd { residual: residual_in, gate: gate_in });
    close(&with_gate, &all(&|r, n| f64::from(residual[4 * r + n]) + f64::from(gate[n]) * y(r, n)));
    close(
        &run(Tail::Add { residual: residual_in }),
        &all(&|r, n| f64::from(residual[4 * r + n]) + y(r, n)),
    );
}

#[test]
fn attention_is_a_weighted_mean_with_exponential_weights() {
    let (batch, tokens, heads, dim) = (2, 5, 2, 4);
    let width = heads * dim;
    let n = batch * tokens * width;
    let (q, k, v, bias) =
        (numbers(1, n), numbers(2, n), numbers(3, n), numbers(4, (2 * tokens - 1) * heads));
    for causal in [false, true] {
        let (mut head_rows, mut rest) =
            (vec![f32::NAN; batch * 2 * width], vec![f32::NAN; batch * 3 * width]);
        attention(&AttentionArgs {
            q: In::dense(&q, width),
            k: In::dense(&k, width),
            v: In::dense(&v, width),
            batch,
            heads,
            scale: 0.7,
            causal,
            bias: Some(In::dense(&bias, heads)),
            first: Some(Out::dense(&mut head_rows, width)),
            out: Out::dense(&mut rest, width),
        });
        for (image, i, head) in
            (0..batch).flat_map(|b| (0..tokens).flat_map(move |i| (0..2).map(move |h| (b, i, h))))
        {
            let at = |m: &[f32], token: usize, d: usize| {
                f64::from(m[(image * tokens + token) * width + head * dim + d])
            };
            let (mut total, mut sums) = (0.0, [0.0; 4]);
            for j in (0..tokens).filter(|j| !causal || *j <= i) {
                let mut score = f64::from(bias[(tokens - 1 + j - i) * heads + head]);
                for d in 0..dim {
                    score += f64::from(0.7f32) * at(&q, i, d) * at(&k, j, d);
                }
                total += score.exp();
                (0..dim).for_each(|d| sums[d] += score.exp() * at(&v, j, d));
            }
            let found = match i {
                0 | 1 => &head_rows[(image * 2 + i) * width..],
                _ => &rest[(image * 3 + i - 2) * width..],
            };
            close(&found[head * dim..head * dim + dim], &sums.map(|s| s / total));
        }
    }
}

#[test]
fn norms_have_the_expected_moments() {
    let (rows, cols) = (6, 40);
    let x = numbers(7, rows * cols);
    let (gain, shift) = (vec![3.0; cols], vec![-2.0; cols]);
    let mut out = vec![f32::NAN; rows * cols];
    layer_norm(In::dense(&x, cols), &gain, &shift, 0.0, Out::dense(&mut out, cols));
    for row in out.chunks(cols) {
        let mean = row.iter().map(|y| f64::from(*y)).sum::<f64>() / cols as f64;
        let variance =
            row.iter().map(|y| (f64::from(*y) - mean).powi(2)).sum::<f64>() / cols as f64;
        assert!((mean + 2.0).abs() < 1e-6 && (variance - 9.0).abs() < 1e-5, "{mean} {variance}");
    }
    // Two groups of three rows; the modulation of the second group is only a shift.
    let (mod_shift, mod_scale) =
        ([vec![0.0; cols], vec![5.0; cols]].concat(), [vec![2.0; cols], vec![-1.0; cols]].concat());
    let windows = (In::dense(&mod_shift, cols), In::dense(&mod_scale, cols));
    let mut modulated = vec![f32::NAN; rows * cols];
    layer_norm_modulate(
        In::dense(&x, cols),
        windows.0,
        windows.1,
        0.0,
        Out::dense(&mut modulated, cols),
    );
    let expected: Vec<f64> =
        out[..3 * cols].iter().map(|y| f64::from(*y) + 2.0).chain(vec![5.0; 3 * cols]).collect();
    close(&modulated, &expected);
    rms_norm(In::dense(&x, cols), &gain, 0.0, Out::dense(&mut out, cols));
    for row in out.chunks(cols) {
        let squares = row.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>() / cols as f64;
        assert!((squares - 9.0).abs() < 1e-5, "{squares}");
    }
    // Group norm over one pixel of one group is a layer norm.
    let mut grouped = vec![f32::NAN; rows * cols];
    layer_norm(In::dense(&x, cols), &gain, &shift, 1e-3, Out::dense(&mut out, cols));
    for (row, normed) in grouped.chunks_mut(cols).enumerate() {
        let x = In::dense(&x[row * cols..(row + 1) * cols], cols);
        grouped_norm(x, 1, 1, (&gain, &shift), 1e-3, Out::dense(normed, cols));
    }
    close(&grouped, &out.iter().map(|y| f64::from(*y)).collect::<Vec<_>>());
    // Over many pixels the moments are those of the group, whatever a row of pixels is.
    for width in [1, 2, 3, 6] {
        let out = Out::dense(&mut grouped, cols);
        grouped_norm(In::dense(&x, cols), width, 8, (&gain, &shift), 0.0, out);
        for group in [0, 7] {
            let ys: Vec<f64> = (0..rows)
                .flat_map(|p| (0..5).map(move |c| p * cols + group * 5 + c))
                .map(|i| f64::from(grouped[i]))
                .collect();
            let mean = ys.iter().sum::<f64>() / 30.0;
            let variance = ys.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / 30.0;
            let close = (mean + 2.0).abs() < 1e-5 && (variance - 9.0).abs() < 1e-4;
            assert!(close, "{width}: {mean} {variance}");
        }
    }
}

/// Statistics and norm of an image with rows of `width` pixels.
fn grouped_norm(
    x: In,
    width: usize,
    groups: usize,
    (weight, bias): (&[f32], &[f32]),
    eps: f32,
    out: Out,
) {
    let mut statistics = vec![f32::NAN; x.rows() / width * 2 * groups];
    let to = Out::dense(&mut statistics, 2 * groups);
    group_statistics(&GroupStatisticsArgs { x, width, groups, out: to });
    let statistics = In::dense(&statistics, 2 * groups);
    let silu = false;
    group_norm(&GroupNormArgs { x, statistics, width, weight, bias, groups, eps, silu, out });
}

#[test]
fn rope_rotates_pairs_so_that_dot_products_depend_on_the_distance() {
    let (heads, dim, tokens) = (1, 4, 6);
    // One vector for q at every token and one for k: the score of (i, j) may then depend only on i
    // - j.
    let row: Vec<f32> = numbers(9, 3 * dim);
    let qkv: Vec<f32> = (0..tokens).flat_map(|_| row.clone()).collect();
    let angle = |t: usize, pair: usize| t as f64 * [0.9, 0.13][pair];
    let rope: Vec<f32> = (0..tokens)
        .flat_map(|t| {
            (0..2).flat_map(move |p| [angle(t, p).cos() as f32, angle(t, p).sin() as f32])
        })
        .collect();
    let gain = vec![1.0; dim];
    let mut out = vec![f32::NAN; tokens * 3 * dim];
    let (qkv_in, rope_in) = (In::dense(&qkv, 3 * dim), In::dense(&rope, dim));
    qk_norm_rope(&QkNormRopeArgs {
        qkv: qkv_in,
        q_gain: &gain,
        k_gain: &gain,
        rope: rope_in,
        pairs: Pairs::Adjacent,
        batch: 1,
        heads,
        kv_heads: heads,
        tokens,
        first: 0,
        eps: 0.0,
        out: Out::dense(&mut out, 3 * dim),
    });
    let score = |i: usize, j: usize| -> f64 {
        (0..dim).map(|d| f64::from(out[i * 12 + d]) * f64::from(out[j * 12 + dim + d])).sum()
    };
    assert!((score(4, 1) - score(5, 2)).abs() < 1e-6 && (score(2, 3) - score(0, 1)).abs() < 1e-6);
    assert!((score(4, 1) - score(1, 4)).abs() > 1e-3, "the direction of the rotation matters");
    let length: f64 = row[..dim].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / dim as f64;
    let unit = |d: usize| f64::from(row[d]) / length.sqrt();
    let (c, s) = (angle(3, 0).cos(), angle(3, 0).sin());
    close(&out[36..38], &[c * unit(0) - s * unit(1), s * unit(0) + c * unit(1)]);
    assert_eq!(&out[36 + 8..48], &row[8..], "v is copied");
}

#[test]
fn a_convolution_of_a_point_is_its_kernel() {
    let mut x = vec![0.0; 5 * 4 * 2];
    x[(2 * 4 + 1) * 2 + 1] = 1.0; // row 2, column 1, channel 1
    let w: Vec<f32> = (0..3 * 2 * 9).map(|i| i as f32).collect();
    let shape = ConvShape {
        batch: 1,
        height: 5,
        width: 4,
        in_channels: 2,
        out_channels: 3,
        kernel: 3,
        stride: 1,
        pad_before: 1,
        pad_after: 1,
        upsample: false,
    };
    let mut out = vec![f32::NAN; 5 * 4 * 3];
    conv2d(
        In::dense(&x, 2),
        &weight(3, 18, &w, Scale::One),
        None,
        shape,
        None,
        Out::dense(&mut out, 3),
    );
    for (y, x_, oc) in (0..5).flat_map(|y| (0..4).flat_map(move |x| (0..3).map(move |c| (y, x, c))))
    {
        // The tap at (ky, kx) reads the pixel at (y + ky - 1, x + kx - 1).
        let (ky, kx) = (2 + 1 - y as isize, 1 + 1 - x_ as isize);
        let inside = (0..3).contains(&ky) && (0..3).contains(&kx);
        let expected = if inside { ((oc * 2 + 1) * 9) as f32 + (ky * 3 + kx) as f32 } else { 0.0 };
        assert_eq!(out[(y * 4 + x_) * 3 + oc], expected, "({y}, {x_}, {oc})");
    }
    // Enlarged twice and read with stride 2 without padding, a 1 x 1 kernel of one gives the
    // image back.
    let shape = ConvShape {
        kernel: 1,
        stride: 2,
        pad_before: 0,
        pad_after: 0,
        upsample: true,
        out_channels: 2,
        ..shape
    };
    let mut same = vec![f32::NAN; x.len()];
    let identity = weight(2, 2, &[1.0, 0.0, 0.0, 1.0], Scale::One);
    conv2d(
        In::dense(&x, 2),
        &identity,
        Some(&[0.0, 0.5]),
        shape,
        Some(In::dense(&x, 2)),
        Out::dense(&mut same, 2),
    );
    let expected: Vec<f64> = x
        .iter()
        .enumerate()
        .map(|(i, x)| f64::from(*x) * 2.0 + if i % 2 == 1 { 0.5 } else { 0.0 })
        .collect();
    close(&same, &expected);
}

#[test]
fn packing_is_in_the_order_channel_row_column_and_unpacking_is_its_inverse() {
    let (batch, height, width, c) = (2, 4, 6, 3);
    let x: Vec<f32> = (0..batch * height * width * c).map(|i| i as f32).collect();
    let mut tokens = vec![f32::NAN; x.len()];
    pack(In::dense(&x, c), height, width, Out::dense(&mut tokens, 4 * c));
    // Image 1, token (1, 2), channel 2, lower left pixel: pixel (3, 4).
    let token = 6 + 3 + 2;
    assert_eq!(tokens[token * 12 + 2 * 4 + 2], x[((height + 3) * width + 4) * c + 2]);
    let mut back = vec![f32::NAN; x.len()];
    unpack(In::dense(&tokens, 4 * c), height, width, 2.0, 1.0, Out::dense(&mut back, c));
    assert!(x.iter().zip(&back).all(|(x, b)| 2.0 * x + 1.0 == *b));
}

#[test]
fn an_euler_step_with_guidance_goes_from_the_unconditional_towards_the_conditional() {
    let (mut x, v) = (vec![1.0, 2.0], vec![10.0, 20.0, 4.0, 8.0]);
    euler_step(Out::dense(&mut x, 2), In::dense(&v, 2), In::dense(&[-0.5, 3.0], 2), true);
    assert_eq!(x, [1.0 - 0.5 * (4.0 + 3.0 * 6.0), 2.0 - 0.5 * (8.0 + 3.0 * 12.0)]);
    let mut x = vec![1.0, 2.0];
    euler_step(Out::dense(&mut x, 2), In::dense(&v[..2], 2), In::dense(&[-0.5, 3.0], 2), false);
    assert_eq!(x, [-4.0, -8.0]);
}

#[test]
fn the_time_embedding_is_cosines_then_sines_of_falling_frequency() {
    let mut out = vec![f32::NAN; 512];
    timestep_embed(In::dense(&[0.0, 0.25], 1), Out::dense(&mut out, 256));
    assert_eq!((out[0], out[127], out[128], out[255]), (1.0, 1.0, 0.0, 0.0));
    // The lowest frequencies have small angles, where rounding in f32 does not matter.
    for i in 64..128 {
        let angle = 250.0 * 10000f64.powf(-(i as f64) / 128.0);
        close(&[out[256 + i], out[384 + i]], &[angle.cos(), angle.sin()]);
    }
    assert!((f64::from(out[256]) - 250f64.cos()).abs() < 1e-6);
}
