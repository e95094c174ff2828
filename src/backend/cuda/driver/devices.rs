//! Which devices there are, and what they have.

use std::ffi::{c_char, c_int};

use super::api::{self, Code};
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

pub use super::api::present;

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
    let unusable = |code: Code| {
        Error::device(format!("the NVIDIA driver does not work: {}", code.name()))
            .at("cuda")
            .try_("run nvidia-smi, which shows the state of driver and GPU")
    };
    // SAFETY: the only flags that there are.
    unsafe { api::init(0) }.map_err(unusable)?;
    let version = version().map_err(unusable)?;
    if version < OLDEST_DRIVER {
        return Err(Error::device("the NVIDIA driver is too old")
            .at("cuda")
            .found(format!("CUDA {}.{}", version / 1000, version % 1000 / 10))
            .expected("CUDA 11.8 (driver 520) or newer")
            .try_("a newer driver, or {device=cpu}"));
    }
    // SAFETY: writes one number.
    match api::made(0, |to| unsafe { api::device_count(to) }).map_err(unusable)? {
        0 => Err(Error::device("the NVIDIA driver finds no GPU").at("cuda")),
        n => Ok(n),
    }
}

fn version() -> Result<i32, Code> {
    // SAFETY: writes one number.
    api::made(0, |to| unsafe { api::driver_version(to) })
}

/// A text of at most 255 bytes that `call` writes with a zero at its end.
fn text(call: impl FnOnce(*mut c_char, c_int) -> Result<(), Code>) -> Result<String, Code> {
    let mut bytes = [0u8; 256];
    call(bytes.as_mut_ptr().cast(), bytes.len() as c_int)?;
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// The facts about device `ordinal`, which must be less than [`count`].
pub fn facts(ordinal: i32) -> Result<Facts> {
    let ask = || -> Result<Facts, Code> {
        // SAFETY: writes one number.
        let device = api::made(0, |to| unsafe { api::device(to, ordinal) })?;
        let get = |which| {
            // SAFETY: the device is valid; writes one number.
            let value = api::made(0, |to| unsafe { api::device_attribute(to, which, device) });
            value.map(|v| v.max(0) as u32)
        };
        Ok(Facts {
            // SAFETY: writes at most as many bytes as it is told.
            name: text(|to, bytes| unsafe { api::device_name(to, bytes, device) })?,
            capability: (get(api::ATTRIBUTE_MAJOR)?, get(api::ATTRIBUTE_MINOR)?),
            processors: get(api::ATTRIBUTE_PROCESSORS)?,
            shared_bytes: get(api::ATTRIBUTE_SHARED_OPTIN)?,
            l2_bytes: get(api::ATTRIBUTE_L2_BYTES)?,
            // SAFETY: the device is valid; writes one number.
            total_bytes: api::made(0, |to| unsafe { api::device_memory(to, device) })? as u64,
            // SAFETY: as for the name.
            bus: text(|to, bytes| unsafe { api::device_bus(to, bytes, device) })?,
            driver: version()?,
        })
    };
    ask().map_err(|code| Error::device(code.name()).at(format!("cuda:{ordinal}")))
}
