//! One checkpoint file: its bytes and its checked header, in either container. Other kinds of files
//! are refused by name.

// As in `safetensors`: no unchecked arithmetic on numbers from the file.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::gguf::{self, Stop};
use super::header::{Header, MAX_HEADER_BYTES, truncated};
use super::map;
use super::safetensors::{self, header_bytes};
use crate::error::{Error, Result};
use crate::host::open_regular;
use crate::tensor::ByteSource;

/// An open safetensors or GGUF file.
pub struct WeightFile {
    /// The path of the file, or a made-up name for embedded bytes.
    pub path: PathBuf,
    /// The bytes of the file.
    pub source: Arc<dyn ByteSource>,
    /// Its tensors and metadata.
    pub header: Header,
    /// A warning for the user if the file could not be mapped.
    pub note: Option<String>,
}

impl WeightFile {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let (source, note) = map::open(path)?;
        Self::of(source, path, note)
    }

    /// The same for bytes from any source. `path` is then only a name.
    pub fn of(source: Arc<dyn ByteSource>, path: &Path, note: Option<String>) -> Result<Self> {
        let bytes = source.bytes();
        refuse_other_kinds(bytes, path)?;
        let header = header(bytes, bytes.len() as u64).map_err(|e| e.at_path(path))?;
        Ok(WeightFile { path: path.into(), header, note, source })
    }

    /// Whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.source.bytes().starts_with(b"GGUF")
    }

    /// A number that identifies the file: a hash of its header and its data. In a large file these
    /// are the start, the middle and the end of every tensor, since a fine-tune may differ from
    /// another one in a single tensor. What cannot be read is left out.
    pub fn fingerprint(&self, seed: u64) -> u64 {
        if self.source.bytes().len() <= WHOLE_BYTES {
            return self.whole_fingerprint(seed);
        }
        let hash = self.hashed(seed, 0..self.header.data_start);
        self.header.tensors.iter().fold(hash, |hash, tensor| self.sampled(hash, &tensor.range))
    }

    /// The same from every byte, whatever the size of the file: for LoRAs, of which many are alike.
    pub fn whole_fingerprint(&self, seed: u64) -> u64 {
        self.hashed(seed, 0..self.source.bytes().len())
    }

    /// `hash` continued with three pieces of `range`.
    fn sampled(&self, hash: u64, range: &Range<usize>) -> u64 {
        let last = range.end.saturating_sub(PIECE_BYTES).max(range.start);
        let middle = range.start.saturating_add(last.saturating_sub(range.start) / 2);
        [range.start, middle, last].into_iter().fold(hash, |hash, start| {
            self.hashed(hash, start..start.saturating_add(PIECE_BYTES).min(range.end))
        })
    }

    /// `hash` continued with the bytes of `range`, which are read, not mapped in.
    fn hashed(&self, hash: u64, range: Range<usize>) -> u64 {
        let mut buffer = vec![0; range.len().min(READ_BYTES)];
        range.clone().step_by(READ_BYTES).fold(hash, |hash, start| {
            let part = &mut buffer[..range.end.saturating_sub(start).min(READ_BYTES)];
            match self.source.read_at(start, part) {
                Ok(()) => fnv_words(hash, part),
                Err(_) => hash,
            }
        })
    }
}

/// Files up to this size are hashed whole.
const WHOLE_BYTES: usize = 64 << 20;
/// How many bytes are taken at each place of a tensor of a larger file.
const PIECE_BYTES: usize = 64;
/// How many bytes are read at once to be hashed.
const READ_BYTES: usize = 1 << 20;

/// The start value of [`fnv`].
pub const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits, continued from `hash`.
pub fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(FNV_PRIME))
}

const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The same of eight bytes at a time, for much data.
fn fnv_words(hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    // The rotation brings high bits to the low end, from where the product spreads them.
    let hash = words.iter().fold(hash, |h, word| {
        (h.rotate_left(29) ^ u64::from_le_bytes(*word)).wrapping_mul(FNV_PRIME)
    });
    fnv(hash, rest)
}

/// Parses the header of `bytes`, which are a whole file of `file_bytes`.
fn header(bytes: &[u8], file_bytes: u64) -> Result<Header> {
    if !bytes.starts_with(gguf::MAGIC) {
        return safetensors::parse(bytes, file_bytes);
    }
    gguf::parse(bytes, file_bytes).map_err(|stop| match stop {
        Stop::Bad(e) => e,
        Stop::More(n) => truncated(bytes.len() as u64, n, "at least "),
    })
}

/// How much of a file is read to see what it is.
const FIRST_BYTES: u64 = 128;

/// How much of a GGUF file is read first. This is enough for a transformer, whose header contains
/// no vocabulary.
const FIRST_READ: u64 = 128 << 10;

/// Reads the header of the file at `path` without mapping the rest, for looking at many files.
pub fn read_header(path: &Path) -> Result<Header> {
    let io = |e| map::unreadable(path, &e);
    let (mut file, metadata) = open_regular(path).map_err(io)?;
    let size = metadata.len();
    let mut bytes = Vec::new();
    // If the file is truncated in the meantime, fewer bytes come than its size promised. The
    // parsers detect that.
    let mut read_to = |bytes: &mut Vec<u8>, end: u64| {
        let more = end.saturating_sub(bytes.len() as u64);
        file.by_ref().take(more).read_to_end(bytes).map_err(io)
    };
    read_to(&mut bytes, FIRST_BYTES)?;
    refuse_other_kinds(&bytes, path)?;
    if !bytes.starts_with(gguf::MAGIC) {
        let length = header_bytes(&bytes, size).map_err(|e| e.at_path(path))?;
        read_to(&mut bytes, length as u64)?;
        return safetensors::parse(&bytes, size).map_err(|e| e.at_path(path));
    }
    // A GGUF header does not contain its own length: read twice as far each time, until it ends.
    let mut end = FIRST_READ;
    loop {
        read_to(&mut bytes, end)?;
        match gguf::parse(&bytes, size) {
            Ok(header) => return Ok(header),
            Err(Stop::Bad(e)) => return Err(e.at_path(path)),
            Err(Stop::More(n)) if (bytes.len() as u64) < end => {
                return Err(truncated(bytes.len() as u64, n, "at least ").at_path(path));
            }
            Err(Stop::More(n)) => end = n.max(end.saturating_mul(2)).min(MAX_HEADER_BYTES),
        }
    }
}

/// The first bytes of other files, what they are, and what to do.
const OTHER_KINDS: [(&[u8], &str, &str); 9] = [
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"\xfd7zXZ\0", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (b"\x89PNG", "an image", "give a .safetensors or .gguf file"),
    (b"\xff\xd8\xff", "an image", "give a .safetensors or .gguf file"),
    (b"ftrt", "a TensorRT engine", "use a .safetensors or .gguf file of the same model"),
    (b"\x7fELF", "a program", "use a .safetensors or .gguf file of the same model"),
];
const UNPACK: &str = "unpack it, and give the .safetensors or .gguf file that is inside";

/// Refuses pickle files and texts, which are recognised by their first bytes, not by their names.
fn refuse_other_kinds(bytes: &[u8], path: &Path) -> Result<()> {
    // The name of the first file in an archive of NumPy's.
    let is_numpy = bytes.starts_with(b"PK\x03\x04")
        && bytes.get(30..).is_some_and(|name| name.windows(4).take(64).any(|w| w == b".npy"))
        || bytes.starts_with(b"\x93NUMPY");
    let e = if bytes.starts_with(b"SQLite format 3\0") {
        Error::model("this is a model of Draw Things (a database), which is not supported")
            .try_("use the .safetensors or .gguf file that it was made from")
    } else if is_numpy {
        Error::model("this is an archive of NumPy arrays (MLX), which is not supported")
            .try_("use a .safetensors or .gguf file of the same model")
    } else if bytes.starts_with(b"\x89HDF\r\n") {
        Error::model("this is an HDF5 file, which is not supported")
            .try_("use a .safetensors or .gguf file of the same model")
    } else if bytes.starts_with(b"PK\x03\x04")
        || bytes.starts_with(&[0x80, 0x02]) && bytes.get(7) != Some(&0)
    {
        Error::model(
            "this is a pickle file (.ckpt, .pt), which is not supported: it can run code when \
             loaded",
        )
        .try_(
            "use a .safetensors or .gguf file, or convert this file on a machine that you can \
             risk",
        )
    } else if bytes.starts_with(b"version ")
        || bytes.starts_with(b"<!DOCTYPE")
        || bytes.starts_with(b"<html")
    {
        Error::model("this is a small text file (a Git LFS pointer or a web page), not the model")
            .try_("download it again")
    } else {
        let is_kind = |(start, ..): &&(&[u8], _, _)| bytes.starts_with(start);
        // The length of a header may have these bytes, too.
        let is_safetensors = bytes.get(8) == Some(&b'{');
        match OTHER_KINDS.iter().find(is_kind).filter(|_| !is_safetensors) {
            Some((_, what, hint)) => {
                Error::model("this is not a model file").found(*what).try_(*hint)
            }
            None => return Ok(()),
        }
    };
    Err(e.at_path(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENSORS: usize = 9;
    const BYTES: usize = 1000;

    /// `TENSORS` tensors of zeros, except for one byte at `place` of the data.
    fn file(place: usize) -> WeightFile {
        let entry = |i: usize| {
            let (start, end) = (i * BYTES, (i + 1) * BYTES);
            format!(r#""t{i}":{{"dtype":"U8","shape":[{BYTES}],"data_offsets":[{start},{end}]}}"#)
        };
        let header = format!("{{{}}}", (0..TENSORS).map(entry).collect::<Vec<_>>().join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        let start = bytes.len();
        bytes.resize(start + TENSORS * BYTES, 0);
        bytes[start + place] = 1;
        WeightFile::of(Arc::new(bytes), Path::new("x"), None).unwrap()
    }

    #[test]
    fn every_byte_of_a_small_file_and_pieces_of_every_tensor_of_a_large_one_count() {
        let places = 0..TENSORS * BYTES;
        let hashes: Vec<u64> = places.map(|p| file(p).fingerprint(FNV_OFFSET) >> 24).collect();
        let mut unique = hashes.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), hashes.len());

        let sampled = |place: usize| {
            let file = file(place);
            file.header.tensors.iter().fold(FNV_OFFSET, |hash, t| file.sampled(hash, &t.range))
        };
        let none = sampled(200);
        assert_eq!(none, sampled(201));
        for tensor in 0..TENSORS {
            for place in [0, 63, 500, BYTES - 64, BYTES - 1] {
                assert_ne!(sampled(tensor * BYTES + place), none, "{tensor}, {place}");
            }
        }
        // A tensor that is smaller than a piece.
        assert_ne!(file(0).sampled(1, &(0..10)), 1);
    }
}
