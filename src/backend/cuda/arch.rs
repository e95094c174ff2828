//! GPUs by their compute capability, and which code they can run.

/// The facts by which variants are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaDevice {
    /// Compute capability, such as (8, 6).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Shared memory that one block may have, in bytes (opt-in limit).
    pub shared_bytes: u32,
    pub l2_bytes: u32,
    /// CUDA version of the driver, as 1000 * major + 10 * minor.
    pub driver: i32,
    /// Matrix products may run in FP8 (`--compute fp8`).
    pub fp8: bool,
    /// Attention may run in 8-bit integers (`--compute int8`).
    pub int8: bool,
}

impl CudaDevice {
    /// Whether GPU and driver can run code for `arch`.
    pub fn runs(&self, arch: Arch) -> bool {
        // `mma.sync` in FP8 is emulated from 9.0 to 11.x, at a fraction of the speed.
        let emulated = arch == Arch::From(8, 9) && matches!(self.capability.0, 9..=11);
        arch.runs_on(self.capability) && self.driver >= arch.oldest_driver() && !emulated
    }
}

/// Which devices can run a PTX module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// This compute capability and all later ones.
    From(u32, u32),
    /// Exactly this one: `sm_90a` code is not forward compatible.
    Only(u32, u32),
}

impl Arch {
    /// Whether a GPU of `capability` can run it.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        match self {
            Arch::From(major, minor) => capability >= (major, minor),
            Arch::Only(major, minor) => capability == (major, minor),
        }
    }

    /// The oldest driver that reads PTX for it, as 1000 * major + 10 * minor of its CUDA version.
    pub fn oldest_driver(self) -> i32 {
        match self {
            Arch::From(8, 0) => 11080,
            // FP8 matrix instructions of sm_89 need PTX 8.4.
            _ => 12040,
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Arch::From(major, minor) => write!(f, "compute capability {major}.{minor} or newer"),
            Arch::Only(major, minor) => write!(f, "compute capability {major}.{minor}"),
        }
    }
}
