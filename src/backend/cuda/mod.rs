//! NVIDIA GPUs from compute capability 8.0 on (RTX 30 series, A100), by kernels of our own
//! (`kernels/`), which are embedded as PTX and compiled by the driver.
//!
//! All device memory is one allocation: arena, resident weights, ring. Steps are queued on one
//! stream. Weights arrive on another, from a thread that reads files (`uploads`). A run whose
//! weights all have places of their own is recorded once as a CUDA graph and replayed
//! (`recording`). The files named like operations choose kernels and compute their parameters;
//! they are plain functions, which tests call without a GPU.

mod adapter;
mod arch;
mod attention;
mod attention_hopper;
mod attention_int8;
mod backend;
pub mod ceilings;
mod conv2d;
mod devices;
mod driver;
mod elementwise;
mod group_norm;
mod lag;
mod latents;
mod launch;
mod linear;
mod linear_fp8;
mod linear_hopper;
mod linear_int8;
mod linear_params;
mod lower;
mod measure;
mod modules;
mod norm;
mod nvml;
mod open;
mod recording;
mod slabs;
mod uploads;

pub use arch::Arch;
pub use backend::CudaBackend;
pub use devices::{GpuInfo, driver_present, gpus};
pub use measure::{KernelFacts, Mark};
pub use open::CudaOptions;

use super::gpu;
use launch::Cuda;

/// The names of all operations that have CUDA kernels.
pub fn ops() -> impl Iterator<Item = &'static str> {
    gpu::operations().into_iter()
}

/// The variants of `op`, best first, each with the GPUs that can run it; `None` if there is no such
/// operation.
pub fn names(op: &str) -> Option<Vec<(&'static str, Arch)>> {
    gpu::names::<Cuda>(op)
}

/// Every kernel of every family.
fn kernels() -> Vec<&'static launch::Kernel> {
    [
        &ceilings::KERNELS[..],
        linear::KERNELS,
        linear_fp8::KERNELS,
        linear_hopper::KERNELS,
        linear_int8::KERNELS,
        attention_hopper::KERNELS,
        attention_int8::KERNELS,
        attention::KERNELS,
        conv2d::KERNELS,
        group_norm::KERNELS,
        norm::KERNELS,
        adapter::KERNELS,
        elementwise::KERNELS,
        latents::KERNELS,
    ]
    .concat()
}
