//! Random operands, and the measure of error, for the tests of matrix kernels.

use std::sync::Arc;

use super::super::isa::Isa;
use super::super::linear::Variant;
use crate::dtype::DType;
use crate::tensor::{HostPart, HostWeight, Scale};

/// A small generator of random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Between -1 and 1.
    pub fn f32(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.f32()).collect()
    }
}

/// A weight of `parts` (rows, type), with `cols` columns, each at an odd byte of its source; the n-th part has the n-th kind of scale.
pub fn weight(random: &mut Random, cols: usize, parts: &[(usize, DType)]) -> HostWeight {
    let parts = parts.iter().enumerate().map(|(i, &(rows, dtype))| {
        let offset = 2 * i + 1;
        let mut bytes = vec![0x7f; offset];
        for _ in 0..rows * cols {
            dtype.encode(random.f32(), &mut bytes);
        }
        let scale = match i % 3 {
            0 => Scale::One,
            1 => Scale::Tensor(0.37),
            _ => Scale::Rows((0..rows).map(|_| 1.5 + random.f32()).collect()),
        };
        HostPart { source: Arc::new(bytes), offset, rows, cols, dtype, scale }
    });
    let parts: Vec<_> = parts.collect();
    HostWeight { rows: parts.iter().map(|p| p.rows).sum(), cols, parts }
}

/// `||got - want|| / ||want||`; anything not finite in `got` gives infinity.
pub fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    if got.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    difference.sqrt() / norm.sqrt().max(f64::MIN_POSITIVE)
}

/// The variants of `table` that this processor can run.
pub fn runnable(table: &'static [Variant]) -> impl Iterator<Item = &'static Variant> {
    table.iter().filter(|v| v.needs <= Isa::detect())
}

/// The error that `v` may have.
pub fn tolerance(v: &Variant) -> f64 {
    if v.name.contains("bf16_") { 6e-3 } else { 2e-6 }
}
