//! Descriptors of matrices for TMA, the copy engine of Hopper.

use std::ffi::c_void;

use super::api;
use super::health::ContextHealth;
use crate::backend::cuda::launch::TensorMap;
use crate::dtype::DType;
use crate::error::Result;

/// The TMA descriptor of `map`.
pub fn encode(health: &ContextHealth, map: &TensorMap) -> Result<api::TensorMap> {
    let dtype = match map.dtype {
        DType::BF16 => api::TENSOR_BF16,
        _ => api::TENSOR_UINT8,
    };
    let mut out = api::TensorMap([0; 16]);
    let (dims, strides) = ([map.cols as u64, map.rows as u64], [map.pitch as u64]);
    let (window, steps) = ([map.box_cols, map.box_rows], [1u32, 1]);
    // SAFETY: every array has as many entries as two dimensions need; the driver fills `out`.
    let answer = unsafe {
        api::tensor_map(
            &mut out,
            dtype,
            2,
            map.address as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            window.as_ptr(),
            steps.as_ptr(),
            api::TENSOR_INTERLEAVE_NONE,
            api::TENSOR_SWIZZLE_128B,
            api::TENSOR_L2_256B,
            api::TENSOR_FILL_ZEROS,
        )
    };
    health.check(answer, "describing a matrix to TMA")?;
    Ok(out)
}
