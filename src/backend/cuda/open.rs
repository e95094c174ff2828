//! Opening a GPU: its kernels, its memory, its description.

use std::collections::HashMap;
use std::sync::Arc;

use super::arch::CudaDevice;
use super::attention_int8;
use super::backend::{CudaBackend, FunctionKey, GRANULARITY};
use super::devices::{multiplies_fp8, too_old};
use super::driver::{self, Buffer, Context, EventPool, Facts, Function, Module, Stream};
use super::lag::Lag;
use super::modules::{self, Source};
use super::nvml::Nvml;
use super::recording::Recorder;
use super::uploads::Uploads;
use crate::backend::form;
use crate::backend::gpu::Choice;
use crate::backend::{Caps, Compute, Grain, Int8Use, KernelChoice, Layout};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Offsets in the arena are multiples of this: what TMA and vector loads need, and more.
const ALIGNMENT: usize = form::ALIGN;
/// Bytes assumed for context and code where nothing can measure them: about what a recent driver
/// takes on a large GPU.
const ALLOWANCE_BYTES: u64 = 600 << 20;
/// Bytes that context and code can take.
const PLAUSIBLE_BYTES: std::ops::RangeInclusive<u64> = 96 << 20..=1536 << 20;
/// Bytes set aside for recorded runs: some kilobytes for each of a thousand launches.
const GRAPH_BYTES: u64 = 16 << 20;
/// Default of [`CudaOptions::record_below_seconds`].
const RECORD_BELOW_SECONDS: f64 = 0.05;

/// How a GPU is to be used.
#[derive(Debug, Clone, Default)]
pub struct CudaOptions {
    /// Which GPU, as the driver counts them.
    pub ordinal: usize,
    /// `Auto`, `BF16` and `Int8`, or `Fp8` where the GPU has it (compute capability 8.9).
    pub compute: Compute,
    /// Forced variants; see [`names`](super::names).
    pub kernels: Vec<KernelChoice>,
    /// Host memory that may be pinned for weights that pass in every step, besides the staging
    /// chunks.
    pub pinned_bytes: u64,
    /// Runs that take less than this many seconds are recorded as CUDA graphs; 0.05 if not given.
    pub record_below_seconds: Option<f64>,
}

impl CudaBackend {
    /// Opens a GPU and compiles the kernels for it (the driver keeps them in a cache of its own).
    ///
    /// # Errors
    /// [`Kind::Device`](crate::error::Kind::Device) if there is no such GPU or it cannot be used;
    /// [`Kind::Argument`](crate::error::Kind::Argument) if it has no FP8 products or a forced
    /// variant does not run on it.
    pub fn new(options: CudaOptions) -> Result<CudaBackend> {
        let CudaOptions { ordinal, compute, kernels, pinned_bytes, record_below_seconds } = options;
        check_offered(compute)?;
        let int8 = match compute {
            Compute::Int8 => Int8Use::All,
            Compute::Auto => Int8Use::Stored,
            _ => Int8Use::Never,
        };
        let name = format!("cuda:{ordinal}");
        let (index, facts) = find(ordinal, compute, &name)?;
        let choice = Choice::new(CudaDevice::new(&facts, compute), kernels)?;

        let nvml = Nvml::open(&facts.bus);
        let before = nvml.as_ref().and_then(Nvml::used);
        let context = Context::open(index)?;
        let compute = Stream::new(&context)?;
        let functions = compile(&context, &choice.device).map_err(|e| e.at(&name))?;
        let events = Arc::new(EventPool::new(&context));
        let uploads = Uploads::new(&context, &events, pinned_bytes)?;
        let (free_bytes, memory_bytes) = context.memory()?;
        let after = nvml.as_ref().and_then(Nvml::used);
        // Other programs start and end while the driver compiles: implausible sizes are ignored.
        let measured = before.zip(after).and_then(|(before, after)| after.checked_sub(before));
        let context_bytes =
            measured.filter(|n| PLAUSIBLE_BYTES.contains(n)).unwrap_or(ALLOWANCE_BYTES);
        let caps = Caps {
            name,
            description: describe(&facts, &choice.device),
            memory_bytes,
            // CUDA graphs that are recorded later need `GRAPH_BYTES`. They count as overhead, not
            // as free memory.
            free_bytes: free_bytes.saturating_sub(GRAPH_BYTES),
            overhead_bytes: context_bytes + GRAPH_BYTES,
            granularity: GRANULARITY,
            activation: DType::BF16,
            in_place_weights: false,
            grain: Grain::whole(ALIGNMENT),
            pins: true,
            reopens: false,
            int8,
        };
        let below_seconds = record_below_seconds.unwrap_or(RECORD_BELOW_SECONDS);
        Ok(CudaBackend {
            uploads,
            recorder: Recorder::new(&context, below_seconds),
            compute,
            functions,
            memory: Buffer::new(&context, 0)?,
            lag: Lag::new(events),
            context,
            caps,
            choice,
            layout: Layout::default(),
            weights: HashMap::new(),
        })
    }

    /// Replaces the forced variants.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn force(&mut self, kernels: Vec<KernelChoice>) -> Result<()> {
        self.choice.force(kernels)
    }
}

/// What [`CudaOptions::compute`] can be.
const OFFERED: &str = "auto, bf16, fp8 or int8 on CUDA";

/// An error if CUDA does not have the arithmetic of `compute` on any GPU.
fn check_offered(compute: Compute) -> Result<()> {
    match compute {
        Compute::Auto | Compute::BF16 | Compute::Int8 | Compute::Fp8 => Ok(()),
        Compute::F32 => Err(compute.refused(OFFERED).try_("{device=cpu} {compute=f32}")),
        Compute::F16 => Err(compute.refused(OFFERED)),
    }
}

/// The driver's index of the GPU `ordinal`, and its facts.
fn find(ordinal: usize, compute: Compute, name: &str) -> Result<(i32, Facts)> {
    let count = driver::count()?;
    let index = i32::try_from(ordinal).ok().filter(|&n| n < count).ok_or_else(|| {
        Error::device("there is no such GPU")
            .at(name)
            .found(ordinal)
            .expected(format!("0 to {}", count - 1))
    })?;
    let facts = driver::facts(index)?;
    let (major, minor) = facts.capability;
    if too_old(facts.capability) {
        return Err(Error::device("this GPU is too old for the CUDA kernels")
            .at(name)
            .found(format!("{}, compute capability {major}.{minor}", facts.name))
            .expected("8.0 or newer (RTX 30 series, A100)")
            .try_("{device=cpu}"));
    }
    if compute == Compute::Fp8 && !multiplies_fp8(&CudaDevice::new(&facts, compute)) {
        let cuda = format!("CUDA {}.{}", facts.driver / 1000, facts.driver % 1000 / 10);
        return Err(Error::argument("no FP8 products on this GPU with this driver")
            .at_parameter("compute")
            .found(format!("{}, compute capability {major}.{minor}, {cuda}", facts.name))
            .expected(
                "8.9, 9.0, or 12.0 and newer (RTX 40 and 50 series, H100), CUDA 12.4 or newer",
            )
            .try_("{compute=auto}: FP8 weights are used all the same, computed in BF16"));
    }
    Ok((index, facts))
}

fn describe(facts: &Facts, device: &CudaDevice) -> String {
    let (major, minor) = facts.capability;
    format!(
        "{}, compute capability {major}.{minor}, {} SMs, CUDA {}.{}{}",
        facts.name,
        facts.processors,
        facts.driver / 1000,
        facts.driver % 1000 / 10,
        match (device.fp8, device.int8) {
            (true, _) => ", fp8",
            (_, true) if attention_int8::is_faster(device) => ", int8 with attention",
            (_, true) => ", int8",
            _ => "",
        }
    )
}

/// Compiles every module that `device` can run, and finds all its kernels. From then on, device
/// memory changes by `reserve`, and a little by recorded runs.
fn compile(context: &Arc<Context>, device: &CudaDevice) -> Result<HashMap<FunctionKey, Function>> {
    type Loaded = Vec<(FunctionKey, Function)>;
    let kernels = super::kernels();
    // The first time the driver compiles, about a second for each module: compile in parallel.
    let load = |source: &'static Source| -> Result<Loaded> {
        context.bind()?;
        let module = Module::load(context, source.name, source.ptx)?;
        let function = |(entry, parameters): (&'static str, Vec<usize>)| {
            let function = module.function(entry, parameters)?;
            let kernel = kernels.iter().find(|k| (k.module, k.entry) == (source.name, entry));
            function.allow_shared(kernel.map_or(0, |k| k.shared))?;
            Ok(((source.name, entry), function))
        };
        modules::entries(source.ptx).into_iter().map(function).collect()
    };
    let wanted = modules::SOURCES.iter().filter(|s| device.runs(s.arch));
    let loaded: Vec<Loaded> = std::thread::scope(|scope| {
        let start = |source| {
            std::thread::Builder::new()
                .spawn_scoped(scope, move || load(source))
                .map_err(|e| Error::device(format!("could not start a thread: {e}")))
        };
        let threads: Vec<_> = wanted.map(start).collect();
        let join = |thread: Result<std::thread::ScopedJoinHandle<'_, Result<_>>>| {
            let failed = |_| Err(Error::device("the driver's compiler failed"));
            thread?.join().unwrap_or_else(failed)
        };
        threads.into_iter().map(join).collect::<Result<_>>()
    })?;
    Ok(loaded.into_iter().flatten().collect())
}
