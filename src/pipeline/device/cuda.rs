//! Opens NVIDIA GPUs.

use super::{Opened, Search};
use crate::backend::cuda::{self, CudaBackend, CudaOptions};
use crate::backend::{Backend, Compute};
use crate::error::Result;
use crate::message::Message;
use crate::pipeline::budget::Bounds;
use crate::pipeline::request::Options;

/// The best GPU by CUDA, with its name for messages.
pub fn search(search: &mut Search<'_>) -> Option<(Opened, String)> {
    if !search.has_kernels(cuda::names) || !cuda::driver_present() {
        return None;
    }
    let compute = search.options.compute;
    match best_cuda() {
        Err(reason) => search.reasons.push(reason),
        Ok(_) if matches!(compute, Compute::F32 | Compute::F16) => {
            let compute = Message::parameter_with("compute", compute);
            search.reasons.push(Message::with("CUDA has no {}", [compute]));
        }
        Ok(ordinal) => {
            let name = format!("cuda:{ordinal}");
            if let Some(opened) = search.accept(&name, open(search.options, ordinal)) {
                let description = &opened.backend.caps().description;
                let name = format!("{name}: {description}");
                return Some((opened, name));
            }
        }
    }
    None
}

/// The usable GPU with the most memory that CUDA reaches, or why there is none.
fn best_cuda() -> Result<usize, Message> {
    let gpus = cuda::gpus().map_err(|e| e.message())?;
    let usable = gpus.iter().filter(|g| g.unusable.is_none());
    if let Some(best) = usable.max_by_key(|g| (g.total_bytes, usize::MAX - g.ordinal)) {
        return Ok(best.ordinal);
    }
    let why = gpus.iter().map(|g| {
        let why = g.unusable.as_deref().unwrap_or_default();
        format!("cuda:{} ({}) cannot be used: {why}", g.ordinal, g.name)
    });
    Err(why.collect::<Vec<_>>().join("; ").into())
}

/// The GPU that the driver numbers `ordinal`.
pub fn open(options: &Options, ordinal: usize) -> Result<Opened> {
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
