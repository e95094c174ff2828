//! The few functions of NVML that report the memory of a device. They need no context and use no
//! memory.

use super::{put_text, text};
use crate::driver::{Driver, anywhere, put};
use crate::status::*;
use std::cell::Cell;
use std::ffi::c_char;
use std::sync::atomic::{AtomicU32, Ordering};

const UNINITIALIZED: i32 = 1;
const INVALID_ARGUMENT: i32 = 2;
const NOT_FOUND: i32 = 6;

static USERS: AtomicU32 = AtomicU32::new(0);

/// `nvmlMemory_t`
#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// A call that returns NVML's error codes.
fn nvml(call: impl FnOnce(&mut Driver) -> Result<(), i32>) -> i32 {
    if USERS.load(Ordering::SeqCst) == 0 {
        return UNINITIALIZED;
    }
    let result = Cell::new(0);
    let code = anywhere(|d| {
        d.make_devices();
        result.set(call(d).err().unwrap_or(0));
        Ok(())
    });
    if code == 0 { result.get() } else { code }
}

fn argument(_: Code) -> i32 {
    INVALID_ARGUMENT
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlInit_v2() -> i32 {
    USERS.fetch_add(1, Ordering::SeqCst);
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlShutdown() -> i32 {
    let fewer = USERS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    if fewer.is_err() { UNINITIALIZED } else { 0 }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut u32) -> i32 {
    nvml(|d| put(to, d.devices.len() as u32).map_err(argument))
}

/// Handles are ordinals plus one.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: u32, to: *mut usize) -> i32 {
    nvml(|d| {
        d.device(index as i32).map_err(argument)?;
        put(to, index as usize + 1).map_err(argument)
    })
}

/// Accepts both forms of a bus id: that of the driver, and that of NVML, whose domain has eight
/// digits.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(name: *const c_char, to: *mut usize) -> i32 {
    nvml(|d| {
        let name = text(name).map_err(argument)?.to_ascii_uppercase();
        let tail = name.split_once(':').ok_or(INVALID_ARGUMENT)?.1;
        let index = d.devices.iter().position(|v| v.pci_name().ends_with(tail)).ok_or(NOT_FOUND)?;
        put(to, index + 1).map_err(argument)
    })
}

fn handle(handle: usize) -> i32 {
    handle as i32 - 1
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: usize, to: *mut c_char, bytes: u32) -> i32 {
    nvml(|d| {
        let name = d.device(handle(device)).map_err(argument)?.spec.name.clone();
        put_text(to, bytes as usize, &name).map_err(argument)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo(device: usize, to: *mut Memory) -> i32 {
    nvml(|d| {
        let device = d.device(handle(device)).map_err(argument)?;
        let (total, free) = (device.spec.memory, device.free());
        put(to, Memory { total, free, used: total - free }).map_err(argument)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, bytes: u32) -> i32 {
    nvml(|_| put_text(to, bytes as usize, "570.00").map_err(argument))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlErrorString(result: i32) -> *const c_char {
    match result {
        0 => c"Success",
        UNINITIALIZED => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_FOUND => c"Not Found",
        _ => c"Unknown Error",
    }
    .as_ptr()
}
