//! The GPUs that Vulkan, Metal or DirectX 12 reach: the list, its order, and what each of them
//! offers.

use wgpu::{Backends, DeviceType, Features, Limits};

use super::launch::{BINDINGS, PARAMS_BYTES};
use super::vulkan;
use crate::backend::Grain;
use crate::backend::form;
use crate::error::{Error, Result};

/// Threads and bytes of workgroup memory that every shader may use: the minimum of WebGPU.
const THREADS: u32 = 256;
const SHARED_BYTES: u32 = 16_384;
/// Bytes of the largest buffer that is used, whatever the adapter allows: some drivers count bytes
/// in 32 bits.
const MOST_BUFFER_BYTES: u64 = 4 << 30;

/// The kinds of adapters, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// Part of the processor's chip; it uses the host's memory.
    Integrated,
    /// A GPU of a virtual machine, or of unknown kind.
    Other,
    /// A driver that computes on the processor.
    Software,
}

impl AdapterKind {
    /// The word that is shown to users.
    pub fn name(self) -> &'static str {
        match self {
            AdapterKind::Discrete => "discrete",
            AdapterKind::Integrated => "integrated",
            AdapterKind::Other => "other",
            AdapterKind::Software => "software",
        }
    }
}

/// One adapter, with what it offers.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Its number, as in `--device wgpu:0`.
    pub ordinal: usize,
    /// Its name, as the driver reports it.
    pub name: String,
    /// What kind of device it is.
    pub kind: AdapterKind,
    /// `vulkan`, `metal` or `dx12`.
    pub api: &'static str,
    /// Name and version of the driver, as the driver reports them.
    pub driver: String,
    /// Bytes that buffers may take, if the interface reports them; otherwise a cautious guess.
    pub memory_bytes: u64,
    /// Free bytes, if the interface reports them; otherwise a guess.
    pub free_bytes: u64,
    /// Whether the interface reports the memory.
    pub memory_known: bool,
    /// Bytes of the largest buffer.
    pub buffer_bytes: u64,
    /// Bytes of the largest window: the part of a buffer that a shader can access.
    pub binding_bytes: u64,
    /// Windows begin at multiples of this many bytes, 16 at least.
    pub alignment: u64,
    /// Bytes of workgroup memory.
    pub shared_bytes: u32,
    /// Threads of the largest workgroup.
    pub threads: u32,
    /// Threads of the smallest and the largest subgroup, if shaders may use subgroups.
    pub subgroups: Option<(u32, u32)>,
    /// Shaders may use f16.
    pub f16: bool,
    /// Shaders may use products of 8x8 matrices of f32.
    pub cooperative_matrix: bool,
    /// It has an instruction for products of 8-bit integers (four at a time, with their sum);
    /// otherwise these are slower than products of floats.
    pub int8: bool,
    /// Why it cannot be used, if it cannot.
    pub unusable: Option<String>,
}

impl Adapter {
    /// How memory of this adapter is divided: in buffers of at most [`Adapter::buffer_bytes`].
    pub fn grain(&self) -> Grain {
        let align = form::ALIGN.max(self.alignment as usize);
        let bytes = self.buffer_bytes.min(MOST_BUFFER_BYTES) as usize;
        Grain { align, chunk: (bytes / align * align).max(align) }
    }
}

/// An adapter with its handle. The instance must outlive everything that is made from the handle.
pub(super) struct FoundAdapter {
    pub raw: wgpu::Adapter,
    pub facts: Adapter,
    pub features: Features,
    pub limits: Limits,
}

/// All adapters: cards first, then GPUs that are part of a processor, then software.
pub(super) fn find() -> Vec<FoundAdapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: Backends::VULKAN | Backends::METAL | Backends::DX12,
        flags: wgpu::InstanceFlags::empty(),
        // If memory is short, some systems move it to the host instead of refusing, which makes
        // everything very slow. This setting refuses.
        memory_budget_thresholds: wgpu::MemoryBudgetThresholds {
            for_resource_creation: Some(97),
            for_device_loss: None,
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = pollster::block_on(
        instance.enumerate_adapters(Backends::VULKAN | Backends::METAL | Backends::DX12),
    );
    let mut found: Vec<FoundAdapter> = adapters.into_iter().map(facts).collect();
    // A card can be listed by Vulkan and by DirectX; Vulkan reports more.
    found.sort_by_key(|f| rank(&f.facts));
    found.iter_mut().enumerate().for_each(|(i, f)| f.facts.ordinal = i);
    found
}

/// Sorts by kind, best first, then Vulkan before other interfaces to the same card, as it reports
/// more.
fn rank(adapter: &Adapter) -> (AdapterKind, bool) {
    (adapter.kind, adapter.api != "vulkan")
}

/// The adapters that may be used if the user chose none. Software adapters are excluded: our own
/// code for processors is faster.
pub fn candidates(adapters: Vec<Adapter>) -> impl Iterator<Item = Adapter> {
    adapters.into_iter().filter(|a| a.kind != AdapterKind::Software)
}

/// Whether this machine may have a GPU. Drivers are not loaded for this: that takes a tenth of a
/// second, and some print to stderr.
pub fn hardware_present() -> bool {
    if cfg!(any(target_os = "linux", target_os = "android")) {
        // Kernel drivers: those of Mesa and other open ones, NVIDIA's (numbered), WSL's, Qualcomm's
        // and ARM's.
        let names =
            std::fs::read_dir("/dev").into_iter().flatten().flatten().map(|e| e.file_name());
        names.filter_map(|n| n.into_string().ok()).any(|n| {
            let nvidia = n
                .strip_prefix("nvidia")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            nvidia || ["dri", "dxg", "kgsl-3d0", "mali0"].contains(&n.as_str())
        })
    } else {
        true
    }
}

/// The adapters of this machine.
pub fn adapters() -> Vec<Adapter> {
    find().into_iter().map(|f| f.facts).collect()
}

fn facts(raw: wgpu::Adapter) -> FoundAdapter {
    let (info, features, limits) = (raw.get_info(), raw.features(), raw.limits());
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => AdapterKind::Discrete,
        DeviceType::IntegratedGpu => AdapterKind::Integrated,
        DeviceType::Cpu => AdapterKind::Software,
        DeviceType::VirtualGpu | DeviceType::Other => AdapterKind::Other,
    };
    let api = match info.backend {
        wgpu::Backend::Vulkan => "vulkan",
        wgpu::Backend::Metal => "metal",
        wgpu::Backend::Dx12 => "dx12",
        _ => "other",
    };
    let (memory_bytes, free_bytes, memory_known) = memory(&raw, kind);
    let facts = Adapter {
        ordinal: 0,
        name: info.name.clone(),
        kind,
        api,
        driver: [info.driver.as_str(), info.driver_info.as_str()].join(" ").trim().to_string(),
        memory_bytes,
        free_bytes,
        memory_known,
        buffer_bytes: limits.max_buffer_size,
        binding_bytes: limits.max_storage_buffer_binding_size,
        alignment: u64::from(limits.min_storage_buffer_offset_alignment).max(16),
        shared_bytes: limits.max_compute_workgroup_storage_size,
        threads: limits
            .max_compute_invocations_per_workgroup
            .min(limits.max_compute_workgroup_size_x),
        subgroups: features
            .contains(Features::SUBGROUP)
            .then_some((info.subgroup_min_size, info.subgroup_max_size)),
        f16: features.contains(Features::SHADER_F16),
        // The shader needs subgroups of 32 threads. Metal's GPUs have these, although Metal reports
        // a range.
        cooperative_matrix: features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
            && eight(&raw)
            && (api == "metal" || (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)),
        int8: int8(&raw, features, api),
        unusable: unusable(features, &limits),
    };
    FoundAdapter { raw, facts, features, limits }
}

/// Whether the adapter multiplies 8x8 matrices of f32, which the shaders use.
fn eight(raw: &wgpu::Adapter) -> bool {
    raw.cooperative_matrix_properties().iter().any(|p| {
        let f32s = p.ab_type == wgpu::CooperativeScalarType::F32
            && p.cr_type == wgpu::CooperativeScalarType::F32;
        (p.m_size, p.n_size, p.k_size) == (8, 8, 8) && f32s
    })
}

/// See [`Adapter::int8`].
fn int8(raw: &wgpu::Adapter, features: Features, api: &str) -> bool {
    match api {
        "vulkan" => vulkan::int8_products(raw).unwrap_or(false),
        // The instruction is part of shader model 6.4, which wgpu does not report; it reports rays
        // from 6.5 on.
        "dx12" => features.contains(Features::EXPERIMENTAL_RAY_QUERY),
        // Metal has none.
        _ => false,
    }
}

fn unusable(features: Features, limits: &Limits) -> Option<String> {
    let bindings = limits.max_storage_buffers_per_shader_stage;
    if !features.contains(Features::IMMEDIATES) || limits.max_immediate_size < PARAMS_BYTES as u32 {
        Some(format!(
            "shaders take {} bytes of parameters at most, {PARAMS_BYTES} are needed",
            limits.max_immediate_size
        ))
    } else if bindings < BINDINGS as u32 {
        Some(format!("shaders see {bindings} buffers at most, {BINDINGS} are needed"))
    } else if limits.max_compute_invocations_per_workgroup < THREADS {
        Some(format!(
            "workgroups of {} threads at most, {THREADS} are needed",
            limits.max_compute_invocations_per_workgroup
        ))
    } else if limits.max_compute_workgroup_storage_size < SHARED_BYTES {
        Some(format!(
            "{} bytes of workgroup memory, {SHARED_BYTES} are needed",
            limits.max_compute_workgroup_storage_size
        ))
    } else {
        None
    }
}

/// Bytes that buffers may take, how many of these are free, and whether the interface reported
/// them.
fn memory(raw: &wgpu::Adapter, kind: AdapterKind) -> (u64, u64, bool) {
    let host = crate::host::available_memory().unwrap_or(2 << 30);
    match (kind, vulkan::heap(raw)) {
        (AdapterKind::Software, _) => (host, host / 10 * 9, true),
        // A GPU without memory of its own leaves a part of the host's memory to other programs.
        (AdapterKind::Integrated, Some(heap)) => {
            let bytes = heap.bytes.min(host / 10 * 9);
            (bytes, heap.free_bytes.unwrap_or(bytes).min(bytes), true)
        }
        (AdapterKind::Integrated, None) => (host / 2, host / 2, false),
        // If the free bytes are not reported, a tenth is left to other programs.
        (_, Some(heap)) => (heap.bytes, heap.free_bytes.unwrap_or(heap.bytes / 10 * 9), true),
        (_, None) => (4 << 30, 4 << 30, false),
    }
}

/// The adapter with the number `ordinal`. It must be usable.
pub(super) fn get(ordinal: usize) -> Result<FoundAdapter> {
    let mut all = find();
    let count = all.len();
    if count == 0 {
        return Err(Error::device("no GPU is reached by Vulkan, Metal or DirectX 12")
            .at("wgpu")
            .try_(
                "install the GPU's Vulkan driver (on Debian, mesa-vulkan-drivers has those for \
                 AMD, Intel and software), or {device=cpu}",
            ));
    }
    if ordinal >= count {
        return Err(Error::device("there is no such GPU")
            .at(format!("wgpu:{ordinal}"))
            .found(ordinal)
            .expected(format!("0 to {}", count - 1))
            .try_("{:doctor} lists them"));
    }
    let found = all.swap_remove(ordinal);
    match &found.facts.unusable {
        None => Ok(found),
        Some(why) => Err(Error::device("this GPU cannot be used")
            .at(format!("wgpu:{ordinal}"))
            .found(format!("{}: {why}", found.facts.name))
            .try_("a newer driver, or {device=cpu}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, kind: AdapterKind, api: &'static str) -> Adapter {
        Adapter {
            ordinal: 0,
            name: name.into(),
            kind,
            api,
            driver: String::new(),
            memory_bytes: 0,
            free_bytes: 0,
            memory_known: true,
            buffer_bytes: 0,
            binding_bytes: 0,
            alignment: 16,
            shared_bytes: 0,
            threads: 0,
            subgroups: None,
            f16: false,
            cooperative_matrix: false,
            int8: false,
            unusable: None,
        }
    }

    #[test]
    fn cards_come_before_what_is_part_of_a_processor_and_software_is_never_taken_unasked() {
        let mut all = vec![
            adapter("llvmpipe", AdapterKind::Software, "vulkan"),
            adapter("card", AdapterKind::Discrete, "dx12"),
            adapter("chip", AdapterKind::Integrated, "vulkan"),
            adapter("lent", AdapterKind::Other, "vulkan"),
            adapter("card", AdapterKind::Discrete, "vulkan"),
        ];
        all.sort_by_key(rank);
        let names: Vec<_> = all.iter().map(|a| (a.name.as_str(), a.api)).collect();
        let expected = [
            ("card", "vulkan"),
            ("card", "dx12"),
            ("chip", "vulkan"),
            ("lent", "vulkan"),
            ("llvmpipe", "vulkan"),
        ];
        assert_eq!(names, expected);
        assert!(candidates(all).all(|a| a.name != "llvmpipe"));
        assert_eq!(
            candidates(vec![adapter("llvmpipe", AdapterKind::Software, "vulkan")]).count(),
            0
        );
    }
}
