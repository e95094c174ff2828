//! The numbers of GGUF types: of tensors, and of metadata values.

use super::super::header::StoredType;
use crate::dtype::{DType, blocks};
use crate::error::{Error, Result};

/// Plain types by their numbers; those in blocks are in `blocks::FORMATS`.
const PLAIN: [(u32, StoredType, u64); 8] = [
    (0, StoredType::Float(DType::F32), 4),
    (1, StoredType::Float(DType::F16), 2),
    (30, StoredType::Float(DType::BF16), 2),
    (24, StoredType::Other("I8", 8), 1),
    (25, StoredType::Other("I16", 16), 2),
    (26, StoredType::Other("I32", 32), 4),
    (27, StoredType::Other("I64", 64), 8),
    (28, StoredType::Other("F64", 64), 8),
];
/// Types that cannot be read, for errors that name them.
pub const UNREADABLE: [(u32, &str); 23] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// The type with this number, its elements a block, and bytes a block.
pub fn stored(number: u32) -> Result<(StoredType, u64, u64)> {
    if let Some((_, stored, bytes)) = PLAIN.iter().find(|p| p.0 == number) {
        return Ok((*stored, 1, *bytes));
    }
    if let Some(f) = blocks::FORMATS.iter().find(|f| f.ggml == Some(number)) {
        return Ok((StoredType::Float(f.dtype), f.block as u64, f.bytes as u64));
    }
    let named = UNREADABLE.iter().find(|u| u.0 == number).map(|u| u.1.to_string());
    Err(Error::model("tensor is of a type that cannot be read")
        .found(named.unwrap_or_else(|| format!("type number {number}")))
        .expected("F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K")
        .try_("use a file of the same model in one of these types"))
}

/// The size of a metadata value of this type in bytes; `None` for types without a fixed size.
pub fn value_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
/// The types of values of other sizes.
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;

/// A value of fixed size as text; `None` for a bool that is neither.
fn text_of(kind: u32, bytes: &[u8]) -> Option<String> {
    macro_rules! number {
        ($t:ty) => {
            Some(<$t>::from_le_bytes(bytes.try_into().ok()?).to_string())
        };
    }
    match kind {
        0 => number!(u8),
        1 => number!(i8),
        2 => number!(u16),
        3 => number!(i16),
        4 => number!(u32),
        5 => number!(i32),
        6 => number!(f32),
        10 => number!(u64),
        11 => number!(i64),
        12 => number!(f64),
        _ => match bytes {
            [0] => Some("false".into()),
            [1] => Some("true".into()),
            _ => None,
        },
    }
}

pub fn scalar(kind: u32, bytes: &[u8]) -> Result<String> {
    text_of(kind, bytes).ok_or_else(|| {
        Error::model("value is not a bool").found(format!("{bytes:?}")).expected("0 or 1")
    })
}

pub fn unknown_kind(kind: u32) -> Error {
    Error::model("value is of an unknown type")
        .found(format!("value type {kind}"))
        .expected("0 to 12")
}
