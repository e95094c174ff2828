//! Modules, functions, launches, occupancy, tensor maps.

use super::{put_text, text};
use crate::driver::{Driver, Id, for_work, in_context, note, put};
use crate::status::*;
use crate::stream::Work;
use crate::tensor_map::{Request, encode};
use std::ffi::{c_char, c_void};
use std::sync::Arc;

/// PTX from memory, as text. A real driver also accepts binaries.
fn load(d: &mut Driver, c: Id, image: *const c_char) -> Result<Id, (Code, String)> {
    if image.is_null() {
        return Err((INVALID_VALUE, String::new()));
    }
    // SAFETY: the pointer is not null, and every image has at least four bytes or ends with a zero.
    let head = unsafe { [*image as u8, if *image == 0 { 0 } else { *image.add(1) as u8 }] };
    if head == *b"\x7fE" || head == [0x50, 0xed] {
        return Err((NO_BINARY_FOR_GPU, "only PTX is supported".to_string()));
    }
    let outcome = text(image)
        .map_err(|_| (INVALID_IMAGE, "not a text".to_string()))
        .and_then(|t| d.load(c, t));
    outcome.inspect_err(|(_, why)| eprintln!("fake-cuda: a module is refused: {why}"))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(to: *mut Id, image: *const c_char) -> i32 {
    in_context(|d, c| put(to, load(d, c, image).map_err(|(code, _)| code)?))
}

const JIT_INFO_LOG: i32 = 3;
const JIT_INFO_LOG_BYTES: i32 = 4;
const JIT_ERROR_LOG: i32 = 5;
const JIT_ERROR_LOG_BYTES: i32 = 6;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    to: *mut Id,
    image: *const c_char,
    count: u32,
    options: *const i32,
    values: *mut *mut c_void,
) -> i32 {
    in_context(|d, c| {
        let find = |which: i32| {
            // SAFETY: the caller of a C interface guarantees that the arrays it passes are valid.
            let at = (0..count as usize).find(|&i| unsafe { *options.add(i) } == which)?;
            Some(values.wrapping_add(at))
        };
        let outcome = load(d, c, image);
        let why = outcome.as_ref().err().map_or("", |(_, why)| why.as_str());
        for (log, bytes, line) in
            [(JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES, why), (JIT_INFO_LOG, JIT_INFO_LOG_BYTES, "")]
        {
            if let (Some(log), Some(bytes)) = (find(log), find(bytes)) {
                // SAFETY: both are in `values`; the size is passed as if it were a pointer, in both
                // directions.
                unsafe {
                    put_text((*log).cast(), *bytes as usize, line)?;
                    *bytes = line.len().min((*bytes as usize).saturating_sub(1)) as *mut c_void;
                }
            }
        }
        put(to, outcome.map_err(|(code, _)| code)?)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoad(to: *mut Id, path: *const c_char) -> i32 {
    in_context(|d, c| {
        let bytes = std::fs::read(text(path)?).map_err(|_| FILE_NOT_FOUND)?;
        let image = std::ffi::CString::new(bytes).map_err(|_| INVALID_IMAGE)?;
        put(to, load(d, c, image.as_ptr()).map_err(|(code, _)| code)?)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleUnload(module: Id) -> i32 {
    in_context(|d, _| d.unload(module))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(to: *mut Id, module: Id, name: *const c_char) -> i32 {
    in_context(|d, c| put(to, d.function_of(c, module, text(name)?)?))
}

/// The PTX machine does not expose module variables.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetGlobal_v2(
    _to: *mut u64,
    _bytes: *mut usize,
    _module: Id,
    _name: *const c_char,
) -> i32 {
    in_context(|_, _| Err(NOT_FOUND))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(to: *mut i32, which: i32, function: Id) -> i32 {
    in_context(|d, c| {
        let capability = d.device_of(c).spec.capability;
        let f = d.function(c, function)?;
        let value = match which {
            0 => f.max_threads() as i32,
            1 => f.fixed() as i32,
            2 | 3 | 7 => 0,
            4 => f.registers() as i32,
            5 => f.version(),
            6 => (capability.0 * 10 + capability.1) as i32,
            8 => f.dynamic as i32,
            9 => f.carveout,
            _ => return Err(INVALID_VALUE),
        };
        put(to, value)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncSetAttribute(function: Id, which: i32, value: i32) -> i32 {
    in_context(|d, c| d.set_attribute(c, function, which, value))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncSetCacheConfig(function: Id, _config: i32) -> i32 {
    in_context(|d, c| d.function(c, function).map(|_| ()))
}

fn occupancy(to: *mut i32, function: Id, threads: i32, shared: usize) -> i32 {
    in_context(|d, c| {
        let processor = d.device_of(c).processor();
        let threads = u32::try_from(threads).ok().filter(|&t| t > 0).ok_or(INVALID_VALUE)?;
        let shared = u32::try_from(shared).map_err(|_| INVALID_VALUE)?;
        put(to, d.function(c, function)?.occupancy(processor, threads, shared))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    to: *mut i32,
    function: Id,
    threads: i32,
    shared: usize,
) -> i32 {
    occupancy(to, function, threads, shared)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    to: *mut i32,
    function: Id,
    threads: i32,
    shared: usize,
    _flags: u32,
) -> i32 {
    occupancy(to, function, threads, shared)
}

/// Marks in the `extra` argument of a launch.
const EXTRA_POINTER: usize = 1;
const EXTRA_BYTES: usize = 2;

/// Finds the parameter buffer in `extra`.
///
/// # Safety
///
/// `extra` must be such a list.
unsafe fn buffer(mut extra: *const usize) -> Outcome<(*const u8, usize)> {
    let (mut at, mut bytes) = (std::ptr::null(), 0);
    // SAFETY: by the contract, values follow their marks, and a zero ends the list.
    unsafe {
        while *extra != 0 {
            match *extra {
                EXTRA_POINTER => at = *extra.add(1) as *const u8,
                EXTRA_BYTES => bytes = *(*extra.add(1) as *const usize),
                _ => return Err(INVALID_VALUE),
            }
            extra = extra.add(2);
        }
    }
    if at.is_null() { Err(INVALID_VALUE) } else { Ok((at, bytes)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: Id,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: Id,
    params: *const *const u8,
    extra: *const usize,
) -> i32 {
    for_work(|d, c| {
        let stream = d.stream(c, stream)?;
        let sizes = [[grid_x, grid_y, grid_z], [block_x, block_y, block_z]];
        let layout: Vec<usize> = d.function(c, function)?.offsets();
        let read = |index: usize, to: &mut [u8]| {
            // SAFETY: the caller of a C interface guarantees that the parameters it passes are
            // valid.
            unsafe {
                let from = if !params.is_null() {
                    *params.add(index)
                } else if !extra.is_null() {
                    let (at, bytes) = buffer(extra)?;
                    if layout[index] + to.len() > bytes {
                        return Err(INVALID_VALUE);
                    }
                    at.add(layout[index])
                } else {
                    std::ptr::null()
                };
                if from.is_null() {
                    return Err(INVALID_VALUE);
                }
                std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
            }
            Ok(())
        };
        let launch = d.check_launch(c, function, sizes, shared, read)?;
        let number = d.streams[&stream].number;
        note!(d, "launch {launch:?} stream={number}");
        if d.streams[&stream].capture.is_none() {
            d.counts.launched(&launch.name);
        }
        d.submit(stream, Work::Launch(Arc::new(launch))).map(|_| ())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuTensorMapEncodeTiled(
    to: *mut [u8; 128],
    data_type: i32,
    rank: u32,
    address: *mut c_void,
    sizes: *const u64,
    strides: *const u64,
    boxes: *const u32,
    steps: *const u32,
    interleave: i32,
    swizzle: i32,
    promotion: i32,
    fill: i32,
) -> i32 {
    in_context(|d, c| {
        if !(to as u64).is_multiple_of(64) {
            return Err(INVALID_VALUE);
        }
        if d.device_of(c).spec.capability < (9, 0) {
            return Err(NOT_SUPPORTED);
        }
        let request = Request {
            data_type,
            rank,
            address,
            sizes,
            strides,
            boxes,
            steps,
            interleave,
            swizzle,
            promotion,
            fill,
        };
        put(to, encode(&request)?)
    })
}
