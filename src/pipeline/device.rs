//! Which device a pipeline runs on: the one that the options name, or the best that works.

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::{self, CudaBackend, CudaOptions};
use crate::backend::wgpu::{self, WgpuBackend, WgpuOptions};
use crate::backend::{Backend, Compute, Device};
use crate::error::{Error, Kind, Result};
use crate::event::Event;

use super::budget::Bounds;
use super::request::RunOptions;

/// A device with what bounds its plans.
pub struct Opened {
    pub backend: Box<dyn Backend>,
    pub bounds: Bounds,
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
    let bounds = Bounds::of_cpu(options, backend.caps().memory_bytes);
    Ok(Opened { backend: Box::new(backend), bounds })
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
    let bounds = Bounds::of_gpu(options, backend.caps());
    Ok(Opened { backend: Box::new(backend), bounds })
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
    let bounds = Bounds::of_gpu(options, backend.caps());
    Ok(Opened { backend: Box::new(backend), bounds })
}
