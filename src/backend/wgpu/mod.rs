//! Any GPU that Vulkan, Metal or DirectX 12 reaches, by shaders of our own (`shaders/`), embedded as WGSL and translated by wgpu.
//!
//! Device memory is the arena, the resident weights and the ring, each in buffers of at most the adapter's size, and a few staging buffers; all of it is
//! counted. There is one queue: steps are recorded and submitted in portions of about a tenth of a second, and weights come from a thread that reads
//! files (`uploads`) and puts its copies between them.

pub mod adapters;
pub mod args;
pub mod attention;
mod choice;
pub mod conv2d;
pub mod elementwise;
mod gpu;
pub mod group_norm;
pub mod latents;
pub mod launch;
pub mod linear;
pub mod norm;
mod steps;
mod testing;
mod uploads;

use std::collections::HashMap;

use super::form::{self, Form, Types};
use super::{Backend, Caps, Compute, Grain, KernelChoice, Layout, Place, Places, WeightKey};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::{Embed, Op, Step, Use};
use crate::tensor::{HostWeight, Tensor, Weight};
use crate::units;
pub use adapters::{Adapter, AdapterKind, adapters, candidates, hardware_present};
use choice::Choice;
pub use choice::{names, ops};
use gpu::{Buffer, Gpu, Shared};
use launch::{BufferId, Constants, Device, Needs, Shader};
use steps::{Kept, Spot};
#[doc(hidden)]
pub use testing::TestLimits;
use uploads::Uploads;

/// Pieces of memory are never larger than this, whatever the adapter takes: some drivers count bytes in 32 bits.
const MOST_CHUNK: u64 = 4 << 30;
/// Bytes of one staging buffer: large enough that a copy's fixed cost does not show, small enough to start soon.
const STAGING_BYTES: usize = 8 << 20;
/// Bytes of the buffers through which inputs and results pass.
const PASSAGE_BYTES: usize = 1 << 20;
/// What the driver holds beside our buffers: its own bookkeeping, command buffers, shaders' code.
const ALLOWANCE_BYTES: u64 = 64 << 20;

/// The element type of activations: BF16, except where everything is computed in F32.
fn activation(compute: Compute) -> DType {
    if compute == Compute::F32 { DType::F32 } else { DType::BF16 }
}

fn types(compute: Compute) -> Types {
    Types { f32: DType::F32, kernel: activation(compute) }
}

/// How an adapter is to be used.
#[derive(Debug, Clone, Default)]
pub struct WgpuOptions {
    /// Which adapter, as `adapters` counts them.
    pub ordinal: usize,
    /// `Auto` and `BF16` (BF16 activations, F32 products), `F32`, or `F16` where the adapter has it.
    pub compute: Compute,
    /// Forced variants; see `names`.
    pub kernels: Vec<KernelChoice>,
    /// Bytes of each of the few staging buffers; 8 MiB if not given.
    pub staging_bytes: Option<usize>,
    /// Memory that the adapter has, where it does not tell.
    pub memory_bytes: Option<u64>,
    /// Limits of a smaller adapter.
    #[doc(hidden)]
    pub limits: TestLimits,
}

/// A part of device memory: buffers that are `chunk` bytes each, but for the last.
#[derive(Debug, Default)]
struct Space {
    pieces: Vec<BufferId>,
    bytes: usize,
    chunk: usize,
}

impl Space {
    /// Where byte `offset` lies, from which `bytes` are meant.
    fn spot(&self, offset: usize, bytes: usize) -> Result<Spot> {
        let refuse = |what: &str| {
            Error::memory(what)
                .at("wgpu")
                .found(format!("{bytes} bytes at {offset}"))
                .expected(format!("an end within {}, in pieces of {}", self.bytes, self.chunk))
        };
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(refuse("something lies outside the memory set aside")
                .try_("--device cpu; and please report it"));
        }
        if bytes > 0 && offset / self.chunk != (offset + bytes - 1) / self.chunk {
            return Err(
                refuse("something is larger than the adapter's buffers").try_("a smaller picture")
            );
        }
        // The end of a full piece is nobody's beginning: only what is empty may lie there.
        let piece = (offset / self.chunk).min(self.pieces.len().saturating_sub(1));
        let buffer = self.pieces.get(piece).copied().unwrap_or(BufferId(0));
        Ok(Spot { buffer, offset: (offset - piece * self.chunk) as u64 })
    }
}

/// An adapter, opened.
pub struct WgpuBackend {
    // Dropped first: its thread uses the buffers.
    uploads: Uploads,
    gpu: Gpu,
    caps: Caps,
    choice: Choice,
    types: Types,
    /// Windows are never larger.
    binding_bytes: u64,
    arena: Space,
    resident: Space,
    ring: Space,
    /// Memory that later phases of a generation will want, held until then.
    ballast: Space,
    layout: Layout,
    weights: HashMap<WeightKey, Kept>,
    /// The buffers through which inputs and results pass.
    up: Buffer,
    down: Buffer,
}

impl WgpuBackend {
    /// Opens an adapter. Shaders are compiled when they are first used.
    pub fn new(options: WgpuOptions) -> Result<WgpuBackend> {
        let WgpuOptions { ordinal, compute, kernels, .. } = options;
        if compute == Compute::Fp8 {
            return Err(compute.refused("auto, bf16, f16 or f32 by wgpu"));
        }
        let found = adapters::get(ordinal)?;
        let name = format!("wgpu:{ordinal}");
        let facts = &found.facts;
        if compute == Compute::F16 && !facts.f16 {
            return Err(Error::argument("no F16 products on this GPU")
                .at("--compute")
                .found(&facts.name)
                .try_("--compute auto: F16 weights are used all the same, computed in F32"));
        }
        let (device, queue) = open(&found).map_err(|e| e.at(&name))?;
        let shared = Shared::new(device, queue, &name);
        // Windows are whole vectors.
        let binding_bytes =
            facts.binding_bytes.min(options.limits.binding_bytes.unwrap_or(u64::MAX)) / 16 * 16;
        let most_buffer = options.limits.buffer_bytes.unwrap_or(u64::MAX).min(MOST_CHUNK);
        let activation = activation(compute);
        let device = Device {
            activation,
            half: compute == Compute::F16,
            binding_bytes,
            alignment: u64::from(found.limits.min_storage_buffer_offset_alignment).max(16),
            shared_bytes: facts.shared_bytes,
            threads: facts.threads,
            f16: facts.f16,
            subgroups: facts.subgroups,
            cooperative_matrix: facts.cooperative_matrix,
            software: facts.kind == AdapterKind::Software,
        };
        let align = form::ALIGN.max(device.alignment as usize);
        let chunk = facts.buffer_bytes.min(most_buffer) as usize / align * align;
        let choice = Choice::new(device, kernels)?;
        let staging_bytes = options.staging_bytes.unwrap_or(STAGING_BYTES).min(chunk);
        let gpu = Gpu::new(shared.clone())?;
        let passage = |usage, label| shared.buffer(PASSAGE_BYTES as u64, usage, label);
        let up = passage(wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC, "inputs")?;
        let down = passage(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, "results")?;
        let uploads = Uploads::new(&shared, staging_bytes)?;
        let overhead_bytes = shared.held.now() + ALLOWANCE_BYTES;
        // Where it is a guess, whoever bounds the memory knows better.
        let told = options.memory_bytes.filter(|_| !facts.memory_known);
        let (memory_bytes, free_bytes) =
            (told.unwrap_or(facts.memory_bytes), told.unwrap_or(facts.free_bytes));
        let free_bytes = free_bytes.saturating_sub(overhead_bytes);
        let extras = [
            (activation == DType::F32).then_some("f32"),
            (compute == Compute::F16).then_some("f16 products"),
        ];
        let caps = Caps {
            name,
            description: [&facts.name, facts.api, facts.kind.name()]
                .into_iter()
                .chain(extras.into_iter().flatten())
                .collect::<Vec<_>>()
                .join(", "),
            memory_bytes,
            free_bytes,
            overhead_bytes,
            granularity: 1 << 16,
            activation,
            in_place_weights: false,
            grain: Grain { align, chunk },
            pins: false,
            reopens: true,
        };
        Ok(WgpuBackend {
            uploads,
            gpu,
            caps,
            choice,
            types: types(compute),
            binding_bytes,
            arena: Space::default(),
            resident: Space::default(),
            ring: Space::default(),
            ballast: Space::default(),
            layout: Layout::default(),
            weights: HashMap::new(),
            up,
            down,
        })
    }

    /// Forces other variants than those given at the start.
    pub fn force(&mut self, kernels: Vec<KernelChoice>) -> Result<()> {
        self.choice.force(kernels)
    }

    /// Dispatches made so far, before long ones are cut.
    pub fn dispatches(&self) -> u64 {
        self.gpu.dispatched
    }

    /// What variants are chosen by.
    pub fn device(&self) -> &Device {
        &self.choice.device
    }

    /// Bytes of all buffers that live, and the most there ever were at a time, staging included.
    pub fn held_bytes(&self) -> (u64, u64) {
        (self.gpu.shared.held.now(), self.gpu.shared.held.most())
    }

    /// Bytes that the allocator beneath has taken from the driver, where it tells.
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.gpu.shared.device.generate_allocator_report().map(|r| r.total_reserved_bytes)
    }

    fn space(&mut self, bytes: usize, what: &str) -> Result<Space> {
        let usage = wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC;
        let chunk = self.caps.grain.chunk;
        let mut space = Space { pieces: vec![], bytes, chunk };
        for from in (0..bytes).step_by(chunk) {
            let piece = self.gpu.shared.buffer(chunk.min(bytes - from) as u64, usage, what)?;
            space.pieces.push(self.gpu.add(piece));
        }
        Ok(space)
    }

    /// Runs `f` for each piece of `bytes` bytes from `offset` of the arena: its buffer, where it begins there, and where in the whole.
    fn pieces(
        &self,
        offset: usize,
        bytes: usize,
        most: usize,
    ) -> Result<Vec<(BufferId, u64, usize, usize)>> {
        let chunk = self.arena.chunk;
        let (mut at, mut pieces) = (0, Vec::new());
        while at < bytes {
            let n = (bytes - at).min(most).min(chunk - (offset + at) % chunk);
            let spot = self.arena.spot(offset + at, n)?;
            pieces.push((spot.buffer, spot.offset, at, n));
            at += n;
        }
        Ok(pieces)
    }

    /// Copies at most `PASSAGE_BYTES`, whole words, from the device.
    fn take(&mut self, from: BufferId, at: u64, to: &mut [u8]) -> Result<()> {
        let n = to.len() as u64;
        let (from, down) = (self.gpu.raw(from).clone(), self.down.raw.clone());
        let copied = self.gpu.copy(&from, at, &down, 0, n)?;
        self.gpu.shared.wait(copied)?;
        self.gpu.shared.map(&down, wgpu::MapMode::Read)?;
        let view = down.slice(..n).get_mapped_range();
        match view {
            Ok(view) => to.copy_from_slice(&view),
            Err(e) => {
                self.gpu.shared.health.alive()?;
                return Err(Error::device("results could not be read")
                    .found(e)
                    .at(&self.caps.name));
            }
        }
        down.unmap();
        Ok(())
    }

    /// Copies at most `PASSAGE_BYTES`, whole words, to the device, and waits.
    fn put(&mut self, to: BufferId, at: u64, from: &[u8]) -> Result<()> {
        let n = from.len() as u64;
        let (to, up) = (self.gpu.raw(to).clone(), self.up.raw.clone());
        self.gpu.shared.map(&up, wgpu::MapMode::Write)?;
        let view = up.slice(..n).get_mapped_range_mut();
        match view {
            Ok(mut view) => view.copy_from_slice(from),
            Err(e) => {
                self.gpu.shared.health.alive()?;
                return Err(Error::device("inputs could not be written")
                    .found(e)
                    .at(&self.caps.name));
            }
        }
        up.unmap();
        let copied = self.gpu.copy(&up, 0, &to, at, n)?;
        self.gpu.shared.wait(copied)
    }

    /// Token ids are indices into a table: a wrong one would read elsewhere. They are few, and read back before they are used.
    fn check_ids(&mut self, ids: Tensor, places: &Places, rows: usize) -> Result<()> {
        let mut bytes = vec![0; ids.bytes()];
        self.read(places.of(&ids), &mut bytes)?;
        let wrong = bytes
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .enumerate()
            .find(|(_, id)| usize::try_from(*id).map_or(true, |id| id >= rows));
        match wrong {
            None => Ok(()),
            Some((at, id)) => Err(Error::argument("a token id is not in the table")
                .at(format!("token {at}"))
                .found(id)
                .expected(format!("0 to {}", rows - 1))
                .try_("use the tokenizer that belongs to the text encoder")),
        }
    }
}

/// The device of an adapter, with all limits that it has and the features that shaders know.
fn open(found: &adapters::Found) -> Result<(wgpu::Device, wgpu::Queue)> {
    let mut features = wgpu::Features::IMMEDIATES;
    features |= found.features & (wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP);
    let mut experimental = wgpu::ExperimentalFeatures::disabled();
    if found.facts.cooperative_matrix {
        features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        // SAFETY: the only experimental feature asked for, used by one shader of ours in the way that the specification allows.
        experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
    }
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("flux-fast"),
        required_features: features,
        required_limits: found.limits.clone(),
        experimental_features: experimental,
        // Large buffers get memory of their own; the few small ones shall not reserve much.
        memory_hints: wgpu::MemoryHints::Manual {
            suballocated_device_memory_block_size: 1 << 20..8 << 20,
        },
        ..Default::default()
    };
    pollster::block_on(found.raw.request_device(&descriptor)).map_err(|e| {
        Error::device("the GPU could not be opened")
            .found(e)
            .try_("update its driver, or --device cpu")
    })
}

impl Backend for WgpuBackend {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn weight_bytes(&self, weight: &HostWeight, how: Use) -> usize {
        Form::of(weight, how, self.types).bytes
    }

    fn scratch_bytes<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> usize {
        steps::scratch_bytes(self, op, weight)
    }

    fn reserve(&mut self, layout: Layout, peak_bytes: u64) -> Result<()> {
        self.uploads.cancel_all();
        self.gpu.discard();
        self.gpu.finish()?;
        self.weights.clear();
        if self.layout == layout && self.ballast.bytes as u64 + layout.bytes(1) >= peak_bytes {
            return Ok(());
        }
        // The old memory goes first: both at once would break the promise.
        self.layout = Layout::default();
        for space in [&mut self.arena, &mut self.resident, &mut self.ring, &mut self.ballast] {
            std::mem::take(space).pieces.into_iter().for_each(|id| self.gpu.remove(id));
        }
        // Copies of another thread may still use them: only then are they given back.
        self.gpu.shared.wait_for_all()?;
        // Where the driver makes room by moving memory to the host, it would not refuse, and everything would crawl.
        let (bytes, most) = (layout.bytes(1), self.caps.memory_bytes);
        if bytes > most {
            return Err(Error::memory("the GPU has less memory than was planned")
                .at(&self.caps.name)
                .found(units::bytes(most))
                .expected(units::bytes(bytes))
                .try_("a smaller --vram or picture"));
        }
        self.arena = self.space(layout.arena_bytes, "activations")?;
        self.resident = self.space(layout.resident_bytes, "resident weights")?;
        self.ring = self.space(layout.ring_bytes, "the weight ring")?;
        // None of the phases to come shall fail for another program's sake.
        let left = peak_bytes.saturating_sub(layout.bytes(1)) as usize / 256 * 256;
        self.ballast = self.space(left, "memory for later phases")?;
        self.layout = layout;
        Ok(())
    }

    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight, how: Use) -> Result<()> {
        form::check(weight)?;
        let form = Form::of(weight, how, self.types);
        let spot = match place {
            Place::Resident(offset) => self.resident.spot(offset, form.bytes),
            Place::Ring { offset, .. } => self.ring.spot(offset, form.bytes),
        }?;
        // Whoever lay there before is read by steps that must stand before the copies in the queue.
        self.gpu.submit()?;
        let pieces = form.pieces(weight, how);
        self.uploads.request(key, self.gpu.raw(spot.buffer).clone(), spot.offset, pieces);
        self.weights.insert(key, Kept { form, spot, rows: weight.rows, cols: weight.cols });
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
        if let Op::Embed(Embed { table, ids, .. }) = step.op {
            self.check_ids(ids, places, table.rows)?;
        }
        let dispatches = steps::dispatches(self, &step.op, places)?;
        dispatches.iter().try_for_each(|d| self.gpu.dispatch(d))
    }

    fn end(&mut self) -> Result<bool> {
        self.gpu.submit()?;
        Ok(true)
    }

    fn can_run<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> Result<()> {
        steps::can_run(self, op, weight)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.arena.spot(offset, 0)?;
        for (buffer, at, from, n) in self.pieces(offset, bytes.len(), PASSAGE_BYTES - 8)? {
            let part = &bytes[from..from + n];
            let (before, whole) = ((at % 4) as usize, (at + n as u64).is_multiple_of(4));
            if before == 0 && whole {
                self.put(buffer, at, part)?;
                continue;
            }
            // Copies are of whole words: what shares one is read first.
            let mut words = vec![0; (before + n).next_multiple_of(4)];
            let at = at - before as u64;
            self.take(buffer, at, &mut words)?;
            words[before..before + n].copy_from_slice(part);
            self.put(buffer, at, &words)?;
        }
        Ok(())
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.arena.spot(offset, 0)?;
        for (buffer, at, from, n) in self.pieces(offset, bytes.len(), PASSAGE_BYTES - 8)? {
            let before = (at % 4) as usize;
            let mut words = vec![0; (before + n).next_multiple_of(4)];
            self.take(buffer, at - before as u64, &mut words)?;
            bytes[from..from + n].copy_from_slice(&words[before..before + n]);
        }
        Ok(())
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
        // Nothing may run on while memory goes; errors have nobody left to tell.
        self.uploads.cancel_all();
        self.gpu.discard();
        let _ = self.gpu.finish();
        let shared = &self.gpu.shared;
        if shared.health.hangs.load(std::sync::atomic::Ordering::Relaxed) {
            // The last handle of a queue waits for it when it goes, and this one never ends.
            std::mem::forget((shared.device.clone(), shared.queue.clone()));
        }
    }
}

/// Every shader with every set of constants that variants use, and what it needs: for tests that look at them with no adapter.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    [
        linear::shaders(),
        attention::shaders(),
        conv2d::shaders(),
        group_norm::shaders(),
        norm::shaders(),
        elementwise::shaders(),
        latents::shaders(),
    ]
    .concat()
}
