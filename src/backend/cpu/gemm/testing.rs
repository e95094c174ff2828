//! Random operands and an error measure, for the tests of the matrix kernels.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::isa::Isa;
use super::super::linear::Variant;
use crate::dtype::DType;
use crate::tensor::{BlockScale, BlockScales, HostPart, HostWeight, Scale};

/// A small random number generator (xorshift64*).
pub struct Random(u64);

impl Random {
    /// A generator with this seed.
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

    /// `n` numbers.
    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.f32()).collect()
    }
}

/// A weight made of `parts` (rows, type), with `cols` columns, each part at an odd byte of its
/// source. The kinds of scale alternate from part to part.
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
        HostPart { rotation: None, source: Arc::new(bytes), offset, rows, cols, dtype, scale }
    });
    let parts: Vec<_> = parts.collect();
    HostWeight { int8: None, rows: parts.iter().map(|p| p.rows).sum(), cols, parts }
}

/// A weight of `rows x cols` of a type that is expanded before it is packed: two parts of random
/// bytes, with the scales that the type needs; one part is at an odd byte.
pub fn blocks(random: &mut Random, cols: usize, rows: usize, dtype: DType) -> HostWeight {
    let parts = [rows / 3, rows - rows / 3].into_iter().enumerate().map(|(i, rows)| {
        let offset = 2 * i + 1;
        let mut bytes = vec![0x7f; offset];
        bytes.extend((0..rows * dtype.bytes(cols)).map(|_| (random.f32() * 128.0) as i8 as u8));
        let mut scale = if i == 0 { Scale::Tensor(0.01) } else { Scale::One };
        if let Some(format) = dtype.format() {
            // f16 values that are finite and of similar size, at every position where the format
            // has one.
            for block in bytes[offset..].chunks_exact_mut(format.bytes) {
                let halves: &[usize] = match dtype {
                    DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => &[0],
                    DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
                    DType::Q2K => &[80, 82],
                    DType::Q3K => &[108],
                    DType::Q6K => &[208],
                    _ => &[],
                };
                for at in halves {
                    let d = half::f16::from_f32(random.f32() * 0.1);
                    block[*at..at + 2].copy_from_slice(&d.to_le_bytes());
                }
            }
            if format.scale_bytes > 0 {
                let per_row = format.blocks(cols);
                let count = rows.next_multiple_of(128) * per_row.next_multiple_of(4);
                let (stored, scales) = match dtype {
                    DType::Mxfp8 => (
                        BlockScale::E8M0,
                        (0..count).map(|_| (120.0 + 5.0 * random.f32()) as u8).collect(),
                    ),
                    DType::Nvfp4 => (
                        BlockScale::E4M3,
                        (0..count).map(|_| (48.0 + 20.0 * random.f32()) as u8).collect(),
                    ),
                    _ => (
                        BlockScale::F32,
                        (0..count).flat_map(|_| random.f32().to_le_bytes()).collect::<Vec<u8>>(),
                    ),
                };
                let tiled = dtype == DType::Nvfp4 && i == 1;
                let source = Arc::new(scales);
                let scales = BlockScales {
                    tiled,
                    factor: 0.7,
                    ..BlockScales::new(source, 0, stored, per_row)
                };
                scale = Scale::Blocks(scales);
                // No NaN among the codes of mxfp8.
                bytes[offset..].iter_mut().for_each(|q| *q &= 0xbf);
            }
        }
        HostPart { rotation: None, source: Arc::new(bytes), offset, rows, cols, dtype, scale }
    });
    let parts: Vec<_> = parts.collect();
    HostWeight { int8: None, rows, cols, parts }
}

/// `||got - want|| / ||want||`. Infinity if a value of `got` is not finite.
pub fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    if got.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    difference.sqrt() / norm.sqrt().max(f64::MIN_POSITIVE)
}

/// The variants of `table` for floats that this processor can run.
pub fn runnable(table: &'static [Variant]) -> impl Iterator<Item = &'static Variant> {
    table.iter().filter(|v| !v.is_of_integers() && has(v.name, v.needs))
}

/// Whether this processor can run the kernel `name`, which needs `needs`.
pub fn has(name: &'static str, needs: Isa) -> bool {
    is_tested(name, needs.name(), needs <= Isa::detect())
}

/// Returns `has`: whether this processor has `needs`, and so tests run the kernel `name`. If not,
/// says so, once for each kernel.
pub fn is_tested(name: &'static str, needs: &str, has: bool) -> bool {
    static SKIPPED: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    if !has && SKIPPED.lock().unwrap_or_else(PoisonError::into_inner).insert(name) {
        eprintln!("SKIPPED {name}: this machine has no {needs}");
    }
    has
}

/// The error that `v` is allowed to have.
pub fn tolerance(v: &Variant) -> f64 {
    if v.name.contains("bf16_") { 6e-3 } else { 2e-6 }
}
