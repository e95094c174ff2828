//! [`Backend`] on a GPU by wgpu.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::SMALLER;
use super::launch::{Dispatch, Spot, Wgpu, WgpuDevice};
use super::lower;
use super::passage::Passage;
use super::space::Space;
use super::submit::Submitter;
use super::uploads::Uploads;
use crate::backend::form::{self, Form, Types};
use crate::backend::gpu::{self, Choice, Loaded, Locations};
use crate::backend::{Backend, Caps, Layout, Place, Places, WeightKey};
use crate::error::{Error, Result};
use crate::op::{Op, Step, Use};
use crate::tensor::{HostWeight, Weight};
use crate::units;

/// An opened adapter.
pub struct WgpuBackend {
    // Dropped first: its thread uses the buffers.
    pub(super) uploads: Uploads,
    pub(super) gpu: Submitter,
    pub(super) caps: Caps,
    pub(super) choice: Choice<Wgpu>,
    pub(super) types: Types,
    /// The largest window that the adapter takes, in bytes.
    pub(super) binding_bytes: u64,
    pub(super) memory: Memory,
    pub(super) weights: HashMap<WeightKey, Loaded<Spot>>,
    pub(super) passage: Passage,
}

/// The memory that `reserve` sets aside.
#[derive(Default)]
pub(super) struct Memory {
    layout: Layout,
    arena: Space,
    resident: Space,
    ring: Space,
    /// Memory that later phases of a generation need; allocated so that no other program takes it.
    ballast: Space,
}

impl WgpuBackend {
    /// Dispatches made so far, before long ones are cut.
    pub fn dispatches(&self) -> u64 {
        self.gpu.dispatched
    }

    /// The facts by which variants are chosen.
    pub fn device(&self) -> &WgpuDevice {
        &self.choice.device
    }

    /// Bytes of all buffers that live, and the most there ever were at a time, staging included.
    pub fn held_bytes(&self) -> (u64, u64) {
        (self.gpu.shared.held.now(), self.gpu.shared.held.most())
    }

    /// Bytes that the allocator beneath has taken from the driver, where it reports them.
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.gpu.shared.device.generate_allocator_report().map(|r| r.total_reserved_bytes)
    }

    fn space(&mut self, bytes: usize, what: &str) -> Result<Space> {
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        let chunk = self.caps.grain.chunk;
        let mut space = Space { buffers: vec![], bytes, chunk };
        for from in (0..bytes).step_by(chunk) {
            let buffer = self.gpu.shared.buffer(chunk.min(bytes - from) as u64, usage, what)?;
            space.buffers.push(self.gpu.add(buffer));
        }
        Ok(space)
    }

    /// The dispatches of `op`.
    fn lower(&self, op: &Op, places: &Places) -> Result<Vec<Dispatch>> {
        let locations = Locations {
            tensor: &|t| self.memory.arena.spot(places.of(t), t.bytes()),
            weight: &|w, _| {
                Loaded::find(&self.weights, places.key(w), w).map_err(|e| e.at(&self.caps.name))
            },
            scratch: &|bytes| self.memory.arena.spot(places.scratch, bytes),
        };
        gpu::lower(&self.choice, op, &locations).map(|lowered| lowered.launches)
    }
}

impl Backend for WgpuBackend {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn weight_bytes(&self, weight: &HostWeight, how: Use) -> usize {
        Form::of(weight, how, self.types).bytes
    }

    fn scratch_bytes<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> usize {
        match op {
            Op::Linear(linear) => lower::scratch(linear, weight(linear.w).int8.is_some()),
            _ => gpu::dry(&self.choice, self.types, op, weight)
                .map_or(0, |lowered| lowered.scratch_bytes),
        }
    }

    fn can_run<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> Result<()> {
        let scratch = gpu::dry(&self.choice, self.types, op, weight)?.scratch_bytes;
        let most = self.caps.grain.chunk;
        let tensors = op.reads().into_iter().chain(op.writes()).map(|t| t.bytes());
        match tensors.chain([scratch]).max() {
            Some(bytes) if bytes > most => {
                Err(Error::memory("an operand is larger than the adapter's buffers")
                    .at(&self.caps.name)
                    .found(format!("{bytes} bytes"))
                    .expected(format!("at most {most}"))
                    .try_(SMALLER))
            }
            _ => Ok(()),
        }
    }

    fn reserve(&mut self, layout: Layout, peak_bytes: u64) -> Result<()> {
        self.uploads.cancel_all();
        self.gpu.discard();
        self.gpu.finish()?;
        self.weights.clear();
        let total = self.memory.ballast.bytes as u64 + layout.bytes(1);
        if self.memory.layout == layout && total >= peak_bytes {
            return Ok(());
        }
        // The old memory is freed first: both together would exceed the budget.
        let Memory { arena, resident, ring, ballast, .. } = std::mem::take(&mut self.memory);
        for space in [arena, resident, ring, ballast] {
            space.buffers.into_iter().for_each(|id| self.gpu.remove(id));
        }
        // Copies of the other thread may still use it: only after them is it freed.
        self.gpu.shared.wait_for_all()?;
        // Where the driver can move memory to the host, it would not refuse, and everything would
        // be slow.
        let (bytes, most) = (layout.bytes(1), self.caps.memory_bytes);
        if bytes > most {
            return Err(Error::memory("the GPU has less memory than was planned")
                .at(&self.caps.name)
                .found(units::bytes(most))
                .expected(units::bytes(bytes))
                .try_("a smaller {vram} or a smaller image"));
        }
        self.memory.arena = self.space(layout.arena_bytes, "activations")?;
        self.memory.resident = self.space(layout.resident_bytes, "resident weights")?;
        self.memory.ring = self.space(layout.ring_bytes, "the weight ring")?;
        let left = peak_bytes.saturating_sub(layout.bytes(1)) as usize / 256 * 256;
        self.memory.ballast = self.space(left, "memory for later phases")?;
        self.memory.layout = layout;
        Ok(())
    }

    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight, how: Use) -> Result<()> {
        form::check(weight)?;
        let form = Form::of(weight, how, self.types);
        let place = match place {
            Place::Resident(offset) => self.memory.resident.spot(offset, form.bytes),
            Place::Ring { offset, .. } => self.memory.ring.spot(offset, form.bytes),
        }?;
        // Steps that read the weight that was there before must be queued before the copies.
        self.gpu.submit()?;
        let pieces = form.pieces(weight, how);
        let buffer = self.gpu.buffer(place.buffer).clone();
        self.uploads.request(key, buffer, place.offset, pieces);
        self.weights.insert(key, Loaded { form, place, rows: weight.rows, cols: weight.cols });
        Ok(())
    }

    fn forget(&mut self, key: WeightKey) -> Result<()> {
        if self.weights.remove(&key).is_some() {
            self.uploads.cancel(key);
        }
        Ok(())
    }

    fn run(&mut self, step: &Step, places: &Places) -> Result<()> {
        self.gpu.shared.health.alive()?;
        for w in step.op.weights() {
            self.uploads.wait_for(places.key(w))?;
        }
        let dispatches = self.lower(&step.op, places)?;
        dispatches.iter().try_for_each(|d| self.gpu.dispatch(d))
    }

    fn end(&mut self) -> Result<bool> {
        self.gpu.submit()?;
        Ok(true)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.passage.write(&mut self.gpu, &self.memory.arena, offset, bytes)
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.passage.read(&mut self.gpu, &self.memory.arena, offset, bytes)
    }

    fn sync(&mut self) -> Result<()> {
        self.gpu.finish()
    }

    fn is_lost(&self) -> bool {
        self.gpu.shared.health.alive().is_err()
    }
}

impl Drop for WgpuBackend {
    fn drop(&mut self) {
        // Nothing may run while memory is freed. Errors cannot be returned any more.
        self.uploads.cancel_all();
        self.gpu.discard();
        let _ = self.gpu.finish();
        let shared = &self.gpu.shared;
        if shared.health.hangs.load(Ordering::Relaxed) {
            // The last handle of a queue waits for the queue when it is dropped, and this one never
            // ends.
            std::mem::forget((shared.device.clone(), shared.queue.clone()));
        }
    }
}
