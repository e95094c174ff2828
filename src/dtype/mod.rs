//! Element types and their conversions. Module [`blocks`] describes the types that are stored in
//! blocks.

pub mod blocks;
pub mod encode;
mod ggml;

pub use blocks::{Format, Plane};

use half::{bf16, f16};

/// How the elements of a tensor are stored. Types of one byte or less are allowed only for weights
/// of `Linear`, and for tables, which are widened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    BF16,
    F16,
    /// 1 sign, 4 exponent and 3 mantissa bits; bias 7, no infinity, NaN is 0x7f or 0xff, largest
    /// value 448 (safetensors: `F8_E4M3`).
    F8E4M3,
    /// 1 sign, 5 exponent and 2 mantissa bits: the upper byte of an f16 (safetensors: `F8_E5M2`).
    F8E5M2,
    /// Indices, such as token ids. Never the type of a weight.
    I32,
    /// Integers from -128 to 127, with a factor for each row or for the whole matrix.
    I8,
    // Stored in blocks: see `blocks::FORMATS`.
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Nf4,
    Fp4,
    Mxfp8,
    Nvfp4,
}

impl DType {
    /// Bytes of one element. Panics for types that are stored in blocks; see [`DType::bytes`].
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::F8E4M3 | DType::F8E5M2 | DType::I8 => 1,
            _ => panic!("a type that is stored in blocks has no size of one element"),
        }
    }

    /// Whether an element has 16 bits or more. Only these types are allowed outside the weights of
    /// `Linear`.
    pub const fn is_wide(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16)
    }

    /// The block format, if the elements are stored in blocks.
    pub fn format(self) -> Option<&'static Format> {
        if self.is_plain() {
            return None;
        }
        blocks::FORMATS.iter().find(|f| f.dtype == self)
    }

    /// Bytes of `elements` elements of a row, without scales that are stored elsewhere. For types
    /// stored in blocks, `elements` must be a multiple of the block.
    pub fn bytes(self, elements: usize) -> usize {
        match self.format() {
            Some(format) => format.bytes_of(elements),
            None => elements * self.size(),
        }
    }

    /// Whether each element has its own place in memory: not block-quantised.
    pub const fn is_plain(self) -> bool {
        use DType::{BF16, F8E4M3, F8E5M2, F16, F32, I8, I32};
        matches!(self, F32 | BF16 | F16 | F8E4M3 | F8E5M2 | I32 | I8)
    }

    /// The name in safetensors files and for people.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            DType::F8E4M3 => "F8_E4M3",
            DType::F8E5M2 => "F8_E5M2",
            DType::I32 => "I32",
            DType::I8 => "I8",
            _ => self.format().map_or("?", |f| f.name),
        }
    }

    /// One stored element as f32, from its `size()` little-endian bytes.
    pub fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            DType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            DType::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            DType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            DType::F8E4M3 => f8e4m3_to_f32(bytes[0]),
            DType::F8E5M2 => f8e5m2_to_f32(bytes[0]),
            DType::I32 => i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as f32,
            DType::I8 => f32::from(bytes[0] as i8),
            _ => panic!("an element of a block cannot be decoded alone"),
        }
    }

    /// Appends `value` in this type, rounded to nearest even. The 8-bit types saturate at their
    /// largest finite value.
    pub fn encode(self, value: f32, out: &mut Vec<u8>) {
        match self {
            DType::F32 => out.extend_from_slice(&value.to_le_bytes()),
            DType::BF16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::F16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
            DType::F8E4M3 => out.push(f32_to_f8e4m3(value)),
            DType::F8E5M2 => out.push(f32_to_f8e5m2(value)),
            DType::I32 => out.extend_from_slice(&(value as i32).to_le_bytes()),
            DType::I8 => out.push(value.round_ties_even().clamp(-128.0, 127.0) as i8 as u8),
            _ => panic!("an element of a block cannot be encoded alone"),
        }
    }
}

/// The value of every e4m3 code.
pub static E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut q = 0;
    while q < 256 {
        let (exponent, mantissa) = (q as u32 >> 3 & 15, q as u32 & 7);
        let magnitude = match (exponent, mantissa) {
            (15, 7) => f32::NAN,
            // m * 2^-9
            (0, m) => m as f32 * f32::from_bits((127 - 9) << 23),
            (e, m) => f32::from_bits((e + 127 - 7) << 23 | m << 20),
        };
        values[q] = if q < 128 { magnitude } else { -magnitude };
        q += 1;
    }
    values
};

/// The value of an e4m3 code. Exact.
pub fn f8e4m3_to_f32(q: u8) -> f32 {
    E4M3[usize::from(q)]
}

/// The value of an e5m2 code. Exact.
pub fn f8e5m2_to_f32(q: u8) -> f32 {
    f16::from_bits(u16::from(q) << 8).to_f32()
}

/// Rounds to the nearest e4m3, ties to even. Values beyond 448 saturate; NaN stays NaN.
pub fn f32_to_f8e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let a = value.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    if a >= 448.0 {
        return sign | 0x7e;
    }
    // Count in units of the last place; below 2^-6 the spacing stays 2^-9.
    let exponent = ((a.to_bits() >> 23) as i32 - 127).max(-6);
    // 8..=16 for normal values, 0..=8 for subnormal ones.
    let steps = round_even(a * 2f32.powi(3 - exponent)) as u32;
    sign | (((exponent + 6) as u32 * 8) + steps) as u8
}

/// Rounds to the nearest e5m2, ties to even. Values beyond 57344 saturate; NaN stays NaN.
pub fn f32_to_f8e5m2(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let a = value.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    if a >= 57344.0 {
        return sign | 0x7b;
    }
    let exponent = ((a.to_bits() >> 23) as i32 - 127).max(-14);
    let steps = round_even(a * 2f32.powi(2 - exponent)) as u32;
    sign | (((exponent + 14) as u32 * 4) + steps) as u8
}

fn round_even(x: f32) -> f32 {
    x.round_ties_even()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f8_code_survives_the_round_trip() {
        for q in 0..=255u8 {
            let a = f8e4m3_to_f32(q);
            if !a.is_nan() {
                assert_eq!(f32_to_f8e4m3(a), q, "e4m3 {q:#x} = {a}");
            }
            let b = f8e5m2_to_f32(q);
            if b.is_finite() {
                assert_eq!(f32_to_f8e5m2(b), q, "e5m2 {q:#x} = {b}");
            }
        }
    }

    #[test]
    fn rounding_goes_to_the_nearest_code_and_ties_to_even() {
        for pair in [(0u8, 1u8), (1, 2), (7, 8), (8, 9), (0x3f, 0x40), (0x7d, 0x7e)] {
            let (lo, hi) = (f8e4m3_to_f32(pair.0), f8e4m3_to_f32(pair.1));
            let mid = (lo + hi) / 2.0;
            let even = if pair.0 % 2 == 0 { pair.0 } else { pair.1 };
            assert_eq!(f32_to_f8e4m3(mid), even);
            assert_eq!(f32_to_f8e4m3(mid.next_up()), pair.1);
            assert_eq!(f32_to_f8e4m3(mid.next_down()), pair.0);
        }
        assert_eq!(f32_to_f8e4m3(1e9), 0x7e);
        assert_eq!(f32_to_f8e4m3(-1e9), 0xfe);
        assert!(f8e4m3_to_f32(f32_to_f8e4m3(f32::NAN)).is_nan());
        assert_eq!(f32_to_f8e5m2(1e9), 0x7b);
    }
}
