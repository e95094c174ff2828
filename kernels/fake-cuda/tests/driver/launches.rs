//! Which launches are valid, and what happens when a kernel fails.

use crate::common::*;
use cudarc::driver::sys::{CUfunction_attribute_enum as Attribute, CUresult};
use cudarc::driver::{result, sys};

fn set(f: sys::CUfunction, bytes: i32) -> CUresult {
    let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    code(unsafe { result::function::set_function_attribute(f, which, bytes) })
}

#[test]
fn launches_are_checked() {
    let fake = fake("");
    let _primary = Primary::new(0);
    let module = load(KERNELS).unwrap();
    let (add, bounded) = (function(module, "add"), function(module, "bounded"));
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let at = unsafe { result::malloc_sync(4) }.unwrap();
    let s = result::stream::null();
    let run = |f, grid: [u32; 3], block: [u32; 3], shared| {
        code(launch_as(f, at, 0, 0, s, [grid, block], shared))
    };
    let (one, wrong) = ([1, 1, 1], CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(run(add, [70_000, 1, 1], one, 0), CUresult::CUDA_SUCCESS);
    for grid in [[1, 65_536, 1], [1, 1, 65_536], [0, 1, 1], [1, 0, 1], [1 << 31, 1, 1]] {
        assert_eq!(run(add, grid, one, 0), wrong, "{grid:?}");
    }
    for block in [[1025, 1, 1], [1024, 2, 1], [1, 1, 65], [0, 1, 1]] {
        assert_eq!(run(add, one, block, 0), wrong, "{block:?}");
    }
    assert_eq!(run(bounded, one, [64, 1, 1], 0), CUresult::CUDA_SUCCESS);
    assert_eq!(run(bounded, one, [65, 1, 1], 0), CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    assert_eq!(run(add, one, one, 49_152), CUresult::CUDA_SUCCESS);
    assert_eq!(run(add, one, one, 49_153), wrong, "more requires opting in");
    assert_eq!(set(add, 101_377), wrong);
    assert_eq!(set(add, 101_376), CUresult::CUDA_SUCCESS);
    assert_eq!(run(add, one, one, 101_376), CUresult::CUDA_SUCCESS);
    result::ctx::synchronize().unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let blocks = unsafe {
        [
            result::occupancy::max_active_block_per_multiprocessor(add, 256, 40_000).unwrap(),
            result::occupancy::max_active_block_per_multiprocessor(bounded, 64, 0).unwrap(),
        ]
    };
    assert_eq!(blocks, [2, 8]);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let missing = unsafe { result::module::get_function(module, c"nothing".into()) };
    assert_eq!(code(missing), CUresult::CUDA_ERROR_NOT_FOUND);
    let report = fake.handle.report();
    assert!(report.contains(r#"{"kernel":"add","launches":3,"runs":3,"#), "{report}");
}

#[test]
fn modules_must_match_the_device() {
    let fake = fake("driver=12000");
    let with = |version: &str, target: &str| {
        code(load(&KERNELS.replace("7.8", version).replace("sm_80", target)))
    };
    let primary = Primary::new(0);
    assert_eq!(with("7.8", "sm_86"), CUresult::CUDA_SUCCESS);
    assert_eq!(with("7.8", "sm_89"), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(with("8.0", "sm_90a"), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(with("8.4", "sm_80"), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    assert_eq!(code(load("this is not PTX")), CUresult::CUDA_ERROR_INVALID_PTX);
    assert_eq!(code(load("\x7fELF")), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    drop(primary);
    let primary = Primary::new(2);
    assert_eq!(with("8.0", "sm_90a"), CUresult::CUDA_SUCCESS);
    drop(primary);
    fake.handle.configure("capability.2=10.0").unwrap();
    let _primary = Primary::new(2);
    assert_eq!(with("8.0", "sm_90a"), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(with("8.0", "sm_90"), CUresult::CUDA_SUCCESS);
}

#[test]
fn an_illegal_access_ends_the_context() {
    let fake = fake("");
    let primary = Primary::new(0);
    let stray = function(load(KERNELS).unwrap(), "stray");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let (s, at) = (stream(), unsafe { result::malloc_sync(128) }.unwrap());
    launch(stray, at, 32, 1, s).unwrap();
    let failed = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::stream::synchronize(s) }), failed);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::malloc_sync(4) }), failed);
    assert_eq!(code(result::mem_get_info()), failed);
    assert_eq!(code(load(KERNELS)), failed);
    let report = fake.handle.report();
    let line = report.lines().find(|l| l.contains(r#""kernel":"stray""#)).unwrap();
    assert!(line.contains(r#""out_of_bounds":2"#) && !line.contains(r#""findings":[]"#), "{line}");
    drop(primary);
    let _new = Primary::new(0);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::malloc_sync(4) }.unwrap();
    result::ctx::synchronize().unwrap();
}

#[test]
fn an_injected_failure_is_reported_by_the_wait() {
    let fake = fake("fail=launch:2");
    let _primary = Primary::new(0);
    let add = function(load(KERNELS).unwrap(), "add");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let (s, at) = (stream(), unsafe { result::malloc_sync(4) }.unwrap());
    for _ in 0..3 {
        launch(add, at, 1, 1, s).unwrap();
    }
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::stream::synchronize(s) }), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::stream::synchronize(s) }), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(code(launch(add, at, 1, 1, s)), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::malloc_sync(4) }), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    // Waiting is not counted; requests for work and memory are.
    assert!(fake.handle.report().contains(r#"{"refused":2}"#));
}

#[test]
fn kernels_can_be_skipped() {
    let fake = fake("kernels=skip");
    let _primary = Primary::new(0);
    let add = function(load(KERNELS).unwrap(), "add");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let at = unsafe { result::malloc_sync(4) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_sync(at, &[5u32]) }.unwrap();
    launch(add, at, 1, 1, result::stream::null()).unwrap();
    assert_eq!(read(at, 1), [5]);
    let report = fake.handle.report();
    assert!(report.contains(r#"{"kernel":"add","launches":1,"runs":0,"#), "{report}");
    assert!(!fake.handle.report().contains("kernel"), "a report resets the counters");
}

#[test]
fn tensor_maps_are_checked() {
    use sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 as BF16;
    use sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as ZERO;
    use sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE as NONE;
    use sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B as L2;
    use sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B as SWIZZLE;
    let _fake = fake("");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let encode = |address: u64, sizes: [u64; 2], pitch: u64, boxes: [u32; 2]| unsafe {
        let mut map: sys::CUtensorMap = std::mem::zeroed();
        let outcome = sys::cuTensorMapEncodeTiled(
            &mut map,
            BF16,
            2,
            address as *mut _,
            sizes.as_ptr(),
            &pitch,
            boxes.as_ptr(),
            [1, 1].as_ptr(),
            NONE,
            SWIZZLE,
            L2,
            ZERO,
        );
        (code(outcome.result()), map.opaque)
    };
    let primary = Primary::new(2);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let at = unsafe { result::malloc_sync(1 << 20) }.unwrap();
    let (outcome, map) = encode(at, [100, 30], 208, [64, 128]);
    assert!(outcome == CUresult::CUDA_SUCCESS && map != [0; 16]);
    let wrong = CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(encode(at + 8, [100, 30], 208, [64, 128]).0, wrong, "the address is not aligned");
    assert_eq!(encode(at, [100, 30], 200, [64, 128]).0, wrong, "nor is the pitch");
    assert_eq!(encode(at, [100, 30], 208, [64, 257]).0, wrong, "the box is too high");
    assert_eq!(encode(at, [100, 30], 208, [72, 128]).0, wrong, "the box is wider than the swizzle");
    assert_eq!(encode(at, [100, 0], 208, [64, 128]).0, wrong, "the tensor is empty");
    drop(primary);
    let _primary = Primary::new(0);
    assert_eq!(
        encode(at, [100, 30], 208, [64, 128]).0,
        CUresult::CUDA_ERROR_NOT_SUPPORTED,
        "sm_86 has no TMA"
    );
}

#[test]
fn the_jit_compiler_keeps_a_log() {
    use sys::CUjit_option_enum::{
        CU_JIT_ERROR_LOG_BUFFER as LOG, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES as BYTES,
    };
    let _fake = fake("");
    let _primary = Primary::new(0);
    let text = std::ffi::CString::new(KERNELS.replace("sm_80", "sm_90")).unwrap();
    let (mut log, mut module) = ([b'x'; 100], std::ptr::null_mut());
    let mut options = [LOG, BYTES];
    let mut values = [log.as_mut_ptr().cast(), log.len() as *mut std::ffi::c_void];
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let outcome = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, options, values).result()
    };
    assert_eq!(code(outcome), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let why = std::str::from_utf8(&log[..values[1] as usize]).unwrap();
    assert_eq!(why, ".target sm_90 does not run on sm_86");
}

#[test]
fn parameters_can_be_passed_in_one_buffer() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    let add = function(load(KERNELS).unwrap(), "add");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let at = unsafe { result::malloc_sync(4) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_sync(at, &[5u32]) }.unwrap();
    let mut params = [at, 1 | 2 << 32];
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let run = |bytes: usize, params: &mut [u64; 2]| unsafe {
        let mark = std::ptr::without_provenance_mut::<std::ffi::c_void>;
        let mut bytes = bytes;
        let (at, size) = (params.as_mut_ptr().cast(), (&raw mut bytes).cast());
        let mut extra = [mark(1), at, mark(2), size, mark(0)];
        let (null, none) = (std::ptr::null_mut(), std::ptr::null_mut());
        code(sys::cuLaunchKernel(add, 1, 1, 1, 1, 1, 1, 0, null, none, extra.as_mut_ptr()).result())
    };
    assert_eq!(run(12, &mut params), CUresult::CUDA_ERROR_INVALID_VALUE, "one is missing");
    assert_eq!(run(16, &mut params), CUresult::CUDA_SUCCESS);
    assert_eq!(read(at, 1), [7]);
}
