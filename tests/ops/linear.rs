//! Matrix products.

use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::op::{Epilogue, Linear, Op, Side};
use flux_fast::tensor::{Scale, Tensor, Weight};

use crate::all_ran;
use crate::case::Case;

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

/// A weight whose products are computed in integers: parts of these types, rotated in groups of
/// `group` columns if they are I8.
fn in_integers(c: &mut Case, k: usize, parts: &[(usize, DType)], group: usize) -> Weight {
    let scaled = |(rows, dtype): &(usize, DType)| {
        let scale = match dtype.is_plain() && dtype.size() == 1 {
            true => Scale::Rows((0..*rows).map(|i| 0.01 + i as f32 / 4096.0).collect()),
            false => Scale::One,
        };
        (*rows, *dtype, scale)
    };
    let w = match parts {
        [(rows, dtype)] if !dtype.is_plain() => c.blocks(k, &[(*rows, *dtype, false)]),
        parts => c.weight_of(k, &parts.iter().map(scaled).collect::<Vec<_>>()),
    };
    let weight = &mut c.weights[w.id as usize];
    let rotation = Rotation::new(group);
    weight.int8 = Some(Int8 { rotation });
    for part in weight.parts.iter_mut().filter(|p| p.dtype == DType::I8) {
        part.rotation = rotation;
    }
    w
}

#[test]
fn linear_in_integers_of_every_stored_type() {
    let types = [
        DType::F32,
        DType::BF16,
        DType::F16,
        DType::F8E4M3,
        DType::I8,
        DType::Q8_0,
        DType::Q4K,
        DType::Nf4,
        DType::Nvfp4,
    ];
    for dtype in types {
        // One row; rows and columns that are no whole tiles; all groups; K that is several blocks.
        for (rows, k, n, group) in
            [(1, 256, 33, 64), (17, 256, 96, 16), (131, 1280, 70, 256), (64, 3328, 40, 256)]
        {
            let mut c = Case::new();
            let (x, b, out) = (c.input(rows, k), c.vector(n), c.output(rows, n));
            let w = in_integers(&mut c, k, &[(n, dtype)], group);
            let linear = Linear { bias: Some(b), ..Linear::plain(x.all(), w, out.all()) };
            c.check_on_cpu(linear, 0);
        }
    }
    // Without a rotation; several parts of several types; x and out are windows.
    let mut c = Case::new();
    let (x, out) = (c.input(33, 96), c.output(33, 64));
    let plain = in_integers(&mut c, 48, &[(49, DType::I8)], 0);
    let parts = [(24, DType::BF16), (20, DType::I8), (5, DType::F32)];
    let mixed = in_integers(&mut c, 48, &parts, 16);
    for w in [plain, mixed] {
        c.check_on_cpu(Linear::plain(x.columns(17, 48), w, out.columns(9, 49)), 33 * 15);
    }
}

#[test]
fn linear_in_integers_with_factors_sides_and_epilogues() {
    for rows in [1, 18, 256] {
        let mut c = Case::new();
        let w = in_integers(&mut c, 320, &[(72, DType::BF16)], 64);
        let (x, bias, factors) = (c.input(rows, 320), c.vector(72), c.vector(72));
        let (t, b) = (c.input(rows, 12), c.weight(72, 12, DType::BF16));
        let (out, residual) = (c.output(rows, 72), c.input(rows, 72));
        let gate = c.input(1, 150).columns(71, 72);
        let epilogues = [
            Epilogue::None,
            Epilogue::Silu,
            Epilogue::GeluTanh,
            Epilogue::QuickGelu,
            Epilogue::Add { residual },
            Epilogue::GatedAdd { residual, gate },
        ];
        for (side, factors, epilogue) in epilogues.into_iter().flat_map(|epilogue| {
            [(None, Some(factors), epilogue), (Some(Side { t, b }), None, epilogue)]
        }) {
            let bias = Some(bias);
            let out = out.all();
            let linear = Linear { x: x.all(), w, bias, factors, side, epilogue, out };
            c.check_on_cpu(linear, 0);
        }
        c.check_nan_on_cpu(Linear::plain(x.all(), w, out.all()), x);
    }
}
