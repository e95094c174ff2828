//! Which device a pipeline runs on, and the bounds on its memory and the host's.

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::{self, CudaBackend, CudaOptions};
use crate::backend::wgpu::{self, WgpuBackend, WgpuOptions};
use crate::backend::{Backend, Caps, Compute, Device};
use crate::error::{Error, Kind, Result};
use crate::event::Event;
use crate::units;

use super::request::RunOptions;

/// What the process holds beside plan and weights: code, stacks, tokenizers' working memory, image encoding.
pub const PROCESS_BYTES: u64 = 96 << 20;

/// The bound on the memory that the plan divides: the device's own, or the host's for the CPU.
#[derive(Debug, Clone)]
pub struct Budget {
    pub bytes: u64,
    pub source: String,
}

/// The bound on host memory, where the device has its own.
#[derive(Debug, Clone, Copy)]
pub struct HostLimit {
    pub bytes: u64,
    /// The user asked for it: what does not fit is refused.
    pub asked: bool,
}

/// A device with what bounds its plans.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    pub budget: Budget,
    pub host: HostLimit,
}

type Tell<'a> = &'a mut dyn FnMut(Event) -> Result<()>;

/// `auto` takes a GPU where there is one that works, else the CPU, and says which and why.
pub fn open(options: &RunOptions, tell: Tell) -> Result<Opened> {
    match options.device {
        Device::Auto => open_best(options, tell),
        Device::Cpu => open_cpu(options, tell),
        Device::Cuda(ordinal) => open_cuda(options, ordinal),
        Device::Wgpu(ordinal) => open_wgpu(options, ordinal),
    }
}

/// A GPU by CUDA, or else one by wgpu, a card before what is part of a processor; the CPU where there is none, since a driver that computes on the
/// processor is slower than that.
fn open_best(options: &RunOptions, tell: Tell) -> Result<Opened> {
    let serves =
        |names: &dyn Fn(&str, &str) -> bool| options.kernels.iter().all(|k| names(&k.op, &k.name));
    let by_cuda = serves(&|op, name| {
        cuda::names(op).is_some_and(|names| names.iter().any(|(n, _)| *n == name))
    });
    let by_wgpu = serves(&|op, name| {
        wgpu::names(op).is_some_and(|names| names.iter().any(|(n, _)| *n == name))
    });
    let compute = options.compute;
    let mut why = Vec::new();
    // What the user asked for and no GPU has: told if the CPU has it no more.
    let mut unfit = None;
    let mut refused = |name: String, e: Error| {
        let text = format!("{name} cannot be used: {e}");
        if e.kind() == Kind::Argument {
            unfit.get_or_insert(e);
        }
        text
    };
    if by_cuda && cuda::driver_present() {
        match best_cuda() {
            Err(reason) => why.push(reason),
            Ok(_) if matches!(compute, Compute::F32 | Compute::F16) => {
                why.push(format!("CUDA has no --compute {compute}"))
            }
            Ok(ordinal) => match open_cuda(options, ordinal) {
                Ok(opened) => {
                    tell(Event::Note(format!(
                        "drawing on cuda:{ordinal}: {}",
                        opened.backend.caps().description
                    )))?;
                    return Ok(opened);
                }
                Err(e) => why.push(refused(format!("cuda:{ordinal}"), e)),
            },
        }
    }
    if by_wgpu && compute != Compute::Fp8 && wgpu::hardware_present() {
        for adapter in wgpu::candidates(wgpu::adapters()) {
            let name = format!("wgpu:{} ({}, {})", adapter.ordinal, adapter.name, adapter.api);
            match adapter.unusable {
                Some(unusable) => why.push(format!("{name} cannot be used: {unusable}")),
                None => match open_wgpu(options, adapter.ordinal) {
                    Ok(opened) => {
                        let because = if why.is_empty() {
                            String::new()
                        } else {
                            format!("; {}", why.join("; "))
                        };
                        tell(Event::Note(format!("drawing on {name}{because}")))?;
                        return Ok(opened);
                    }
                    Err(e) => why.push(refused(name, e)),
                },
            }
        }
    }
    match open_cpu(options, tell) {
        Ok(opened) if why.is_empty() => {
            tell(Event::Note("drawing on the CPU: no GPU was found".into()))?;
            Ok(opened)
        }
        Ok(opened) => {
            tell(Event::Warning(format!("drawing on the CPU: {}", why.join("; "))))?;
            Ok(opened)
        }
        Err(e) => Err(unfit.unwrap_or(e)),
    }
}

/// The GPU with the most memory that CUDA reaches and can use, or why there is none.
fn best_cuda() -> std::result::Result<usize, String> {
    let gpus = cuda::gpus().map_err(|e| e.to_string())?;
    let usable = gpus.iter().filter(|g| g.unusable.is_none());
    usable.max_by_key(|g| (g.total_bytes, usize::MAX - g.ordinal)).map(|g| g.ordinal).ok_or_else(
        || {
            let each = gpus.iter().map(|g| {
                format!(
                    "cuda:{} ({}) cannot be used: {}",
                    g.ordinal,
                    g.name,
                    g.unusable.as_deref().unwrap_or_default()
                )
            });
            each.collect::<Vec<_>>().join("; ")
        },
    )
}

fn open_cpu(options: &RunOptions, tell: Tell) -> Result<Opened> {
    let backend = CpuBackend::new(CpuOptions {
        threads: options.threads,
        compute: options.compute,
        kernels: options.kernels.clone(),
        isa: None,
    })?;
    if options.vram_bytes.is_some() {
        tell(Event::Note("--vram has no effect on the CPU; --ram bounds its memory".into()))?;
    }
    let budget = match options.ram_bytes {
        Some(bytes) => Budget { bytes, source: "--ram".into() },
        None => {
            let (available, resident) = available_bytes(backend.caps().memory_bytes);
            // A tenth is left to the rest of the machine. What this process holds already is not in `available`.
            Budget {
                bytes: available / 10 * 9 + resident,
                source: format!("nine tenths of the {} that are free", units::bytes(available)),
            }
        }
    };
    Ok(Opened {
        backend: Box::new(backend),
        budget,
        host: HostLimit { bytes: u64::MAX, asked: false },
    })
}

fn open_cuda(options: &RunOptions, ordinal: usize) -> Result<Opened> {
    // How much may be pinned is known once a request is planned.
    let gpu = CudaOptions {
        ordinal,
        compute: options.compute,
        kernels: options.kernels.clone(),
        ..CudaOptions::default()
    };
    let backend = CudaBackend::new(gpu)?;
    let budget = device_budget(options.vram_bytes, backend.caps());
    Ok(Opened { backend: Box::new(backend), budget, host: host_limit(options) })
}

fn open_wgpu(options: &RunOptions, ordinal: usize) -> Result<Opened> {
    let gpu = WgpuOptions {
        ordinal,
        compute: options.compute,
        kernels: options.kernels.clone(),
        memory_bytes: options.vram_bytes,
        ..WgpuOptions::default()
    };
    let backend = WgpuBackend::new(gpu)?;
    let budget = device_budget(options.vram_bytes, backend.caps());
    Ok(Opened { backend: Box::new(backend), budget, host: host_limit(options) })
}

/// What `--ram` says, or half of what is free: pinned memory cannot be swapped out, and others want to live.
fn host_limit(options: &RunOptions) -> HostLimit {
    let (available, resident) = available_bytes(u64::MAX);
    let bytes = options.ram_bytes.unwrap_or(available / 2 + resident);
    HostLimit { bytes, asked: options.ram_bytes.is_some() }
}

/// Device memory that this process may use in all, context and code included.
fn device_budget(asked: Option<u64>, caps: &Caps) -> Budget {
    let reach = caps.free_bytes + caps.overhead_bytes;
    // A window that is opened meanwhile shall not end the run.
    let most = reach.saturating_sub(64 << 20);
    match asked {
        Some(bytes) if bytes <= most => Budget { bytes, source: "--vram".into() },
        Some(bytes) => Budget {
            bytes: most,
            source: format!("what is free of the {} that --vram allows", units::bytes(bytes)),
        },
        None => {
            // Other programs and the display want a little more now and then; where the driver has to make room, everything is slow.
            let margin = (caps.memory_bytes / 50).max(256 << 20);
            Budget {
                bytes: reach.saturating_sub(margin),
                source: format!(
                    "{} free, less {} for others",
                    units::bytes(reach),
                    units::bytes(margin)
                ),
            }
        }
    }
}

/// Host memory that is free, at most `total`, and the resident set of this process.
fn available_bytes(total: u64) -> (u64, u64) {
    let resident = resident_bytes();
    let half = if total == u64::MAX { 2 << 30 } else { total / 2 };
    let Ok(mut system) = sysinfo::System::new() else { return (half, resident) };
    system.refresh_memory();
    // Within a container: what its limit leaves, not what the machine has.
    let contained = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    match system.available_memory() {
        0 => (half, resident),
        n => (n.min(total).min(contained), resident),
    }
}

/// Resident set of this process in bytes; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
    let Ok(pid) = sysinfo::get_current_pid() else { return 0 };
    let Ok(mut system) = System::new() else { return 0 };
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing().with_memory(),
    );
    system.process(pid).map_or(0, |p| p.memory())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn a_bound_that_is_not_free_is_lowered_and_said_so() {
        let caps = Caps {
            name: "cuda:0".into(),
            description: String::new(),
            memory_bytes: 12 << 30,
            free_bytes: 10 << 30,
            overhead_bytes: 300 << 20,
            granularity: 2 << 20,
            activation: DType::BF16,
            in_place_weights: false,
            grain: crate::backend::Grain::whole(256),
            pins: true,
            reopens: false,
        };
        let asked = device_budget(Some(8 << 30), &caps);
        assert_eq!((asked.bytes, asked.source.as_str()), (8 << 30, "--vram"));
        let lowered = device_budget(Some(12 << 30), &caps);
        assert_eq!(lowered.bytes, (10 << 30) + (236 << 20));
        assert!(lowered.source.contains("--vram"), "{}", lowered.source);
        assert!(
            device_budget(None, &caps).bytes < (10 << 30) + (100 << 20),
            "others get something"
        );
    }
}
