//! Other processes find the fake driver and NVML through `LD_LIBRARY_PATH`.

use cudarc::driver::CudaContext;
use std::ffi::{CStr, c_char, c_void};
use std::process::Command;

/// The test that the other process runs. In the parent process it does nothing.
#[test]
fn child() {
    if std::env::var_os("FAKE_CUDA_CHILD").is_none() {
        return;
    }
    assert_eq!(CudaContext::device_count().unwrap(), 1);
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "Fake H100");
    let (free, total) = context.mem_get_info().unwrap();
    assert_eq!((free, total), (924 << 20, 1 << 30));
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe {
        let library = libc::dlopen(c"libnvidia-ml.so.1".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null());
        let find = |name: &CStr| libc::dlsym(library, name.as_ptr());
        type Init = extern "C" fn() -> i32;
        type Find = extern "C" fn(*const c_char, *mut usize) -> i32;
        type Memory = extern "C" fn(usize, *mut [u64; 3]) -> i32;
        let init = std::mem::transmute::<*mut c_void, Init>(find(c"nvmlInit_v2"));
        let handle =
            std::mem::transmute::<*mut c_void, Find>(find(c"nvmlDeviceGetHandleByPciBusId_v2"));
        let memory = std::mem::transmute::<*mut c_void, Memory>(find(c"nvmlDeviceGetMemoryInfo"));
        let (mut device, mut seen) = (0, [0; 3]);
        assert_eq!(handle(c"0000:03:00.0".as_ptr(), &mut device), 1, "not initialised");
        assert_eq!(init(), 0);
        assert_eq!(handle(c"0000:09:00.0".as_ptr(), &mut device), 6, "not found");
        assert_eq!(handle(c"00000000:03:00.0".as_ptr(), &mut device), 0);
        assert_eq!(memory(device, &mut seen), 0);
        assert_eq!(seen, [1 << 30, 924 << 20, 100 << 20]);
    }
}

#[test]
fn a_child_process_finds_the_fake_driver() {
    let folder = fake_cuda::folder().unwrap();
    assert_eq!(fake_cuda::folder().unwrap(), folder);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "processes::child"])
        .env("FAKE_CUDA_CHILD", "1")
        .env("LD_LIBRARY_PATH", folder);
    child.env("FLUX_FAKE_CUDA", "visible=2,memory.2=1G,context=100M");
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
