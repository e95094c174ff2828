//! The exported functions, in the chapters of the driver's manual. Each only checks its arguments
//! and passes them on.
//!
//! The signatures are those of `cuda.h`; handles are numbers, and results are `CUresult` as `int`.
#![allow(non_snake_case)]

mod context;
mod control;
mod graph;
mod memory;
mod module;
mod nvml;
mod stream;

use crate::status::{INVALID_VALUE, Outcome};
use std::ffi::{CStr, c_char};

/// The text of a C string.
fn text<'a>(at: *const c_char) -> Outcome<&'a str> {
    if at.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller of a C interface guarantees that the strings it passes are valid.
    unsafe { CStr::from_ptr(at) }.to_str().map_err(|_| INVALID_VALUE)
}

/// Copies `text` and a final zero to a buffer of `bytes` bytes, truncated if necessary.
fn put_text(to: *mut c_char, bytes: usize, text: &str) -> Outcome {
    if to.is_null() || bytes == 0 {
        return Err(INVALID_VALUE);
    }
    let length = text.len().min(bytes - 1);
    // SAFETY: the caller of a C interface guarantees that the buffers it passes are valid.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), length);
        *to.add(length) = 0;
    }
    Ok(())
}
