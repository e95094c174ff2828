//! The GGUF container: magic, version and two counts, keys with values, a record of every tensor,
//! and the tensors' bytes, each at a multiple of the alignment.
//!
//! The header does not contain its length, so [`parse`] receives the first bytes of a file and asks
//! for more if it needs them ([`Stop::More`]). As with safetensors, nothing in the file is trusted:
//! every length is compared with the bytes that remain before it is used, only names, short values
//! and tensors that are present are stored, and every byte of the data belongs to one tensor or is
//! padding before the next one.

// As in `safetensors`: numbers from a file must not overflow or cause a panic.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod types;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use types::{ARRAY, STRING, scalar, stored, unknown_kind, value_bytes};

use super::header::{
    Header, MAX_HEADER_BYTES, MAX_KEYS, MAX_NAME_BYTES, MAX_TENSORS, StoredType, TensorEntry,
    check_names, truncated,
};
use crate::error::{Error, Result};

/// The first bytes of every file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// The format's own limit on axes.
const MAX_RANK: u32 = 4;
/// Longer arrays, and arrays of strings, belong to a tokenizer and are skipped.
const MAX_LISTED: u64 = 16;
const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment in bytes. No tool writes more than a page.
const MAX_ALIGNMENT: u64 = 65_536;
const ALIGNMENT: &str = "general.alignment";
/// The least size of a key in bytes: a length, a type and a value of one byte. For a tensor: a
/// length, a number of axes, a type and an offset.
const LEAST_KEY: u64 = 8 + 4 + 1;
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// Why parsing stopped.
#[derive(Debug)]
pub enum Stop {
    /// The header continues at least to this byte of the file.
    More(u64),
    /// The header is not valid.
    Bad(Error),
}

type Step<T> = Result<T, Stop>;

impl From<Error> for Stop {
    fn from(e: Error) -> Self {
        Stop::Bad(e)
    }
}

impl Stop {
    fn at(self, place: &str) -> Self {
        match self {
            Stop::Bad(e) => Stop::Bad(e.at(place)),
            more => more,
        }
    }
}

/// Parses the header at the start of `bytes`, which begin a file of `file_bytes`.
pub fn parse(bytes: &[u8], file_bytes: u64) -> Step<Header> {
    let mut reader = Reader { bytes, file_bytes, at: 0 };
    let (tensors, keys) = preamble(&mut reader)?;
    let mut metadata = BTreeMap::new();
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut seen = HashSet::new();
    for _ in 0..keys {
        let key = reader.name("key")?;
        if !seen.insert(key) {
            return Err(Error::model("metadata key is given twice").at(key).into());
        }
        let kind = reader.u32()?;
        if key == ALIGNMENT {
            alignment = reader.alignment(kind).map_err(|s| s.at(key))?;
            metadata.insert(key.to_string(), alignment.to_string());
        } else if let Some(text) = reader.value(kind).map_err(|s| s.at(key))? {
            metadata.insert(key.to_string(), text);
        }
    }
    let mut records = Vec::new();
    for _ in 0..tensors {
        let name = reader.name("tensor name")?;
        records.push(reader.tensor(name, alignment).map_err(|s| s.at(name))?);
    }
    let header_end = reader.at as u64;
    let data_start = header_end.checked_next_multiple_of(alignment).ok_or_else(beyond_addresses)?;
    let mut tensors =
        records.into_iter().map(|r| r.placed(data_start)).collect::<Result<Vec<_>>>()?;
    tensors.sort_by(|a, b| {
        (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name))
    });
    // A file without tensors may end where its header does.
    let data_start = data_start.min(file_bytes);
    check_ranges(&tensors, data_start, alignment, file_bytes)?;
    check_names(&tensors)?;
    let data_start = usize::try_from(data_start).map_err(|_| beyond_addresses())?;
    Ok(Header { tensors, metadata, data_start })
}

/// Magic, version and the two counts, which are (tensors, keys).
fn preamble(reader: &mut Reader) -> Step<(u64, u64)> {
    if reader.take(4)? != MAGIC {
        return Err(
            Error::model("file does not begin with GGUF, so this is not a GGUF file").into()
        );
    }
    let other = |what: &str, found: u32| {
        Error::model(what)
            .found(format!("version {found}"))
            .expected("version 2 or 3, little-endian")
            .try_("use a file made by a current converter")
    };
    match reader.u32()? {
        2 | 3 => {}
        1 => {
            return Err(other("this is a GGUF file of version 1, which is not supported", 1).into());
        }
        // The number is small, so its bytes must be in reverse order.
        v if v != 0 && v & 0xffff == 0 => {
            return Err(other(
                "this is a big-endian GGUF file, which is not supported",
                v.swap_bytes(),
            )
            .into());
        }
        v => return Err(other("this GGUF file is of an unknown version", v).into()),
    }
    let tensors = reader.count("tensors", MAX_TENSORS as u64, LEAST_TENSOR)?;
    let keys = reader.count("metadata keys", MAX_KEYS as u64, LEAST_KEY)?;
    Ok((tensors, keys))
}

/// Checks that the tensors are inside the file and do not overlap, and that less than one
/// alignment of padding is before each of them and after the last.
fn check_ranges(
    tensors: &[TensorEntry],
    data_start: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<()> {
    let end = tensors.iter().map(|t| t.range.end as u64).max().unwrap_or(data_start);
    if end > file_bytes {
        let last = tensors
            .iter()
            .find(|t| t.range.end as u64 > file_bytes)
            .map_or("", |t| t.name.as_str());
        return Err(truncated(file_bytes, end, "").at(last));
    }
    let mut next = data_start;
    for t in tensors {
        let start = t.range.start as u64;
        if start < next {
            return Err(Error::model("tensor overlaps the one before it")
                .at(&t.name)
                .found(format!("byte {start}"))
                .expected(format!("byte {next} or later")));
        }
        if start.saturating_sub(next) >= alignment {
            return Err(Error::model("bytes before this tensor belong to no tensor")
                .at(&t.name)
                .found(format!("byte {start}"))
                .expected(format!("byte {}", next.next_multiple_of(alignment))));
        }
        next = t.range.end as u64;
    }
    if file_bytes.saturating_sub(next) >= alignment {
        let last = tensors.last().map_or("the header", |t| t.name.as_str());
        return Err(Error::model(format!(
            "bytes after the last tensor, {last}, belong to no tensor"
        ))
        .found(format!("{file_bytes} bytes"))
        .expected(format!("{next} bytes, and less than {alignment} to fill up")));
    }
    Ok(())
}

fn beyond_addresses() -> Error {
    Error::model("offset is beyond all addresses")
}

/// A tensor as its record describes it, with checked sizes.
struct Record {
    name: String,
    stored: StoredType,
    shape: Vec<usize>,
    /// In bytes, from the start of the data.
    offset: u64,
    bytes: u64,
}

impl Record {
    fn placed(self, data_start: u64) -> Result<TensorEntry> {
        let start = data_start.checked_add(self.offset);
        let end = start.and_then(|s| s.checked_add(self.bytes));
        let to = |n: Option<u64>| n.and_then(|n| usize::try_from(n).ok());
        let (Some(start), Some(end)) = (to(start), to(end)) else {
            let e = Error::model("tensor's byte range is not valid").at(&self.name);
            return Err(e.found(format!("{} bytes at {}", self.bytes, self.offset)));
        };
        Ok(TensorEntry {
            name: self.name,
            stored: self.stored,
            shape: self.shape,
            range: Range { start, end },
        })
    }
}

/// Reads a header from its start to `at`.
struct Reader<'a> {
    bytes: &'a [u8],
    file_bytes: u64,
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64) -> Step<&'a [u8]> {
        let end = (self.at as u64).saturating_add(n);
        if end > self.file_bytes {
            return Err(truncated(self.file_bytes, end, "at least ").into());
        }
        let Some(end) = usize::try_from(end).ok().filter(|e| *e as u64 <= MAX_HEADER_BYTES) else {
            return Err(Error::model("header is too large")
                .found(format!("{end} bytes or more"))
                .expected(format!("at most {MAX_HEADER_BYTES} bytes"))
                .into());
        };
        let taken = self.bytes.get(self.at..end).ok_or(Stop::More(end as u64))?;
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self) -> Step<u32> {
        Ok(self.take(4)?.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
    }

    fn u64(&mut self) -> Step<u64> {
        Ok(self.take(8)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    /// Reads a count of items that have at least `least` bytes each.
    fn count(&mut self, what: &str, most: u64, least: u64) -> Step<u64> {
        let n = self.u64()?;
        if n > most {
            return Err(Error::model(format!("header promises too many {what}"))
                .found(n)
                .expected(format!("at most {most}"))
                .into());
        }
        self.room(what, n, least)?;
        Ok(n)
    }

    /// Checks that the rest of the file can contain `n` items of at least `least` bytes.
    fn room(&self, what: &str, n: u64, least: u64) -> Step<()> {
        let left = self.file_bytes.saturating_sub(self.at as u64);
        let needed = n.saturating_mul(least);
        if needed <= left {
            return Ok(());
        }
        let end = (self.at as u64).saturating_add(needed);
        Err(Error::model(format!("file is too short for the {n} {what} that it promises"))
            .found(format!("{} bytes", self.file_bytes))
            .expected(format!("at least {end} bytes"))
            .try_("download it again")
            .into())
    }

    /// A string's bytes.
    fn string(&mut self) -> Step<&'a [u8]> {
        let n = self.u64()?;
        self.room("bytes of text", n, 1)?;
        self.take(n)
    }

    fn name(&mut self, what: &str) -> Step<&'a str> {
        let place = format!("byte {}", self.at);
        let name = self.string().map_err(|s| s.at(&place))?;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(Error::model(format!("{what} has a length that is not possible"))
                .at(place)
                .found(format!("{} bytes", name.len()))
                .expected(format!("1 to {MAX_NAME_BYTES} bytes"))
                .into());
        }
        std::str::from_utf8(name)
            .map_err(|_| Error::model(format!("{what} is not UTF-8")).at(place).into())
    }

    fn alignment(&mut self, kind: u32) -> Step<u64> {
        if kind != 4 {
            let e =
                Error::model("alignment is not of type UINT32").found(format!("value type {kind}"));
            return Err(e.into());
        }
        let n = u64::from(self.u32()?);
        if !n.is_power_of_two() || n > MAX_ALIGNMENT {
            return Err(Error::model("alignment is not valid")
                .found(n)
                .expected(format!("a power of two, at most {MAX_ALIGNMENT}"))
                .into());
        }
        Ok(n)
    }

    /// Reads a value, as text if it is kept.
    fn value(&mut self, kind: u32) -> Step<Option<String>> {
        match (kind, value_bytes(kind)) {
            (_, Some(n)) => Ok(Some(scalar(kind, self.take(n)?)?)),
            // Strings are only shown to users: one in another encoding is skipped.
            (STRING, _) => Ok(std::str::from_utf8(self.string()?).ok().map(str::to_string)),
            (ARRAY, _) => self.array(),
            _ => Err(unknown_kind(kind).into()),
        }
    }

    fn array(&mut self) -> Step<Option<String>> {
        let (kind, count) = (self.u32()?, self.u64()?);
        match (kind, value_bytes(kind)) {
            (_, Some(size)) => {
                self.room("elements of an array", count, size)?;
                let bytes = self.take(count.saturating_mul(size))?;
                if count > MAX_LISTED {
                    return Ok(None);
                }
                let size = usize::try_from(size).unwrap_or(1);
                let texts = bytes
                    .chunks_exact(size)
                    .map(|b| scalar(kind, b))
                    .collect::<Result<Vec<_>>>()?;
                Ok(Some(format!("[{}]", texts.join(", "))))
            }
            (STRING, _) => {
                self.room("strings of an array", count, 8)?;
                for _ in 0..count {
                    self.string()?;
                }
                Ok(None)
            }
            (ARRAY, _) => Err(Error::model("arrays within arrays are not supported").into()),
            _ => Err(unknown_kind(kind).into()),
        }
    }

    /// Reads the record of the tensor `name`.
    fn tensor(&mut self, name: &str, alignment: u64) -> Step<Record> {
        let rank = self.u32()?;
        if rank > MAX_RANK {
            let e = Error::model("tensor has too many axes")
                .found(rank)
                .expected(format!("at most {MAX_RANK}"));
            return Err(e.into());
        }
        // The file lists columns first. A tensor without axes is one number.
        let mut shape = (0..rank).map(|_| self.u64()).collect::<Step<Vec<u64>>>()?;
        let columns = shape.first().copied().unwrap_or(1);
        shape.reverse();
        let (stored, block, block_bytes) = stored(self.u32()?)?;
        let offset = self.u64()?;
        if shape.contains(&0) {
            return Err(Error::model("tensor has an axis of length 0")
                .found(format!("{shape:?}"))
                .into());
        }
        let bytes = shape.iter().try_fold(1u64, |p, &n| p.checked_mul(n)).and_then(|elements| {
            // The blocks are whole, as is checked below.
            elements.checked_div(block)?.checked_mul(block_bytes)
        });
        let axes = shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
        let (Some(bytes), Some(axes)) = (bytes, axes) else {
            return Err(Error::model("tensor's shape overflows")
                .found(format!("{shape:?}"))
                .into());
        };
        if !columns.is_multiple_of(block) {
            return Err(Error::model(format!("rows are not whole blocks of {}", stored.name()))
                .found(format!("{columns} columns"))
                .expected(format!("a multiple of {block}"))
                .into());
        }
        if !offset.is_multiple_of(alignment) {
            return Err(Error::model("tensor does not start at a multiple of the alignment")
                .found(format!("offset {offset}"))
                .expected(format!("a multiple of {alignment}"))
                .into());
        }
        Ok(Record { name: name.to_string(), stored, shape: axes, offset, bytes })
    }
}

#[cfg(test)]
mod tests;
