//! How `mma` and `wgmma` add products in floating point.
//!
//! The definition of PTX leaves it open. [`Sums::Nearest`] adds one product after another. Tensor
//! cores add the products of an instruction (or of half of it) and the accumulator at once: all are
//! aligned to the largest exponent and cut off after a number of bits, their sum is exact, and is
//! cut off once more. The numbers of bits, and which instructions are cut in two, are those of
//! MMA-Sim, which reproduces the hardware bit for bit (Xie et al., arXiv 2511.10909).

use half::f16;

use crate::read::types::Type;

/// How products of `mma` and `wgmma` in floating point are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sums {
    /// One after another, each sum rounded to the nearest f32.
    #[default]
    Nearest,
    /// As the tensor cores of this generation do.
    Of(Chip),
}

/// A generation of tensor cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chip {
    /// Compute capability 8.0 and 8.6.
    Ampere,
    /// 8.9.
    Ada,
    /// 9.0.
    Hopper,
    /// 12.0.
    RtxBlackwell,
}

/// How one kind of instruction adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Bits of a product behind the point, at the largest exponent.
    bits: i32,
    /// Bits of the sum behind the point.
    kept: i32,
    /// The products of both halves of k are added one after the other.
    halved: bool,
}

impl Chip {
    /// How products of elements of type `ty` are added, `k` of them in an instruction.
    pub(crate) fn cut(self, ty: Type, k: usize, is_wgmma: bool) -> Cut {
        let is_fp8 = matches!(ty, Type::E4M3 | Type::E5M2);
        let is_old = matches!(self, Chip::Ampere | Chip::Ada);
        let bits = if is_old { 24 } else { 25 };
        let full = match ty {
            Type::TF32 => 8,
            Type::F16 | Type::BF16 => 16,
            _ => 32,
        };
        let halved = is_old && !is_wgmma && k == full;
        match is_fp8 && (self == Chip::Ada || is_wgmma) {
            true => Cut { bits: 13, kept: 13, halved },
            false => Cut { bits, kept: 23, halved },
        }
    }
}

/// A number as a significand with [`FRACTION`] bits behind the point and an exponent of 2.
#[derive(Clone, Copy)]
struct Number {
    significand: i64,
    exponent: i32,
}

/// Bits of an f32 behind the point.
const FRACTION: i32 = 23;

/// The smallest exponent of a type, which its subnormal numbers have.
fn least(ty: Type) -> i32 {
    match ty {
        Type::F16 | Type::E5M2 => -14,
        Type::E4M3 => -6,
        _ => -126,
    }
}

fn number(value: f32, least: i32) -> Number {
    if value == 0.0 {
        return Number { significand: 0, exponent: -126 };
    }
    let bits = value.to_bits();
    let (field, fraction) = ((bits >> 23 & 255) as i32, i64::from(bits & 0x7f_ffff));
    let (mut significand, mut exponent) = match field {
        0 => (fraction, -126),
        _ => (fraction | 1 << FRACTION, field - 127),
    };
    if exponent < least {
        // Exact: the type has no bits below.
        significand >>= (least - exponent).min(63);
        exponent = least;
    }
    Number { significand: if value < 0.0 { -significand } else { significand }, exponent }
}

/// `x` times 2^`by`, cut off towards zero.
fn shifted(x: i64, by: i32) -> i64 {
    match by {
        0.. => x << by.min(62),
        _ if by < -62 => 0,
        _ => x.signum() * (x.abs() >> -by),
    }
}

/// Bits of an element behind the point: TF32 and F16 have the most.
const SHORT: i32 = 10;
/// The most products of an instruction.
const MOST: usize = 32;

/// `c` and the products of `a` and `b`, whose types have the smallest exponents `least`, added at
/// once.
fn fused(cut: Cut, least: (i32, i32), half: bool, (a, b): (&[f32], &[f32]), c: f32) -> f32 {
    let plain: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let plain = plain + f64::from(c);
    if plain.is_nan() {
        return f32::from_bits(0x7fff_ffff);
    }
    if plain.is_infinite() {
        return plain as f32;
    }
    let own = number(c, if half { -14 } else { -126 });
    let mut largest = own.exponent;
    // With 2 SHORT bits behind the point.
    let mut products = [Number { significand: 0, exponent: 0 }; MOST];
    let short = |n: Number| n.significand >> (FRACTION - SHORT);
    for ((p, a), b) in products.iter_mut().zip(a).zip(b) {
        let (a, b) = (number(*a, least.0), number(*b, least.1));
        let exponent = a.exponent + b.exponent;
        *p = Number { significand: short(a) * short(b), exponent };
        largest = largest.max(exponent);
    }
    let mut sum = shifted(own.significand, cut.bits - FRACTION + own.exponent - largest);
    for p in &products[..a.len()] {
        sum += shifted(p.significand, cut.bits - 2 * SHORT + p.exponent - largest);
    }
    rounded(sum, largest - cut.bits, cut.kept, half)
}

/// `sum` times 2^`unit`: an f32 cut off after `kept` bits, or the nearest f16.
fn rounded(sum: i64, unit: i32, kept: i32, half: bool) -> f32 {
    if sum == 0 {
        return 0.0;
    }
    let exact = sum as f64 * 2f64.powi(unit);
    if half {
        // An f32 with an odd last bit where it is not exact rounds to f16 as the sum does.
        let cut = exact as f32;
        let cut = match (f64::from(cut) - exact) * exact.signum() {
            0.0 => return f16::from_f32(cut).to_f32(),
            over if over > 0.0 => f32::from_bits(cut.to_bits() - 1),
            _ => cut,
        };
        return f16::from_f32(f32::from_bits(cut.to_bits() | 1)).to_f32();
    }
    let lead = 63 - sum.unsigned_abs().leading_zeros() as i32 + unit;
    let last = lead.max(-126) - kept;
    (shifted(sum, unit - last) as f64 * 2f64.powi(last)) as f32
}

/// c += a . b, eight rows, as [`product`](super::mma::product) but for the sums.
pub(crate) fn product<const K: usize>(
    cut: Cut,
    types: (Type, Type),
    half: bool,
    (a, b): (&[[f32; K]; 8], &[[f32; 8]; K]),
    c: &mut [[f32; 8]; 8],
) {
    let least = (least(types.0), least(types.1));
    let step = if cut.halved { K / 2 } else { K };
    for n in 0..8 {
        let column: [f32; K] = std::array::from_fn(|k| b[k][n]);
        for (row, c) in a.iter().zip(c.iter_mut()) {
            for (a, b) in row.chunks(step).zip(column.chunks(step)) {
                c[n] = fused(cut, least, half, (a, b), c[n]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line of `sums.txt` is a kind of instruction, the accumulator, the sum, and both rows of
    /// elements, as MMA-Sim computes it.
    #[test]
    fn sums_are_those_of_mma_sim() {
        let mut lines = 0;
        for line in
            include_str!("../../tests/sums/sums.txt").lines().filter(|line| !line.starts_with('#'))
        {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [chip, kind, ty, d, c, want, numbers @ ..] = &words[..] else { panic!("{line}") };
            let chip = match *chip {
                "ampere" => Chip::Ampere,
                "ada" => Chip::Ada,
                "hopper" => Chip::Hopper,
                _ => Chip::RtxBlackwell,
            };
            let bits = |word: &&str| f32::from_bits(u32::from_str_radix(word, 16).unwrap());
            let numbers: Vec<f32> = numbers.iter().map(bits).collect();
            let (a, b) = numbers.split_at(numbers.len() / 2);
            let ty = Type::from_name(ty).unwrap();
            let cut = chip.cut(ty, a.len(), *kind == "wgmma");
            let least = (least(ty), least(ty));
            let step = if cut.halved { a.len() / 2 } else { a.len() };
            let mut sum = bits(c);
            for (a, b) in a.chunks(step).zip(b.chunks(step)) {
                sum = fused(cut, least, *d == "f16", (a, b), sum);
            }
            assert_eq!(sum.to_bits(), bits(want).to_bits(), "{sum:e}: {line}");
            lines += 1;
        }
        assert!(lines > 100, "{lines} lines");
    }
}
