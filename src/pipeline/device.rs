//! Opens the device of a pipeline: the one that the options name, or the best that works.

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::{self, CudaBackend, CudaOptions};
use crate::backend::wgpu::{self, WgpuBackend, WgpuOptions};
use crate::backend::{Backend, Compute, Device};
use crate::error::{Error, Kind, Result};
use crate::event::Event;

use super::budget::Bounds;
use super::request::RunOptions;

/// A device with the bounds on its memory and the host's.
pub struct Opened {
    /// The device.
    pub backend: Box<dyn Backend>,
    /// Bounds for its plans.
    pub bounds: Bounds,
}

/// Receives notes and warnings; its error ends the opening.
type Notify<'a> = &'a mut dyn FnMut(Event) -> Result<()>;

/// Opens the device that `options` name. [`Device::Auto`] takes a GPU if one works, else the CPU,
/// and sends a note which device it is and why.
pub fn open(options: &RunOptions, notify: Notify) -> Result<Opened> {
    match options.device {
        Device::Auto => open_best(options, notify),
        Device::Cpu => open_cpu(options, notify),
        Device::Cuda(ordinal) => open_cuda(options, ordinal),
        Device::Wgpu(ordinal) => open_wgpu(options, ordinal),
    }
}

/// A GPU by CUDA, else one by wgpu (a discrete GPU before an integrated one), else the CPU. A wgpu
/// driver that computes on the processor is not used, since it is slower than the CPU backend.
fn open_best(options: &RunOptions, notify: Notify) -> Result<Opened> {
    let mut search = Search { options, reasons: Vec::new(), argument: None };
    if let Some((opened, name)) = search.cuda().or_else(|| search.wgpu()) {
        let mut text = format!("running on {name}");
        for reason in &search.reasons {
            text += "; ";
            text += reason;
        }
        notify(Event::Note(text))?;
        return Ok(opened);
    }
    match open_cpu(options, notify) {
        Ok(opened) => {
            notify(match search.reasons.as_slice() {
                [] => Event::Note("running on the CPU: no GPU was found".into()),
                reasons => Event::Warning(format!("running on the CPU: {}", reasons.join("; "))),
            })?;
            Ok(opened)
        }
        Err(e) => Err(search.argument.unwrap_or(e)),
    }
}

/// The search for a GPU that works.
struct Search<'a> {
    options: &'a RunOptions,
    /// Why the GPUs so far cannot be used.
    reasons: Vec<String>,
    /// The first error about an option that a GPU does not offer: returned if the CPU does not
    /// offer it either.
    argument: Option<Error>,
}

impl Search<'_> {
    /// The best GPU by CUDA, with its name for messages.
    fn cuda(&mut self) -> Option<(Opened, String)> {
        if !self.has_kernels(cuda::names) || !cuda::driver_present() {
            return None;
        }
        let compute = self.options.compute;
        match best_cuda() {
            Err(reason) => self.reasons.push(reason),
            Ok(_) if matches!(compute, Compute::F32 | Compute::F16) => {
                self.reasons.push(format!("CUDA has no --compute {compute}"));
            }
            Ok(ordinal) => {
                let name = format!("cuda:{ordinal}");
                if let Some(opened) = self.accept(&name, open_cuda(self.options, ordinal)) {
                    let description = &opened.backend.caps().description;
                    let name = format!("{name}: {description}");
                    return Some((opened, name));
                }
            }
        }
        None
    }

    /// The best GPU by wgpu, with its name for messages.
    fn wgpu(&mut self) -> Option<(Opened, String)> {
        let fp8 = self.options.compute == Compute::Fp8;
        if !self.has_kernels(wgpu::names) || fp8 || !wgpu::hardware_present() {
            return None;
        }
        for adapter in wgpu::candidates(wgpu::adapters()) {
            let name = format!("wgpu:{} ({}, {})", adapter.ordinal, adapter.name, adapter.api);
            if let Some(why) = adapter.unusable {
                self.reasons.push(format!("{name} cannot be used: {why}"));
            } else if let Some(opened) =
                self.accept(&name, open_wgpu(self.options, adapter.ordinal))
            {
                return Some((opened, name));
            }
        }
        None
    }

    /// The opened device; an error is noted as the reason against it.
    fn accept(&mut self, name: &str, opened: Result<Opened>) -> Option<Opened> {
        let e = match opened {
            Ok(opened) => return Some(opened),
            Err(e) => e,
        };
        self.reasons.push(format!("{name} cannot be used: {e}"));
        if e.kind() == Kind::Argument {
            self.argument.get_or_insert(e);
        }
        None
    }

    /// Whether every kernel that the options name is among `names` of its operation.
    fn has_kernels<T>(&self, names: fn(&str) -> Option<Vec<(&'static str, T)>>) -> bool {
        self.options.kernels.iter().all(|kernel| {
            names(&kernel.op).is_some_and(|names| names.iter().any(|(n, _)| *n == kernel.name))
        })
    }
}

/// The usable GPU with the most memory that CUDA reaches, or why there is none.
fn best_cuda() -> Result<usize, String> {
    let gpus = cuda::gpus().map_err(|e| e.to_string())?;
    let usable = gpus.iter().filter(|g| g.unusable.is_none());
    if let Some(best) = usable.max_by_key(|g| (g.total_bytes, usize::MAX - g.ordinal)) {
        return Ok(best.ordinal);
    }
    let why = gpus.iter().map(|g| {
        let why = g.unusable.as_deref().unwrap_or_default();
        format!("cuda:{} ({}) cannot be used: {why}", g.ordinal, g.name)
    });
    Err(why.collect::<Vec<_>>().join("; "))
}

fn open_cpu(options: &RunOptions, notify: Notify) -> Result<Opened> {
    let backend = CpuBackend::new(CpuOptions {
        threads: options.threads,
        compute: options.compute,
        kernels: options.kernels.clone(),
        isa: None,
    })?;
    if options.vram_bytes.is_some() {
        notify(Event::Note("--vram has no effect on the CPU; --ram bounds its memory".into()))?;
    }
    let bounds = Bounds::of_cpu(options, backend.caps().memory_bytes);
    Ok(Opened { backend: Box::new(backend), bounds })
}

fn open_cuda(options: &RunOptions, ordinal: usize) -> Result<Opened> {
    // How much host memory may be pinned is known when a request is planned.
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
