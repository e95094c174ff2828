//! Functions for tests, besides the driver API: configuration, the report, the log.

use super::text;
use crate::driver::{Driver, anywhere, put};
use crate::status::*;
use std::ffi::c_char;

/// Applies settings in addition to the current ones. Returns 0, or an error code after printing the
/// error to stderr.
#[unsafe(no_mangle)]
unsafe extern "C" fn fake_cuda_configure(settings: *const c_char) -> i32 {
    anywhere(|d| {
        d.settings.apply(text(settings)?).map_err(|e| {
            eprintln!("fake-cuda: {e}");
            INVALID_VALUE
        })?;
        if d.started {
            d.make_devices();
        }
        Ok(())
    })
}

/// Writes the result of `make` to `buffer` if it fits, and then calls `clear`. Returns the number
/// of bytes.
fn hand_out(
    buffer: *mut u8,
    bytes: usize,
    make: fn(&Driver) -> String,
    clear: fn(&mut Driver),
) -> usize {
    let mut length = 0;
    anywhere(|d| {
        let text = make(d);
        length = text.len();
        if length > bytes || (length > 0 && buffer.is_null()) {
            return Ok(());
        }
        for (i, byte) in text.bytes().enumerate() {
            put(buffer.wrapping_add(i), byte)?;
        }
        clear(d);
        Ok(())
    });
    length
}

/// Writes the report, one JSON object per line, without a final zero, and resets the counters.
/// Returns its length in bytes. If the buffer is shorter, nothing is written or reset.
#[unsafe(no_mangle)]
unsafe extern "C" fn fake_cuda_report(buffer: *mut u8, bytes: usize) -> usize {
    hand_out(buffer, bytes, Driver::report, Driver::reset_counts)
}

/// Writes the log, one operation per line, in the same way, and clears it.
#[unsafe(no_mangle)]
unsafe extern "C" fn fake_cuda_log(buffer: *mut u8, bytes: usize) -> usize {
    hand_out(
        buffer,
        bytes,
        |d| d.lines.iter().map(|l| format!("{l}\n")).collect(),
        |d| d.lines.clear(),
    )
}
