//! Parts of device memory that are larger than one buffer may be.

use super::launch::{BufferId, Spot};
use crate::error::{Error, Result};

/// A part of device memory: buffers of `chunk` bytes each; the last one can be smaller.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub buffers: Vec<BufferId>,
    pub bytes: usize,
    pub chunk: usize,
}

/// A range of a [`Space`] within one buffer.
pub(super) struct SpacePiece {
    pub spot: Spot,
    /// Where it begins in the whole range.
    pub from: usize,
    pub bytes: usize,
}

impl Space {
    /// The place of byte `offset`, where `bytes` bytes are used.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) if they are outside the space or cross the end
    /// of a buffer.
    pub fn spot(&self, offset: usize, bytes: usize) -> Result<Spot> {
        let refuse = |what: &str| {
            Error::memory(what).at("wgpu").found(format!("{bytes} bytes at {offset}")).expected(
                format!("at most byte {}, within one buffer of {}", self.bytes, self.chunk),
            )
        };
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(refuse("an operand is outside the memory set aside")
                .try_("{device=cpu}; and please report it"));
        }
        if bytes > 0 && offset / self.chunk != (offset + bytes - 1) / self.chunk {
            return Err(
                refuse("an operand is larger than the adapter's buffers").try_("a smaller image")
            );
        }
        // Only empty operands can begin at the end of the last buffer.
        let piece = (offset / self.chunk).min(self.buffers.len().saturating_sub(1));
        let buffer = self.buffers.get(piece).copied().unwrap_or(BufferId(0));
        Ok(Spot { buffer, offset: (offset - piece * self.chunk) as u64 })
    }

    /// The pieces of `bytes` bytes from `offset` on, of at most `most` bytes each.
    pub fn pieces(&self, offset: usize, bytes: usize, most: usize) -> Result<Vec<SpacePiece>> {
        let (mut from, mut pieces) = (0, Vec::new());
        while from < bytes {
            let room = self.chunk - (offset + from) % self.chunk;
            let n = (bytes - from).min(most).min(room);
            pieces.push(SpacePiece { spot: self.spot(offset + from, n)?, from, bytes: n });
            from += n;
        }
        Ok(pieces)
    }
}
