//! `cuTensorMapEncodeTiled`, as strict as the real function, and limited to maps that the PTX
//! machine can copy.

use crate::status::*;
use std::ffi::c_void;

/// The arguments of the call, in its order.
pub struct Request {
    pub data_type: i32,
    pub rank: u32,
    pub address: *mut c_void,
    pub sizes: *const u64,
    pub strides: *const u64,
    pub boxes: *const u32,
    pub steps: *const u32,
    pub interleave: i32,
    pub swizzle: i32,
    pub promotion: i32,
    pub fill: i32,
}

/// Bytes of an element of a `CUtensorMapDataType`.
fn element_bytes(data_type: i32) -> Outcome<u32> {
    match data_type {
        0 => Ok(1),
        1 | 6 | 9 => Ok(2),
        2 | 3 | 7 | 10..=12 => Ok(4),
        4 | 5 | 8 => Ok(8),
        _ => Err(INVALID_VALUE),
    }
}

fn demand(holds: bool, what: &str) -> Outcome {
    if !holds {
        eprintln!("fake-cuda: cuTensorMapEncodeTiled: {what}");
        return Err(INVALID_VALUE);
    }
    Ok(())
}

fn unsupported(what: &str) -> Code {
    eprintln!("fake-cuda: cuTensorMapEncodeTiled: {what}");
    NOT_SUPPORTED
}

/// The 128 bytes of the map.
pub fn encode(r: &Request) -> Outcome<[u8; 128]> {
    demand((1..=5).contains(&r.rank), "the rank must be 1 to 5")?;
    let pointers = !r.sizes.is_null() && !r.boxes.is_null() && !r.steps.is_null();
    demand(pointers && (r.rank == 1 || !r.strides.is_null()), "a pointer is null")?;
    let rank = r.rank as usize;
    // SAFETY: the caller of a C interface guarantees that the arrays are valid; their lengths
    // follow from the rank.
    let (sizes, strides, boxes, steps) = unsafe {
        (
            std::slice::from_raw_parts(r.sizes, rank),
            if rank == 1 { &[][..] } else { std::slice::from_raw_parts(r.strides, rank - 1) },
            std::slice::from_raw_parts(r.boxes, rank),
            std::slice::from_raw_parts(r.steps, rank),
        )
    };
    let bytes = element_bytes(r.data_type)?;
    demand((0..=2).contains(&r.interleave), "no such interleave")?;
    demand((0..=3).contains(&r.swizzle), "no such swizzle")?;
    demand(
        (0..=3).contains(&r.promotion) && (0..=1).contains(&r.fill),
        "no such promotion or fill",
    )?;
    demand((r.address as u64).is_multiple_of(16), "the address must be a multiple of 16")?;
    demand(sizes.iter().all(|&s| (1..=1 << 32).contains(&s)), "sizes must be 1 to 2^32")?;
    demand(
        strides.iter().all(|&s| s.is_multiple_of(16) && s < 1 << 40),
        "strides must be multiples of 16 below 2^40",
    )?;
    demand(boxes.iter().all(|&b| (1..=256).contains(&b)), "boxes must be 1 to 256 wide")?;
    demand(steps.iter().all(|&s| (1..=8).contains(&s)), "element strides must be 1 to 8")?;
    let inner = boxes[0] * bytes;
    demand(inner.is_multiple_of(16), "the inner side of the box must be a multiple of 16 bytes")?;
    // 0 for none.
    let swizzle = if r.swizzle == 0 { 0 } else { 16 << r.swizzle };
    demand(swizzle == 0 || inner <= swizzle, "the inner side of the box must fit the swizzle")?;
    if let Some(&pitch) = strides.first() {
        demand(pitch >= sizes[0] * u64::from(bytes), "rows overlap")?;
    }
    if rank > 2 || r.interleave != 0 || r.fill != 0 || steps.iter().any(|&s| s != 1) {
        return Err(unsupported("the PTX machine copies only from dense matrices with zero fill"));
    }
    Ok(ptx_machine::TensorMap {
        address: r.address as u64,
        rows: sizes.get(1).copied().unwrap_or(1),
        cols: sizes[0],
        pitch: strides.first().copied().unwrap_or(sizes[0] * u64::from(bytes)),
        element_bytes: bytes,
        box_rows: boxes.get(1).copied().unwrap_or(1),
        box_cols: boxes[0],
        swizzle,
    }
    .encode())
}
