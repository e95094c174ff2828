//! Number formats bit by bit, in forms that the compiler can vectorise.

/// f32 to bf16, to the nearest even; NaN becomes the canonical NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u32 {
    let b = x.to_bits();
    let rounded = b.wrapping_add(0x7fff + (b >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fff } else { rounded }
}

#[inline(always)]
pub(crate) fn bf16_value(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// f32 to f16, to the nearest even.
#[inline(always)]
pub(crate) fn f16_bits(x: f32) -> u32 {
    let sign = x.to_bits() >> 16 & 0x8000;
    let b = x.to_bits() & 0x7fff_ffff;
    // Rebias the exponent and round 13 bits away. Smaller numbers are counted in units of 2^-24, by
    // adding 0.5.
    let normal = b.wrapping_sub(112 << 23).wrapping_add(0xfff + (b >> 13 & 1)) >> 13;
    let small = (f32::from_bits(b) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if b < 113 << 23 { small } else { normal.min(0x7c00) };
    if b > 0x7f80_0000 { 0x7fff } else { sign | if b >= 143 << 23 { 0x7c00 } else { finite } }
}

/// f16 to f32, exactly.
#[inline(always)]
pub(crate) fn f16_value(bits: u32) -> f32 {
    let b = (bits & 0x7fff) << 13;
    let scaled = (f32::from_bits(b) * f32::from_bits((127 + 112) << 23)).to_bits();
    let b = if b >= 31 << 23 { b | 0x7f80_0000 } else { scaled };
    f32::from_bits(b | (bits & 0x8000) << 16)
}

/// f32 to E4M3 (`M` = 3 bits of mantissa) or E5M2 (2), to the nearest even, the largest finite
/// number beyond that.
#[inline(always)]
pub(crate) fn fp8_bits<const M: u32>(x: f32) -> u32 {
    let (bias, most) = if M == 3 { (7, 448f32) } else { (15, 57344f32) };
    let sign = x.to_bits() >> 24 & 0x80;
    let a = x.abs();
    let a = if a > most { most } else { a };
    let (b, drop) = (a.to_bits(), 23 - M);
    let normal = (b.wrapping_add((1 << (drop - 1)) - 1 + (b >> drop & 1)) >> drop)
        .wrapping_sub((127 - bias) << M);
    // Subnormal numbers are multiples of the smallest one; adding a power of two rounds to them.
    let unit = f32::from_bits((127 + 23 + 1 - bias - M) << 23);
    let small = (a + unit).to_bits().wrapping_sub(unit.to_bits());
    let code = if b < (128 - bias) << 23 { small } else { normal };
    if x.is_nan() { 0x7f } else { sign | code }
}

#[inline(always)]
pub(crate) fn fp8_value<const M: u32>(bits: u32) -> f32 {
    let bias = if M == 3 { 7 } else { 15 };
    let b = (bits & 0x7f) << (23 - M);
    let scaled = f32::from_bits(b) * f32::from_bits((127 + 127 - bias) << 23);
    let special = if M == 3 { bits & 0x7f == 0x7f } else { b >= 31 << 23 };
    let b = if special { b | 0x7f80_0000 } else { scaled.to_bits() };
    f32::from_bits(b | (bits & 0x80) << 24)
}

/// f64 to f32 such that a later rounding to fewer bits gives the same result as a single rounding:
/// inexact results get an odd last bit.
#[inline(always)]
pub(crate) fn odd(x: f64) -> f32 {
    let y = x as f32;
    let back = y as f64;
    let toward_zero = y.to_bits().wrapping_sub((back.abs() > x.abs()) as u32);
    f32::from_bits(toward_zero | (back != x) as u32)
}

/// x * y + z of 16-bit floats, before it is rounded to 16 bits. The product is exact (except for
/// underflow).
#[inline(always)]
pub(crate) fn fma_odd(x: f32, y: f32, z: f32) -> f32 {
    let p = x * y;
    let s = p + z;
    // The exact rounding error of the sum.
    let t = s - p;
    let lost = (p - (s - t)) + (z - t);
    let b = s.to_bits();
    let fixed = b.wrapping_sub(((lost < 0.0) == (s > 0.0)) as u32) | 1;
    let inexact = (lost != 0.0) & (b & 0x7f80_0000 != 0x7f80_0000);
    f32::from_bits(if inexact { fixed } else { b })
}

/// 2^x to about one unit in the last place.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let c = if x > 130.0 { 130.0 } else { x };
    let c = if c < -160.0 { -160.0 } else { c };
    let n = c.round_ties_even();
    let f = c - n;
    let mut p = 1.525_273_4e-5f32;
    for k in
        [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 2.402_265e-1, 6.931_472e-1, 1.0]
    {
        p = p.mul_add(f, k);
    }
    // In two steps, since 2^n itself may be out of range.
    let n = n as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    let y = p * power(half) * power(n - half);
    if x.is_nan() { x } else { y }
}

/// tanh by a quotient of polynomials, to a few units in the last place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let c = if x > 7.905_311 { 7.905_311 } else { x };
    let c = if c < -7.905_311 { -7.905_311 } else { c };
    let s = c * c;
    let mut p = -2.760_768_5e-16f32;
    for k in
        [2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619e-4, 4.893_525e-3]
    {
        p = p.mul_add(s, k);
    }
    let mut q = 1.198_258_4e-6f32;
    for k in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3] {
        q = q.mul_add(s, k);
    }
    if x.is_nan() { x } else { c * p / q }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of 16 bits, and numbers around every rounding boundary of f32.
    fn many() -> impl Iterator<Item = f32> {
        let near = (0..1u32 << 16).flat_map(|h| {
            [0, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001].map(|l| f32::from_bits(h << 16 | l))
        });
        near.chain((0..1u32 << 20).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b1))))
    }

    #[test]
    fn halves_match_the_half_crate() {
        for x in many() {
            let f = half::f16::from_f32(x);
            let b = half::bf16::from_f32(x);
            assert_eq!(f16_bits(x), if x.is_nan() { 0x7fff } else { f.to_bits() as u32 }, "{x}");
            assert_eq!(bf16_bits(x), if x.is_nan() { 0x7fff } else { b.to_bits() as u32 }, "{x}");
        }
        for h in 0..1u32 << 16 {
            let want = half::f16::from_bits(h as u16).to_f32();
            assert!(
                f16_value(h) == want && f16_value(h).is_sign_negative() == want.is_sign_negative()
                    || want.is_nan()
            );
        }
    }

    #[test]
    fn bytes_match_the_general_rounding() {
        use crate::decode::convert::{fp8_bits as bits, fp8_value as value};
        for x in many() {
            assert_eq!(fp8_bits::<3>(x), bits(x as f64, 4) as u32, "{x}");
            assert_eq!(fp8_bits::<2>(x), bits(x as f64, 5) as u32, "{x}");
        }
        for b in 0..256u32 {
            for (x, y) in
                [(fp8_value::<3>(b), value(b as u8, 4)), (fp8_value::<2>(b), value(b as u8, 5))]
            {
                assert!(
                    x == y && x.is_sign_negative() == y.is_sign_negative()
                        || x.is_nan() && y.is_nan()
                );
            }
        }
    }

    #[test]
    fn sums_are_rounded_once() {
        // 1 + 2^-8 is halfway between two bf16; the smallest addition decides.
        let (x, tiny) = (1.0 + 2f32.powi(-7), 2f32.powi(-100));
        let half = 2f32.powi(-8);
        assert_eq!(bf16_bits(fma_odd(x, 1.0, half)), bf16_bits(x) + 1);
        assert_eq!(bf16_bits(fma_odd(x, 1.0 + 2f32.powi(-7), -tiny)) & 1, 0);
        assert_eq!(bf16_bits(fma_odd(1.0, 1.0 + half, tiny)), 0x3f81);
        assert_eq!(bf16_bits(fma_odd(1.0, 1.0 + half, -tiny)), 0x3f80);
        assert_eq!(bf16_bits(fma_odd(1.0, 1.0 + half, 0.0)), 0x3f80);
        assert_eq!(bf16_bits(fma_odd(f32::INFINITY, 1.0, 1.0)), 0x7f80);
        assert_eq!(bf16_bits(fma_odd(f32::INFINITY, 0.0, 1.0)), 0x7fff);
        assert_eq!(fma_odd(1.5, 2.0, -3.0).to_bits(), 0);
    }

    #[test]
    fn functions_are_accurate() {
        for i in -160_000..128_000 {
            let x = i as f32 * 1e-3;
            let want = (x as f64).exp2();
            assert!((exp2(x) as f64 - want).abs() <= want * 2e-7 + 1e-45, "{x}");
            let want = (x as f64 * 0.1).tanh();
            assert!((tanh(x * 0.1) as f64 - want).abs() <= want.abs() * 1e-6, "{x}");
        }
        assert_eq!(
            (exp2(-3.0), exp2(f32::NEG_INFINITY), exp2(f32::INFINITY)),
            (0.125, 0.0, f32::INFINITY)
        );
        assert!(
            exp2(f32::NAN).is_nan() && tanh(f32::NAN).is_nan() && tanh(f32::INFINITY) > 0.999999
        );
    }
}
