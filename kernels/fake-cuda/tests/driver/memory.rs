//! Devices and their memory: how much there is, that it runs out, and that it is available again
//! after it was freed.

use crate::common::*;
use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUresult};
use cudarc::driver::{CudaContext, result, sys};

const MIB: usize = 1 << 20;

#[test]
fn cudarc_finds_the_devices() {
    let _fake = fake("memory.0=1G,taken.0=100M");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert!(unsafe { sys::is_culib_present() });
    assert_eq!(CudaContext::device_count().unwrap(), 4);
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "Fake RTX 3060");
    assert_eq!(context.compute_capability().unwrap(), (8, 6));
    assert_eq!(context.total_mem().unwrap(), 1 << 30);
    assert_eq!(context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).unwrap(), 28);
    let shared = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    assert_eq!(context.attribute(shared).unwrap(), 101_376);
    assert_eq!(context.mem_get_info().unwrap(), (624 * MIB, 1024 * MIB));
    assert_eq!(
        CudaContext::new(4).map(|_| ()),
        Err(result::DriverError(CUresult::CUDA_ERROR_INVALID_DEVICE))
    );
}

#[test]
fn the_safe_interface_works() {
    let _fake = fake("");
    let context = CudaContext::new(1).unwrap();
    let (a, b) = (context.default_stream(), context.new_stream().unwrap());
    let first = a.clone_htod(&[1u32, 2, 3]).unwrap();
    let second = b.clone_dtod(&first).unwrap();
    let mut third = b.alloc_zeros::<u32>(3).unwrap();
    b.memcpy_dtod(&second, &mut third).unwrap();
    assert_eq!(a.clone_dtoh(&third).unwrap(), [1, 2, 3]);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let mut pinned = unsafe { context.alloc_pinned::<u32>(3) }.unwrap();
    pinned.as_mut_slice().unwrap().copy_from_slice(&[7, 8, 9]);
    b.memcpy_htod(&pinned, &mut third).unwrap();
    assert_eq!(a.clone_dtoh(&third).unwrap(), [7, 8, 9]);
    drop((first, second, third, pinned, a, b));
    context.check_err().unwrap();
}

#[test]
fn memory_runs_out_and_is_available_again_after_free() {
    let fake = fake("memory.0=1G,context=100M");
    let _primary = Primary::new(0);
    let free = || result::mem_get_info().unwrap().0;
    assert_eq!(free(), 924 * MIB);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let alloc = |bytes: usize| unsafe { result::malloc_sync(bytes) };
    let large = alloc(3 * MIB + 1).unwrap();
    assert_eq!(free(), 920 * MIB, "large allocations are multiples of 2 MiB");
    let small = [alloc(1).unwrap(), alloc(1000).unwrap()];
    assert_eq!(free(), 918 * MIB, "small ones share 2 MiB");
    assert_eq!(code(alloc(920 * MIB)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(code(alloc(usize::MAX)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let rest = alloc(918 * MIB).unwrap();
    assert_eq!((free(), code(alloc(2 * MIB))), (0, CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    assert_eq!(read(rest + 918 * MIB as u64 - 8, 2), [u32::MAX; 2], "all of it is poisoned");
    for at in [large, rest, small[0], small[1]] {
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        unsafe { result::free_sync(at) }.unwrap();
    }
    assert_eq!(free(), 924 * MIB);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::free_sync(rest) }), CUresult::CUDA_ERROR_INVALID_VALUE);
    let report = fake.handle.report();
    let device = report.lines().find(|l| l.contains(r#""device":0"#)).unwrap();
    assert!(device.contains(&format!(r#""peak":{}"#, 1 << 30)), "{device}");
    assert!(
        device.contains(&format!(r#""allocations":[{},1,1000,{}]"#, 3 * MIB + 1, 918 * MIB)),
        "{device}"
    );
}

#[test]
fn a_context_costs_memory_until_it_is_released() {
    let fake = fake("memory.0=250M,context=100M");
    let first = Primary::new(0);
    assert_eq!(result::mem_get_info().unwrap().0, 150 * MIB);
    let again = Primary::new(0);
    assert_eq!(result::mem_get_info().unwrap().0, 150 * MIB, "there is one primary context");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::malloc_sync(100 * MIB) }.unwrap();
    drop(again);
    assert_eq!(result::mem_get_info().unwrap().0, 50 * MIB);
    drop(first);
    let _new = Primary::new(0);
    assert_eq!(result::mem_get_info().unwrap().0, 150 * MIB, "a context frees its allocations");
    fake.handle.configure("memory.1=50M").unwrap();
    assert_eq!(code(Primary::try_new(1).map(|_| ())), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
}

#[test]
fn memory_is_freed_in_stream_order() {
    let _fake = fake("memory.0=400M");
    let _primary = Primary::new(0);
    let s = stream();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let alloc = |bytes: usize| unsafe { result::malloc_async(s, bytes) };
    let first = alloc(64 * MIB).unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::free_async(first, s) }.unwrap();
    assert_eq!(result::mem_get_info().unwrap().0, 36 * MIB, "that has not run yet");
    let second = alloc(64 * MIB).unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let late = unsafe { result::memset_d8_sync(first, 0, 4) };
    assert_eq!(code(late), CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::free_async(second, s) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memset_d8_async(second, 0, 4, s) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(
        code(unsafe { result::stream::synchronize(s) }),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
    );
}

#[test]
fn copies_must_stay_inside_allocations() {
    let _fake = fake("");
    let _primary = Primary::new(0);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let at = unsafe { result::malloc_sync(16) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_sync(at + 8, &[1u32, 2]) }.unwrap();
    for wrong in [at + 12, at - 4, at + 16, 8, 0] {
        // SAFETY: handles and memory belong to this test and outlive the call; the driver checks
        // the rest.
        let outcome = unsafe { result::memcpy_htod_sync(wrong, &[1u32, 2]) };
        assert_eq!(
            code(outcome),
            CUresult::CUDA_ERROR_INVALID_VALUE,
            "{:x}",
            wrong.wrapping_sub(at)
        );
    }
    assert_eq!(read(at, 4), [u32::MAX, u32::MAX, 1, 2]);
    let other = Primary::new(1);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(
        code(unsafe { result::memset_d8_sync(at, 0, 1) }),
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    drop(other);
}

#[test]
fn pinned_memory_is_limited() {
    let fake = fake("pinned=1M");
    let _primary = Primary::new(0);
    let first = pinned(MIB / 8);
    assert_eq!(first[0], u32::MAX);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::malloc_host(MIB, 0) }), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::free_host(first.as_mut_ptr().cast()) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let all = unsafe { result::malloc_host(MIB, 0) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::free_host(all) }.unwrap();
    let report = fake.handle.report();
    assert!(
        report.contains(r#"{"pinned":0,"peak":1048576,"allocations":[524288,1048576]}"#),
        "{report}"
    );
    let mut own = vec![0u32; 1000];
    let at = own.as_mut_ptr().cast();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe {
        sys::cuMemHostRegister_v2(at, 4000, 0).result().unwrap();
        let again = sys::cuMemHostRegister_v2(at, 4000, 0).result();
        assert_eq!(code(again), CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        sys::cuMemHostUnregister(at).result().unwrap();
    }
}

#[test]
fn injected_errors_occur_once() {
    let fake = fake("fail=alloc:2,fail=host:1,fail=context:2");
    let _primary = Primary::new(0);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::malloc_sync(1) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::malloc_sync(1) }), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::malloc_sync(1) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::malloc_host(4, 0) }), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(code(Primary::try_new(1).map(|_| ())), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    fake.handle.configure("fail=copy:2").unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let at = unsafe { result::malloc_sync(4) }.unwrap();
    let s = stream();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_async(at, &[1u32], s) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_async(at, &[2u32], s) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(
        code(unsafe { result::stream::synchronize(s) }),
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
    );
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    assert_eq!(code(unsafe { result::malloc_sync(1) }), CUresult::CUDA_ERROR_ECC_UNCORRECTABLE);
}

#[test]
fn devices_can_be_hidden_and_copies_skipped() {
    let fake = fake("visible=2+0,copies=skip");
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let primary = Primary::new(1);
    assert_eq!(result::device::get_name(1).unwrap(), "Fake RTX 3060");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    let at = unsafe { result::malloc_sync(MIB) }.unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_sync(at, &vec![1u8; MIB]) }.unwrap();
    assert_eq!(read(at, 1), [u32::MAX], "large copies are only counted");
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::memcpy_htod_sync(at, &[1u32]) }.unwrap();
    assert_eq!(read(at, 1), [1]);
    let report = fake.handle.report();
    assert!(report.contains(r#"{"copy":"htod","copies":2,"bytes":1048580}"#), "{report}");
    drop(primary);
    fake.handle.configure("visible=").unwrap();
    assert_eq!(code(result::init()), CUresult::CUDA_ERROR_NO_DEVICE);
    assert!(fake.handle.configure("visible=9").is_err());
}
