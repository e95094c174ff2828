//! The functions of the driver's library, which cudarc loads when it is first needed.
//!
//! Their results are integers here, not cudarc's enum: a driver that is newer than this program may
//! return codes that the enum does not have, which would be undefined behaviour.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::error::Result;

/// What a call returned that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    pub const OUT_OF_MEMORY: Code = Code(2);
    pub const DEVICE_UNAVAILABLE: Code = Code(46);
    /// The driver's library does not have the function, or there is no such library.
    pub const NOT_FOUND: Code = Code(500);

    /// The driver's name of the error.
    pub fn name(self) -> String {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: writes a pointer to a text that lives as long as the library.
        let found = unsafe { error_name(self.0 as c_int, &mut text) };
        if found.is_err() || text.is_null() {
            return format!("CUDA error {}", self.0);
        }
        // SAFETY: as above; the text ends in a zero.
        unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// The driver's number of a device.
pub type Device = c_int;
/// The driver's handle to a context, module, function, stream, event or graph.
pub type Handle = *mut c_void;

/// A TMA descriptor.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap(pub [u64; 16]);

/// Values of the driver's enums, as numbers of the type that its functions take.
macro_rules! constants {
    ($($t:ty: $from:ident { $($name:ident = $value:ident,)* })*) => {
        $($(pub const $name: $t = sys::$from::$value as $t;)*)*
    };
}

constants! {
    c_int: CUdevice_attribute {
        ATTRIBUTE_PROCESSORS = CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        ATTRIBUTE_L2_BYTES = CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE,
        ATTRIBUTE_MAJOR = CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        ATTRIBUTE_MINOR = CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        ATTRIBUTE_SHARED_OPTIN = CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
    }
    c_uint: CUctx_flags {
        CONTEXT_BLOCKING_SYNC = CU_CTX_SCHED_BLOCKING_SYNC,
    }
    c_uint: CUevent_flags {
        EVENT_BLOCKING_SYNC = CU_EVENT_BLOCKING_SYNC,
        EVENT_DISABLE_TIMING = CU_EVENT_DISABLE_TIMING,
    }
    c_uint: CUstream_flags {
        STREAM_NON_BLOCKING = CU_STREAM_NON_BLOCKING,
    }
    c_int: CUstreamCaptureMode {
        CAPTURE_THREAD_LOCAL = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
    }
    c_int: CUfunction_attribute {
        FUNCTION_STATIC_SHARED = CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
        FUNCTION_LOCAL_BYTES = CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
        FUNCTION_REGISTERS = CU_FUNC_ATTRIBUTE_NUM_REGS,
        FUNCTION_DYNAMIC_SHARED = CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        FUNCTION_CARVEOUT = CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
    }
    c_int: CUjit_option {
        JIT_ERROR_LOG = CU_JIT_ERROR_LOG_BUFFER,
        JIT_ERROR_LOG_BYTES = CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    }
    c_int: CUtensorMapDataType {
        TENSOR_UINT8 = CU_TENSOR_MAP_DATA_TYPE_UINT8,
        TENSOR_BF16 = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    }
    c_int: CUtensorMapInterleave {
        TENSOR_INTERLEAVE_NONE = CU_TENSOR_MAP_INTERLEAVE_NONE,
    }
    c_int: CUtensorMapSwizzle {
        TENSOR_SWIZZLE_128B = CU_TENSOR_MAP_SWIZZLE_128B,
    }
    c_int: CUtensorMapL2promotion {
        TENSOR_L2_256B = CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
    }
    c_int: CUtensorMapFloatOOBfill {
        TENSOR_FILL_ZEROS = CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    }
}

/// The library and its functions; those that an old driver lacks are `None`.
macro_rules! functions {
    ($($name:ident = $symbol:literal ($($argument:ident: $t:ty),*);)*) => {
        struct Api {
            $($name: Option<unsafe extern "system" fn($($t),*) -> c_int>,)*
        }

        impl Api {
            fn load() -> Option<Api> {
                // SAFETY: loading runs the initialisers of the system's GPU driver. The library
                // stays loaded to the end of the process, as long as its functions are used.
                let library = unsafe { sys::is_culib_present().then(|| sys::culib())? };
                // SAFETY: the signatures are those of cuda.h.
                unsafe {
                    $(let $name = library
                        .get::<unsafe extern "system" fn($($t),*) -> c_int>($symbol.as_bytes())
                        .ok()
                        .map(|symbol| *symbol);)*
                    Some(Api { $($name),* })
                }
            }
        }

        $(
            /// # Safety
            /// The arguments are what the driver requires of them.
            #[allow(clippy::too_many_arguments, reason = "the driver's arguments")]
            pub unsafe fn $name($($argument: $t),*) -> Result<(), Code> {
                match api().and_then(|api| api.$name) {
                    // SAFETY: the caller's promise.
                    Some(call) => match unsafe { call($($argument),*) } {
                        0 => Ok(()),
                        code => Err(Code(code as u32)),
                    },
                    None => Err(Code::NOT_FOUND),
                }
            }
        )*
    };
}

fn api() -> Option<&'static Api> {
    static API: OnceLock<Api> = OnceLock::new();
    // A library that is not there now may be there later: tests install one.
    match API.get() {
        Some(api) => Some(api),
        None => Api::load().map(|api| API.get_or_init(|| api)),
    }
}

/// Whether the driver's library can be loaded.
pub fn present() -> bool {
    api().is_some()
}

functions! {
    error_name = "cuGetErrorName" (code: c_int, to: *mut *const c_char);
    init = "cuInit" (flags: c_uint);
    driver_version = "cuDriverGetVersion" (to: *mut c_int);
    device_count = "cuDeviceGetCount" (to: *mut c_int);
    device = "cuDeviceGet" (to: *mut Device, ordinal: c_int);
    device_name = "cuDeviceGetName" (to: *mut c_char, bytes: c_int, device: Device);
    device_bus = "cuDeviceGetPCIBusId" (to: *mut c_char, bytes: c_int, device: Device);
    device_memory = "cuDeviceTotalMem_v2" (to: *mut usize, device: Device);
    device_attribute = "cuDeviceGetAttribute" (to: *mut c_int, which: c_int, device: Device);
    primary_flags = "cuDevicePrimaryCtxSetFlags_v2" (device: Device, flags: c_uint);
    primary_retain = "cuDevicePrimaryCtxRetain" (to: *mut Handle, device: Device);
    primary_release = "cuDevicePrimaryCtxRelease_v2" (device: Device);
    set_current = "cuCtxSetCurrent" (context: Handle);
    memory_info = "cuMemGetInfo_v2" (free: *mut usize, total: *mut usize);
    memory_alloc = "cuMemAlloc_v2" (to: *mut u64, bytes: usize);
    memory_free = "cuMemFree_v2" (address: u64);
    host_alloc = "cuMemHostAlloc" (to: *mut *mut c_void, bytes: usize, flags: c_uint);
    host_free = "cuMemFreeHost" (start: *mut c_void);
    upload = "cuMemcpyHtoDAsync_v2" (to: u64, from: *const c_void, bytes: usize, stream: Handle);
    download = "cuMemcpyDtoHAsync_v2" (to: *mut c_void, from: u64, bytes: usize, stream: Handle);
    module_load = "cuModuleLoadDataEx" (
        to: *mut Handle, image: *const c_void, count: c_uint, options: *mut c_int,
        values: *mut *mut c_void
    );
    module_unload = "cuModuleUnload" (module: Handle);
    module_function = "cuModuleGetFunction" (to: *mut Handle, module: Handle, name: *const c_char);
    function_load = "cuFuncLoad" (function: Handle);
    function_set = "cuFuncSetAttribute" (function: Handle, which: c_int, value: c_int);
    function_get = "cuFuncGetAttribute" (to: *mut c_int, which: c_int, function: Handle);
    occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor" (
        to: *mut c_int, function: Handle, threads: c_int, shared: usize
    );
    launch = "cuLaunchKernel" (
        function: Handle, x: c_uint, y: c_uint, z: c_uint, threads_x: c_uint, threads_y: c_uint,
        threads_z: c_uint, shared: c_uint, stream: Handle, arguments: *mut *mut c_void,
        extra: *mut *mut c_void
    );
    stream_create = "cuStreamCreate" (to: *mut Handle, flags: c_uint);
    stream_synchronize = "cuStreamSynchronize" (stream: Handle);
    stream_wait = "cuStreamWaitEvent" (stream: Handle, event: Handle, flags: c_uint);
    stream_destroy = "cuStreamDestroy_v2" (stream: Handle);
    capture_begin = "cuStreamBeginCapture_v2" (stream: Handle, mode: c_int);
    capture_end = "cuStreamEndCapture" (stream: Handle, to: *mut Handle);
    graph_destroy = "cuGraphDestroy" (graph: Handle);
    graph_instantiate = "cuGraphInstantiateWithFlags" (to: *mut Handle, graph: Handle, flags: u64);
    graph_launch = "cuGraphLaunch" (graph: Handle, stream: Handle);
    graph_exec_destroy = "cuGraphExecDestroy" (graph: Handle);
    event_create = "cuEventCreate" (to: *mut Handle, flags: c_uint);
    event_record = "cuEventRecord" (event: Handle, stream: Handle);
    event_synchronize = "cuEventSynchronize" (event: Handle);
    event_elapsed = "cuEventElapsedTime" (to: *mut f32, from: Handle, until: Handle);
    event_destroy = "cuEventDestroy_v2" (event: Handle);
    tensor_map = "cuTensorMapEncodeTiled" (
        to: *mut TensorMap, dtype: c_int, rank: c_uint, address: *mut c_void, sizes: *const u64,
        strides: *const u64, window: *const c_uint, steps: *const c_uint, interleave: c_int,
        swizzle: c_int, promotion: c_int, fill: c_int
    );
}

/// A handle or a number that `call` writes.
pub fn made<T: Copy>(empty: T, call: impl FnOnce(&mut T) -> Result<(), Code>) -> Result<T, Code> {
    let mut value = empty;
    call(&mut value).map(|()| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_no_list_has_are_numbers() {
        assert_eq!(Code(4_000_000).name(), "CUDA error 4000000");
    }
}
