//! The value of each element of a synthetic tensor. The scripts that make the golden files contain
//! the same definition, so no bit of it may change.

use half::f16;

use super::Grid;
use crate::dtype::{DType, f8e4m3_to_f32};
use crate::spec::Component;
use crate::spec::names::matches;
use crate::weights::container::file::{FNV_OFFSET, fnv};

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The values of one tensor: element i is `add + mul * u(i)`, where u is uniform in [-1, 1), from
/// splitmix64 seeded by the tensor's name.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    base: u64,
    add: f32,
    mul: f32,
}

impl Field {
    /// The field of the canonical tensor `name`. Its shape decides the amplitude: matrices preserve
    /// the variance, biases are small, gains are near 1.
    pub fn new(seed: u64, component: Component, name: &str, shape: &[usize]) -> Self {
        let hash = fnv(FNV_OFFSET, format!("{}/{name}", component.name).as_bytes());
        let (add, mul) = match shape {
            [] | [_] if name.ends_with("bias") => (0.0, 0.1),
            [] | [_] => (1.0, 0.2),
            _ if component.is_table(name) => (0.0, 1.0),
            [_, rest @ ..] => {
                let fan_in = rest.iter().product::<usize>() as f64;
                // For attention without a softmax scale, the query weights contain that factor.
                let queries = component.unscaled_queries.filter(|(q, _)| matches(&[q], name));
                let gain = queries.map_or(1.0, |(_, width)| 1.0 / width.sqrt());
                (0.0, (gain * (3.0 / fan_in).sqrt()) as f32)
            }
        };
        Field { base: hash ^ seed.wrapping_mul(GOLDEN), add, mul }
    }

    /// Element `i` in row-major order.
    #[inline(always)]
    pub fn at(&self, i: u64) -> f32 {
        let mut z = self.base.wrapping_add(i.wrapping_add(1).wrapping_mul(GOLDEN));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let u = (z >> 40) as u32 as f32 * (1.0 / 8_388_608.0) - 1.0;
        self.add + self.mul * u
    }

    /// The smallest power of two (at least 2^-15, so that f16 can store every multiple of its 2^-9)
    /// that scales all values of a matrix to at most 448.
    fn scale(&self) -> f32 {
        let mut scale = 2f32.powi(-15);
        while self.mul > 448.0 * scale {
            scale *= 2.0;
        }
        scale
    }
}

/// How values are rounded before they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Rounding {
    /// Not rounded.
    None,
    /// To values that both bf16 and f16 can store.
    Half,
    /// To e4m3 times this power of two.
    E4m3(f32),
}

impl Rounding {
    /// The rounding that `grid` requires for the tensor `name`.
    pub fn of(
        grid: Grid,
        component: Component,
        name: &str,
        shape: &[usize],
        field: &Field,
    ) -> Self {
        match (grid, component.is_matrix(name, shape)) {
            (Grid::F32, _) => Rounding::None,
            (_, false) => Rounding::Half,
            (Grid::F8, true) => Rounding::E4m3(field.scale()),
            (Grid::F8Plain, true) => Rounding::E4m3(1.0),
        }
    }

    /// Returns `v`, rounded.
    #[inline(always)]
    pub fn round(self, v: f32) -> f32 {
        match self {
            Rounding::None => v,
            Rounding::Half => f32::from_bits(u32::from(to_bf16(f16::from_f32(v).to_f32())) << 16),
            Rounding::E4m3(scale) => f8e4m3_to_f32(to_e4m3(v / scale)) * scale,
        }
    }
}

/// Rounds to the nearest even, for finite values.
#[inline(always)]
fn to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Rounds to the nearest even and saturates at 448, for finite values. The same as
/// `dtype::f32_to_f8e4m3`, without its branches, because it runs for billions of values.
#[inline(always)]
fn to_e4m3(v: f32) -> u8 {
    let bits = v.to_bits();
    let a = bits & 0x7fff_ffff;
    // Normal codes: drop 20 bits of the mantissa, then change the bias from 127 to 7. (Wraps for
    // small values, for which the result is not used.)
    let normal = ((a + 0x7_ffff + ((a >> 20) & 1)) >> 20).wrapping_sub(120 << 3);
    // Subnormal codes count in steps of 2^-9, the last place of floats between 2^14 and 2^15.
    let subnormal = (f32::from_bits(a) + 16384.0).to_bits() - 16384f32.to_bits();
    let code = if a < 0x3c80_0000 { subnormal } else { normal.min(0x7e) };
    ((bits >> 24) & 0x80) as u8 | code as u8
}

/// Writes elements `first ..` of `field` into `out` as `dtype`: rounded, then divided by `scale`.
pub fn fill(
    out: &mut [u8],
    dtype: DType,
    field: &Field,
    rounding: Rounding,
    scale: f32,
    first: u64,
) {
    // The product with the inverse of a power of two is equal to the quotient.
    let inverse = 1.0 / scale;
    let value = |i: usize| rounding.round(field.at(first + i as u64)) * inverse;
    match (dtype, rounding) {
        (DType::F8E4M3, Rounding::E4m3(grid)) if grid == scale => {
            // The common case of large files: rounding and storing are the same operation.
            out.iter_mut()
                .enumerate()
                .for_each(|(i, q)| *q = to_e4m3(field.at(first + i as u64) * inverse));
        }
        (DType::F8E4M3, _) => out.iter_mut().enumerate().for_each(|(i, q)| *q = to_e4m3(value(i))),
        (DType::BF16, _) => {
            out.chunks_exact_mut(2)
                .enumerate()
                .for_each(|(i, b)| b.copy_from_slice(&to_bf16(value(i)).to_le_bytes()));
        }
        (DType::F32, _) => {
            out.chunks_exact_mut(4)
                .enumerate()
                .for_each(|(i, b)| b.copy_from_slice(&value(i).to_le_bytes()));
        }
        (other, _) => {
            let mut element = Vec::with_capacity(4);
            for (i, b) in out.chunks_exact_mut(other.size()).enumerate() {
                element.clear();
                other.encode(value(i), &mut element);
                b.copy_from_slice(&element);
            }
        }
    }
}

/// The scale with which scaled fp8 stores the values of `field`.
pub fn stored_scale(field: &Field, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::E4m3(grid) if grid != 1.0 => grid,
        _ => field.scale(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::f32_to_f8e4m3;
    use crate::spec::flux1::TRANSFORMER;

    #[test]
    fn the_branch_free_conversion_is_the_plain_one() {
        let mut checked = 0;
        // Every float from 2^-14 to 512 with 12 leading mantissa bits, and the neighbours of ties
        // between them.
        for high in (0x3880_0000u32..0x4400_0000).step_by(1 << 11) {
            for low in [0, 1, (1 << 11) - 1] {
                let v = f32::from_bits(high | low);
                assert_eq!(to_e4m3(v), f32_to_f8e4m3(v), "{v}");
                assert_eq!(to_e4m3(-v), f32_to_f8e4m3(-v), "-{v}");
                checked += 2;
            }
        }
        for v in
            [0.0, 1e-30, 2f32.powi(-10), 2f32.powi(-10).next_up(), 447.9, 448.0, 463.9, 464.1, 1e9]
        {
            assert_eq!(to_e4m3(v), f32_to_f8e4m3(v), "{v}");
        }
        assert!(checked > 100_000);
    }

    #[test]
    fn bf16_is_rounded_as_the_half_crate_does() {
        let field = Field::new(3, TRANSFORMER, "img_in.weight", &[64, 64]);
        for i in 0..4096 {
            assert_eq!(to_bf16(field.at(i)), half::bf16::from_f32(field.at(i)).to_bits());
        }
    }
}
