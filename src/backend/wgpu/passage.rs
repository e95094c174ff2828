//! Inputs and results: bytes between the host and the arena.

use super::device::{Buffer, Shared};
use super::launch::Spot;
use super::space::Space;
use super::submit::Submitter;
use crate::error::{Error, Result};

/// Bytes of the buffers through which inputs and results pass.
const BYTES: usize = 1 << 20;
/// Bytes that pass at a time. Copies are of whole words, so up to 3 bytes more on either side.
const MOST: usize = BYTES - 8;

/// The buffers through which inputs and results pass.
pub(super) struct Passage {
    up: Buffer,
    down: Buffer,
}

impl Passage {
    pub fn new(shared: &Shared) -> Result<Passage> {
        let buffer = |usage, label| shared.buffer(BYTES as u64, usage, label);
        Ok(Passage {
            up: buffer(wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC, "inputs")?,
            down: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, "results")?,
        })
    }

    /// Writes `bytes` at `offset` of `space`, after all queued steps.
    pub fn write(
        &self,
        gpu: &mut Submitter,
        space: &Space,
        offset: usize,
        bytes: &[u8],
    ) -> Result<()> {
        space.spot(offset, 0)?;
        for piece in space.pieces(offset, bytes.len(), MOST)? {
            let part = &bytes[piece.from..piece.from + piece.bytes];
            let before = (piece.spot.offset % 4) as usize;
            if before == 0 && (piece.spot.offset + piece.bytes as u64).is_multiple_of(4) {
                self.put(gpu, piece.spot, part)?;
                continue;
            }
            // Other bytes of the first and the last word are read first.
            let start = Spot { offset: piece.spot.offset - before as u64, ..piece.spot };
            let mut words = vec![0; (before + piece.bytes).next_multiple_of(4)];
            self.take(gpu, start, &mut words)?;
            words[before..before + piece.bytes].copy_from_slice(part);
            self.put(gpu, start, &words)?;
        }
        Ok(())
    }

    /// Reads from `offset` of `space`, after all queued steps.
    pub fn read(
        &self,
        gpu: &mut Submitter,
        space: &Space,
        offset: usize,
        bytes: &mut [u8],
    ) -> Result<()> {
        space.spot(offset, 0)?;
        for piece in space.pieces(offset, bytes.len(), MOST)? {
            let before = (piece.spot.offset % 4) as usize;
            let start = Spot { offset: piece.spot.offset - before as u64, ..piece.spot };
            let mut words = vec![0; (before + piece.bytes).next_multiple_of(4)];
            self.take(gpu, start, &mut words)?;
            bytes[piece.from..piece.from + piece.bytes]
                .copy_from_slice(&words[before..before + piece.bytes]);
        }
        Ok(())
    }

    /// Copies whole words from the device.
    fn take(&self, gpu: &mut Submitter, from: Spot, to: &mut [u8]) -> Result<()> {
        let n = to.len() as u64;
        let (source, down) = (gpu.buffer(from.buffer).clone(), &self.down.raw);
        let copied = gpu.copy(&source, from.offset, down, 0, n)?;
        gpu.shared.wait(copied)?;
        gpu.shared.map(down, wgpu::MapMode::Read)?;
        match down.slice(..n).get_mapped_range() {
            Ok(view) => to.copy_from_slice(&view),
            Err(e) => return Err(unmapped(gpu, "results could not be read", &e)),
        }
        down.unmap();
        Ok(())
    }

    /// Copies whole words to the device, and waits.
    fn put(&self, gpu: &mut Submitter, to: Spot, from: &[u8]) -> Result<()> {
        let n = from.len() as u64;
        let (target, up) = (gpu.buffer(to.buffer).clone(), &self.up.raw);
        gpu.shared.map(up, wgpu::MapMode::Write)?;
        match up.slice(..n).get_mapped_range_mut() {
            Ok(mut view) => view.copy_from_slice(from),
            Err(e) => return Err(unmapped(gpu, "inputs could not be written", &e)),
        }
        up.unmap();
        let copied = gpu.copy(up, 0, &target, to.offset, n)?;
        gpu.shared.wait(copied)
    }
}

/// The error of a mapped buffer that cannot be accessed; that the device was lost, if it was.
fn unmapped(gpu: &Submitter, what: &str, e: &dyn std::fmt::Display) -> Error {
    match gpu.shared.health.alive() {
        Err(lost) => lost,
        Ok(()) => Error::device(what).found(e).at(&gpu.shared.name),
    }
}
