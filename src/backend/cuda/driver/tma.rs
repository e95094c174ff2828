//! Descriptors of matrices for TMA, the copy engine of Hopper.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::health::ContextHealth;
use crate::backend::cuda::launch::TensorMap;
use crate::dtype::DType;
use crate::error::Result;

/// The TMA descriptor of `map`.
pub fn encode(health: &ContextHealth, map: &TensorMap) -> Result<sys::CUtensorMap> {
    use sys::CUtensorMapDataType as T;
    let dtype = match map.dtype {
        DType::BF16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        _ => T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    };
    let mut out = std::mem::MaybeUninit::<sys::CUtensorMap>::zeroed();
    let (dims, strides) = ([map.cols as u64, map.rows as u64], [map.pitch as u64]);
    let (window, steps) = ([map.box_cols, map.box_rows], [1u32, 1]);
    // SAFETY: every array has as many entries as two dimensions need; the driver fills `out`, and a
    // zeroed descriptor is a valid value, too.
    unsafe {
        let answer = sys::cuTensorMapEncodeTiled(
            out.as_mut_ptr(),
            dtype,
            2,
            map.address as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            window.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        );
        health.check(answer.result(), "describing a matrix to TMA")?;
        Ok(out.assume_init())
    }
}
