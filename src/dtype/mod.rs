//! Element types, and the conversions between them and f32. Types that are stored in blocks are in
//! [`blocks`], and their encoders in [`encode`].

pub mod blocks;
pub mod encode;
mod ggml;
pub mod int8;

pub use blocks::{Format, Plane};

use half::{bf16, f16};

/// Elements of a type stored in blocks that are decoded at once. Every block, or two blocks of 16
/// elements, is a whole number of groups.
pub const GROUP: usize = 32;

/// How the elements of a tensor are stored. Types of one byte or less are allowed only for the
/// weights of `Linear`, and for tables and convolutions, which are decoded to
/// a wider type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// The upper half of an [`F32`](DType::F32).
    BF16,
    /// IEEE half precision.
    F16,
    /// 1 sign, 4 exponent and 3 mantissa bits, bias 7; no infinity, NaN is 0x7f and 0xff, the
    /// largest value is 448. `F8_E4M3` of safetensors.
    F8E4M3,
    /// 1 sign, 5 exponent and 2 mantissa bits: the upper byte of an f16. `F8_E5M2` of safetensors.
    F8E5M2,
    /// Indices, such as token ids. Never the type of a weight.
    I32,
    /// Integers from -128 to 127, with one factor for each row or for the whole weight.
    I8,
    // Types stored in blocks; `blocks::FORMATS` describes them.
    /// GGUF: 8-bit integers in blocks of 32.
    Q8_0,
    /// GGUF: 4-bit integers in blocks of 32.
    Q4_0,
    /// GGUF: 4-bit integers with a minimum, in blocks of 32.
    Q4_1,
    /// GGUF: 5-bit integers in blocks of 32.
    Q5_0,
    /// GGUF: 5-bit integers with a minimum, in blocks of 32.
    Q5_1,
    /// GGUF: 2-bit integers in blocks of 256.
    Q2K,
    /// GGUF: 3-bit integers in blocks of 256.
    Q3K,
    /// GGUF: 4-bit integers in blocks of 256.
    Q4K,
    /// GGUF: 5-bit integers in blocks of 256.
    Q5K,
    /// GGUF: 6-bit integers in blocks of 256.
    Q6K,
    /// bitsandbytes: 4-bit quantiles of the normal distribution.
    Nf4,
    /// bitsandbytes: 4-bit floats.
    Fp4,
    /// E4M3 in blocks of 32 with a power of two as scale (OCP MX).
    Mxfp8,
    /// E2M1 in blocks of 16 with an E4M3 scale (NVIDIA).
    Nvfp4,
    /// E4M3 in blocks of 128 with an F32 scale. In files, 128 rows share the scales (the FP8 files
    /// of Qwen and DeepSeek).
    F8Block,
    /// ComfyUI: codes of 4 bits in blocks of 16 with a scale, which stand for 8-bit integers. Rows
    /// are always rotated (ConvRot). `blocks::W4A8` describes it.
    W4A8,
}

impl DType {
    /// Bytes of one element.
    ///
    /// # Panics
    /// For a type that is stored in blocks; see [`DType::bytes`].
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::F8E4M3 | DType::F8E5M2 | DType::I8 => 1,
            _ => panic!("a type that is stored in blocks has no size of one element"),
        }
    }

    /// Whether elements have 16 bits or more: such types are allowed for every weight.
    pub const fn is_wide(self) -> bool {
        matches!(self, DType::F32 | DType::BF16 | DType::F16)
    }

    /// The block format, if the elements are stored in blocks.
    pub fn format(self) -> Option<&'static Format> {
        if self.is_plain() {
            return None;
        }
        blocks::FORMATS.iter().chain([&blocks::W4A8]).find(|f| f.dtype == self)
    }

    /// Bytes of `elements` elements of a row, without scales that are stored separately. For a type
    /// stored in blocks, `elements` is a multiple of the block.
    pub fn bytes(self, elements: usize) -> usize {
        match self.format() {
            Some(format) => format.bytes_of(elements),
            None => elements * self.size(),
        }
    }

    /// Whether the type is not stored in blocks: each element has its own bytes.
    pub const fn is_plain(self) -> bool {
        use DType::{BF16, F8E4M3, F8E5M2, F16, F32, I8, I32};
        matches!(self, F32 | BF16 | F16 | F8E4M3 | F8E5M2 | I32 | I8)
    }

    /// The name in safetensors files, or the usual name for a type that these do not have.
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

    /// Decodes one element from its [`size`](DType::size) little-endian bytes.
    ///
    /// # Panics
    /// For a type that is stored in blocks.
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

    /// Appends `value`, rounded to nearest even, to `out`. The 8-bit types saturate at their
    /// largest finite value.
    ///
    /// # Panics
    /// For a type that is stored in blocks.
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

/// The value of each E4M3 code.
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

/// The value of an E4M3 code, exact.
pub fn f8e4m3_to_f32(q: u8) -> f32 {
    E4M3[usize::from(q)]
}

/// The value of an E5M2 code, exact.
pub fn f8e5m2_to_f32(q: u8) -> f32 {
    f16::from_bits(u16::from(q) << 8).to_f32()
}

/// Rounds to the nearest E4M3, ties to even. Saturates at 448; NaN stays NaN.
pub fn f32_to_f8e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let a = value.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    if a >= 448.0 {
        return sign | 0x7e;
    }
    // Count in units of the last place. Below 2^-6 these stay 2^-9.
    let exponent = ((a.to_bits() >> 23) as i32 - 127).max(-6);
    // 8..=16 for normals, 0..=8 for subnormals
    let steps = (a * 2f32.powi(3 - exponent)).round_ties_even() as u32;
    sign | (((exponent + 6) as u32 * 8) + steps) as u8
}

/// Rounds to the nearest E5M2, ties to even. Saturates at 57344; NaN stays NaN.
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
    let steps = (a * 2f32.powi(2 - exponent)).round_ties_even() as u32;
    sign | (((exponent + 14) as u32 * 4) + steps) as u8
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
