//! NVIDIA GPUs from compute capability 8.0 on (RTX 30 series, A100), by kernels of our own (`kernels/`), embedded as PTX and compiled by the driver.
//!
//! All device memory is one allocation: arena, resident weights, ring. Steps are queued on one stream; weights come on another, from a thread that
//! reads files (`uploads`). A run whose weights all have places of their own is recorded once as a CUDA graph and replayed.

pub mod args;
pub mod attention;
pub mod attention_hopper;
pub mod ceilings;
mod choice;
pub mod conv2d;
mod driver;
pub mod elementwise;
pub mod group_norm;
pub mod latents;
pub mod launch;
pub mod linear;
pub mod linear_fp8;
pub mod linear_hopper;
pub mod modules;
pub mod norm;
mod nvml;
mod steps;
mod uploads;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::form::{self, Form, Types};
use super::{Backend, Caps, Compute, Grain, KernelChoice, Layout, Place, Places, Run, WeightKey};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::{Op, Step, Use};
use crate::tensor::{HostWeight, Weight};
use crate::units;
use choice::Choice;
pub use choice::{names, ops};
use driver::{Buffer, Context, Event, EventPool, Function, Graph, Module, Stream};
use launch::{Device, Launch};
use nvml::Nvml;
use steps::Held;
use uploads::Uploads;

/// Offsets in the arena are multiples of this: what TMA and vector loads want, with room.
const ALIGNMENT: usize = form::ALIGN;
/// F32 matrices become BF16, which is what the tensor cores would make of them anyway.
const TYPES: Types = Types { f32: DType::BF16, kernel: DType::BF16 };
/// cuMemAlloc hands memory out in pieces of 2 MiB.
const GRANULARITY: usize = 2 << 20;
/// What context and code are taken to use where nobody can measure it: about what a recent driver takes on a large GPU.
const ALLOWANCE_BYTES: u64 = 600 << 20;
/// What context and code can take.
const PLAUSIBLE_BYTES: std::ops::RangeInclusive<u64> = 96 << 20..=1536 << 20;
/// What recorded runs may take: some kilobytes for each of a thousand launches.
const GRAPH_BYTES: u64 = 16 << 20;
/// Launches between two looks at how far the GPU is behind, and how many such looks it may be behind. Enough to keep it busy, few enough that a cancelled
/// run ends within a fraction of a second.
const LAG_LAUNCHES: usize = 16;
const LAG_MARKS: usize = 3;

/// How a GPU is to be used.
#[derive(Debug, Clone, Default)]
pub struct CudaOptions {
    /// Which GPU, as the driver counts them.
    pub ordinal: usize,
    /// `Auto` and `BF16`, or `Fp8` where the GPU has it (compute capability 8.9).
    pub compute: Compute,
    /// Forced variants; see `names`.
    pub kernels: Vec<KernelChoice>,
    /// Host memory that may be pinned for weights that pass in every step, beside the staging ring.
    pub pinned_bytes: u64,
    /// Runs that take less than this many seconds are recorded as CUDA graphs; `None` is 0.05. Launching costs some microseconds a kernel, which only short
    /// runs feel, and a replayed run cannot be cancelled within.
    pub record_below_seconds: Option<f64>,
}

/// See `CudaOptions::record_below_seconds`.
const RECORD_BELOW_SECONDS: f64 = 0.05;

/// One GPU that the driver lists.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub ordinal: usize,
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    pub total_bytes: u64,
    /// CUDA version of the driver, as 1000 * major + 10 * minor.
    pub driver: i32,
    /// `Compute::Fp8` is possible.
    pub fp8: bool,
    /// Why it cannot be used, if it cannot.
    pub unusable: Option<String>,
}

/// Whether this machine has an NVIDIA driver at all.
pub fn driver_present() -> bool {
    driver::present()
}

/// The GPUs of this machine; an error says why there are none. Makes no context.
pub fn gpus() -> Result<Vec<Gpu>> {
    (0..driver::count()?)
        .map(|ordinal| {
            let facts = match driver::facts(ordinal) {
                Ok(facts) => facts,
                // One that has fallen off the bus is no reason to forget the others.
                Err(e) => {
                    return Ok(Gpu {
                        ordinal: ordinal as usize,
                        name: "unknown".into(),
                        capability: (0, 0),
                        total_bytes: 0,
                        driver: 0,
                        fp8: false,
                        unusable: Some(e.to_string()),
                    });
                }
            };
            let unusable = too_old(facts.capability).then(|| {
                format!(
                    "compute capability {}.{}, 8.0 or newer is needed",
                    facts.capability.0, facts.capability.1
                )
            });
            Ok(Gpu {
                ordinal: ordinal as usize,
                name: facts.name,
                capability: facts.capability,
                total_bytes: facts.total_bytes,
                driver: facts.driver,
                fp8: multiplies_fp8(facts.capability, facts.driver),
                unusable,
            })
        })
        .collect()
}

/// Whether there are FP8 products for a GPU of `capability` with a driver of `driver`.
fn multiplies_fp8(capability: (u32, u32), driver: i32) -> bool {
    let tables = linear_fp8::LINEAR_FP8.iter().chain(linear_hopper::LINEAR_HOPPER);
    tables.filter(|v| v.name.contains("_w8a8_")).any(|v| choice::runs(v.arch, capability, driver))
}

/// The kernels use `cp.async` and BF16 tensor cores.
fn too_old(capability: (u32, u32)) -> bool {
    capability < (8, 0)
}

/// A GPU.
pub struct CudaBackend {
    // Fields are dropped in this order: what runs, then what it uses, the context last.
    uploads: Uploads,
    graph: Option<(u64, Graph)>,
    compute: Stream,
    /// By module and entry.
    functions: HashMap<(&'static str, &'static str), Function>,
    memory: Buffer,
    context: Arc<Context>,
    caps: Caps,
    choice: Choice,
    layout: Layout,
    weights: HashMap<WeightKey, Held>,
    /// The run being recorded.
    recording: Option<u64>,
    /// Runs are recorded at all: until that fails once.
    records: bool,
    /// Runs that took the GPU less than this many seconds are worth recording.
    record_below_seconds: f64,
    /// Begin and end of the last run that was not replayed.
    timed: (Option<Event>, Option<Event>),
    /// Points that the GPU has yet to pass, oldest first, and launches since the last.
    behind: VecDeque<Event>,
    since: usize,
    events: Arc<EventPool>,
}

/// A point in a backend's queue, for timing.
pub struct Mark(Event);

impl CudaBackend {
    /// Opens a GPU and compiles the kernels for it (the driver keeps them in a cache of its own).
    pub fn new(options: CudaOptions) -> Result<CudaBackend> {
        let CudaOptions { ordinal, compute, kernels, pinned_bytes, record_below_seconds } = options;
        let fp8 = match compute {
            Compute::Auto | Compute::BF16 => false,
            Compute::Fp8 => true,
            Compute::F32 => {
                return Err(compute
                    .refused("auto, bf16 or fp8 on CUDA")
                    .try_("--device cpu --compute f32"));
            }
            Compute::F16 => return Err(compute.refused("auto, bf16 or fp8 on CUDA")),
        };
        let name = format!("cuda:{ordinal}");
        let count = driver::count()?;
        let index = i32::try_from(ordinal).ok().filter(|&n| n < count).ok_or_else(|| {
            Error::device("there is no such GPU")
                .at(&name)
                .found(ordinal)
                .expected(format!("0 to {}", count - 1))
        })?;
        let facts = driver::facts(index)?;
        let (major, minor) = facts.capability;
        if too_old(facts.capability) {
            return Err(Error::device("this GPU is too old for the CUDA kernels")
                .at(&name)
                .found(format!("{}, compute capability {major}.{minor}", facts.name))
                .expected("8.0 or newer (RTX 30 series, A100)")
                .try_("--device cpu"));
        }
        if fp8 && !multiplies_fp8(facts.capability, facts.driver) {
            let cuda = format!("CUDA {}.{}", facts.driver / 1000, facts.driver % 1000 / 10);
            return Err(Error::argument("no FP8 products on this GPU with this driver")
                .at("--compute")
                .found(format!("{}, compute capability {major}.{minor}, {cuda}", facts.name))
                .expected(
                    "8.9, 9.0, or 12.0 and newer (RTX 40 and 50 series, H100), CUDA 12.4 or newer",
                )
                .try_("--compute auto: FP8 weights are used all the same, computed in BF16"));
        }
        let device = Device {
            capability: facts.capability,
            processors: facts.processors,
            shared_bytes: facts.shared_bytes,
            l2_bytes: facts.l2_bytes,
            fp8,
        };
        let choice = Choice::new(device, facts.driver, kernels)?;

        let nvml = Nvml::open(&facts.bus);
        let before = nvml.as_ref().and_then(Nvml::used);
        let context = Context::open(index)?;
        let compute = Stream::new(&context)?;
        let functions = functions(&context, &choice).map_err(|e| e.at(&name))?;
        let events = Arc::new(EventPool::new(&context));
        let uploads = Uploads::new(&context, &events, pinned_bytes)?;
        let (free_bytes, memory_bytes) = context.memory()?;
        let after = nvml.as_ref().and_then(Nvml::used);
        // Other programs come and go while the driver compiles: what cannot be a context is not believed.
        let measured = before.zip(after).and_then(|(before, after)| after.checked_sub(before));
        let context_bytes =
            measured.filter(|n| PLAUSIBLE_BYTES.contains(n)).unwrap_or(ALLOWANCE_BYTES);
        let overhead_bytes = context_bytes + GRAPH_BYTES;
        let caps = Caps {
            name,
            description: format!(
                "{}, compute capability {major}.{minor}, {} SMs, CUDA {}.{}{}",
                facts.name,
                facts.processors,
                facts.driver / 1000,
                facts.driver % 1000 / 10,
                if fp8 { ", fp8" } else { "" }
            ),
            memory_bytes,
            // What recorded runs will take is counted as overhead, so it is not free.
            free_bytes: free_bytes.saturating_sub(GRAPH_BYTES),
            overhead_bytes,
            granularity: GRANULARITY,
            activation: DType::BF16,
            in_place_weights: false,
            grain: Grain::whole(ALIGNMENT),
            pins: true,
            reopens: false,
        };
        Ok(CudaBackend {
            uploads,
            graph: None,
            compute,
            functions,
            memory: Buffer::new(&context, 0)?,
            context,
            caps,
            choice,
            layout: Layout::default(),
            weights: HashMap::new(),
            recording: None,
            records: true,
            record_below_seconds: record_below_seconds.unwrap_or(RECORD_BELOW_SECONDS),
            timed: (None, None),
            behind: VecDeque::new(),
            since: 0,
            events,
        })
    }

    /// Forces other variants than those given at the start.
    pub fn force(&mut self, kernels: Vec<KernelChoice>) -> Result<()> {
        self.choice.force(kernels)
    }

    /// Device memory that is free now, in bytes.
    pub fn free_bytes(&self) -> Result<u64> {
        self.context.bind()?;
        Ok(self.context.memory()?.0)
    }

    /// A point in the queue of steps, now.
    pub fn mark(&mut self) -> Result<Mark> {
        let event = Event::new(&self.context, true)?;
        event.record(&self.compute)?;
        Ok(Mark(event))
    }

    /// Seconds that the GPU took from one point to another; waits for the later one.
    pub fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        to.0.synchronize()?;
        to.0.seconds_since(&from.0)
    }

    /// Seconds that copying `bytes` from pinned memory to the GPU takes, with nothing else to do: the rate that streaming is measured against.
    pub fn time_upload(&mut self, bytes: usize) -> Result<f64> {
        let from = driver::Pinned::new(&self.context, bytes)?;
        let to = Buffer::new(&self.context, bytes)?;
        // SAFETY: the buffer is as large; both outlive the copies, which are waited for.
        unsafe { self.compute.upload(to.address, from.bytes())? };
        let start = self.mark()?;
        // SAFETY: as above.
        unsafe { self.compute.upload(to.address, from.bytes())? };
        let end = self.mark()?;
        let seconds = self.seconds(&start, &end);
        self.compute.synchronize()?;
        seconds
    }

    /// The address of byte `offset` of the arena, `bytes` of which are meant.
    fn arena(&self, offset: usize, bytes: usize) -> Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.layout.arena_bytes => Ok(self.memory.address + offset as u64),
            _ => Err(Error::memory("a tensor lies outside the arena")
                .at(&self.caps.name)
                .found(format!("{bytes} bytes at {offset}"))
                .expected(format!("an end within {}", self.layout.arena_bytes))),
        }
    }

    /// What is recorded is thrown away: something else is wanted.
    fn stop_recording(&mut self) {
        if self.recording.take().is_some() {
            self.compute.discard_capture();
        }
    }

    /// Marks a point of a run that may be worth recording next time.
    fn point(&self) -> Option<Event> {
        let event = Event::new(&self.context, true).ok()?;
        event.record(&self.compute).ok()?;
        Some(event)
    }

    /// Whether the last run was so short that launching it costs.
    fn worth_recording(&self) -> bool {
        let (Some(begin), Some(end)) = &self.timed else { return false };
        let seconds = end.synchronize().and_then(|()| end.seconds_since(begin));
        self.records && seconds.is_ok_and(|s| s < self.record_below_seconds)
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let function = self
            .functions
            .get_mut(&(launch.kernel.module, launch.kernel.entry))
            .ok_or_else(|| {
                Error::device("a kernel was not compiled")
                    .at(&self.caps.name)
                    .found(launch.kernel.entry)
            })?;
        if !function.takes(launch.kernel) {
            return Err(Error::device("a kernel takes other parameters than it is given")
                .at(launch.kernel.entry));
        }
        function.allow_shared(launch.kernel.shared)?;
        // SAFETY: every address comes from `arena` or from a loaded weight, whose sizes `steps` takes from the shapes that the plan was made for.
        unsafe { self.compute.launch(function, launch) }
    }

    /// Keeps the GPU from falling far behind the host.
    fn hold_back(&mut self, launches: usize) -> Result<()> {
        self.since += launches;
        if self.since < LAG_LAUNCHES || self.recording.is_some() {
            return Ok(());
        }
        self.since = 0;
        let event = self.events.take()?;
        event.record(&self.compute)?;
        self.behind.push_back(event);
        if self.behind.len() > LAG_MARKS {
            let oldest = self.behind.pop_front().expect("more than one");
            oldest.synchronize()?;
            self.events.put(oldest);
        }
        Ok(())
    }
}

/// Compiles every module that this device and its driver can run, and finds all their kernels: from then on the device's memory changes by `reserve`, and a little by recorded runs.
fn functions(
    context: &Arc<Context>,
    choice: &Choice,
) -> Result<HashMap<(&'static str, &'static str), Function>> {
    type Loaded = Vec<((&'static str, &'static str), Function)>;
    // The first time, the driver compiles: a second or so for each module, so they are compiled side by side.
    let load = |source: &'static modules::Source| -> Result<Loaded> {
        context.bind()?;
        let module = Module::load(context, source.name, source.ptx)?;
        let function = |(entry, parameters): (&'static str, Vec<usize>)| {
            Ok(((source.name, entry), module.function(entry, parameters)?))
        };
        modules::entries(source.ptx).into_iter().map(function).collect()
    };
    let wanted = modules::SOURCES.iter().filter(|s| choice.runs(s.arch));
    let loaded: Vec<Loaded> = std::thread::scope(|scope| {
        let threads: Vec<_> = wanted.map(|source| scope.spawn(move || load(source))).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, Result<_>>| {
            t.join().unwrap_or_else(|_| Err(Error::device("the driver's compiler failed")))
        };
        threads.into_iter().map(join).collect::<Result<_>>()
    })?;
    Ok(loaded.into_iter().flatten().collect())
}

impl Backend for CudaBackend {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn weight_bytes(&self, weight: &HostWeight, how: Use) -> usize {
        Form::of(weight, how, TYPES).bytes
    }

    fn scratch_bytes<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> usize {
        steps::needs(&self.choice, op, weight).unwrap_or(0)
    }

    fn can_run<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> Result<()> {
        steps::needs(&self.choice, op, weight).map(|_| ())
    }

    fn reserve(&mut self, layout: Layout, peak_bytes: u64) -> Result<()> {
        self.context.bind()?;
        self.stop_recording();
        self.uploads.cancel_all();
        self.sync()?;
        self.graph = None;
        self.weights.clear();
        self.layout = Layout::default();
        let bytes = layout.bytes(GRANULARITY).max(peak_bytes) as usize;
        if self.memory.bytes == bytes {
            self.layout = layout;
            return Ok(());
        }
        // The old memory goes first: both at once would break the promise.
        self.memory = Buffer::new(&self.context, 0)?;
        // Where the driver makes room by moving memory to the host (Windows), it would not refuse, and everything would crawl.
        let (free, _) = self.context.memory()?;
        if bytes as u64 > free {
            return Err(Error::memory("the GPU has less memory free than was planned")
                .at(&self.caps.name)
                .found(units::bytes(free))
                .expected(units::bytes(bytes as u64))
                .try_("a smaller --vram or picture, or end other programs that use the GPU"));
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
        let (from, offset, room, keep) = match place {
            Place::Resident(offset) => {
                (self.layout.arena_bytes, offset, self.layout.resident_bytes, false)
            }
            Place::Ring { offset, again } => (
                self.layout.arena_bytes + self.layout.resident_bytes,
                offset,
                self.layout.ring_bytes,
                again,
            ),
        };
        if offset.checked_add(form.bytes).is_none_or(|end| end > room) {
            return Err(Error::memory("a weight does not fit where it should lie")
                .at(&self.caps.name)
                .found(format!("{} bytes at {offset}", form.bytes))
                .expected(format!("an end within {room}")));
        }
        let address = self.memory.address + (from + offset) as u64;
        let pieces = form.pieces(weight, how);
        self.uploads.request(key, address, pieces, keep, &self.compute)?;
        self.weights.insert(key, Held { form, address, rows: weight.rows, cols: weight.cols });
        Ok(())
    }

    fn forget(&mut self, key: WeightKey) -> Result<()> {
        if self.weights.remove(&key).is_some() {
            // What a graph reads must stay.
            self.graph = None;
            self.uploads.cancel(key);
        }
        Ok(())
    }

    fn begin(&mut self, run: Option<Run>) -> Result<bool> {
        self.context.bind()?;
        self.stop_recording();
        let Some(Run { id, done }) = run else { return Ok(false) };
        if let Some((recorded, graph)) = &self.graph
            && *recorded == id
        {
            // SAFETY: `reserve` and `forget` drop the graph before the memory that it uses goes.
            unsafe { self.compute.replay(graph) }?;
            return Ok(true);
        }
        // The first run brings the weights; what waits for another stream cannot be recorded.
        if done >= 1 && self.worth_recording() {
            self.graph = None;
            for key in self.weights.keys() {
                self.uploads.wait_for(*key, &self.compute)?;
            }
            match self.compute.begin_capture() {
                Ok(()) => self.recording = Some(id),
                Err(_) if self.context.health.alive().is_ok() => self.records = false,
                Err(e) => return Err(e),
            }
        }
        self.timed = (if self.recording.is_none() { self.point() } else { None }, None);
        Ok(false)
    }

    fn run(&mut self, step: &Step, places: &Places) -> Result<()> {
        self.context.bind()?;
        for w in step.op.weights() {
            if self.recording.is_none() {
                self.uploads.wait_for(places.key(w), &self.compute)?;
            }
        }
        let launches = steps::launches(self, &step.op, places)?;
        launches.iter().try_for_each(|l| self.launch(l))?;
        self.hold_back(launches.len())
    }

    fn end(&mut self) -> Result<bool> {
        let Some(id) = self.recording.take() else {
            if self.timed.0.is_some() {
                self.timed.1 = self.point();
            }
            return Ok(true);
        };
        // SAFETY: as in `begin`.
        let replayed =
            self.compute.end_capture().and_then(|g| unsafe { self.compute.replay(&g) }.map(|()| g));
        match replayed {
            Ok(graph) => {
                self.graph = Some((id, graph));
                Ok(true)
            }
            // No room for a graph, or a driver that records no such thing: it goes without.
            Err(_) if self.context.health.alive().is_ok() => {
                self.records = false;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    fn allow_host(&mut self, bytes: u64) {
        self.uploads.limit_kept(bytes);
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.context.bind()?;
        self.stop_recording();
        let to = self.arena(offset, bytes.len())?;
        // SAFETY: the range lies in the arena; the copy is waited for.
        let queued = unsafe { self.compute.upload(to, bytes) };
        let done = self.compute.synchronize();
        queued.and(done)
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.context.bind()?;
        self.stop_recording();
        let from = self.arena(offset, bytes.len())?;
        // SAFETY: the range lies in the arena.
        unsafe { self.compute.download(from, bytes) }
    }

    fn is_lost(&self) -> bool {
        self.context.health.alive().is_err()
    }

    fn sync(&mut self) -> Result<()> {
        self.context.bind()?;
        self.stop_recording();
        self.behind.drain(..).for_each(|event| self.events.put(event));
        self.compute.synchronize()
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Nothing may run on while memory goes; errors have nobody left to tell.
        let _ = self.context.bind();
        self.stop_recording();
        self.uploads.cancel_all();
        self.compute.drain();
    }
}
