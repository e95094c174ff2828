//! [`Linear`]: `out = tail(x . w^T + side + bias)`, and the table of its variants.

use super::gemm;
use super::gemm::integers::{self, Integers};
use super::gemm::rows::WeightRows;
use super::isa::Isa;
use super::kernels::{Kernels, Product};
use super::matrix::{In, Out};
use super::step::{CpuOperation, CpuStep, Sizing};
use crate::error::{Error, Result};
use crate::op::Linear;
use crate::tensor::{HostPart, HostWeight, Scale};

pub use super::gemm::finish::Tail;
pub use super::product::{Variant, choose};

/// The variants of [`Linear`], best first: those for floats, then those for integers.
pub const LINEAR: &[Variant] = &[
    #[cfg(target_arch = "x86_64")]
    Variant::new("linear_bf16_amx", &gemm::AMX),
    #[cfg(target_arch = "x86_64")]
    Variant::new("linear_bf16_avx512bf16", &gemm::AVX512BF16),
    #[cfg(target_arch = "x86_64")]
    Variant::new("linear_f32_avx512", &gemm::AVX512),
    #[cfg(target_arch = "x86_64")]
    Variant::new("linear_f32_avx2", &gemm::AVX2),
    Variant::new("linear_f32_portable", &gemm::PORTABLE),
    #[cfg(target_arch = "x86_64")]
    Variant::of_integers("linear_int8_amx", Isa::Amx, &gemm::AVX512_LARGE, || &integers::AMX),
    #[cfg(target_arch = "x86_64")]
    Variant::of_integers("linear_int8_avx512vnni", Isa::Avx512Vnni, &gemm::AVX512, || {
        &integers::AVX512VNNI
    }),
    #[cfg(target_arch = "x86_64")]
    Variant::of_integers("linear_int8_avx2", Isa::Avx2, &gemm::AVX2, || {
        integers::avx_vnni().unwrap_or(&integers::AVX2)
    }),
    Variant::of_integers("linear_int8_portable", Isa::Portable, &gemm::PORTABLE, || {
        &integers::PORTABLE
    }),
];

/// Bytes of scratch that `linear` needs on `threads` threads, for x of `rows x k`, w of `n x k` and
/// a side of rank `side` (0 for none). Fewer threads may need more scratch.
pub fn linear_scratch(
    v: &Variant,
    rows: usize,
    k: usize,
    side: usize,
    n: usize,
    threads: usize,
) -> usize {
    match v.integers() {
        Some(m) => integers::scratch_bytes(m, rows, k, side, n, threads),
        None => gemm::scratch_bytes(v.micro(), rows, k, side, n, threads),
    }
}

/// `out = tail(x . w^T + side + bias)`.
///
/// x: `rows x k`; w: `n x k` in any stored type; factors: n, only where the product is computed in
/// integers; bias: n; side: t `rows x rank` and b `n x rank`;
/// out: `rows x n`. `scratch` has at least `linear_scratch` bytes for the threads of the current
/// rayon pool. `out` may be the residual of `tail`, but not x.
#[allow(clippy::too_many_arguments, reason = "the operands of the operation")]
pub fn linear(
    x: In,
    w: &HostWeight,
    factors: Option<&[f32]>,
    bias: Option<&[f32]>,
    side: Option<(In, &HostWeight)>,
    tail: Tail,
    out: Out,
    scratch: &mut [u8],
    v: &Variant,
) {
    assert!(v.needs <= Isa::detect(), "{} needs {}", v.name, v.needs.name());
    assert_eq!(
        (x.rows(), x.cols(), out.cols()),
        (out.rows(), w.cols, w.rows),
        "linear: x, w and out do not fit"
    );
    assert!(bias.is_none_or(|b| b.len() == w.rows), "linear: the bias does not fit");
    if let Some((t, b)) = side {
        assert_eq!(
            (t.rows(), t.cols(), b.rows),
            (x.rows(), b.cols, w.rows),
            "linear: the side does not fit"
        );
        // The scales of such a side would be ignored, because it is read as it is stored.
        assert!(
            b.parts.iter().all(|p| p.dtype.is_wide() && p.scale.is_one()),
            "linear: the side must be stored as F32, BF16 or F16 without scales"
        );
    }
    tail.check(out);
    let b = side.map(|(_, b)| WeightRows::new(b));
    let side = side.zip(b.as_ref()).map(|((t, _), b)| gemm::Side { t, b });
    let (integers, int8) = (v.integers(), w.int8);
    assert_eq!(integers.is_some(), int8.is_some(), "{} computes something else", v.name);
    if let Some((m, int8)) = integers.zip(int8) {
        assert!(factors.is_none_or(|f| f.len() == w.rows), "linear: the factors do not fit");
        let w = Integers { weight: w, int8, factors };
        // SAFETY: the processor was checked above, shapes fit, and the windows are valid by the
        // contract of their constructors.
        return unsafe { integers::product(m, x, w, bias, side, tail, out, scratch) };
    }
    assert!(factors.is_none(), "linear: factors besides the scales of a product of floats");
    // SAFETY: as above.
    unsafe { gemm::product(v.micro(), x, &WeightRows::new(w), bias, side, tail, out, scratch) }
}

/// `w` with these factors of its rows, in place of its own.
fn with_factors(w: &HostWeight, factors: &[f32]) -> HostWeight {
    let mut first = 0;
    let parts = w.parts.iter().map(|part| {
        let own = factors[first..first + part.rows].into();
        first += part.rows;
        let scale = match &part.scale {
            Scale::Blocks(blocks) => Scale::Blocks(blocks.with_factors(own)),
            _ => Scale::Rows(own),
        };
        HostPart { scale, ..part.clone() }
    });
    HostWeight { rows: w.rows, cols: w.cols, parts: parts.collect(), int8: w.int8 }
}

impl CpuOperation for Linear {
    const KERNELS: Kernels =
        Kernels::Product { op: "linear", variants: LINEAR, reference: "linear_reference" };

    fn scratch_bytes(&self, sizing: &Sizing) -> usize {
        let Linear { x, w, side, .. } = *self;
        let rank = side.map_or(0, |s| s.b.cols);
        match sizing.choice.product(&Self::KERNELS, (sizing.stored)(w)) {
            Product::Fast(v) => linear_scratch(v, x.rows(), w.cols, rank, w.rows, sizing.threads),
            Product::Reference => 0,
        }
    }

    fn run(&self, step: &CpuStep) -> Result<()> {
        let side = self.side.map(|s| Ok::<_, Error>((step.tensor(s.t)?, step.weight(s.b)?)));
        let (side, w, bias) = (side.transpose()?, step.weight(self.w)?, step.bias(self.bias)?);
        let factors = step.bias(self.factors)?;
        // Those of products in integers are applied besides the scales of the integers.
        let (factors, in_place) = factors.map_or((None, None), |f| match w.int8 {
            Some(_) => (Some(f), None),
            None => (None, Some(f)),
        });
        let changed = in_place.map(|factors| with_factors(w, factors));
        let w = changed.as_ref().unwrap_or(w);
        let (x, out) = (step.view(self.x)?, step.view_out(self.out)?);
        let tail = step.tail(self.epilogue)?;
        match step.product(w) {
            Product::Reference => match w.int8 {
                None => reference::linear(x, w, bias, side, tail, out),
                Some(int8) => reference::integers(x, (w, int8, factors), bias, side, tail, out),
            },
            Product::Fast(v) => {
                linear(x, w, factors, bias, side, tail, out, step.scratch(self)?, v);
            }
        }
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::gemm::finish::Tail;
    use crate::backend::cpu::matrix::{In, Out};
    use crate::backend::cpu::plain::{at, finished, put};
    use crate::dtype::int8::Int8;
    use crate::tensor::HostWeight;

    /// `out[r] = tail(s_x s_w factors sum(q_x q_w) + t[r] . b^T + bias)`, where `s_x q_x` and
    /// `s_w q_w` are the rows of `x` and of `w` as integers with their scales. `side` as (t, b)
    pub(crate) fn integers(
        x: In,
        (w, int8, factors): (&HostWeight, Int8, Option<&[f32]>),
        bias: Option<&[f32]>,
        side: Option<(In, &HostWeight)>,
        tail: Tail,
        out: Out,
    ) {
        let k = x.cols();
        let side = side.map(|(t, b)| (t, b.to_f32()));
        let mut rows = vec![0; x.rows() * k];
        let scales: Vec<f32> = (0..x.rows())
            .map(|r| {
                let mut row: Vec<f32> = (0..k).map(|c| at(x, r, c)).collect();
                int8.quantise(&mut row, &mut rows[r * k..(r + 1) * k])
            })
            .collect();
        let mut n = 0;
        for part in &w.parts {
            let (mut values, mut q) = (vec![0.0; k], vec![0i8; k]);
            for (row, stored) in part.bytes().chunks_exact(part.row_bytes()).enumerate() {
                let scale = if w.is_stored_as(int8) {
                    q.iter_mut().zip(stored).for_each(|(q, b)| *q = *b as i8);
                    part.scale.of(row)
                } else if let Some(scale) =
                    part.unpack_integers(int8, (row, stored), &mut values, &mut q)
                {
                    scale
                } else {
                    part.decode_row(row, stored, &mut values);
                    int8.quantise(&mut values, &mut q)
                };
                let scale = scale * factors.map_or(1.0, |f| f[n]);
                for r in 0..x.rows() {
                    let products = rows[r * k..(r + 1) * k].iter().zip(&q);
                    let sum: i32 = products.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                    let more = side.as_ref().map_or(0.0, |(t, b)| one_side(*t, b, (r, n)));
                    let y = f64::from(sum as f32 * (scales[r] * scale)) + more;
                    let y = y + bias.map_or(0.0, |b| f64::from(b[n]));
                    put(out, r, n, finished(y, tail, (r, n), x.rows()) as f32);
                }
                n += 1;
            }
        }
    }

    /// `t[r] . b[n]`
    fn one_side(t: In, b: &[f32], (r, n): (usize, usize)) -> f64 {
        let b = &b[n * t.cols()..(n + 1) * t.cols()];
        b.iter().enumerate().map(|(c, b)| f64::from(at(t, r, c)) * f64::from(*b)).sum()
    }

    /// `out[r] = tail(x[r] . w^T + t[r] . b^T + bias)` with `side` as (t, b)
    pub(crate) fn linear(
        x: In,
        w: &HostWeight,
        bias: Option<&[f32]>,
        side: Option<(In, &HostWeight)>,
        tail: Tail,
        out: Out,
    ) {
        let side = side.map(|(t, b)| (t, b.to_f32()));
        let mut n = 0;
        for part in &w.parts {
            let mut w = vec![0.0; part.cols];
            for (row, stored) in part.bytes().chunks_exact(part.row_bytes()).enumerate() {
                part.decode_row(row, stored, &mut w);
                for r in 0..x.rows() {
                    let sum: f64 =
                        (0..x.cols()).map(|c| f64::from(at(x, r, c)) * f64::from(w[c])).sum();
                    let more = side.as_ref().map_or(0.0, |(t, b)| one_side(*t, b, (r, n)));
                    let y = sum + more + bias.map_or(0.0, |b| f64::from(b[n]));
                    put(out, r, n, finished(y, tail, (r, n), x.rows()) as f32);
                }
                n += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
