//! Copies weights from files to the device while steps run: a thread reads them into staging
//! buffers and queues the copies.
//!
//! The device has one queue, so copies are queued between steps. A copy is queued after all steps
//! that were submitted when its weight was requested, because these may read the weight that was at
//! this place before; the first step that uses the weight is submitted after the copy. There are
//! few staging buffers, and each is filled again after its copy is done, so copies never pile up.

use super::device::{Buffer, Shared};
use crate::backend::WeightKey;
use crate::backend::courier::Courier;
use crate::backend::form::Piece;
use crate::error::{Error, Result};

/// Staging buffers: one is filled while the others wait in the queue.
pub(super) const CHUNKS: usize = 4;

/// One weight to copy.
struct Parcel {
    to: wgpu::Buffer,
    /// Byte offset of the weight's place in `to`.
    at: u64,
    pieces: Vec<Piece>,
}

/// The copies of weights: requests, and the thread that serves them.
pub(super) struct Uploads(Courier<Parcel, ()>);

impl Uploads {
    /// Starts the thread, with [`CHUNKS`] staging buffers of `chunk_bytes` each.
    pub fn new(shared: &Shared, chunk_bytes: usize) -> Result<Uploads> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let chunks = (0..CHUNKS)
            .map(|_| {
                let buffer = shared.buffer(chunk_bytes as u64, usage, "staging")?;
                Ok(Chunk { buffer, copied: None })
            })
            .collect::<Result<Vec<_>>>()?;
        let bytes = vec![0; chunk_bytes];
        let mut copier = Copier { shared: shared.clone(), chunks, next: 0, bytes };
        Courier::start("wgpu", move |parcel| copier.bring(&parcel)).map(Uploads)
    }

    /// Asks for the weight `key` at byte `at` of `to`. Steps that read this place before must have
    /// been submitted.
    pub fn request(&self, key: WeightKey, to: wgpu::Buffer, at: u64, pieces: Vec<Piece>) {
        self.0.request(key, Parcel { to, at, pieces });
    }

    /// Waits until all copies of `key` are queued: steps that are submitted from now on read the
    /// weight.
    pub fn wait_for(&self, key: WeightKey) -> Result<()> {
        self.0.wait_for(key).map(|_| ())
    }

    /// Withdraws the request for `key`, and waits until no more of its copies can be queued: then
    /// its place can be given to another weight.
    pub fn cancel(&self, key: WeightKey) {
        self.0.cancel(key);
    }

    /// Withdraws all requests, and waits until no more copies can be queued.
    pub fn cancel_all(&self) {
        self.0.cancel_all();
    }
}

struct Chunk {
    buffer: Buffer,
    /// The copy from this buffer.
    copied: Option<wgpu::SubmissionIndex>,
}

/// The state of the courier's thread.
struct Copier {
    shared: Shared,
    chunks: Vec<Chunk>,
    next: usize,
    /// Bytes as read from a file: mapped memory can be slow to read back, and takes whole slices.
    bytes: Vec<u8>,
}

impl Copier {
    /// Queues every copy of one weight.
    fn bring(&mut self, parcel: &Parcel) -> Result<()> {
        let room = self.bytes.len();
        for piece in &parcel.pieces {
            if piece.unit > room {
                return Err(Error::model(
                    "a row of a weight is larger than what is copied at a time",
                )
                .found(format!("{} bytes", piece.unit))
                .expected(format!("at most {room}"))
                .try_("{device=cpu}"));
            }
            // Copies begin and end at multiples of four bytes; so do pieces and the rows they
            // consist of.
            let most = if piece.unit == 1 { room / 4 * 4 } else { room / piece.unit * piece.unit };
            for from in (0..piece.bytes).step_by(most) {
                let n = most.min(piece.bytes - from);
                piece.read(from, &mut self.bytes[..n])?;
                self.copy(&parcel.to, parcel.at + (piece.to + from) as u64, n)?;
            }
        }
        Ok(())
    }

    /// Queues a copy of the first `n` of `bytes` to byte `at` of `to`.
    fn copy(&mut self, to: &wgpu::Buffer, at: u64, n: usize) -> Result<()> {
        let chunk = &mut self.chunks[self.next];
        self.next = (self.next + 1) % CHUNKS;
        if let Some(copied) = chunk.copied.take() {
            self.shared.wait(copied)?;
        }
        self.shared.map(&chunk.buffer.raw, wgpu::MapMode::Write)?;
        let size = (n as u64).next_multiple_of(4);
        let broken = |e: &dyn std::fmt::Display| {
            Error::device("a staging buffer could not be mapped").found(e).at("wgpu")
        };
        let mut view =
            chunk.buffer.raw.slice(..size).get_mapped_range_mut().map_err(|e| broken(&e))?;
        view.slice(..n).copy_from_slice(&self.bytes[..n]);
        drop(view);
        chunk.buffer.raw.unmap();
        let mut encoder =
            self.shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(&chunk.buffer.raw, 0, to, at, size);
        chunk.copied = Some(self.shared.queue.submit([encoder.finish()]));
        self.shared.health.alive()
    }
}
