//! Attention whose scores are products of 8-bit integers, after SageAttention: the definition that
//! kernels equal in their integers and approach in their sums.
//!
//! - A vector is subtracted from all keys of an image and head, the mean of some of them
//!   ([`mean_of_keys`]). That adds the same number to all scores of a query, which softmax ignores,
//!   and leaves small numbers where keys have much in common.
//! - Rows of q and of k become integers with one scale each, rotated in groups of 64 columns, as
//!   rows of x do for products ([`Int8::quantise`]). Scores are exact sums of their products times
//!   both scales.
//! - Weights `2^(score - largest)` are rounded to f16. So are values, after a division of every
//!   [`TILE`] of rows by a power of two ([`narrow_values`]), so that sums of some products in f16
//!   neither overflow nor lose small numbers. The sums of all products are F32.

use super::{Int8, Rotation};
use crate::dtype::DType;

/// Rows of values with one power of two.
pub const TILE: usize = 64;

/// Keys of which the mean is taken, at most.
const SAMPLES: usize = 256;

/// How rows of q and k become integers.
fn rows() -> Int8 {
    Int8 { rotation: Rotation::new(64) }
}

/// The mean of up to 256 evenly spaced rows of `k` (`tokens x dim`), in the order of sums that
/// kernels have: eight partial sums of every eighth sample, added up.
pub fn mean_of_keys(k: &[f32], dim: usize) -> Vec<f32> {
    let tokens = k.len() / dim;
    let step = tokens.div_ceil(SAMPLES).max(1);
    let samples: Vec<&[f32]> = k.chunks_exact(dim).step_by(step).collect();
    let column = |c: usize| {
        let part = |first: usize| {
            samples.iter().skip(first).step_by(8).fold(0f32, |sum, row| sum + row[c])
        };
        (0..8).map(part).fold(0f32, |sum, part| sum + part) / samples.len() as f32
    };
    (0..dim).map(column).collect()
}

/// The integers of rows of q or k (`tokens x dim`), and a scale for each row. `mean` is subtracted
/// from every row first. `dim` is a multiple of 64.
pub fn quantise_rows(x: &[f32], dim: usize, mean: Option<&[f32]>) -> (Vec<i8>, Vec<f32>) {
    let mut q = vec![0; x.len()];
    let quantise = |(row, q): (&[f32], &mut [i8])| {
        let mut row = row.to_vec();
        if let Some(mean) = mean {
            row.iter_mut().zip(mean).for_each(|(x, m)| *x -= m);
        }
        rows().quantise(&mut row, q)
    };
    let scales = x.chunks_exact(dim).zip(q.chunks_exact_mut(dim)).map(quantise).collect();
    (q, scales)
}

/// Rows of v (`tokens x dim`) as the bits of f16, and the power of two for each [`TILE`] of rows by
/// which they are divided. A tile with a number that is not finite has NaN in place of the power.
pub fn narrow_values(v: &[f32], dim: usize) -> (Vec<u16>, Vec<f32>) {
    let (mut narrow, mut powers) = (Vec::with_capacity(v.len()), vec![]);
    for tile in v.chunks(TILE * dim) {
        let most = tile.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
        // Both the power and its reciprocal are normal numbers.
        let exponent = (most >> 23).clamp(1, 252);
        let by = f32::from_bits((254 - exponent) << 23);
        let finite = most < 0x7f80_0000;
        powers.push(if finite { f32::from_bits(exponent << 23) } else { f32::NAN });
        narrow.extend(tile.iter().map(|x| f16_bits(x * by)));
    }
    (narrow, powers)
}

fn f16_bits(x: f32) -> u16 {
    let mut bytes = vec![];
    DType::F16.encode(x, &mut bytes);
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn f16_value(bits: u16) -> f32 {
    DType::F16.decode(&bits.to_le_bytes())
}

/// Attention of one image and head: `q` (`queries x dim`), `k` and `v` (`tokens x dim`), the result
/// is `queries x dim`. Sums of weights and outputs are F64 here.
pub fn attention(q: &[f32], k: &[f32], v: &[f32], dim: usize, scale: f32) -> Vec<f32> {
    let (q, q_scales) = quantise_rows(q, dim, None);
    let (k, k_scales) = quantise_rows(k, dim, Some(&mean_of_keys(k, dim)));
    let (v, powers) = narrow_values(v, dim);
    let v: Vec<f32> = v.into_iter().map(f16_value).collect();
    let mut out = Vec::with_capacity(q.len());
    for (q, q_scale) in q.chunks_exact(dim).zip(q_scales) {
        let unit = q_scale * scale * std::f32::consts::LOG2_E;
        let score = |(k, k_scale): (&[i8], &f32)| {
            let sum: i32 = q.iter().zip(k).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
            sum as f32 * k_scale * unit
        };
        let scores: Vec<f32> = k.chunks_exact(dim).zip(&k_scales).map(score).collect();
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut total, mut sums) = (0f64, vec![0f64; dim]);
        for (j, score) in scores.iter().enumerate() {
            let weight = (score - most).exp2();
            total += f64::from(weight);
            let weight = f64::from(f16_value(f16_bits(weight)) * powers[j / TILE]);
            let row = &v[j * dim..][..dim];
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        out.extend(sums.iter().map(|sum| (sum / total) as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_f16_below_two_with_a_power_for_every_tile() {
        let v: Vec<f32> = (0..3 * TILE).map(|i| (i as f32 - 70.0) / 8.0).collect();
        let (narrow, powers) = narrow_values(&v, 1);
        assert_eq!(powers, [8.0, 4.0, 8.0]);
        for (i, (bits, x)) in narrow.iter().zip(&v).enumerate() {
            assert!(f16_value(*bits).abs() < 2.0);
            assert_eq!(f16_value(*bits) * powers[i / TILE], *x, "{i}");
        }
        for (x, power) in
            [(0.0, f32::MIN_POSITIVE), (1e-45, f32::MIN_POSITIVE), (f32::MAX, 2f32.powi(125))]
        {
            assert_eq!(narrow_values(&[x], 1).1, [power]);
        }
        assert!(narrow_values(&[1.0, f32::INFINITY], 1).1[0].is_nan());
    }

    #[test]
    fn what_all_keys_have_in_common_does_not_count() {
        let dim = 64;
        let number =
            |i: usize, salt: usize| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        let rows = |n: usize, salt| (0..n * dim).map(|i| number(i, salt)).collect::<Vec<f32>>();
        let (q, k, v) = (rows(9, 1), rows(300, 2), rows(300, 3));
        // Exact halves, so that the sums of keys are exact too.
        let k: Vec<f32> = k.iter().map(|x| (x * 16.0).round() / 16.0).collect();
        let moved: Vec<f32> =
            k.iter().enumerate().map(|(i, x)| x + 32.0 * (i % dim % 3) as f32).collect();
        let got = attention(&q, &moved, &v, dim, 0.2);
        let want = attention(&q, &k, &v, dim, 0.2);
        let difference = |a: &[f32], b: &[f32]| {
            let square = |x: f32| f64::from(x) * f64::from(x);
            let (d, s): (f64, f64) = a
                .iter()
                .zip(b)
                .fold((0.0, 0.0), |(d, s), (a, b)| (d + square(a - b), s + square(*b)));
            (d / s).sqrt()
        };
        assert!(difference(&got, &want) < 1e-4, "{}", difference(&got, &want));
    }
}
