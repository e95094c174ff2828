//! Errors, initialisation, devices, contexts.

use super::put_text;
use crate::driver::{CURRENT, Driver, Id, anywhere, in_context, initialised, put};
use crate::status::*;
use std::ffi::c_char;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: i32, to: *mut *const c_char) -> i32 {
    let name = describe(error).map_or(std::ptr::null(), |(name, _)| name.as_ptr());
    put(to, name)
        .and(if name.is_null() { Err(INVALID_VALUE) } else { Ok(()) })
        .map_or_else(|e| e.0, |()| 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: i32, to: *mut *const c_char) -> i32 {
    let text = describe(error).map_or(std::ptr::null(), |(_, text)| text.as_ptr());
    put(to, text)
        .and(if text.is_null() { Err(INVALID_VALUE) } else { Ok(()) })
        .map_or_else(|e| e.0, |()| 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuInit(flags: u32) -> i32 {
    anywhere(|d| match flags {
        0 if d.started && !d.devices.is_empty() => Ok(()),
        0 => d.start(),
        _ => Err(INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(to: *mut i32) -> i32 {
    anywhere(|d| put(to, d.settings.driver))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(to: *mut i32) -> i32 {
    initialised(|d| put(to, d.devices.len() as i32))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(to: *mut i32, ordinal: i32) -> i32 {
    initialised(|d| d.device(ordinal).map(|_| ()).and_then(|()| put(to, ordinal)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(to: *mut c_char, bytes: i32, device: i32) -> i32 {
    initialised(|d| put_text(to, usize::try_from(bytes).unwrap_or(0), &d.device(device)?.spec.name))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(to: *mut i32, which: i32, device: i32) -> i32 {
    initialised(|d| match which {
        1..200 => put(to, d.device(device)?.attribute(which)),
        _ => Err(INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(to: *mut usize, device: i32) -> i32 {
    initialised(|d| put(to, d.device(device)?.spec.memory as usize))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetPCIBusId(to: *mut c_char, bytes: i32, device: i32) -> i32 {
    initialised(|d| {
        put_text(to, usize::try_from(bytes).unwrap_or(0), &d.device(device)?.pci_name())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(to: *mut [u8; 16], device: i32) -> i32 {
    initialised(|d| put(to, d.device(device)?.uuid()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid_v2(to: *mut [u8; 16], device: i32) -> i32 {
    initialised(|d| put(to, d.device(device)?.uuid()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(to: *mut Id, device: i32) -> i32 {
    initialised(|d| {
        let primary = match d.device(device)?.primary {
            Some(id) => id,
            None => d.open_context(device)?,
        };
        let device = d.device(device)?;
        device.primary = Some(primary);
        device.retained += 1;
        put(to, primary)
    })
}

fn drop_primary(d: &mut Driver, device: i32) -> Outcome {
    let device = d.device(device)?;
    device.retained = 0;
    if let Some(primary) = device.primary.take() {
        d.close_context(primary);
    }
    if let Some(path) = &d.settings.report
        && let Err(e) = std::fs::write(path, d.report())
    {
        eprintln!("fake-cuda: {path}: {e}");
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> i32 {
    initialised(|d| match d.device(device)?.retained {
        0 => Err(INVALID_CONTEXT),
        1 => drop_primary(d, device),
        _ => {
            d.device(device)?.retained -= 1;
            Ok(())
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(device: i32) -> i32 {
    initialised(|d| drop_primary(d, device))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: i32, _flags: u32) -> i32 {
    initialised(|d| d.device(device).map(|_| ()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: i32,
    flags: *mut u32,
    active: *mut i32,
) -> i32 {
    initialised(|d| {
        put(flags, 0)?;
        put(active, i32::from(d.device(device)?.primary.is_some()))
    })
}

fn create(to: *mut Id, device: i32) -> i32 {
    initialised(|d| {
        let id = d.open_context(device)?;
        CURRENT.with_borrow_mut(|c| c.push(id));
        put(to, id)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxCreate_v2(to: *mut Id, _flags: u32, device: i32) -> i32 {
    create(to, device)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxCreate_v3(
    to: *mut Id,
    _affinity: usize,
    count: i32,
    _flags: u32,
    device: i32,
) -> i32 {
    if count != 0 { NOT_SUPPORTED.0 } else { create(to, device) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxDestroy_v2(context: Id) -> i32 {
    initialised(|d| {
        if !d.contexts.contains_key(&context)
            || d.devices.iter().any(|v| v.primary == Some(context))
        {
            return Err(INVALID_CONTEXT);
        }
        d.close_context(context);
        CURRENT.with_borrow_mut(|c| c.retain(|&c| c != context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxSetCurrent(context: Id) -> i32 {
    initialised(|d| {
        if context != 0 && !d.contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|c| {
            c.pop();
            c.extend((context != 0).then_some(context));
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(to: *mut Id) -> i32 {
    initialised(|_| put(to, CURRENT.with_borrow(|c| c.last().copied().unwrap_or(0))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxPushCurrent_v2(context: Id) -> i32 {
    initialised(|d| {
        d.contexts.get(&context).ok_or(INVALID_CONTEXT)?;
        CURRENT.with_borrow_mut(|c| c.push(context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxPopCurrent_v2(to: *mut Id) -> i32 {
    initialised(|_| {
        let popped = CURRENT.with_borrow_mut(Vec::pop).ok_or(INVALID_CONTEXT)?;
        if to.is_null() { Ok(()) } else { put(to, popped) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(to: *mut i32) -> i32 {
    in_context(|d, c| put(to, d.contexts[&c].device as i32))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxSynchronize() -> i32 {
    in_context(|d, c| {
        crate::driver::note!(d, "sync context");
        d.forbid_capture()?;
        let all = d.all_in(c);
        d.reach(&all);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) -> i32 {
    in_context(|_, _| {
        for (to, value) in [(least, 0), (greatest, -5)] {
            if !to.is_null() {
                put(to, value)?;
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetLimit(to: *mut usize, limit: i32) -> i32 {
    in_context(|_, _| match limit {
        0 => put(to, 1024),
        1 => put(to, 1 << 20),
        2 => put(to, 8 << 20),
        _ => Err(UNSUPPORTED_LIMIT),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxSetLimit(limit: i32, _value: usize) -> i32 {
    in_context(|_, _| if (0..=6).contains(&limit) { Ok(()) } else { Err(UNSUPPORTED_LIMIT) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxSetFlags(_flags: u32) -> i32 {
    in_context(|_, _| Ok(()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCacheConfig(to: *mut i32) -> i32 {
    in_context(|_, _| put(to, 0))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxSetCacheConfig(_config: i32) -> i32 {
    in_context(|_, _| Ok(()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuProfilerStart() -> i32 {
    in_context(|_, _| Ok(()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuProfilerStop() -> i32 {
    in_context(|_, _| Ok(()))
}
