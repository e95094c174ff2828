//! Normalisations of rows and of groups of channels.

use flux_fast::dtype::DType;
use flux_fast::op::{GroupNorm, GroupStatistics, LayerNorm, LayerNormModulate, Op, RmsNorm};

use crate::case::{Case, runnable};
use crate::{ROWS, all_ran, wgpu};

#[test]
fn norms_of_rows() {
    for rows in ROWS {
        for cols in [1, 15, 64, 769, 3072] {
            if rows * cols > 300_000 {
                continue;
            }
            let mut c = Case::new();
            let (x, out, weight, bias) =
                (c.input(rows, cols), c.output(rows, cols), c.vector(cols), c.vector(cols));
            for out in [out, x] {
                // With one column the normalised value is zero and only the affine part remains.
                c.check(LayerNorm { x, weight, bias, eps: 1e-5, out }, 0);
                c.check(RmsNorm { x, weight, eps: 1e-6, out }, 0);
                for groups in [1, rows] {
                    let m = c.input(groups, 3 * cols + 1);
                    let (shift, scale) = (m.columns(1, cols), m.columns(2 * cols, cols));
                    c.check(LayerNormModulate { x, shift, scale, eps: 1e-6, out }, 0);
                    let m = c.input(groups, 3 * cols);
                    let (shift, scale) = (m.columns(cols, cols), m.columns(2 * cols, cols));
                    c.check(LayerNormModulate { x, shift, scale, eps: 1e-6, out }, 0);
                    c.check_nan(LayerNormModulate { x, shift, scale, eps: 1e-6, out }, x);
                }
            }
            c.check_nan(LayerNorm { x, weight, bias, eps: 1e-5, out }, x);
            c.check_nan(RmsNorm { x, weight, eps: 1e-6, out }, x);
        }
    }
    all_ran(&["layer_norm", "rms_norm", "layer_norm_modulate"]);
}

#[test]
fn a_layer_norm_far_from_zero_keeps_its_digits() {
    let mut c = Case::new();
    let values: Vec<f32> = (0..4 * 512).map(|_| 1000.0 + c.random.number()).collect();
    let x = c.given(4, 512, &values);
    let (out, weight, bias) = (c.output(4, 512), c.vector(512), c.vector(512));
    let op = Op::LayerNorm(LayerNorm { x, weight, bias, eps: 1e-6, out });
    let image = c.image();
    let expected = c.written(&op, &c.run(op, "layer_norm_reference", 1, &image).unwrap());
    for variant in runnable("layer_norm") {
        let found = c.written(&op, &c.run(op, variant, 1, &image).unwrap());
        let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
        // An f32 mean near 1000 has an error of about 1e-4; a one-pass variance would have an error
        // of tenths.
        assert!(worst < 2e-3, "{variant}: {worst}");
    }
    wgpu::judge(&c, op, &mut |variant, found| {
        let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-3, "{variant}: {worst}");
    });
}

#[test]
fn group_norms() {
    // `lines` rows of `width` pixels, of an image with `height` rows.
    for (lines, width, height, channels, groups) in [
        (1, 1, 1, 32, 32),
        (1, 17, 3, 64, 32),
        (15, 17, 15, 12, 3),
        (2, 129, 40, 128, 32),
        (5, 206, 300, 96, 32),
        (20, 35, 20, 130, 10),
        (1, 1031, 1, 32, 4),
    ] {
        let mut c = Case::new();
        let x = c.input(lines * width, channels);
        let found = c.blank(lines, 2 * groups, DType::F32);
        let op = GroupStatistics { x, width, groups, out: found };
        c.check(op, 0);
        c.check_nan(op, x);

        let mut c = Case::new();
        let x = c.input(lines * width, channels);
        // Means near those of x, and sums of squares that are positive.
        let pairs = (0..height * groups).flat_map(|i| {
            let spread = (width * channels / groups) as f32;
            [(i % 7) as f32 * 0.05 - 0.1, spread * (0.5 + (i % 5) as f32 * 0.1)]
        });
        let statistics = c.given(height, 2 * groups, &pairs.collect::<Vec<_>>());
        let (weight, bias, out) =
            (c.vector(channels), c.vector(channels), c.output(lines * width, channels));
        for silu in [false, true] {
            for out in [out, x] {
                let op = Op::GroupNorm(GroupNorm {
                    x,
                    statistics,
                    width,
                    weight,
                    bias,
                    groups,
                    eps: 1e-6,
                    silu,
                    out,
                });
                c.check(op, 0);
                c.check_nan(op, x);
            }
        }
    }
    all_ran(&["group_statistics", "group_norm"]);
}
