//! Which devices there are, and what they have.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::health::name;
use crate::error::{Error, Result};

/// The oldest driver that reads our baseline PTX (ISA 7.8): that of CUDA 11.8.
const OLDEST_DRIVER: i32 = 11080;

/// What the driver reports about a device.
#[derive(Debug, Clone)]
pub struct Facts {
    pub name: String,
    pub capability: (u32, u32),
    pub processors: u32,
    pub shared_bytes: u32,
    pub l2_bytes: u32,
    pub total_bytes: u64,
    /// Its PCI address, such as `0000:01:00.0`, by which NVML finds it.
    pub bus: String,
    /// CUDA version of the driver, as 1000 * major + 10 * minor.
    pub driver: i32,
}

/// Whether the driver's library can be loaded. cudarc loads the driver at run time and panics where
/// there is none, so this is asked first.
pub fn present() -> bool {
    // SAFETY: loading runs the initialisers of the system's GPU driver.
    unsafe { sys::is_culib_present() }
}

/// The number of devices.
///
/// # Errors
/// [`Kind::Device`](crate::error::Kind::Device) if there is none, with the reason.
pub fn count() -> Result<i32> {
    if !present() {
        return Err(
            Error::device("no NVIDIA driver on this machine (libcuda was not found)").at("cuda")
        );
    }
    let unusable = |DriverError(code): DriverError| {
        Error::device(format!("the NVIDIA driver does not work: {}", name(code)))
            .at("cuda")
            .try_("run nvidia-smi, which shows the state of driver and GPU")
    };
    result::init().map_err(unusable)?;
    let version = version().map_err(unusable)?;
    if version < OLDEST_DRIVER {
        return Err(Error::device("the NVIDIA driver is too old")
            .at("cuda")
            .found(format!("CUDA {}.{}", version / 1000, version % 1000 / 10))
            .expected("CUDA 11.8 (driver 520) or newer")
            .try_("a newer driver, or {device=cpu}"));
    }
    match result::device::get_count().map_err(unusable)? {
        0 => Err(Error::device("the NVIDIA driver finds no GPU").at("cuda")),
        n => Ok(n),
    }
}

fn version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}

/// The facts about device `ordinal`, which must be less than [`count`].
pub fn facts(ordinal: i32) -> Result<Facts> {
    use sys::CUdevice_attribute as A;
    let ask = || -> Result<Facts, DriverError> {
        let device = result::device::get(ordinal)?;
        // SAFETY: the device is valid; each call writes what it returns.
        let get = |attribute| {
            unsafe { result::device::get_attribute(device, attribute) }.map(|v| v.max(0) as u32)
        };
        let mut bus = [0u8; 32];
        // SAFETY: writes at most 32 bytes, with a terminating zero.
        unsafe { sys::cuDeviceGetPCIBusId(bus.as_mut_ptr().cast(), 32, device) }.result()?;
        let end = bus.iter().position(|&b| b == 0).unwrap_or(bus.len());
        Ok(Facts {
            name: result::device::get_name(device)?,
            capability: (
                get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            processors: get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            l2_bytes: get(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            // SAFETY: the device is valid.
            total_bytes: unsafe { result::device::total_mem(device) }? as u64,
            bus: String::from_utf8_lossy(&bus[..end]).into_owned(),
            driver: version()?,
        })
    };
    ask().map_err(|DriverError(code)| Error::device(name(code)).at(format!("cuda:{ordinal}")))
}
