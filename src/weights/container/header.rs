//! The header that both containers have: tensors, their types and byte ranges, and metadata.
//! [`super::safetensors`] and [`super::gguf`] parse and check it. All other code reads a
//! [`Header`] and does not depend on the container.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use crate::dtype::DType;
use crate::error::{Error, Result};

/// The largest header, in bytes: the limit of the safetensors format, kept for GGUF too.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The largest number of tensors. Real files have at most a few thousand, scales included.
pub(crate) const MAX_TENSORS: usize = 20_000;

/// The largest number of metadata keys. Converters to GGUF write the original shape of every
/// tensor, and some tens of keys that describe the model.
pub(crate) const MAX_KEYS: usize = 2 * MAX_TENSORS;
/// The longest name of a tensor or a key, in bytes: the limit of GGUF, kept for safetensors too.
pub(crate) const MAX_NAME_BYTES: usize = 65_535;
/// The largest JSON value in the metadata that is parsed, in bytes. A parsed value takes tens of
/// times its text.
pub(crate) const MAX_JSON_BYTES: usize = 4 << 20;
/// The largest JSON value of a single tensor, in bytes: a quantisation record has about a hundred.
pub(crate) const MAX_RECORD_BYTES: usize = 4096;

/// The element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// A type that a weight may have.
    Float(DType),
    /// Another type of the container, with its size in bits.
    Other(&'static str, u32),
}

/// The types of safetensors that weights do not have, with their size in bits.
const OTHER: [(&str, u32); 15] = [
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("I16", 16),
    ("U16", 16),
    ("U32", 32),
    ("I64", 64),
    ("U64", 64),
    ("F64", 64),
    ("C64", 64),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F8_E8M0", 8),
    ("I32", 32),
];
/// The types of safetensors that weights may have.
const FLOATS: [DType; 5] = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2];

impl StoredType {
    /// The type that safetensors calls `name`.
    pub fn parse(name: &str) -> Option<Self> {
        let float = FLOATS.iter().find(|d| d.name() == name).map(|d| StoredType::Float(*d));
        float.or_else(|| {
            OTHER.iter().find(|o| o.0 == name).map(|&(name, bits)| StoredType::Other(name, bits))
        })
    }

    /// The container's name for it.
    pub fn name(self) -> &'static str {
        match self {
            StoredType::Float(dtype) => dtype.name(),
            StoredType::Other(name, _) => name,
        }
    }

    /// The size of one element in bits, of a type of safetensors: none of them has blocks.
    pub fn bits(self) -> u32 {
        match self {
            StoredType::Float(dtype) => (dtype.size() as u32).saturating_mul(8),
            StoredType::Other(_, bits) => bits,
        }
    }

    /// The element type, if weights may have it.
    pub fn float(self) -> Option<DType> {
        match self {
            StoredType::Float(dtype) => Some(dtype),
            StoredType::Other(..) => None,
        }
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The stored name.
    pub name: String,
    /// The element type.
    pub stored: StoredType,
    /// All axes, rows first.
    pub shape: Vec<usize>,
    /// Byte range from the start of the file.
    pub range: Range<usize>,
}

/// The checked header of a file. The ranges of its tensors are inside the file and do not overlap;
/// between them are no gaps, except those of GGUF's alignment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The tensors in the order of their bytes.
    pub tensors: Vec<TensorEntry>,
    /// The `__metadata__` strings, or GGUF's short values as text: `flux`, `2`, `[64, 3072]`.
    pub metadata: BTreeMap<String, String>,
    /// The first byte of the data, from the start of the file.
    pub data_start: usize,
}

/// The error for a file of `found` bytes that must have `expected`; `qualifier` is `at least ` or
/// empty.
pub(crate) fn truncated(found: u64, expected: u64, qualifier: &str) -> Error {
    Error::model("file is truncated")
        .found(format!("{found} bytes"))
        .expected(format!("{qualifier}{expected} bytes"))
        .try_("download it again")
}

/// Parses JSON text from a file, of at most `most` bytes.
///
/// # Errors
/// [`crate::error::Kind::Model`]; `what` is the name of the value.
pub(crate) fn parse_json(what: &str, text: &[u8], most: usize) -> Result<Value> {
    if text.len() > most {
        return Err(Error::model(format!("{what} is too large"))
            .found(format!("{} bytes", text.len()))
            .expected(format!("at most {most} bytes")));
    }
    serde_json::from_slice(text).map_err(|e| Error::model(format!("{what} is not JSON: {e}")))
}

/// Checks that no name is listed twice.
///
/// # Errors
/// [`crate::error::Kind::Model`] with the name.
pub(crate) fn check_names(tensors: &[TensorEntry]) -> Result<()> {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|w| w[0] == w[1]) {
        Some(twice) => Err(Error::model("tensor is listed twice").at(twice[0])),
        None => Ok(()),
    }
}
