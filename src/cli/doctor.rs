//! `doctor`: devices, memory, the configuration file, and the models on this machine.

use serde::Serialize;

use super::args::How;
use super::config::Config;
use super::{models, output};
use crate::backend::Grain;
#[cfg(feature = "cuda")]
use crate::backend::cuda;
#[cfg(feature = "wgpu")]
use crate::backend::wgpu;
use crate::dtype::DType;
use crate::error::Result;
use crate::host;
use crate::pipeline::{Outlook, PublishedModel, outlook};
use crate::units;

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    system: String,
    cpu: Cpu,
    cuda: Cuda,
    wgpu: Vec<AdapterFacts>,
    memory: Memory,
    config: Config,
    #[serde(flatten)]
    models: models::Report,
}

#[derive(Debug, Serialize)]
struct Cpu {
    name: String,
    cores: usize,
    /// Instruction sets of this processor for which there are kernels.
    instructions: Vec<&'static str>,
    #[serde(flatten)]
    flux: FluxFacts,
}

/// How FLUX.1 and FLUX.2 with FP8 weights at 1024x1024 would run on a device; nothing for one that
/// cannot be used.
#[derive(Debug, Default, Serialize)]
struct FluxFacts {
    dev: Option<String>,
    schnell: Option<String>,
    klein: Option<String>,
}

impl FluxFacts {
    /// For a device that computes in `activation` and has `room` bytes for plans. The weights pass
    /// to it from `from`.
    fn of(grain: Grain, activation: DType, room: u64, from: &str) -> FluxFacts {
        let bytes = units::bytes;
        let facts = |model| match outlook(model, grain, activation, room) {
            Outlook::Resident(n) => format!("all weights stay in memory ({})", bytes(n)),
            Outlook::Streamed(n) => format!("{} pass from {from} in each step", bytes(n)),
            Outlook::TooSmall(n) => {
                format!("does not fit: {} are needed, {} are free", bytes(n), bytes(room))
            }
        };
        FluxFacts {
            dev: Some(facts(PublishedModel::Dev)),
            schnell: Some(facts(PublishedModel::Schnell)),
            klein: Some(facts(PublishedModel::Klein4b)),
        }
    }

    fn text(&self) -> String {
        let models = [("dev", &self.dev), ("schnell", &self.schnell), ("klein 4B", &self.klein)];
        let line = |(name, facts): (&str, &Option<String>)| {
            Some(format!("    {name} (fp8, 1024x1024): {}\n", facts.as_ref()?))
        };
        models.into_iter().filter_map(line).collect()
    }
}

/// Memory that a run leaves to other programs on a GPU with `total` bytes, and that of the context
/// and the kernels, as far as it is known before the GPU is opened.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn reserve(total: u64, context: u64) -> u64 {
    host::gpu_margin_bytes(total) + context
}

/// The NVIDIA GPUs, or why none was found.
#[derive(Debug, Serialize)]
struct Cuda {
    gpus: Vec<GpuFacts>,
    why_none: Option<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
struct GpuFacts {
    device: String,
    name: String,
    compute_capability: String,
    memory_bytes: u64,
    /// The newest CUDA version that the driver supports.
    cuda_version: String,
    /// FP8 matrix products (`--compute fp8`).
    fp8: bool,
    unusable: Option<String>,
    #[serde(flatten)]
    flux: FluxFacts,
    /// With `--kernels`.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<Vec<KernelRow>>,
}

/// What the driver made of one kernel.
#[derive(Debug, Serialize)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
struct KernelRow {
    name: &'static str,
    threads: u32,
    registers: u32,
    local_bytes: u32,
    shared_bytes: u32,
    /// How many blocks run on a multiprocessor at the same time.
    blocks: u32,
}

/// The kernels of a GPU, which is opened for that.
#[cfg(feature = "cuda")]
fn kernels(ordinal: usize) -> Result<Vec<KernelRow>> {
    let backend = cuda::CudaBackend::new(cuda::CudaOptions { ordinal, ..Default::default() })?;
    let row = |k: cuda::KernelFacts| KernelRow {
        name: k.name,
        threads: k.threads,
        registers: k.registers,
        local_bytes: k.local_bytes,
        shared_bytes: k.shared_bytes,
        blocks: k.blocks,
    };
    Ok(backend.kernel_facts()?.into_iter().map(row).collect())
}

fn kernels_text(kernels: &[KernelRow]) -> String {
    let head = format!(
        "    {:<42} {:>7} {:>9} {:>6} {:>7} {:>7}\n",
        "kernel", "threads", "registers", "local", "shared", "blocks"
    );
    let line = |k: &KernelRow| {
        format!(
            "    {:<42} {:>7} {:>9} {:>6} {:>7} {:>7}\n",
            k.name, k.threads, k.registers, k.local_bytes, k.shared_bytes, k.blocks
        )
    };
    head + &kernels.iter().map(line).collect::<String>()
}

#[cfg(not(feature = "cuda"))]
fn cuda_gpus(_with_kernels: bool) -> Result<Cuda> {
    Ok(Cuda { gpus: Vec::new(), why_none: Some("this build has no CUDA".into()) })
}

#[cfg(feature = "cuda")]
fn cuda_gpus(with_kernels: bool) -> Result<Cuda> {
    match cuda::gpus() {
        Err(e) => Ok(Cuda { gpus: Vec::new(), why_none: Some(e.to_string()) }),
        Ok(gpus) => {
            // The context and the kernels of a process take a few hundred MB.
            let room =
                |g: &cuda::GpuInfo| g.total_bytes.saturating_sub(reserve(g.total_bytes, 400 << 20));
            let flux = |g: &cuda::GpuInfo| match &g.unusable {
                None => FluxFacts::of(Grain::whole(256), DType::BF16, room(g), "the host"),
                Some(_) => FluxFacts::default(),
            };
            let facts = |g: cuda::GpuInfo| -> Result<GpuFacts> {
                let wanted = with_kernels && g.unusable.is_none();
                Ok(GpuFacts {
                    flux: flux(&g),
                    kernels: wanted.then(|| kernels(g.ordinal)).transpose()?,
                    device: format!("cuda:{}", g.ordinal),
                    name: g.name,
                    compute_capability: format!("{}.{}", g.capability.0, g.capability.1),
                    memory_bytes: g.total_bytes,
                    cuda_version: format!("{}.{}", g.driver / 1000, g.driver % 1000 / 10),
                    fp8: g.fp8,
                    unusable: g.unusable,
                })
            };
            let gpus = gpus.into_iter().map(facts).collect::<Result<_>>()?;
            Ok(Cuda { gpus, why_none: None })
        }
    }
}

/// An adapter of Vulkan, Metal or DirectX 12.
#[derive(Debug, Serialize)]
#[cfg_attr(not(feature = "wgpu"), allow(dead_code))]
struct AdapterFacts {
    device: String,
    name: String,
    kind: &'static str,
    api: &'static str,
    driver: String,
    memory_bytes: u64,
    /// False if the interface does not report it: `memory_bytes` is then a low estimate.
    memory_known: bool,
    buffer_bytes: u64,
    binding_bytes: u64,
    workgroup_bytes: u32,
    workgroup_threads: u32,
    subgroups: Option<(u32, u32)>,
    f16: bool,
    cooperative_matrix: bool,
    int8: bool,
    unusable: Option<String>,
    #[serde(flatten)]
    flux: FluxFacts,
}

#[cfg(not(feature = "wgpu"))]
fn adapters() -> Vec<AdapterFacts> {
    Vec::new()
}

#[cfg(feature = "wgpu")]
fn adapters() -> Vec<AdapterFacts> {
    let facts = |a: wgpu::Adapter| {
        let room = a.free_bytes.saturating_sub(reserve(a.memory_bytes, 100 << 20));
        let flux = match &a.unusable {
            None => FluxFacts::of(a.grain(), DType::BF16, room, "the host"),
            Some(_) => FluxFacts::default(),
        };
        AdapterFacts {
            device: format!("wgpu:{}", a.ordinal),
            kind: a.kind.name(),
            api: a.api,
            memory_bytes: a.memory_bytes,
            memory_known: a.memory_known,
            buffer_bytes: a.buffer_bytes,
            binding_bytes: a.binding_bytes,
            workgroup_bytes: a.shared_bytes,
            workgroup_threads: a.threads,
            subgroups: a.subgroups,
            f16: a.f16,
            cooperative_matrix: a.cooperative_matrix,
            int8: a.int8,
            flux,
            name: a.name,
            driver: a.driver,
            unusable: a.unusable,
        }
    };
    wgpu::adapters().into_iter().map(facts).collect()
}

fn adapter_text(a: &AdapterFacts) -> String {
    let bytes = units::bytes;
    let guess = if a.memory_known { "" } else { " (an estimate: set --vram)" };
    let mut text = format!(
        "{}: {}, {} by {}, {}{guess}; driver {}\n",
        a.device,
        a.name,
        a.kind,
        a.api,
        bytes(a.memory_bytes),
        a.driver
    );
    if let Some(why) = &a.unusable {
        return text + &format!("    cannot be used: {why}\n");
    }
    let has = [
        a.subgroups.map(|(least, most)| match least == most {
            true => format!("subgroups of {least}"),
            false => format!("subgroups of {least} to {most}"),
        }),
        a.f16.then(|| "f16".to_string()),
        a.cooperative_matrix.then(|| "cooperative matrices".to_string()),
        a.int8.then(|| "int8 products".to_string()),
    ];
    let has: Vec<String> = has.into_iter().flatten().collect();
    text += &format!(
        "    buffers to {}, windows to {}, workgroups of {} threads with {}; {}\n",
        bytes(a.buffer_bytes),
        bytes(a.binding_bytes),
        a.workgroup_threads,
        bytes(a.workgroup_bytes.into()),
        if has.is_empty() { "no extras".to_string() } else { has.join(", ") },
    );
    text + &a.flux.text()
}

#[derive(Debug, Serialize)]
struct Memory {
    total_bytes: u64,
    available_bytes: u64,
    /// The limit of the container, if there is one.
    limit_bytes: Option<u64>,
}

/// Prints the report, with a table of the kernels of each NVIDIA GPU if `with_kernels`. Having no
/// GPU or no model is not an error.
pub fn doctor(config: &Config, with_kernels: bool, how: How) -> Result<()> {
    let report = look(config, with_kernels)?;
    if how.json { output::json(&report) } else { output::text(&text(&report)) }
}

fn look(config: &Config, with_kernels: bool) -> Result<Report> {
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        system: host::operating_system(),
        cpu: Cpu {
            flux: cpu_flux(),
            name: host::processor_name().unwrap_or_else(|| "unknown".to_string()),
            cores: host::threads(),
            instructions: instructions(),
        },
        cuda: cuda_gpus(with_kernels)?,
        wgpu: adapters(),
        memory: memory(),
        config: config.clone(),
        models: models::report(),
    })
}

/// FLUX.1 on the CPU, in the memory that a run without a limit would use.
fn cpu_flux() -> FluxFacts {
    match host::available_memory() {
        Some(free) => {
            let room = (free / 10 * 9).saturating_sub(100 << 20);
            FluxFacts::of(Grain::whole(64), DType::F32, room, "the disk")
        }
        None => FluxFacts::default(),
    }
}

/// The memory of this machine; zeros if a sandbox hides it, so that the rest is still reported.
fn memory() -> Memory {
    host::memory_facts().map_or(
        Memory { total_bytes: 0, available_bytes: 0, limit_bytes: None },
        |facts| Memory {
            total_bytes: facts.total_bytes,
            available_bytes: facts.available_bytes,
            limit_bytes: facts.limit_bytes,
        },
    )
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    use crate::backend::cpu::amx::{Amx, amx};
    let sets = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    let amx = match amx() {
        Amx::Usable => Some("amx"),
        Amx::Refused if cfg!(not(target_os = "linux")) => Some("amx (used on Linux only)"),
        Amx::Refused => Some("amx (not permitted by the system)"),
        Amx::Absent => None,
    };
    sets.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).chain(amx).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

fn text(report: &Report) -> String {
    let Report { version, system, cpu, cuda, wgpu, memory, config, models } = report;
    let mut text = format!("flux-fast {version}, {system}\n");
    text += &format!("cpu: {}, {} threads, {}\n", cpu.name, cpu.cores, cpu.instructions.join(" "));
    text += &cpu.flux.text();
    let bytes = units::bytes;
    for gpu in &cuda.gpus {
        let GpuFacts { device, name, compute_capability, cuda_version, .. } = gpu;
        let memory = bytes(gpu.memory_bytes);
        text += &format!("{device}: {name}, {memory}, compute capability {compute_capability}");
        text += &format!(", driver CUDA {cuda_version}");
        text += if gpu.fp8 { ", fp8" } else { "" };
        text +=
            &gpu.unusable.as_ref().map_or(String::new(), |why| format!("; cannot be used: {why}"));
        text += "\n";
        text += &gpu.flux.text();
        text += &gpu.kernels.as_deref().map_or(String::new(), kernels_text);
    }
    text += &cuda.why_none.as_ref().map_or(String::new(), |why| format!("{why}\n"));
    text += &wgpu.iter().map(adapter_text).collect::<String>();
    if wgpu.is_empty() {
        text += "no GPU is reached by Vulkan, Metal or DirectX 12\n";
    }
    text += &format!(
        "memory: {} of {} available",
        bytes(memory.available_bytes),
        bytes(memory.total_bytes)
    );
    text +=
        &memory.limit_bytes.map_or(String::new(), |limit| format!(", limited to {}", bytes(limit)));
    text + "\n" + &config.text() + &models::text(models)
}
