//! Encoders of the types that are stored in blocks, for `convert` and for test data.
//!
//! Q8_0 and the four older types give the same bytes as ggml's reference. For the K types, the
//! codes of a group are searched: scale and minimum are fitted to the codes by least squares, for
//! the range of the group and some slightly narrower ranges, and the best fit is kept. Then scales
//! and minima are rounded to what a block can store, and the codes are chosen again. The other
//! types use the largest value of a block as its scale.

use half::f16;

use super::blocks::{E2M1, FP4, Format, NF4};
use super::{DType, f8e4m3_to_f32, f32_to_f8e4m3};

impl Format {
    /// Appends a row's blocks to `out`, and the scale of each block to `scales` where the format
    /// keeps them elsewhere: as F32 for NF4, FP4 and FP8, else one byte. `whole` is the largest
    /// magnitude of the whole tensor, which nvfp4's second scale (`nvfp4_factor`) comes from.
    pub fn encode(&self, row: &[f32], whole: f32, out: &mut Vec<u8>, scales: &mut Vec<u8>) {
        for block in row.chunks_exact(self.block) {
            match self.dtype {
                DType::Q8_0 => q8_0(block, out),
                DType::Q4_0 => legacy::<4, false>(block, out),
                DType::Q4_1 => legacy::<4, true>(block, out),
                DType::Q5_0 => legacy::<5, false>(block, out),
                DType::Q5_1 => legacy::<5, true>(block, out),
                DType::Q2K => q2_k(block, out),
                DType::Q3K => q3_k(block, out),
                DType::Q4K => q4_k(block, out),
                DType::Q5K => q5_k(block, out),
                DType::Q6K => q6_k(block, out),
                DType::Nf4 => four_bits(block, &NF4, out, scales),
                DType::Fp4 => four_bits(block, &FP4, out, scales),
                DType::Mxfp8 => mxfp8(block, out, scales),
                DType::Nvfp4 => nvfp4(block, nvfp4_factor(whole), out, scales),
                DType::F8Block => fp8(block, out, scales),
                other => unreachable!("{} has no blocks", other.name()),
            }
        }
    }
}

/// The second scale of an nvfp4 tensor whose largest magnitude is `whole`: the largest block scale
/// is then the largest e4m3, and its largest code the largest e2m1.
pub fn nvfp4_factor(whole: f32) -> f32 {
    let factor = whole / (448.0 * 6.0);
    if factor >= f32::MIN_POSITIVE { factor } else { 1.0 }
}

fn put_half(out: &mut Vec<u8>, value: f32) -> f32 {
    let h = f16::from_f32(value);
    out.extend_from_slice(&h.to_le_bytes());
    h.to_f32()
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    let id = inverse(d);
    put_half(out, d);
    // Ties are rounded away from zero.
    out.extend(x.iter().map(|v| (v * id).round() as i8 as u8));
}

/// Q4_0, Q5_0: the value of largest magnitude gets the lowest code. Q4_1, Q5_1 (`MIN`): codes from
/// the smallest value to the largest.
fn legacy<const BITS: u32, const MIN: bool>(x: &[f32], out: &mut Vec<u8>) {
    let top = (1i32 << BITS) - 1;
    let codes: Vec<u8> = if MIN {
        let (low, high) = x.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        let d = (high - low) / top as f32;
        let id = inverse(d);
        put_half(out, d);
        put_half(out, low);
        x.iter().map(|v| (((v - low) * id + 0.5) as i32).clamp(0, top) as u8).collect()
    } else {
        let half = 1 << (BITS - 1);
        // If several values have the largest magnitude, the first one counts; even a zero keeps its
        // sign.
        let largest = x.iter().fold(x[0], |m, v| if v.abs() > m.abs() { *v } else { m });
        let d = largest / -(half as f32);
        let id = inverse(d);
        put_half(out, d);
        let code = |v: &f32| (v * id + (half as f32 + 0.5)) as i32;
        x.iter().map(|v| code(v).clamp(0, top) as u8).collect()
    };
    if BITS == 5 {
        let high =
            codes.iter().enumerate().fold(0u32, |bits, (j, q)| bits | u32::from(q >> 4) << j);
        out.extend_from_slice(&high.to_le_bytes());
    }
    out.extend((0..16).map(|j| codes[j] & 15 | (codes[j + 16] & 15) << 4));
}

/// Scale and minimum of a group for codes `0 ..= top`: `x = scale * q - min`, with neither
/// negative.
fn affine(x: &[f32], top: u8) -> (f32, f32) {
    let (low, high) = x.iter().fold((0f32, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    if high <= low {
        return (0.0, -low);
    }
    let top = f32::from(top);
    let error = |scale: f32, min: f32| {
        let id = inverse(scale);
        let off = |v: &f32| scale * ((v + min) * id).round().clamp(0.0, top) - min - v;
        // Errors of large weights count more: large weights contribute more to the output.
        x.iter().map(|v| v.abs().max(1e-6 * high) * off(v).powi(2)).sum::<f32>()
    };
    let mut best = ((high - low) / top, -low);
    let mut least = error(best.0, best.1);
    for step in 0..=12 {
        let id = (top - 0.9 + 0.15 * step as f32) / (high - low);
        // Least squares fit of x to the codes, with the same weighting.
        let (mut n, mut sq, mut sqq, mut sx, mut sxq) = (0f32, 0f32, 0f32, 0f32, 0f32);
        for v in x {
            let (q, w) = (((v - low) * id).round().clamp(0.0, top), v.abs().max(1e-6 * high));
            n += w;
            sq += w * q;
            sqq += w * q * q;
            sx += w * v;
            sxq += w * v * q;
        }
        let d = n * sqq - sq * sq;
        if d <= 0.0 {
            continue;
        }
        let (mut scale, mut min) = ((n * sxq - sx * sq) / d, (sq * sxq - sqq * sx) / d);
        if min < 0.0 {
            (scale, min) = (sxq / sqq, 0.0);
        }
        let e = error(scale, min);
        if scale > 0.0 && e < least {
            (least, best) = (e, (scale, min));
        }
    }
    best
}

/// Scale of a group for codes `-half .. half`: `x = scale * q`; may be negative, for the lowest
/// code reaches further.
fn symmetric(x: &[f32], half: i32) -> f32 {
    let largest = x.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    if largest == 0.0 {
        return 0.0;
    }
    let code = |v: f32, id: f32| (v * id).round().clamp(-half as f32, half as f32 - 1.0);
    let error = |scale: f32| {
        x.iter().map(|v| v.abs() * (scale * code(*v, 1.0 / scale) - v).powi(2)).sum::<f32>()
    };
    let mut best = largest / -(half as f32);
    let mut least = error(best);
    for step in -9..=9 {
        let id = -(half as f32 + 0.1 * step as f32) / largest;
        let (sqq, sxq) = x.iter().fold((0f32, 0f32), |(sqq, sxq), v| {
            let q = code(*v, id);
            (sqq + v.abs() * q * q, sxq + v.abs() * v * q)
        });
        if sqq > 0.0 && sxq != 0.0 {
            let e = error(sxq / sqq);
            if e < least {
                (least, best) = (e, sxq / sqq);
            }
        }
    }
    best
}

/// Quantises the group `x` into `out`: `round((x + min) / scale)`, limited to 0..=`top`. `scale`
/// and `min` are the values that the file stores.
fn codes(x: &[f32], scale: f32, min: f32, top: u8, out: &mut [u8]) {
    let id = inverse(scale);
    for (o, v) in out.iter_mut().zip(x) {
        *o = ((v + min) * id).round().clamp(0.0, f32::from(top)) as u8;
    }
}

/// Quantises the scales and minima (`pairs`) of all groups of a block to whole numbers up to `top`,
/// in units of two f16 values that are appended to `out`. Returns both lists of numbers and the two
/// units.
fn shared(pairs: &[(f32, f32)], top: f32, out: &mut Vec<u8>) -> (Vec<u8>, Vec<u8>, f32, f32) {
    let (scales, mins) = pairs.iter().fold((0f32, 0f32), |(s, m), p| (s.max(p.0), m.max(p.1)));
    let (d, dmin) = (put_half(out, scales / top), put_half(out, mins / top));
    let whole = |v: f32, d: f32| (v * inverse(d)).round().clamp(0.0, top) as u8;
    (
        pairs.iter().map(|p| whole(p.0, d)).collect(),
        pairs.iter().map(|p| whole(p.1, dmin)).collect(),
        d,
        dmin,
    )
}

fn q2_k(x: &[f32], out: &mut Vec<u8>) {
    let pairs: Vec<_> = x.chunks(16).map(|g| affine(g, 3)).collect();
    let mut halves = Vec::new();
    let (scales, mins, d, dmin) = shared(&pairs, 15.0, &mut halves);
    let mut q = [0u8; 256];
    for (g, x) in x.chunks(16).enumerate() {
        codes(
            x,
            d * f32::from(scales[g]),
            dmin * f32::from(mins[g]),
            3,
            &mut q[16 * g..16 * g + 16],
        );
    }
    out.extend(scales.iter().zip(&mins).map(|(s, m)| s | m << 4));
    out.extend(two_bits(&q));
    out.extend(halves);
}

/// Group g (of 32 elements) of each half of the block is stored in bits `2 g` of that half's 32
/// bytes.
fn two_bits(q: &[u8; 256]) -> impl Iterator<Item = u8> + '_ {
    (0..64).map(|i| {
        let (half, j) = (i / 32 * 128, i % 32);
        (0..4).fold(0, |byte, g| byte | (q[half + 32 * g + j] & 3) << (2 * g))
    })
}

fn q3_k(x: &[f32], out: &mut Vec<u8>) {
    let groups: Vec<f32> = x.chunks(16).map(|g| symmetric(g, 4)).collect();
    // The scale of largest magnitude is stored as -32, the lowest.
    let largest = groups.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = f16::from_f32(largest / -32.0).to_f32();
    let id = inverse(d);
    let scales: Vec<i8> =
        groups.iter().map(|s| (s * id).round().clamp(-32.0, 31.0) as i8).collect();
    let mut q = [0u8; 256];
    for (g, x) in x.chunks(16).enumerate() {
        let id = inverse(d * f32::from(scales[g]));
        for (o, v) in q[16 * g..].iter_mut().zip(x) {
            *o = ((v * id).round().clamp(-4.0, 3.0) as i8 + 4) as u8;
        }
    }
    out.extend((0..32).map(|j| (0..8).fold(0, |byte, g| byte | (q[32 * g + j] >> 2) << g)));
    out.extend(two_bits(&q));
    let whole: Vec<u8> = scales.iter().map(|s| (s + 32) as u8).collect();
    out.extend((0..8).map(|s| whole[s] & 15 | (whole[s + 8] & 15) << 4));
    out.extend((0..4).map(|s| (0..4).fold(0, |byte, i| byte | (whole[s + 4 * i] >> 4) << (2 * i))));
    put_half(out, d);
}

/// Appends the header that Q4_K and Q5_K share, and returns the codes.
fn k_head(x: &[f32], top: u8, out: &mut Vec<u8>) -> [u8; 256] {
    let pairs: Vec<_> = x.chunks(32).map(|g| affine(g, top)).collect();
    let (scales, mins, d, dmin) = shared(&pairs, 63.0, out);
    out.extend((0..4).map(|g| scales[g] | (scales[g + 4] >> 4) << 6));
    out.extend((0..4).map(|g| mins[g] | (mins[g + 4] >> 4) << 6));
    out.extend((4..8).map(|g| scales[g] & 15 | (mins[g] & 15) << 4));
    let mut q = [0u8; 256];
    for (g, x) in x.chunks(32).enumerate() {
        codes(
            x,
            d * f32::from(scales[g]),
            dmin * f32::from(mins[g]),
            top,
            &mut q[32 * g..32 * g + 32],
        );
    }
    q
}

/// Groups 2i and 2i + 1 are stored in the halves of the same 32 bytes.
fn low_halves(q: &[u8; 256]) -> impl Iterator<Item = u8> + '_ {
    (0..128).map(|i| {
        let at = i / 32 * 64 + i % 32;
        q[at] & 15 | (q[at + 32] & 15) << 4
    })
}

fn q4_k(x: &[f32], out: &mut Vec<u8>) {
    let q = k_head(x, 15, out);
    out.extend(low_halves(&q));
}

fn q5_k(x: &[f32], out: &mut Vec<u8>) {
    let q = k_head(x, 31, out);
    out.extend((0..32).map(|j| (0..8).fold(0, |byte, g| byte | (q[32 * g + j] >> 4) << g)));
    out.extend(low_halves(&q));
}

fn q6_k(x: &[f32], out: &mut Vec<u8>) {
    let groups: Vec<f32> = x.chunks(16).map(|g| symmetric(g, 32)).collect();
    let largest = groups.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = f16::from_f32(largest / -128.0).to_f32();
    let id = inverse(d);
    let scales: Vec<i8> =
        groups.iter().map(|s| (s * id).round().clamp(-128.0, 127.0) as i8).collect();
    let mut q = [0u8; 256];
    for (g, x) in x.chunks(16).enumerate() {
        let id = inverse(d * f32::from(scales[g]));
        for (o, v) in q[16 * g..].iter_mut().zip(x) {
            *o = ((v * id).round().clamp(-32.0, 31.0) as i8 + 32) as u8;
        }
    }
    // Each half of the block has 64 bytes: groups 0 and 1 in their low halves, 2 and 3 in the high
    // ones.
    out.extend((0..128).map(|i| {
        let at = i / 64 * 128 + i % 64;
        q[at] & 15 | (q[at + 64] & 15) << 4
    }));
    out.extend((0..64).map(|i| {
        let at = i / 32 * 128 + i % 32;
        (0..4).fold(0, |byte, g| byte | (q[at + 32 * g] >> 4) << (2 * g))
    }));
    out.extend(scales.iter().map(|s| *s as u8));
    put_half(out, d);
}

/// The index of the nearest value of `table`.
fn nearest(table: &[f32; 16], v: f32) -> u8 {
    let off = |i: &u8| (table[usize::from(*i)] - v).abs();
    (0..16).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(0)
}

fn two_a_byte(x: &[f32], table: &[f32; 16], id: f32, out: &mut Vec<u8>) {
    out.extend(
        x.chunks_exact(2).map(|two| nearest(table, two[0] * id) << 4 | nearest(table, two[1] * id)),
    );
}

fn four_bits(x: &[f32], table: &[f32; 16], out: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    scales.extend_from_slice(&largest.to_le_bytes());
    two_a_byte(x, table, inverse(largest), out);
}

fn mxfp8(x: &[f32], out: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    // The scale is a power of two. It moves the exponent of the largest value to 8, the largest
    // exponent of e4m3. Scaled values above 448 saturate.
    let exponent =
        if largest > 0.0 { ((largest.to_bits() >> 23) as i32 - 8).clamp(1, 254) } else { 0 };
    scales.push(exponent as u8);
    let id = inverse(f32::from_bits((exponent as u32) << 23));
    out.extend(x.iter().map(|v| f32_to_f8e4m3(v * id)));
}

/// Each row of each block has a scale of its own, which files store only for 128 rows.
fn fp8(x: &[f32], out: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = largest / 448.0;
    scales.extend_from_slice(&scale.to_le_bytes());
    let id = inverse(scale);
    out.extend(x.iter().map(|v| f32_to_f8e4m3(v * id)));
}

fn nvfp4(x: &[f32], factor: f32, out: &mut Vec<u8>, scales: &mut Vec<u8>) {
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = f32_to_f8e4m3(largest / 6.0 / factor);
    scales.push(scale);
    two_a_byte(x, &E2M1, inverse(f8e4m3_to_f32(scale) * factor), out);
}

#[cfg(test)]
mod tests {
    use super::super::blocks::FORMATS;
    use super::*;

    /// Approximately normally distributed: the sum of twelve uniform numbers.
    fn normal(n: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut uniform = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 0.02).collect()
    }

    fn back(format: &Format, x: &[f32], cols: usize) -> Vec<f32> {
        let whole = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let mut values = Vec::new();
        for row in x.chunks_exact(cols) {
            let (mut bytes, mut scales) = (vec![], vec![]);
            format.encode(row, whole, &mut bytes, &mut scales);
            assert_eq!(bytes.len(), format.bytes_of(cols));
            assert_eq!(scales.len(), format.blocks(cols) * format.scale_bytes);
            let scales: Vec<f32> = match format.dtype {
                DType::Mxfp8 => {
                    scales.iter().map(|s| f32::from_bits(u32::from(*s) << 23)).collect()
                }
                DType::Nvfp4 => {
                    scales.iter().map(|s| f8e4m3_to_f32(*s) * nvfp4_factor(whole)).collect()
                }
                _ => scales.chunks(4).map(|b| DType::F32.decode(b)).collect(),
            };
            let mut out = vec![f32::NAN; cols];
            format.decode(&bytes, &scales, 0, &mut out);
            values.extend(out);
        }
        values
    }

    #[test]
    fn every_format_keeps_normal_values_within_its_error() {
        let x = normal(32 * 1024);
        for format in &FORMATS {
            let got = back(format, &x, 1024);
            let sum = |f: &dyn Fn(usize) -> f32| {
                (0..x.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>().sqrt()
            };
            let error = sum(&|i| got[i] - x[i]) / sum(&|i| x[i]);
            println!("{}: {error:.4} of {}", format.name, format.error);
            // The bound must be tight: the error is above 0.7 of it.
            let said = f64::from(format.error);
            assert!(
                error <= said && error > 0.7 * said,
                "{}: {error:.4}, the table says {said}",
                format.name
            );
        }
    }

    #[test]
    fn zeros_and_constants_come_back() {
        for format in &FORMATS {
            for value in [0.0f32, 0.5, -0.5] {
                let got = back(format, &vec![value; 512], 512);
                assert!(
                    got.iter().all(|v| (v - value).abs() <= 0.02 * value.abs()),
                    "{}: {value}: {:?}",
                    format.name,
                    &got[..4]
                );
            }
        }
    }
}
