//! [`Backend`] on an NVIDIA GPU.

use std::collections::HashMap;
use std::sync::Arc;

use super::driver::{Buffer, Context, Function, Stream};
use super::lag::Lag;
use super::launch::{Cuda, Launch};
use super::recording::{Decision, Recorder};
use super::uploads::Uploads;
use crate::backend::form::{self, Form, Types};
use crate::backend::gpu::{self, Choice, Loaded, Locations};
use crate::backend::{Backend, Caps, Layout, Place, Places, Run, WeightKey};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::{Op, Step, Use};
use crate::tensor::{HostWeight, Weight};
use crate::units;

/// F32 matrices become BF16: the tensor cores would round them to that.
const TYPES: Types = Types { f32: DType::BF16, kernel: DType::BF16 };
/// cuMemAlloc allocates in multiples of 2 MiB.
pub(super) const GRANULARITY: usize = 2 << 20;

/// Module and entry point of a kernel.
pub(super) type FunctionKey = (&'static str, &'static str);

/// An opened GPU.
pub struct CudaBackend {
    // Fields are dropped in this order: what runs, then what it uses, the context last.
    pub(super) uploads: Uploads,
    pub(super) recorder: Recorder,
    pub(super) compute: Stream,
    pub(super) functions: HashMap<FunctionKey, Function>,
    pub(super) memory: Buffer,
    pub(super) lag: Lag,
    pub(super) context: Arc<Context>,
    pub(super) caps: Caps,
    pub(super) choice: Choice<Cuda>,
    pub(super) layout: Layout,
    pub(super) weights: HashMap<WeightKey, Loaded<u64>>,
}

impl CudaBackend {
    /// The address of byte `offset` of the arena, where `bytes` bytes are used.
    fn arena(&self, offset: usize, bytes: usize) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.layout.arena_bytes => Ok(self.memory.address + offset as u64),
            _ => Err(Error::memory("a tensor is outside the arena")
                .at(&self.caps.name)
                .found(format!("{bytes} bytes at {offset}"))
                .expected(format!("an end within {}", self.layout.arena_bytes))),
        }
    }

    /// The address of `place`, where `bytes` bytes are used, and whether the weight passes again.
    fn weight_address(&self, place: Place, bytes: usize) -> Result<(u64, bool)> {
        let Layout { arena_bytes, resident_bytes, ring_bytes } = self.layout;
        let (from, offset, room, again) = match place {
            Place::Resident(offset) => (arena_bytes, offset, resident_bytes, false),
            Place::Ring { offset, again } => {
                (arena_bytes + resident_bytes, offset, ring_bytes, again)
            }
        };
        if offset.checked_add(bytes).is_none_or(|end| end > room) {
            return Err(Error::memory("a weight does not fit at its place")
                .at(&self.caps.name)
                .found(format!("{bytes} bytes at {offset}"))
                .expected(format!("an end within {room}")));
        }
        Ok((self.memory.address + (from + offset) as u64, again))
    }

    /// The launches of `op`.
    fn lower(&self, op: &Op, places: &Places) -> Result<Vec<Launch>> {
        let locations = Locations {
            tensor: &|t| self.arena(places.of(t), t.bytes()),
            weight: &|w, _| {
                Loaded::find(&self.weights, places.key(w), w).map_err(|e| e.at(&self.caps.name))
            },
            scratch: &|bytes| self.arena(places.scratch, bytes),
        };
        gpu::lower(&self.choice, op, &locations).map(|lowered| lowered.launches)
    }

    pub(super) fn launch(&mut self, launch: &Launch) -> Result<()> {
        let key = (launch.kernel.module, launch.kernel.entry);
        let function = self.functions.get(&key).ok_or_else(|| {
            Error::device("a kernel was not compiled")
                .at(&self.caps.name)
                .found(launch.kernel.entry)
        })?;
        if !function.takes(launch.kernel) {
            return Err(Error::device("the parameters of a kernel are not those of its PTX")
                .at(launch.kernel.entry));
        }
        // SAFETY: every address comes from `arena` or from a loaded weight; the sizes come from the
        // shapes that the memory was planned for.
        unsafe { self.compute.launch(function, launch) }
    }

    /// Stops recording: a call follows that cannot be part of a graph.
    fn stop_recording(&mut self) {
        self.recorder.stop(&self.compute);
    }
}

impl Backend for CudaBackend {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn weight_bytes(&self, weight: &HostWeight, how: Use) -> usize {
        Form::of(weight, how, TYPES).bytes
    }

    fn scratch_bytes<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> usize {
        gpu::dry(&self.choice, TYPES, op, weight).map_or(0, |lowered| lowered.scratch_bytes)
    }

    fn can_run<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> Result<()> {
        gpu::dry(&self.choice, TYPES, op, weight).map(|_| ())
    }

    fn reserve(&mut self, layout: Layout, peak_bytes: u64) -> Result<()> {
        self.context.bind()?;
        self.stop_recording();
        self.uploads.cancel_all();
        self.sync()?;
        self.recorder.drop_graph();
        self.weights.clear();
        self.layout = Layout::default();
        let bytes = layout.bytes(GRANULARITY).max(peak_bytes) as usize;
        if self.memory.bytes == bytes {
            self.layout = layout;
            return Ok(());
        }
        // The old memory is freed first: both together would exceed the budget.
        self.memory = Buffer::new(&self.context, 0)?;
        // Where the driver can move memory to the host (Windows), it would not refuse, and
        // everything would be slow.
        let (free, _) = self.context.memory()?;
        if bytes as u64 > free {
            return Err(Error::memory("the GPU has less memory free than was planned")
                .at(&self.caps.name)
                .found(units::bytes(free))
                .expected(units::bytes(bytes as u64))
                .try_(
                    "a smaller {vram} or a smaller image, or end other programs that use the GPU",
                ));
        }
        self.memory = Buffer::new(&self.context, bytes)?;
        self.layout = layout;
        Ok(())
    }

    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight, how: Use) -> Result<()> {
        form::check(weight)?;
        self.stop_recording();
        self.context.bind()?;
        let form = Form::of(weight, how, TYPES);
        let (address, again) = self.weight_address(place, form.bytes)?;
        let pieces = form.pieces(weight, how);
        self.uploads.request(key, address, pieces, again, &self.compute)?;
        let loaded = Loaded { form, place: address, rows: weight.rows, cols: weight.cols };
        self.weights.insert(key, loaded);
        Ok(())
    }

    fn forget(&mut self, key: WeightKey) -> Result<()> {
        if self.weights.remove(&key).is_some() {
            // The graph may read it.
            self.recorder.drop_graph();
            self.uploads.cancel(key);
        }
        Ok(())
    }

    fn begin(&mut self, run: Option<Run>) -> Result<bool> {
        self.context.bind()?;
        self.stop_recording();
        let Some(run) = run else { return Ok(false) };
        match self.recorder.decide(run, &self.compute)? {
            Decision::Replayed => return Ok(true),
            Decision::Record => {
                for key in self.weights.keys() {
                    self.uploads.wait_for(*key, &self.compute)?;
                }
                self.recorder.start(run.id, &self.compute)?;
            }
            Decision::Queue => {}
        }
        self.recorder.begin(&self.compute);
        Ok(false)
    }

    fn run(&mut self, step: &Step, places: &Places) -> Result<()> {
        self.context.bind()?;
        if !self.recorder.is_recording() {
            for w in step.op.weights() {
                self.uploads.wait_for(places.key(w), &self.compute)?;
            }
        }
        let launches = self.lower(&step.op, places)?;
        launches.iter().try_for_each(|l| self.launch(l))?;
        if self.recorder.is_recording() {
            self.lag.recorded(launches.len());
            return Ok(());
        }
        self.lag.queued(launches.len(), &self.compute)
    }

    fn end(&mut self) -> Result<bool> {
        self.recorder.end(&self.compute)
    }

    fn allow_host(&mut self, bytes: u64, passing: u64) {
        self.uploads.limit_kept(bytes, passing);
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.context.bind()?;
        self.stop_recording();
        let to = self.arena(offset, bytes.len())?;
        // SAFETY: the range is in the arena; the copy is waited for.
        let queued = unsafe { self.compute.upload(to, bytes) };
        let done = self.compute.synchronize();
        queued.and(done)
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.context.bind()?;
        self.stop_recording();
        let from = self.arena(offset, bytes.len())?;
        // SAFETY: the range is in the arena.
        unsafe { self.compute.download(from, bytes) }
    }

    fn sync(&mut self) -> Result<()> {
        self.context.bind()?;
        self.stop_recording();
        self.lag.clear();
        self.compute.synchronize()
    }

    fn is_lost(&self) -> bool {
        self.context.health.alive().is_err()
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Nothing may run while memory is freed. Errors cannot be returned any more.
        let _ = self.context.bind();
        self.stop_recording();
        self.uploads.cancel_all();
        self.compute.drain();
    }
}
