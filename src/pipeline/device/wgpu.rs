//! Opens GPUs that Vulkan, Metal or DirectX 12 reach.

use super::{Opened, Search};
use crate::backend::wgpu::{self, WgpuBackend, WgpuOptions};
use crate::backend::{Backend, Compute};
use crate::error::Result;
use crate::pipeline::budget::Bounds;
use crate::pipeline::request::Options;

/// The best GPU by wgpu, with its name for messages.
pub fn search(search: &mut Search<'_>) -> Option<(Opened, String)> {
    let refused = search.options.compute == Compute::Fp8;
    if !search.has_kernels(wgpu::names) || refused || !wgpu::hardware_present() {
        return None;
    }
    for adapter in wgpu::candidates(wgpu::adapters()) {
        let name = format!("wgpu:{} ({}, {})", adapter.ordinal, adapter.name, adapter.api);
        if let Some(why) = adapter.unusable {
            search.reasons.push(format!("{name} cannot be used: {why}").into());
        } else if let Some(opened) = search.accept(&name, open(search.options, adapter.ordinal)) {
            return Some((opened, name));
        }
    }
    None
}

/// The adapter that is numbered `ordinal`.
pub fn open(options: &Options, ordinal: usize) -> Result<Opened> {
    let gpu = WgpuOptions {
        ordinal,
        compute: options.compute,
        kernels: options.kernels.clone(),
        memory_bytes: options.vram.map(|vram| vram.0),
        ..WgpuOptions::default()
    };
    let backend = WgpuBackend::new(gpu)?;
    let bounds = Bounds::of_gpu(options, backend.caps());
    Ok(Opened { backend: Box::new(backend), bounds })
}
