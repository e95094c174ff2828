//! The operation table: every operation, at ragged shapes, in every stored type, by every variant
//! that this machine can run, against the reference loops. Inputs are random and new in every run;
//! a failing test prints the seed, and `FLUX_FAST_TEST_SEED` repeats it.
//!
//! The CUDA variants run on the same cases in BF16, on the PTX machine behind a driver without a
//! GPU (`cuda`); the WGSL variants on the first adapter, in F32 and in BF16 (`wgpu`).
//!
//! Sentinels surround every tensor, outputs are NaN before the run, and bytes outside the output
//! must not change. Every CPU variant runs on one thread and on two, which must agree to the bit.

mod blocks;
mod case;
#[path = "../common/mod.rs"]
mod common;
mod cuda;
mod gpu;
mod kernels;
mod shaders;
mod wgpu;

use std::collections::BTreeMap;
use std::sync::Arc;

use case::Case;
use flux_fast::backend::cpu::isa::Isa;
use flux_fast::backend::cpu::variants;
use flux_fast::dtype::DType;
use flux_fast::op::{
    Add, Attention, Cast, Conv2d, ConvShape, CopyRows, Embed, Epilogue, EulerStep, GeluMul,
    GroupMix, GroupNorm, GroupStatistics, LayerNorm, LayerNormModulate, Linear, Op, Pack,
    QkNormRope, RmsNorm, ScaledAdd, Side, Silu, TimestepEmbed, Unpack,
};
use flux_fast::tensor::{Scale, Tensor};

/// Every variant of these operations has run in this test on every backend: a table whose entries
/// refuse everything would pass otherwise.
#[track_caller]
fn all_ran(ops: &[&str]) {
    for op in ops {
        cuda::all_ran(op);
        wgpu::all_ran(op);
    }
}

const ROWS: [usize; 4] = [1, 17, 255, 257];

#[test]
fn linear_in_every_stored_type() {
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2, DType::I8] {
        let ragged = [(1, 64, 96), (17, 100, 33), (257, 31, 65), (40, 513, 7)];
        // Rows of whole vectors, as in the model; K that ends within a step; K so long that the
        // pipeline wraps around and partial sums are combined.
        let even = [(9, 256, 328), (130, 192, 136), (300, 320, 200), (33, 176, 80), (40, 520, 72)];
        let long = match dtype {
            DType::F32 => None,
            DType::BF16 | DType::F8E4M3 => Some((130, 1032, 136)),
            _ => Some((70, 2048, 264)),
        };
        for (rows, k, n) in ragged.into_iter().chain(even).chain(long) {
            let mut c = Case::new();
            let (x, w, b, out) =
                (c.input(rows, k), c.weight(n, k, dtype), c.vector(n), c.output(rows, n));
            c.check(
                Linear {
                    x: x.all(),
                    w,
                    bias: Some(b),
                    factors: None,
                    side: None,
                    epilogue: Epilogue::None,
                    out: out.all(),
                },
                0,
            );
        }
    }
    // Fused q, k, v from three files, one of them scaled by rows; x and out are windows.
    let mut c = Case::new();
    let rows: Arc<[f32]> = (0..20).map(|i| 0.5 + i as f32 / 8.0).collect();
    let parts = [
        (24, DType::BF16, Scale::One),
        (20, DType::F8E4M3, Scale::Rows(rows)),
        (5, DType::F32, Scale::Tensor(0.25)),
    ];
    let (x, w, out) = (c.input(33, 80), c.weight_of(48, &parts), c.output(33, 64));
    let op = Op::Linear(Linear {
        x: x.columns(17, 48),
        w,
        bias: None,
        factors: None,
        side: None,
        epilogue: Epilogue::None,
        out: out.columns(9, 49),
    });
    c.check(op, 33 * 15);
    // Block formats are tested in `blocks`.
    let mut c = Case::new();
    let (x, w, out) =
        (c.input(17, 256), c.blocks(256, &[(40, DType::Q4K, false)]), c.output(17, 40));
    c.check(
        Linear {
            x: x.all(),
            w,
            bias: None,
            factors: None,
            side: None,
            epilogue: Epilogue::None,
            out: out.all(),
        },
        0,
    );
    all_ran(&["linear"]);
}

#[test]
fn linear_with_every_epilogue() {
    let scales: Arc<[f32]> = (0..72).map(|i| 0.5 + i as f32 / 64.0).collect();
    for (rows, dtype) in [
        (1, DType::BF16),
        (18, DType::BF16),
        (18, DType::F16),
        (18, DType::F32),
        (18, DType::F8E5M2),
        (20, DType::F8E5M2),
        (256, DType::BF16),
        (1, DType::F8E4M3),
        (18, DType::F8E4M3),
        (256, DType::F8E4M3),
        (18, DType::I8),
        (18, DType::Q8_0),
    ] {
        let mut c = Case::new();
        // One case has no scales.
        let scaled = dtype.is_plain() && dtype.size() == 1 && rows != 20;
        let scale = if scaled { Scale::Rows(scales.clone()) } else { Scale::One };
        let k = if dtype.is_plain() { 40 } else { 64 };
        let w = match dtype.is_plain() {
            true => c.weight_of(k, &[(72, dtype, scale)]),
            false => c.blocks(k, &[(72, dtype, false)]),
        };
        let (x, b, out) = (c.input(rows, k), c.vector(72), c.output(rows, 72));
        let linear = |epilogue, out: Tensor| {
            Op::Linear(Linear {
                x: x.all(),
                w,
                bias: Some(b),
                factors: None,
                side: None,
                epilogue,
                out: out.all(),
            })
        };
        for epilogue in [Epilogue::Silu, Epilogue::GeluTanh, Epilogue::QuickGelu] {
            c.check(linear(epilogue, out), 0);
            c.check_nan(linear(epilogue, out), x);
        }
        let residual = c.input(rows, 72);
        let groups = if rows % 2 == 0 { 2 } else { 1 };
        // Gates at unaligned and at aligned columns, one for all rows and one for each of two
        // images.
        let mut gates = vec![c.input(groups, 150).columns(71, 72), c.input(1, 144).columns(72, 72)];
        if groups == 2 {
            gates.push(c.input(2, 144).columns(72, 72));
        }
        for out in [out, residual] {
            c.check(linear(Epilogue::Add { residual }, out), 0);
            for &gate in &gates {
                c.check(linear(Epilogue::GatedAdd { residual, gate }, out), 0);
            }
        }
    }
    all_ran(&["linear"]);
}

#[test]
fn conv2d_in_every_geometry() {
    let base = ConvShape {
        batch: 1,
        height: 7,
        width: 5,
        in_channels: 16,
        out_channels: 24,
        kernel: 3,
        stride: 1,
        pad_before: 1,
        pad_after: 1,
        upsample: false,
    };
    let shapes = [
        base,
        ConvShape { batch: 2, in_channels: 3, out_channels: 33, ..base },
        ConvShape { batch: 2, height: 8, width: 6, stride: 2, pad_before: 0, ..base },
        ConvShape { upsample: true, ..base },
        ConvShape { kernel: 1, pad_before: 0, pad_after: 0, ..base },
        ConvShape { height: 1, width: 1, ..base },
        ConvShape { height: 33, width: 40, out_channels: 3, ..base },
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut c = Case::new();
            let x = c.input(shape.batch * shape.height * shape.width, shape.in_channels);
            let w = c.weight(
                shape.out_channels,
                shape.in_channels * shape.kernel * shape.kernel,
                dtype,
            );
            let bias = Some(c.vector(shape.out_channels));
            let (h, wd) = shape.output();
            let out = c.output(shape.batch * h * wd, shape.out_channels);
            c.check(Conv2d { x, w, bias, shape, residual: None, out }, 0);
            c.check_nan(Conv2d { x, w, bias, shape, residual: None, out }, x);
            let residual = c.input(out.rows, out.cols);
            let out = if i % 2 == 0 { out } else { residual };
            c.check(Conv2d { x, w, bias: None, shape, residual: Some(residual), out }, 0);
        }
    }
    all_ran(&["conv2d"]);
}

#[test]
fn attention_of_every_kind() {
    // (images, tokens, heads, head width)
    let sizes = [
        (1, 1, 1, 8),
        (2, 17, 3, 64),
        (1, 255, 2, 128),
        (1, 257, 2, 32),
        (2, 130, 1, 512),
        (1, 96, 2, 40),
        (1, 77, 2, 7),
    ];
    for (batch, tokens, heads, dim) in sizes {
        let width = heads * dim;
        let mut c = Case::new();
        let qkv = c.input(batch * tokens, 3 * width);
        let out = c.output(batch * tokens, width + 5);
        let bias_table = c.input(2 * tokens - 1, heads);
        let (q, k, v) =
            (qkv.columns(0, width), qkv.columns(width, width), qkv.columns(2 * width, width));
        // With the largest scale single keys dominate; with the smallest the result is an average.
        for (scale, causal, with_bias) in [
            (1.0 / (dim as f32).sqrt(), false, false),
            (0.7, true, false),
            (0.1, false, true),
            (0.3, true, true),
        ] {
            let bias = with_bias.then_some(bias_table);
            let out = out.columns(3, width);
            let op = Op::Attention(Attention {
                q,
                k,
                v,
                batch,
                heads,
                scale,
                causal,
                bias,
                first: None,
                out,
            });
            c.check(op, batch * tokens * 5);
        }
        let op = |first, out: Tensor| {
            let scale = 1.0 / (dim as f32).sqrt();
            Op::Attention(Attention {
                q,
                k,
                v,
                batch,
                heads,
                scale,
                causal: false,
                bias: None,
                first,
                out: out.all(),
            })
        };
        let whole = c.output(batch * tokens, width);
        c.check_nan(op(None, whole), qkv);
        if tokens > 5 {
            let (text, image) = (c.output(batch * 5, width), c.output(batch * (tokens - 5), width));
            c.check(op(Some((5, text)), image), 0);
        }
    }
    // Several tiles per block of threads, and enough heads that a block goes on to the next head,
    // as in the model.
    let (batch, tokens, heads, dim) = (2, 300, 2, 128);
    let (rows, width) = (batch * tokens, heads * dim);
    let mut c = Case::new();
    let qkv = c.input(rows, 3 * width);
    let (q, k, v) =
        (qkv.columns(0, width), qkv.columns(width, width), qkv.columns(2 * width, width));
    let (whole, text, image) =
        (c.output(rows, width), c.output(batch * 44, width), c.output(batch * 256, width));
    for (first, out) in [(None, whole), (Some((44, text)), image)] {
        let out = out.all();
        c.check(
            Attention { q, k, v, batch, heads, scale: 0.09, causal: false, bias: None, first, out },
            0,
        );
    }
    all_ran(&["attention"]);
}

#[test]
fn attention_with_large_scores_does_not_overflow() {
    // Scores up to 30 * 512: e^x overflows unless the running maximum is subtracted.
    let mut c = Case::new();
    let (q, k, v) = (c.input(140, 512), c.input(140, 512), c.input(140, 512));
    let out = c.output(140, 512);
    let (q, k, v, out) = (q.all(), k.all(), v.all(), out.all());
    let op = Op::Attention(Attention {
        q,
        k,
        v,
        batch: 1,
        heads: 1,
        scale: 30.0,
        causal: false,
        bias: None,
        first: None,
        out,
    });
    let image = c.image();
    for (variant, needs) in variants::names("attention").unwrap() {
        if needs <= Isa::detect() {
            let after = c.run(op, variant, 2, &image).unwrap();
            assert!(
                c.written(&op, &after).iter().all(|x| x.is_finite() && x.abs() < 2.5),
                "{variant}",
            );
        }
    }
    wgpu::judge(&c, op, &mut |variant, found| {
        assert!(found.iter().all(|x| x.is_finite() && x.abs() < 2.5), "{variant}");
    });
}

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
    for (variant, needs) in variants::names("layer_norm").unwrap() {
        if needs <= Isa::detect() {
            let found = c.written(&op, &c.run(op, variant, 1, &image).unwrap());
            let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
            // An f32 mean near 1000 has an error of about 1e-4; a one-pass variance would have an
            // error of tenths.
            assert!(worst < 2e-3, "{variant}: {worst}");
        }
    }
    wgpu::judge(&c, op, &mut |variant, found| {
        let worst = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-3, "{variant}: {worst}");
    });
}

#[test]
fn queries_and_keys_are_normalised_and_rotated() {
    for (batch, n, tokens, first, heads, dim) in
        [(1, 1, 1, 0, 1, 2), (2, 17, 40, 11, 3, 64), (1, 255, 257, 2, 2, 128), (1, 9, 9, 0, 5, 30)]
    {
        let width = 3 * heads * dim;
        let mut c = Case::new();
        let qkv = c.input(batch * n, width);
        let angles: Vec<f32> = (0..tokens * dim / 2)
            .flat_map(|_| {
                let angle = c.random.number() * 4.0;
                [angle.cos(), angle.sin()]
            })
            .collect();
        let rope = c.given(tokens, dim, &angles);
        let (q_gain, k_gain, out) = (c.vector(dim), c.vector(dim), c.output(batch * tokens, width));
        let op = |out| {
            Op::QkNormRope(QkNormRope {
                qkv,
                q_gain,
                k_gain,
                rope,
                batch,
                heads,
                tokens,
                first,
                eps: 1e-6,
                out,
            })
        };
        c.check(op(out), batch * (tokens - n) * width);
        c.check_nan(op(out), qkv);
        if n == tokens {
            c.check(op(qkv), 0);
        }
    }
    all_ran(&["qk_norm_rope"]);
}

#[test]
fn element_by_element() {
    for rows in ROWS {
        for cols in [1, 37, 512] {
            let mut c = Case::new();
            let (a, b, out) = (c.input(rows, cols), c.input(rows, cols), c.output(rows, cols));
            for out in [out, a, b] {
                c.check(Add { a, b, out }, 0);
                c.check(GeluMul { gate: a, up: b, out }, 0);
            }
            c.check(Silu { x: a, out }, 0);
            c.check(Silu { x: a, out: a }, 0);
            c.check_nan(Add { a, b, out }, b);
            c.check_nan(GeluMul { gate: a, up: b, out }, a);
            c.check_nan(Silu { x: a, out: a }, a);
        }
    }
    all_ran(&["add", "gelu_mul", "silu"]);
}

#[test]
fn groups_of_columns_are_mixed() {
    for rows in ROWS {
        // (outputs, inputs, width)
        for (outputs, inputs, width) in [(1, 1, 5), (3, 2, 7), (2, 4, 16), (16, 16, 12), (5, 1, 64)]
        {
            let mut c = Case::new();
            let x = c.input(rows, inputs * width + 3);
            let (w, out) = (c.vector(outputs * inputs), c.output(rows, outputs * width));
            let x = x.columns(2, inputs * width);
            c.check(GroupMix { x, w, inputs, out }, 0);
        }
    }
    let mut c = Case::new();
    let (x, w, out) = (c.input(17, 32), c.vector(16), c.output(17, 32));
    c.check(GroupMix { x: x.all(), w, inputs: 4, out }, 0);
    c.check_nan(GroupMix { x: x.all(), w, inputs: 4, out }, x);
    all_ran(&["group_mix"]);
}

#[test]
fn scaled_add_with_every_epilogue() {
    for rows in ROWS {
        for cols in [1, 37, 512] {
            let mut c = Case::new();
            let x = c.input(rows, cols + 3).columns(1, cols);
            let add = c.input(rows, cols + 2).columns(2, cols);
            let (scale, residual) = (c.vector(cols), c.input(rows, cols));
            let out = c.output(rows, cols);
            let gates = [c.input(1, cols).all(), c.input(rows, cols + 5).columns(3, cols)];
            let mut epilogues = vec![
                Epilogue::None,
                Epilogue::Silu,
                Epilogue::GeluTanh,
                Epilogue::QuickGelu,
                Epilogue::Add { residual },
            ];
            epilogues.extend(gates.map(|gate| Epilogue::GatedAdd { residual, gate }));
            for epilogue in epilogues {
                for (add, scale) in [(None, None), (Some(add), None), (Some(add), Some(scale))] {
                    let op = ScaledAdd { x, add, scale, epilogue, out: out.all() };
                    c.check(op, 0);
                }
            }
            // In place, and into a window.
            let whole = c.input(rows, cols);
            let (add, epilogue) = (Some(add), Epilogue::GeluTanh);
            c.check(ScaledAdd { x: whole.all(), add, scale: None, epilogue, out: whole.all() }, 0);
            c.check(ScaledAdd { x, add, scale: Some(scale), epilogue, out: x }, 0);
            let epilogue = Epilogue::Add { residual: whole };
            c.check(ScaledAdd { x, add, scale: None, epilogue, out: whole.all() }, 0);
            let (x, epilogue) = (whole.all(), Epilogue::None);
            c.check_nan(ScaledAdd { x, add, scale: None, epilogue, out: out.all() }, whole);
        }
    }
    all_ran(&["scaled_add"]);
}

#[test]
fn linear_with_factors() {
    for dtype in [DType::F32, DType::BF16, DType::F8E4M3, DType::I8, DType::Q8_0, DType::Nvfp4] {
        for rows in [1, 130] {
            let mut c = Case::new();
            let own: Arc<[f32]> = (0..72).map(|i| 0.5 + i as f32 / 64.0).collect();
            let w = match dtype.is_plain() {
                true => c.weight_of(
                    64,
                    &[(40, dtype, Scale::Tensor(0.3)), (32, dtype, Scale::Rows(own[..32].into()))],
                ),
                false => c.blocks(64, &[(72, dtype, false)]),
            };
            let (x, out, bias) = (c.input(rows, 64), c.output(rows, 72), Some(c.vector(72)));
            let (factors, t) = (Some(c.vector(72)), c.input(rows, 8));
            let b = c.weight(72, 8, DType::BF16);
            for side in [None, Some(Side { t, b })] {
                for epilogue in [Epilogue::None, Epilogue::GeluTanh] {
                    let out = out.all();
                    c.check(Linear { x: x.all(), w, bias, factors, side, epilogue, out }, 0);
                }
            }
        }
    }
}

#[test]
fn embeddings() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for rows in ROWS {
            let mut c = Case::new();
            let ids: Vec<i32> = (0..rows).map(|_| (c.random.bits() % 50) as i32).collect();
            let ids = c.ids(&ids);
            let half = Scale::Tensor(0.5);
            let table = c.weight_of(77, &[(30, dtype, Scale::One), (20, dtype, half)]);
            let (positions, out) = (c.weight(16, 77, dtype), c.output(rows, 77));
            c.check(Embed { table, ids, positions: None, out }, 0);
            c.check(Embed { table, ids, positions: Some(positions), out }, 0);
        }
    }
    all_ran(&["embed"]);
}

#[test]
fn time_pixels_and_steps() {
    let mut c = Case::new();
    let times: Vec<f32> = (0..17).map(|_| c.random.number().abs() / 2.0).collect();
    let (t, out) = (c.given(17, 1, &times), c.output(17, 256));
    c.check(TimestepEmbed { t, out }, 0);
    c.check_nan(TimestepEmbed { t, out }, t);
    for (batch, height, width, channels) in [(1, 2, 2, 1), (2, 6, 10, 16), (1, 34, 30, 16)] {
        let mut c = Case::new();
        let pixels = c.input(batch * height * width, channels);
        let tokens = c.input(pixels.rows / 4, 4 * channels);
        let (packed, unpacked) =
            (c.output(tokens.rows, tokens.cols), c.output(pixels.rows, pixels.cols));
        let pack = Op::Pack(Pack { x: pixels, batch, height, width, out: packed });
        let unpack = Op::Unpack(Unpack {
            x: tokens,
            batch,
            height,
            width,
            scale: 2.5,
            shift: -0.125,
            out: unpacked,
        });
        c.check(pack, 0);
        c.check(unpack, 0);
        c.check_nan(pack, pixels);
        c.check_nan(unpack, tokens);
        for cfg in [false, true] {
            let v = c.input(pixels.rows * if cfg { 2 } else { 1 }, channels);
            let params = c.given(1, 2, &[-0.3, 3.5]);
            c.check(EulerStep { x: pixels, v, params, cfg }, 0);
            c.check_nan(EulerStep { x: pixels, v, params, cfg }, v);
        }
    }
    all_ran(&["timestep_embed", "pack", "unpack", "euler_step"]);
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

#[test]
fn attention_of_some_queries() {
    for (batch, queries, tokens, heads, dim) in
        [(1, 64, 193, 1, 512), (1, 128, 70, 1, 128), (2, 65, 130, 2, 64), (1, 9, 33, 3, 20)]
    {
        let mut c = Case::new();
        let width = heads * dim;
        let q = c.input(batch * queries, width);
        let (k, v) = (c.input(batch * tokens, width), c.input(batch * tokens, width));
        let out = c.output(batch * queries, width);
        c.check(
            Attention {
                q: q.all(),
                k: k.all(),
                v: v.all(),
                batch,
                heads,
                scale: 0.1,
                causal: false,
                bias: None,
                first: None,
                out: out.all(),
            },
            0,
        );
    }
}

#[test]
fn copies_and_casts() {
    for dtype in [DType::F32, DType::BF16] {
        for (batch, from_rows, to_rows, from, to, count) in
            [(1, 1, 1, 0, 0, 1), (2, 17, 20, 3, 9, 11), (1, 257, 255, 2, 0, 255)]
        {
            let mut c = Case::new();
            let (x, out) =
                (c.stored(batch * from_rows, 33, dtype), c.blank(batch * to_rows, 33, dtype));
            c.check(CopyRows { x, out, batch, from, to, count }, batch * (to_rows - count) * 33);
        }
        let mut c = Case::new();
        let (x, out) = (c.stored(20, 40, dtype), c.blank(30, 40, dtype));
        c.check(CopyRows { x, out, batch: 2, from: 3, to: 8, count: 7 }, 16 * 40);
    }
    let kinds = [DType::F32, DType::BF16, DType::F16];
    for (a, b) in kinds.iter().flat_map(|a| kinds.iter().map(move |b| (*a, *b))) {
        for rows in ROWS {
            let mut c = Case::new();
            let (x, out) = (c.stored(rows, 40, a), c.blank(rows, 50, b));
            c.check(Cast { x: x.columns(3, 21), out: out.columns(10, 21) }, rows * 29);
            c.check(Cast { x: x.columns(8, 32), out: out.columns(0, 32) }, rows * 18);
        }
    }
    all_ran(&["copy_rows", "cast"]);
}

#[test]
fn every_operation_is_in_this_table() {
    let mut known: BTreeMap<&str, usize> = variants::ops().map(|op| (op, 0)).collect();
    let source = include_str!("main.rs");
    for (op, count) in &mut known {
        let camel: String = op.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
        let literal = format!("{camel} {{");
        let starts = source.match_indices(&literal).map(|(at, _)| source[..at].chars().last());
        *count = starts.filter(|before| matches!(before, Some('(' | ' '))).count();
    }
    assert_eq!(known.len(), 21, "{known:?}");
    assert!(known.values().all(|n| *n > 0), "{known:?}");
}
