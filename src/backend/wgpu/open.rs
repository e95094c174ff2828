//! Opening an adapter: its features, its limits, its description.

use std::collections::HashMap;

use super::adapters::{self, Adapter, AdapterKind, FoundAdapter};
use super::backend::{Memory, WgpuBackend};
use super::device::Shared;
use super::launch::WgpuDevice;
use super::passage::Passage;
use super::submit::Submitter;
use super::uploads::Uploads;
use crate::backend::form::Types;
use crate::backend::gpu::Choice;
use crate::backend::{Caps, Compute, Int8Use, KernelChoice};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Bytes of one staging buffer: large enough that the fixed cost of a copy does not show, small
/// enough to start soon.
const STAGING_BYTES: usize = 8 << 20;
/// Bytes that the driver takes besides our buffers: bookkeeping, command buffers, compiled shaders.
const ALLOWANCE_BYTES: u64 = 64 << 20;

/// How an adapter is to be used.
#[derive(Debug, Clone, Default)]
pub struct WgpuOptions {
    /// Which adapter, as [`adapters`](super::adapters()) counts them.
    pub ordinal: usize,
    /// `Auto` and `BF16` (BF16 activations, F32 products), `F32`, `Int8`, or `F16` where the
    /// adapter has it.
    pub compute: Compute,
    /// Forced variants; see [`names`](super::names).
    pub kernels: Vec<KernelChoice>,
    /// Bytes of each of the few staging buffers; 8 MiB if not given.
    pub staging_bytes: Option<usize>,
    /// The adapter's memory in bytes, used where the adapter does not report it.
    pub memory_bytes: Option<u64>,
    /// Limits of a smaller adapter.
    #[doc(hidden)]
    pub limits: TestLimits,
}

/// Limits to use as if the adapter had no larger ones, for tests.
#[doc(hidden)]
#[derive(Debug, Clone, Default)]
pub struct TestLimits {
    /// Bytes of one window (a storage buffer as a shader sees it).
    pub binding_bytes: Option<u64>,
    /// Bytes of one buffer.
    pub buffer_bytes: Option<u64>,
}

/// The element type of activations: BF16, except where everything is computed in F32.
pub(super) fn activation(compute: Compute) -> DType {
    if compute == Compute::F32 { DType::F32 } else { DType::BF16 }
}

/// The element types of weights.
pub(super) fn types(compute: Compute) -> Types {
    Types { f32: DType::F32, kernel: activation(compute) }
}

impl WgpuBackend {
    /// Opens an adapter. Shaders are compiled when they are first used.
    ///
    /// # Errors
    /// [`Kind::Device`](crate::error::Kind::Device) if there is no such adapter or it cannot be
    /// used; [`Kind::Argument`](crate::error::Kind::Argument) if it does not offer the arithmetic
    /// or a forced variant does not run on it.
    pub fn new(options: WgpuOptions) -> Result<WgpuBackend> {
        let WgpuOptions { ordinal, compute, kernels, limits, .. } = options;
        if compute == Compute::Fp8 {
            return Err(compute.refused("auto, bf16, f16, f32 or int8 by wgpu"));
        }
        let mut found = adapters::get(ordinal)?;
        let name = format!("wgpu:{ordinal}");
        if compute == Compute::F16 && !found.facts.f16 {
            return Err(Error::argument("no F16 products on this GPU")
                .at_parameter("compute")
                .found(&found.facts.name)
                .try_("{compute=auto}: F16 weights are used all the same, computed in F32"));
        }
        let (device, queue) = open(&found).map_err(|e| e.at(&name))?;
        let shared = Shared::new(device, queue, &name);
        let facts = &mut found.facts;
        facts.buffer_bytes = facts.buffer_bytes.min(limits.buffer_bytes.unwrap_or(u64::MAX));
        facts.binding_bytes = facts.binding_bytes.min(limits.binding_bytes.unwrap_or(u64::MAX));
        let device = device_of(facts, compute);
        let (binding_bytes, grain) = (device.binding_bytes, facts.grain());
        let choice = Choice::new(device, kernels)?;
        let staging_bytes = options.staging_bytes.unwrap_or(STAGING_BYTES).min(grain.chunk);
        let gpu = Submitter::new(shared.clone())?;
        let passage = Passage::new(&shared)?;
        let uploads = Uploads::new(&shared, staging_bytes)?;
        let overhead_bytes = shared.held.now() + ALLOWANCE_BYTES;
        // Where the size is a guess, the caller knows better.
        let told = options.memory_bytes.filter(|_| !facts.memory_known);
        let free_bytes = told.unwrap_or(facts.free_bytes).saturating_sub(overhead_bytes);
        let caps = Caps {
            name,
            description: describe(facts, compute),
            memory_bytes: told.unwrap_or(facts.memory_bytes),
            free_bytes,
            overhead_bytes,
            granularity: 1 << 16,
            activation: activation(compute),
            in_place_weights: false,
            grain,
            pins: false,
            reopens: true,
            int8: int8_use(compute, facts.int8),
        };
        Ok(WgpuBackend {
            uploads,
            gpu,
            caps,
            choice,
            types: types(compute),
            binding_bytes,
            memory: Memory::default(),
            weights: HashMap::new(),
            passage,
        })
    }

    /// Replaces the forced variants.
    ///
    /// # Errors
    /// As [`WgpuBackend::new`].
    pub fn force(&mut self, kernels: Vec<KernelChoice>) -> Result<()> {
        self.choice.force(kernels)
    }
}

/// Which products are computed in int8. Where the adapter has no instruction for them they are
/// slow, so that they must be asked for.
fn int8_use(compute: Compute, instruction: bool) -> Int8Use {
    match compute {
        Compute::Int8 => Int8Use::All,
        Compute::Auto if instruction => Int8Use::Stored,
        _ => Int8Use::Never,
    }
}

/// The facts by which variants are chosen.
fn device_of(adapter: &Adapter, compute: Compute) -> WgpuDevice {
    WgpuDevice {
        activation: activation(compute),
        half: compute == Compute::F16,
        // Windows are whole vectors.
        binding_bytes: adapter.binding_bytes / 16 * 16,
        alignment: adapter.alignment,
        shared_bytes: adapter.shared_bytes,
        threads: adapter.threads,
        f16: adapter.f16,
        subgroups: adapter.subgroups,
        cooperative_matrix: adapter.cooperative_matrix,
        software: adapter.kind == AdapterKind::Software,
    }
}

fn describe(adapter: &Adapter, compute: Compute) -> String {
    let extra = match compute {
        Compute::F32 => Some("f32"),
        Compute::F16 => Some("f16 products"),
        Compute::Int8 if adapter.int8 => Some("int8 products"),
        Compute::Int8 => Some("int8 products, emulated"),
        _ => None,
    };
    let facts = [&adapter.name, adapter.api, adapter.kind.name()];
    facts.into_iter().chain(extra).collect::<Vec<_>>().join(", ")
}

/// The device of an adapter, with all limits that it has and the features that shaders use.
fn open(found: &FoundAdapter) -> Result<(wgpu::Device, wgpu::Queue)> {
    let mut features = wgpu::Features::IMMEDIATES;
    features |= found.features & (wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP);
    let mut experimental = wgpu::ExperimentalFeatures::disabled();
    if found.facts.cooperative_matrix {
        features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        // SAFETY: the only experimental feature that is requested; one shader of ours uses it, as
        // the specification allows.
        experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
    }
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("flux-fast"),
        required_features: features,
        required_limits: found.limits.clone(),
        experimental_features: experimental,
        // Large buffers get memory of their own; for the few small ones, reserve little.
        memory_hints: wgpu::MemoryHints::Manual {
            suballocated_device_memory_block_size: 1 << 20..8 << 20,
        },
        ..Default::default()
    };
    pollster::block_on(found.raw.request_device(&descriptor)).map_err(|e| {
        Error::device("the GPU could not be opened")
            .found(e)
            .try_("update its driver, or {device=cpu}")
    })
}
