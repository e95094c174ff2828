//! Matrix products in 8-bit integers.

use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::op::{Epilogue, Linear, Op, Side};
use flux_fast::tensor::{Scale, Tensor, Weight};

use crate::case::Case;
use crate::cuda;
use crate::wgpu;

impl Case {
    /// A weight whose products are computed in integers, rotated in groups of `group` columns (0:
    /// not rotated). `stored`: its parts are stored as such integers.
    fn integers(
        &mut self,
        cols: usize,
        group: usize,
        stored: bool,
        parts: &[(usize, DType, Scale)],
    ) -> Weight {
        let weight = self.weight_of(cols, parts);
        let host = self.weights.last_mut().expect("one was just added");
        let rotation = Rotation::new(group);
        host.int8 = Some(Int8 { rotation });
        if stored {
            host.parts.iter_mut().for_each(|part| part.rotation = rotation);
        }
        weight
    }
}

fn check(c: &Case, op: Op, left_alone: usize) {
    cuda::check(c, op, left_alone);
    wgpu::check(c, op, left_alone);
}

fn check_nan(c: &Case, op: Op, x: Tensor) {
    cuda::check_nan(c, op, x);
    wgpu::check_nan(c, op, x);
}

fn rows(n: usize) -> Scale {
    Scale::Rows((0..n).map(|i| 0.5 + i as f32 / 64.0).collect::<Arc<[f32]>>())
}

fn plain(x: Tensor, w: Weight, bias: Option<Weight>, out: Tensor) -> Linear {
    Linear { bias, ..Linear::plain(x.all(), w, out.all()) }
}

/// Every rotation, every stored type, sizes that fill tiles and that do not.
#[test]
fn products_of_integers() {
    let one = Scale::One;
    for (m, k, group, stored, parts) in [
        (33, 512, 256, false, vec![(72, DType::BF16, one.clone())]),
        (1, 3072, 256, false, vec![(40, DType::F8E4M3, Scale::Tensor(0.3))]),
        (5, 192, 64, false, vec![(24, DType::F32, one.clone()), (12, DType::F16, one.clone())]),
        (17, 48, 16, false, vec![(33, DType::BF16, one)]),
        (130, 256, 64, true, vec![(136, DType::I8, rows(136))]),
        (70, 37, 0, true, vec![(7, DType::I8, rows(7))]),
        // Rows of x in registers, with one and with several chunks per warp, and longer ones.
        (3, 3072, 256, true, vec![(24, DType::I8, rows(24))]),
        (2, 15_360, 256, true, vec![(16, DType::I8, rows(16))]),
        (2, 17_408, 256, true, vec![(16, DType::I8, rows(16))]),
        (9, 1040, 0, true, vec![(8, DType::I8, rows(8)), (64, DType::I8, Scale::Tensor(0.1))]),
    ] {
        let mut c = Case::new();
        let n = parts.iter().map(|(rows, ..)| rows).sum();
        let w = c.integers(k, group, stored, &parts);
        let (x, bias, out) = (c.input(m, k), Some(c.vector(n)), c.output(m, n));
        check(&c, Op::Linear(plain(x, w, bias, out)), 0);
    }
    // Windows of x and out that begin at odd columns.
    let mut c = Case::new();
    let w = c.integers(64, 64, false, &[(49, DType::BF16, Scale::One)]);
    let (x, out) = (c.input(33, 96), c.output(33, 64));
    check(&c, Op::Linear(Linear::plain(x.columns(17, 64), w, out.columns(9, 49))), 33 * 15);
    cuda::all_ran_in_int8();
    wgpu::all_ran_in_int8();
}

#[test]
fn products_of_integers_with_everything_that_is_fused() {
    for (m, n) in [(1, 72), (18, 72), (18, 33)] {
        let mut c = Case::new();
        let w = c.integers(80, 16, false, &[(n, DType::BF16, Scale::One)]);
        let (x, bias, out) = (c.input(m, 80), Some(c.vector(n)), c.output(m, n));
        let linear = |epilogue, out| Op::Linear(Linear { epilogue, ..plain(x, w, bias, out) });
        for epilogue in [Epilogue::Silu, Epilogue::GeluTanh, Epilogue::QuickGelu] {
            check(&c, linear(epilogue, out), 0);
            check_nan(&c, linear(epilogue, out), x);
        }
        let residual = c.input(m, n);
        let gate = c.input(if m % 2 == 0 { 2 } else { 1 }, 150).columns(71, n);
        for out in [out, residual] {
            check(&c, linear(Epilogue::Add { residual }, out), 0);
            check(&c, linear(Epilogue::GatedAdd { residual, gate }, out), 0);
        }
        // The factors of a DoRA multiply those of the integers; sides use x as it is.
        let (factors, t) = (Some(c.vector(n)), c.input(m, 8));
        let b = c.weight(n, 8, DType::BF16);
        for side in [None, Some(Side { t, b })] {
            for epilogue in [Epilogue::None, Epilogue::GeluTanh, Epilogue::Add { residual }] {
                let more = Linear { factors, side, epilogue, ..plain(x, w, bias, out) };
                check(&c, Op::Linear(more), 0);
            }
        }
    }
}

/// With a weight of one 1 in each row, the result is integers of x times their scales: the same
/// bits as the definition's.
#[test]
fn integers_of_x_are_those_of_the_definition() {
    for (m, k, group) in [(6, 256, 256), (5, 192, 64), (7, 48, 16), (4, 72, 0), (2, 4352, 256)] {
        let mut c = Case::new();
        // All columns, or some of many.
        let n = k.min(256);
        let columns: Vec<usize> = (0..n).map(|i| i * k / n).collect();
        let mut bytes = vec![0u8; n * k];
        columns.iter().enumerate().for_each(|(i, column)| bytes[i * k + column] = 1);
        let w = c.integers(k, group, true, &[(n, DType::I8, Scale::One)]);
        let int8 = Int8 { rotation: Rotation::new(group) };
        let part = &mut c.weights.last_mut().unwrap().parts[0];
        (part.source, part.offset) = (Arc::new(bytes), 0);
        // Ordinary numbers, some large ones, zeros, ties, and numbers below the smallest scale.
        let value = |i: usize| {
            let x = (i * 7919 % 1009) as f32 / 504.0 - 1.0;
            match i / k {
                1 if i.is_multiple_of(61) => 40.0 * x,
                2 => 0.0,
                3 => (x * 8.0).round() / 8.0,
                4 => x * 1e-32,
                _ => x,
            }
        };
        let mut stored = vec![];
        (0..m * k).for_each(|i| DType::BF16.encode(value(i), &mut stored));
        let values: Vec<f32> = stored.chunks(2).map(|b| DType::BF16.decode(b)).collect();
        let (x, out) = (c.given(m, k, &values), c.output(m, n));
        let mut expected = vec![];
        for row in values.chunks(k) {
            let mut q = vec![0; k];
            let scale = int8.quantise(&mut row.to_vec(), &mut q);
            expected.extend(columns.iter().map(|c| f32::from(q[*c]) * scale));
        }
        cuda::check_bits(&c, Op::Linear(plain(x, w, None, out)), &expected);
    }
}
