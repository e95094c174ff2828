//! Sources of the bytes of weights.

use std::ops::Range;

use crate::error::Result;

/// The bytes that weights point into: a memory-mapped file, or owned memory.
pub trait ByteSource: Send + Sync {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// Copies the bytes from `offset` on into `to`, for devices that need a copy anyway. A file is
    /// read for that: its pages are not mapped in, and a truncated file is an error.
    fn read_at(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        to.copy_from_slice(&self.bytes()[offset..offset + to.len()]);
        Ok(())
    }

    /// Reads `range` into memory, because it is needed soon. This may wait for the disk, so callers
    /// use a thread of their own. An error means that reading the bytes would fail.
    fn will_need(&self, _range: Range<usize>) -> Result<()> {
        Ok(())
    }

    /// Allows the memory of `range` to be freed, because it is not needed for a while. The bytes
    /// stay readable.
    fn let_go(&self, _range: Range<usize>) {}

    /// Checks quickly that the source did not change since it was opened: a file could have been
    /// edited or truncated in place.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl ByteSource for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl ByteSource for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}
