//! How the engine runs, apart from what it draws.

use crate::backend::{Compute, Device, KernelChoice};

/// How the engine runs, apart from what it draws.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunOptions {
    /// The device.
    pub device: Device,
    /// Bound on device memory, in bytes; `None` is chosen from what is free.
    pub vram_bytes: Option<u64>,
    /// Bound on host memory, in bytes; `None` is chosen from what is free.
    pub ram_bytes: Option<u64>,
    /// The arithmetic.
    pub compute: Compute,
    /// Forced kernel variants.
    pub kernels: Vec<KernelChoice>,
    /// Worker threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Neither read nor write text embeddings in the cache folder.
    pub no_cache: bool,
}
