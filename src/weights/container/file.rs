//! One checkpoint file: its bytes and its checked header, in either container. Other kinds of files
//! are refused by name.

// As in `safetensors`: no unchecked arithmetic on numbers from the file.
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

use std::io::Read;
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

    /// A number that identifies the file: FNV-1a over its header and 64 samples spread over its
    /// data. (Two fine-tunes that were saved by the same tool have equal headers.)
    pub fn fingerprint(&self, seed: u64) -> u64 {
        let bytes = self.source.bytes();
        let mut hash = fnv(seed, &bytes[..self.header.data_start]);
        let data = &bytes[self.header.data_start..];
        for i in 0..64usize {
            let start = (data.len() / 64).saturating_mul(i);
            hash = fnv(hash, &data[start..start.saturating_add(64).min(data.len())]);
        }
        hash
    }
}

/// The start value of [`fnv`].
pub const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits, continued from `hash`.
pub fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
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
        return Ok(());
    };
    Err(e.at_path(path))
}
