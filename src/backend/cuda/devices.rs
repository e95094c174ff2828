//! The NVIDIA GPUs of this machine.

use super::arch::CudaDevice;
use super::driver;
use super::linear_fp8::LINEAR_FP8;
use super::linear_hopper::LINEAR_HOPPER;
use crate::backend::Compute;
use crate::error::Result;

/// One GPU that the driver lists.
#[derive(Debug, Clone)]
pub struct GpuInfo {
    /// Its number, as in `--device cuda:0`.
    pub ordinal: usize,
    /// Its name, as the driver reports it.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// CUDA version of the driver, as 1000 * major + 10 * minor.
    pub driver: i32,
    /// [`Compute::Fp8`](crate::backend::Compute::Fp8) is possible.
    pub fp8: bool,
    /// Why it cannot be used, if it cannot.
    pub unusable: Option<String>,
}

/// Whether this machine has an NVIDIA driver.
pub fn driver_present() -> bool {
    driver::present()
}

/// The GPUs of this machine. Makes no context.
///
/// # Errors
/// [`Kind::Device`](crate::error::Kind::Device) if there is no GPU, with the reason.
pub fn gpus() -> Result<Vec<GpuInfo>> {
    let info = |ordinal: i32| {
        let facts = match driver::facts(ordinal) {
            Ok(facts) => facts,
            // A GPU that no longer answers does not hide the others.
            Err(e) => return broken(ordinal, e.to_string()),
        };
        let (major, minor) = facts.capability;
        GpuInfo {
            ordinal: ordinal as usize,
            unusable: too_old(facts.capability)
                .then(|| format!("compute capability {major}.{minor}, 8.0 or newer is needed")),
            fp8: multiplies_fp8(&CudaDevice::new(&facts, Compute::Fp8)),
            name: facts.name,
            capability: facts.capability,
            total_bytes: facts.total_bytes,
            driver: facts.driver,
        }
    };
    Ok((0..driver::count()?).map(info).collect())
}

fn broken(ordinal: i32, why: String) -> GpuInfo {
    GpuInfo {
        ordinal: ordinal as usize,
        name: "unknown".into(),
        capability: (0, 0),
        total_bytes: 0,
        driver: 0,
        fp8: false,
        unusable: Some(why),
    }
}

impl CudaDevice {
    /// The device with these `facts`, with the arithmetic of `compute`.
    pub(super) fn new(facts: &driver::Facts, compute: Compute) -> CudaDevice {
        CudaDevice {
            capability: facts.capability,
            processors: facts.processors,
            shared_bytes: facts.shared_bytes,
            l2_bytes: facts.l2_bytes,
            driver: facts.driver,
            fp8: compute == Compute::Fp8,
            int8: compute == Compute::Int8,
        }
    }
}

/// Whether there are FP8 products for `device`.
pub(super) fn multiplies_fp8(device: &CudaDevice) -> bool {
    let products = LINEAR_FP8.iter().chain(LINEAR_HOPPER).filter(|v| v.name.contains("_w8a8_"));
    { products }.any(|v| device.runs(v.needs))
}

/// Whether a GPU lacks what all kernels use: `cp.async` and BF16 tensor cores.
pub(super) fn too_old(capability: (u32, u32)) -> bool {
    capability < (8, 0)
}
