//! The safetensors container: an 8-byte little-endian header length, a JSON header, then the bytes
//! of the tensors.
//!
//! A file may come from anyone, so nothing in it is trusted: every range is checked against the
//! size of the file, every byte of the data belongs to exactly one tensor, and a header that claims
//! too much allocates nothing.

// A sum or product of numbers from a file must not wrap, and must not cause a panic. The overflow
// checks of the compiler cannot be turned on for one module, and in the whole crate they would slow
// down the kernels. So the modules that read containers use checked arithmetic only.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};

use super::header::{
    Header, MAX_HEADER_BYTES, MAX_KEYS, MAX_NAME_BYTES, MAX_TENSORS, StoredType, TensorEntry,
    check_names, truncated,
};
use crate::error::{Error, Result};

/// Convolutions have four axes; nothing here has more than eight.
const MAX_RANK: usize = 8;

/// The size of the header of a file of `file_bytes`, including its length field. `first` is at
/// least the first 8 bytes of the file.
pub fn header_bytes(first: &[u8], file_bytes: u64) -> Result<usize> {
    let Some(length) = first.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
        return Err(Error::model("file is too short to be a safetensors file")
            .found(format!("{file_bytes} bytes"))
            .expected("at least the 8 bytes that hold the length of the header"));
    };
    if length == 0 || length > MAX_HEADER_BYTES {
        return Err(Error::model(
            "header length is out of range, so this is not a safetensors file",
        )
        .found(format!("{length} bytes"))
        .expected(format!("1 to {MAX_HEADER_BYTES} bytes"))
        .try_(
            "inspect the file: a web page or a pointer file may have been saved under its name",
        ));
    }
    let end = length.saturating_add(8);
    if end > file_bytes {
        return Err(truncated(file_bytes, end, "at least "));
    }
    Ok(end as usize)
}

/// Parses the header at the start of `bytes` for a file of `file_bytes`; `bytes` may end anywhere
/// after the header.
pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Header> {
    let data_start = header_bytes(bytes, file_bytes)?;
    let Some(json) = bytes.get(8..data_start) else {
        return Err(truncated(bytes.len() as u64, data_start as u64, "at least "));
    };
    if json[0] != b'{' {
        return Err(Error::model(
            "header does not begin with '{', so this is not a safetensors file",
        ));
    }
    let mut raw = Raw::default();
    let mut parser = serde_json::Deserializer::from_slice(json);
    RawSeed(&mut raw)
        .deserialize(&mut parser)
        .and_then(|()| parser.end())
        .map_err(|e| Error::model(format!("header is not valid: {e}")))?;
    let mut tensors =
        raw.tensors.into_iter().map(|t| t.check(data_start)).collect::<Result<Vec<_>>>()?;
    tensors.sort_by(|a, b| {
        (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name))
    });
    check_tiling(&tensors, data_start, file_bytes)?;
    check_names(&tensors)?;
    Ok(Header { tensors, metadata: raw.metadata, data_start })
}

/// Checks that every byte from `data_start` to the end of the file belongs to exactly one tensor.
fn check_tiling(tensors: &[TensorEntry], data_start: usize, file_bytes: u64) -> Result<()> {
    let end = tensors.iter().map(|t| t.range.end).max().unwrap_or(data_start) as u64;
    if end > file_bytes {
        return Err(truncated(file_bytes, end, ""));
    }
    let mut next = data_start;
    for t in tensors {
        if t.range.start < next {
            return Err(Error::model("tensor overlaps the one before it")
                .at(&t.name)
                .found(format!("byte {}", t.range.start))
                .expected(format!("byte {next}")));
        }
        if t.range.start > next {
            return Err(Error::model("bytes before this tensor belong to no tensor")
                .at(&t.name)
                .found(format!("byte {}", t.range.start))
                .expected(format!("byte {next}")));
        }
        next = t.range.end;
    }
    if end < file_bytes {
        let last = tensors.last().map_or("the header", |t| t.name.as_str());
        return Err(Error::model(format!(
            "bytes after the last tensor, {last}, belong to no tensor"
        ))
        .found(format!("{file_bytes} bytes"))
        .expected(format!("{end} bytes")));
    }
    Ok(())
}

/// The header as written: in its order, with duplicates.
#[derive(Default)]
struct Raw {
    tensors: Vec<RawTensor>,
    metadata: BTreeMap<String, String>,
    has_metadata: bool,
}

struct RawTensor {
    name: String,
    info: Info,
}

#[derive(serde::Deserialize)]
struct Info {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// At most `MAX_RANK` axes: a list of millions would take more memory than the file has bytes.
struct Shape(Vec<u64>);

impl<'de> serde::Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Axes;
        impl<'de> Visitor<'de> for Axes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a shape of at most {MAX_RANK} axes")
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut axes = Vec::new();
                while let Some(n) = seq.next_element::<u64>()? {
                    if axes.len() == MAX_RANK {
                        return Err(de::Error::custom(format!("more than {MAX_RANK} axes")));
                    }
                    axes.push(n);
                }
                Ok(Shape(axes))
            }
        }
        d.deserialize_seq(Axes)
    }
}

impl RawTensor {
    /// Checks the shape against the byte range, to which `data_start` is added.
    fn check(self, data_start: usize) -> Result<TensorEntry> {
        let RawTensor { name, info } = self;
        let at = |e: Error| e.at(&name);
        let Some(stored) = StoredType::parse(&info.dtype) else {
            return Err(at(Error::model("tensor has an unknown element type").found(&info.dtype)));
        };
        let shape = info.shape.0;
        // An axis of length 0 must not hide an overflow of the others.
        let product = shape.iter().filter(|&&n| n != 0).try_fold(1u64, |p, &n| p.checked_mul(n));
        let bits = product.and_then(|p| p.checked_mul(u64::from(stored.bits())));
        let (Some(bits), true) = (bits, shape.iter().all(|&n| usize::try_from(n).is_ok())) else {
            return Err(at(Error::model("tensor's shape overflows").found(format!("{:?}", shape))));
        };
        let bits = if shape.contains(&0) { 0 } else { bits };
        let (start, end) = info.data_offsets;
        let place = |offset: u64| usize::try_from(offset).ok()?.checked_add(data_start);
        let (Some(length), Some(first), Some(last)) =
            (end.checked_sub(start), place(start), place(end))
        else {
            return Err(at(
                Error::model("tensor's byte range is not valid").found(format!("{start}..{end}"))
            ));
        };
        if bits % 8 != 0 || bits / 8 != length {
            return Err(at(Error::model("tensor's byte range does not match its shape")
                .found(format!("{length} bytes"))
                .expected(format!(
                    "{} bytes for {} {:?}",
                    bits.div_ceil(8),
                    stored.name(),
                    shape
                ))));
        }
        Ok(TensorEntry {
            stored,
            shape: shape.iter().map(|&n| n as usize).collect(),
            range: first..last,
            name,
        })
    }
}

/// Fills a `Raw`. It stops at the first tensor too many, so that a huge header costs little.
struct RawSeed<'a>(&'a mut Raw);

impl<'de> DeserializeSeed<'de> for RawSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RawSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object that describes tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            check_length::<A>("tensor name", &name)?;
            if name == "__metadata__" {
                if std::mem::replace(&mut self.0.has_metadata, true) {
                    return Err(de::Error::custom("__metadata__ is listed twice"));
                }
                map.next_value_seed(MetadataSeed(&mut self.0.metadata))?;
                continue;
            }
            if self.0.tensors.len() == MAX_TENSORS {
                return Err(de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let info =
                map.next_value::<Info>().map_err(|e| de::Error::custom(format!("{name}: {e}")))?;
            self.0.tensors.push(RawTensor { name, info });
        }
        Ok(())
    }
}

/// Refuses a name that is longer than any real one. It is not part of the error.
fn check_length<'de, A: MapAccess<'de>>(what: &str, name: &str) -> Result<(), A::Error> {
    if name.len() <= MAX_NAME_BYTES {
        return Ok(());
    }
    let bytes = name.len();
    Err(de::Error::custom(format!("{what} of {bytes} bytes, expected at most {MAX_NAME_BYTES}")))
}

/// `__metadata__`: strings by name. A key that is given twice is an error.
struct MetadataSeed<'a>(&'a mut BTreeMap<String, String>);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            check_length::<A>("metadata key", &key)?;
            if self.0.len() == MAX_KEYS {
                return Err(de::Error::custom(format!("more than {MAX_KEYS} metadata keys")));
            }
            let text = map.next_value::<String>()?;
            if self.0.contains_key(&key) {
                return Err(de::Error::custom(format!("metadata key {key} is given twice")));
            }
            self.0.insert(key, text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
