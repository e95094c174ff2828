//! Decoders of GGUF's blocks.
//!
//! Each decodes one group of 32 elements in f32, with the same operations as the reference of ggml,
//! so that results are equal bit by bit. Every function states the layout of a block: `d` and
//! `dmin` are f16, integers are unsigned unless stated otherwise, and "low" and "high" are the
//! halves of a byte.

use half::f16;

use super::GROUP;

#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Element `j` of the first 16 is in the low half of byte `j`; the last 16 are in the high halves.
#[inline(always)]
fn halves(q: &[u8; 16], out: &mut [f32; GROUP], value: impl Fn(usize, u8) -> f32) {
    for (j, q) in q.iter().enumerate() {
        out[j] = value(j, q & 15);
        out[j + 16] = value(j + 16, q >> 4);
    }
}

#[inline(always)]
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..].first_chunk().expect("a whole block")
}

/// `d`, 32 x i8: `d q`.
pub(super) fn q8_0(b: &[u8], _: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let d = half_at(b, 0);
    for (o, q) in out.iter_mut().zip(chunk::<32>(b, 2)) {
        *o = f32::from(*q as i8) * d;
    }
}

/// `d`, 16 bytes: `d (q - 8)`.
pub(super) fn q4_0(b: &[u8], _: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let d = half_at(b, 0);
    halves(chunk(b, 2), out, |_, q| d * f32::from(q as i8 - 8));
}

/// `d`, `m`, 16 bytes: `d q + m`.
pub(super) fn q4_1(b: &[u8], _: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    halves(chunk(b, 4), out, |_, q| d * f32::from(q) + m);
}

/// `d`, 32 fifth bits, 16 bytes: `d (q - 16)`.
pub(super) fn q5_0(b: &[u8], _: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let (d, high) = (half_at(b, 0), u32::from_le_bytes(*chunk(b, 2)));
    halves(chunk(b, 6), out, |j, q| d * f32::from((q | ((high >> j & 1) << 4) as u8) as i8 - 16));
}

/// `d`, `m`, 32 fifth bits, 16 bytes: `d q + m`.
pub(super) fn q5_1(b: &[u8], _: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let (d, m, high) = (half_at(b, 0), half_at(b, 2), u32::from_le_bytes(*chunk(b, 4)));
    halves(chunk(b, 8), out, |j, q| d * f32::from(q | ((high >> j & 1) << 4) as u8) + m);
}

/// 16 bytes of scales (low) and minima (high) for 16 elements each, 64 bytes of 2-bit numbers, `d`,
/// `dmin`: `(d s) q - (dmin m)`. Group `g` has the bits from `2 (g mod 4)` of the 32 bytes from
/// `32 (g / 4)`.
pub(super) fn q2_k(b: &[u8], g: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    let q = chunk::<32>(b, 16 + g / 4 * 32);
    for (i, half) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = b[2 * g + i];
        let (dl, ml) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        for (o, q) in half.iter_mut().zip(&q[16 * i..]) {
            *o = dl * f32::from(q >> (2 * (g % 4)) & 3) - ml;
        }
    }
}

/// 32 bytes of third bits (bit `g` of byte `j` for element `j` of group `g`; if it is not set, 4 is
/// subtracted), 64 bytes of 2-bit numbers as in Q2_K, 12 bytes with sixteen 6-bit scales, `d`:
/// `(d (s - 32)) q`.
pub(super) fn q3_k(b: &[u8], g: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let (d, high, q, scales) =
        (half_at(b, 108), chunk::<32>(b, 0), chunk::<32>(b, 32 + g / 4 * 32), chunk::<12>(b, 96));
    for (i, half) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let s = 2 * g + i;
        let low = if s < 8 { scales[s] & 15 } else { scales[s - 8] >> 4 };
        let scale = (low | (scales[8 + s % 4] >> (2 * (s / 4)) & 3) << 4) as i8 - 32;
        let dl = d * f32::from(scale);
        for ((o, q), high) in half.iter_mut().zip(&q[16 * i..]).zip(&high[16 * i..]) {
            let low = (q >> (2 * (g % 4)) & 3) as i8;
            *o = dl * f32::from(low - if high >> g & 1 == 0 { 4 } else { 0 });
        }
    }
}

/// Scale and minimum (6 bits each) of group `g`, from the 12 bytes into which Q4_K and Q5_K pack
/// them.
#[inline(always)]
fn six_bits(s: &[u8; 12], g: usize) -> (f32, f32) {
    let (scale, min) = match g {
        0..4 => (s[g] & 63, s[g + 4] & 63),
        _ => (s[g + 4] & 15 | s[g - 4] >> 6 << 4, s[g + 4] >> 4 | s[g] >> 6 << 4),
    };
    (f32::from(scale), f32::from(min))
}

/// `d`, `dmin`, 12 bytes of scales and minima, 128 bytes: `(d s) q - (dmin m)`. Groups `2i` and
/// `2i + 1` are the low and the high halves of 32 bytes.
pub(super) fn q4_k(b: &[u8], g: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let (scale, min) = six_bits(chunk(b, 4), g);
    let (dl, ml) = (half_at(b, 0) * scale, half_at(b, 2) * min);
    for (o, q) in out.iter_mut().zip(chunk::<32>(b, 16 + g / 2 * 32)) {
        *o = dl * f32::from(q >> (4 * (g % 2)) & 15) - ml;
    }
}

/// As Q4_K, with 32 bytes of fifth bits (bit `g` of byte `j` for element `j` of group `g`) before
/// the 128 bytes.
pub(super) fn q5_k(b: &[u8], g: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let (scale, min) = six_bits(chunk(b, 4), g);
    let (dl, ml) = (half_at(b, 0) * scale, half_at(b, 2) * min);
    for ((o, q), high) in
        out.iter_mut().zip(chunk::<32>(b, 48 + g / 2 * 32)).zip(chunk::<32>(b, 16))
    {
        *o = dl * f32::from(q >> (4 * (g % 2)) & 15 | (high >> g & 1) << 4) - ml;
    }
}

/// 128 bytes of low 4 bits, 64 bytes of high 2 bits, 16 x i8 scales of 16 elements each, `d`: `(d
/// s) (q - 32)`. In each half of the block, groups 0 and 1 have the low halves of 64 bytes, groups
/// 2 and 3 the high halves; the bits from `2 (g mod 4)` of 32 bytes are their upper two bits.
pub(super) fn q6_k(b: &[u8], g: usize, _: &[f32], out: &mut [f32; GROUP]) {
    let d = half_at(b, 208);
    let (half, quarter) = (g / 4, g % 4);
    let low = chunk::<32>(b, half * 64 + quarter % 2 * 32);
    let high = chunk::<32>(b, 128 + half * 32);
    for (i, part) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(b[192 + 2 * g + i] as i8);
        for ((o, low), high) in part.iter_mut().zip(&low[16 * i..]).zip(&high[16 * i..]) {
            let q = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
            *o = dl * f32::from(q as i8 - 32);
        }
    }
}
