//! Matrix products in 8-bit integers.

use std::sync::Arc;

use flux_fast::dtype::DType;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::op::{Epilogue, Linear, Op, Side};
use flux_fast::tensor::{Scale, Tensor, Weight};

use crate::case::Case;
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
        (9, 1040, 0, true, vec![(8, DType::I8, rows(8)), (64, DType::I8, Scale::Tensor(0.1))]),
    ] {
        let mut c = Case::new();
        let n = parts.iter().map(|(rows, ..)| rows).sum();
        let w = c.integers(k, group, stored, &parts);
        let (x, bias, out) = (c.input(m, k), Some(c.vector(n)), c.output(m, n));
        wgpu::check(&c, Op::Linear(plain(x, w, bias, out)), 0);
    }
    // Windows of x and out that begin at odd columns.
    let mut c = Case::new();
    let w = c.integers(64, 64, false, &[(49, DType::BF16, Scale::One)]);
    let (x, out) = (c.input(33, 96), c.output(33, 64));
    wgpu::check(&c, Op::Linear(Linear::plain(x.columns(17, 64), w, out.columns(9, 49))), 33 * 15);
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
            wgpu::check(&c, linear(epilogue, out), 0);
            wgpu::check_nan(&c, linear(epilogue, out), x);
        }
        let residual = c.input(m, n);
        let gate = c.input(if m % 2 == 0 { 2 } else { 1 }, 150).columns(71, n);
        for out in [out, residual] {
            wgpu::check(&c, linear(Epilogue::Add { residual }, out), 0);
            wgpu::check(&c, linear(Epilogue::GatedAdd { residual, gate }, out), 0);
        }
        // The factors of a DoRA multiply those of the integers; sides use x as it is.
        let (factors, t) = (Some(c.vector(n)), c.input(m, 8));
        let b = c.weight(n, 8, DType::BF16);
        for side in [None, Some(Side { t, b })] {
            for epilogue in [Epilogue::None, Epilogue::GeluTanh, Epilogue::Add { residual }] {
                let more = Linear { factors, side, epilogue, ..plain(x, w, bias, out) };
                wgpu::check(&c, Op::Linear(more), 0);
            }
        }
    }
}
