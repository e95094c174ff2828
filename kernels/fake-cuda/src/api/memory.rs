//! Memory: allocation, pools, pinning, copies, fills.

use crate::driver::{Driver, Id, for_work, in_context, initialised, put};
use crate::status::*;
use crate::stream::Direction;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> i32 {
    in_context(|d, c| {
        let device = d.device_of(c);
        put(free, device.free() as usize)?;
        put(total, device.spec.memory as usize)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> i32 {
    for_work(|d, c| put(to, d.allocate(c, bytes as u64)?))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFree_v2(address: u64) -> i32 {
    in_context(|d, c| d.release(c, address))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(to: *mut u64, bytes: usize, stream: Id) -> i32 {
    for_work(|d, c| {
        let stream = d.stream(c, stream)?;
        put(to, d.allocate_in_order(c, stream, bytes as u64)?)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocFromPoolAsync(
    to: *mut u64,
    bytes: usize,
    pool: Id,
    stream: Id,
) -> i32 {
    for_work(|d, c| {
        if pool != POOL + d.contexts[&c].device as u64 {
            return Err(INVALID_VALUE);
        }
        let stream = d.stream(c, stream)?;
        put(to, d.allocate_in_order(c, stream, bytes as u64)?)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: Id) -> i32 {
    in_context(|d, c| {
        let stream = d.stream(c, stream)?;
        d.release_in_order(c, stream, address)
    })
}

/// The handle of the first device's memory pool. Each device has one, which keeps no freed memory.
const POOL: Id = 0x800;

fn pool(to: *mut Id, device: i32) -> i32 {
    initialised(|d| {
        d.device(device)?;
        put(to, POOL + device as u64)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetDefaultMemPool(to: *mut Id, device: i32) -> i32 {
    pool(to, device)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetMemPool(to: *mut Id, device: i32) -> i32 {
    pool(to, device)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolSetAttribute(_pool: Id, which: i32, _value: *const u64) -> i32 {
    initialised(|_| if (1..=8).contains(&which) { Ok(()) } else { Err(INVALID_VALUE) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolTrimTo(_pool: Id, _bytes: usize) -> i32 {
    initialised(|_| Ok(()))
}

fn pin(to: *mut u64, bytes: usize, flags: u32) -> i32 {
    for_work(|d, c| put(to, d.pin_new(c, bytes as u64, flags)?))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(to: *mut u64, bytes: usize, flags: u32) -> i32 {
    pin(to, bytes, flags)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(to: *mut u64, bytes: usize) -> i32 {
    pin(to, bytes, 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(address: u64) -> i32 {
    in_context(|d, c| d.unpin_after_all(c, address, true))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostRegister_v2(address: u64, bytes: usize, flags: u32) -> i32 {
    for_work(|d, c| d.pin_old(c, address, bytes as u64, flags))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostUnregister(address: u64) -> i32 {
    in_context(|d, c| d.unpin_after_all(c, address, false))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetDevicePointer_v2(to: *mut u64, address: u64, flags: u32) -> i32 {
    in_context(|d, _| {
        if flags == 0 && d.is_pinned(address, 1) { put(to, address) } else { Err(INVALID_VALUE) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetFlags(to: *mut u32, address: u64) -> i32 {
    in_context(|d, _| put(to, d.pinned.get(&address).ok_or(INVALID_VALUE)?.flags))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetAddressRange_v2(
    start: *mut u64,
    bytes: *mut usize,
    address: u64,
) -> i32 {
    in_context(|d, c| {
        let (at, allocation) = d.device_of(c).find(address, 1).ok_or(NOT_FOUND)?;
        if !start.is_null() {
            put(start, at)?;
        }
        if bytes.is_null() { Ok(()) } else { put(bytes, allocation.bytes as usize) }
    })
}

/// Queues a copy on a stream.
fn later(direction: Direction, to: u64, from: u64, bytes: usize, stream: Id) -> i32 {
    for_work(|d, c| {
        let stream = d.stream(c, stream)?;
        d.copy(c, stream, direction, [to, from], bytes as u64, false)
    })
}

/// Copies on the legacy stream. The call waits only for copies from or to the host.
fn now(direction: Direction, to: u64, from: u64, bytes: usize) -> i32 {
    for_work(|d, c| {
        let stream = d.stream(c, 0)?;
        d.copy(c, stream, direction, [to, from], bytes as u64, direction != Direction::OnDevice)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) -> i32 {
    now(Direction::ToDevice, to, from, bytes)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) -> i32 {
    now(Direction::ToHost, to, from, bytes)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> i32 {
    now(Direction::OnDevice, to, from, bytes)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Id) -> i32 {
    later(Direction::ToDevice, to, from, bytes, stream)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: Id) -> i32 {
    later(Direction::ToHost, to, from, bytes, stream)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Id) -> i32 {
    later(Direction::OnDevice, to, from, bytes, stream)
}

fn fill(
    d: &mut Driver,
    c: Id,
    stream: Id,
    at: u64,
    value: u32,
    width: u64,
    count: usize,
) -> Outcome {
    let stream = d.stream(c, stream)?;
    d.fill(c, stream, at, value, width, count as u64)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8_v2(at: u64, value: u8, count: usize) -> i32 {
    for_work(|d, c| fill(d, c, 0, at, value.into(), 1, count))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD16_v2(at: u64, value: u16, count: usize) -> i32 {
    for_work(|d, c| fill(d, c, 0, at, value.into(), 2, count))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD32_v2(at: u64, value: u32, count: usize) -> i32 {
    for_work(|d, c| fill(d, c, 0, at, value, 4, count))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8Async(at: u64, value: u8, count: usize, stream: Id) -> i32 {
    for_work(|d, c| fill(d, c, stream, at, value.into(), 1, count))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD16Async(at: u64, value: u16, count: usize, stream: Id) -> i32 {
    for_work(|d, c| fill(d, c, stream, at, value.into(), 2, count))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD32Async(at: u64, value: u32, count: usize, stream: Id) -> i32 {
    for_work(|d, c| fill(d, c, stream, at, value, 4, count))
}
