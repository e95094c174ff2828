//! Any GPU that Vulkan, Metal or DirectX 12 reaches, by shaders of our own (`shaders/`), which are
//! embedded as WGSL and translated by wgpu.
//!
//! Device memory is the arena, the resident weights and the ring, each in buffers of at most the
//! adapter's size (`space`), and a few staging buffers; all of it is counted. There is one queue:
//! steps are recorded and submitted in portions of about a tenth of a second (`submit`). Weights
//! come from a thread that reads files and puts its copies between them (`uploads`). The files
//! named like operations choose shaders and compute their parameters; they are plain functions,
//! which tests call without an adapter.

mod adapter;
mod adapters;
mod attention;
mod backend;
mod bindings;
mod conv2d;
mod device;
mod elementwise;
mod group_norm;
mod latents;
mod launch;
mod linear;
mod lower;
mod norm;
mod open;
mod passage;
mod pipelines;
mod space;
mod submit;
mod testing;
mod uploads;
mod vulkan;

pub use adapters::{Adapter, AdapterKind, adapters, candidates, hardware_present};
pub use backend::WgpuBackend;
pub use launch::{BINDINGS, Constants, Needs, PARAMS_BYTES, Shader, WgpuDevice};
#[doc(hidden)]
pub use open::TestLimits;
pub use open::WgpuOptions;

use super::gpu;
use launch::Wgpu;

/// The hint if an operation is too large for the adapter.
const SMALLER: &str =
    "a smaller image, fewer images at a time ({count}), {compute=bf16}, or {device=cpu}";

/// The names of all operations that have shaders.
pub fn ops() -> impl Iterator<Item = &'static str> {
    gpu::operations().into_iter()
}

/// The variants of `op`, best first, each with what it needs of an adapter; `None` if there is no
/// such operation.
pub fn names(op: &str) -> Option<Vec<(&'static str, Needs)>> {
    gpu::names::<Wgpu>(op)
}

/// Every shader with every set of constants that variants use, and what it needs: for tests that
/// check shaders without an adapter.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    [
        linear::shaders(),
        attention::shaders(),
        conv2d::shaders(),
        group_norm::shaders(),
        norm::shaders(),
        adapter::shaders(),
        elementwise::shaders(),
        latents::shaders(),
    ]
    .concat()
}
