//! Shared by the tests: the fake driver, one test at a time, and a few kernels in PTX.
#![allow(dead_code)]

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub struct Fake {
    pub handle: fake_cuda::Handle,
    _turn: MutexGuard<'static, ()>,
}

/// The fake driver with only these settings.
pub fn fake(settings: &str) -> Fake {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = fake_cuda::install().unwrap();
    handle.configure("default").unwrap();
    handle.configure(settings).unwrap();
    handle.report();
    handle.log();
    Fake { handle, _turn: turn }
}

/// The primary context of a device, current in this thread until this is dropped.
pub struct Primary {
    device: i32,
}

impl Primary {
    pub fn new(ordinal: i32) -> Primary {
        Primary::try_new(ordinal).unwrap()
    }

    pub fn try_new(ordinal: i32) -> Result<Primary, DriverError> {
        result::init()?;
        let device = result::device::get(ordinal)?;
        // SAFETY: the device was just found; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }?;
        Ok(Primary { device })
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: retained once, in `try_new`.
        unsafe { result::primary_ctx::release(self.device) }.unwrap();
    }
}

pub fn code<T>(outcome: Result<T, DriverError>) -> CUresult {
    match outcome {
        Ok(_) => CUresult::CUDA_SUCCESS,
        Err(e) => e.0,
    }
}

pub fn stream() -> sys::CUstream {
    result::stream::create(result::stream::StreamKind::NonBlocking).unwrap()
}

pub fn event() -> sys::CUevent {
    result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap()
}

pub fn record(stream: sys::CUstream) -> sys::CUevent {
    let event = event();
    // SAFETY: the event is new, and tests destroy no stream that they use.
    unsafe { result::event::record(event, stream) }.unwrap();
    event
}

pub fn wait(stream: sys::CUstream, event: sys::CUevent) {
    let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: tests destroy neither streams nor events that they use.
    unsafe { result::stream::wait_event(stream, event, flags) }.unwrap();
}

/// Pinned memory for `count` numbers.
pub fn pinned(count: usize) -> &'static mut [u32] {
    // SAFETY: the memory has this size and is never freed.
    unsafe {
        let at = result::malloc_host(count * 4, 0).unwrap();
        std::slice::from_raw_parts_mut(at.cast(), count)
    }
}

pub fn read(at: u64, count: usize) -> Vec<u32> {
    let mut values = vec![0; count];
    // SAFETY: tests read memory that they have allocated; the driver checks the range.
    unsafe { result::memcpy_dtoh_sync(&mut values, at) }.unwrap();
    values
}

pub fn load(ptx: &str) -> Result<sys::CUmodule, DriverError> {
    let text = CString::new(ptx).unwrap();
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::module::load_data(text.as_ptr().cast()) }
}

pub fn function(module: sys::CUmodule, name: &str) -> sys::CUfunction {
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::module::get_function(module, CString::new(name).unwrap()) }.unwrap()
}

/// Launches `add(at, count, value)` or a kernel with the same parameters.
pub fn launch(
    f: sys::CUfunction,
    at: u64,
    count: u32,
    value: u32,
    stream: sys::CUstream,
) -> Result<(), DriverError> {
    launch_as(f, at, count, value, stream, [[count.div_ceil(32), 1, 1], [32, 1, 1]], 0)
}

pub fn launch_as(
    f: sys::CUfunction,
    at: u64,
    count: u32,
    value: u32,
    stream: sys::CUstream,
    [grid, block]: [[u32; 3]; 2],
    shared: u32,
) -> Result<(), DriverError> {
    let mut params = [
        (&raw const at).cast_mut().cast(),
        (&raw const count).cast_mut().cast(),
        (&raw const value).cast_mut().cast(),
    ];
    let (grid, block) = ((grid[0], grid[1], grid[2]), (block[0], block[1], block[2]));
    // SAFETY: handles and memory belong to this test and outlive the call; the driver checks the
    // rest.
    unsafe { result::launch_kernel(f, grid, block, shared, stream, &mut params) }
}

/// `add` adds `value` to every number, `stray` does so one number beyond the end, `bounded` is for
/// blocks of 64 threads.
pub const KERNELS: &str = r#"
.version 7.8
.target sm_80
.address_size 64

.visible .entry add(.param .u64 at, .param .u32 count, .param .u32 value)
{
    .reg .pred %p<2>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [at];
    ld.param.u32 %r1, [count];
    ld.param.u32 %r2, [value];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r6, %r3, %r4, %r5;
    setp.ge.u32 %p1, %r6, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r6, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.u32 %r7, [%rd4];
    add.s32 %r7, %r7, %r2;
    st.global.u32 [%rd4], %r7;
DONE:
    ret;
}

.visible .entry stray(.param .u64 at, .param .u32 count, .param .u32 value)
{
    .reg .b32 %r<8>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [at];
    ld.param.u32 %r2, [value];
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.s32 %r6, %r3, %r4, %r5;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r6, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.u32 %r7, [%rd4+4];
    add.s32 %r7, %r7, %r2;
    st.global.u32 [%rd4+4], %r7;
    ret;
}

.visible .entry bounded(.param .u64 at, .param .u32 count, .param .u32 value)
.maxntid 64, 1, 1
.minnctapersm 8
{
    ret;
}
"#;
