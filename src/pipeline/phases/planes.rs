//! Where the planes of the autoencoder rest while it works in bands.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use crate::error::{Error, Result};
use crate::host;
use crate::model::vae::Plane;
use crate::units;

/// A plane outside the device, in a temporary file that has no name and ends with the process. The
/// system keeps it in memory that is free otherwise, so it does not count against any budget.
pub struct StoredPlane {
    file: File,
    bytes: u64,
}

impl StoredPlane {
    /// An empty plane.
    ///
    /// # Errors
    /// [`Kind::Output`](crate::error::Kind::Output) if no temporary file can be made.
    pub fn new(plane: Plane) -> Result<StoredPlane> {
        let folder = host::cache_folder();
        let file = std::fs::create_dir_all(&folder)
            .and_then(|()| tempfile::tempfile_in(&folder))
            .or_else(|_| tempfile::tempfile());
        let bytes = plane.bytes() as u64;
        match file {
            Ok(file) => Ok(StoredPlane { file, bytes }),
            Err(e) => Err(failed("made", bytes, &e)),
        }
    }

    /// Reads what begins at byte `from`. What is beyond the end of the plane is zero.
    pub fn read(&mut self, from: u64, bytes: &mut [u8]) -> Result<()> {
        let there = self.bytes.saturating_sub(from).min(bytes.len() as u64) as usize;
        let (inside, beyond) = bytes.split_at_mut(there);
        beyond.fill(0);
        let read = self.file.seek(SeekFrom::Start(from)).and_then(|_| self.file.read_exact(inside));
        read.map_err(|e| failed("read", self.bytes, &e))
    }

    /// Writes `bytes`, of which the first is byte `to` of the plane.
    pub fn write(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        assert!(to + bytes.len() as u64 <= self.bytes);
        let written = self.file.seek(SeekFrom::Start(to)).and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| failed("written", self.bytes, &e))
    }
}

fn failed(what: &str, bytes: u64, e: &std::io::Error) -> Error {
    Error::output(format!("a temporary file for the autoencoder cannot be {what}: {e}"))
        .expected(format!("{} of free disk", units::bytes(bytes)))
        .try_("free some disk, set FLUX_FAST_CACHE to another folder, or allow more memory")
}
