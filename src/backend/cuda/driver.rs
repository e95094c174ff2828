//! The driver, as little of it as we need: every `unsafe` call of the CUDA backend is in this file. Handles free themselves; errors become ours.
//!
//! cudarc loads the driver at run time and panics where there is none: `Driver::open` asks first.

use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::launch::{Kernel, Launch, TensorMap};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::units;

/// The oldest driver that reads our baseline PTX (ISA 7.8): that of CUDA 11.8.
const OLDEST_DRIVER: i32 = 11080;

/// Once a kernel has failed, every call of the context fails: what went wrong first is kept, and nothing is tried again.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<AtomicU32>);

impl Health {
    pub fn alive(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            code => Err(lost(code, "earlier")),
        }
    }

    fn check<T>(&self, answer: Result<T, DriverError>, what: &str) -> Result<T> {
        answer.map_err(|DriverError(code)| {
            let number = code as u32;
            if is_sticky(number) {
                self.0.store(number, Ordering::Relaxed);
                return lost(number, what);
            }
            match code {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY if what.contains("host memory") => {
                    Error::memory(format!("out of memory: {what}"))
                        .try_("a smaller --ram, or end other programs")
                }
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::memory(format!(
                    "out of memory: {what}"
                ))
                .try_(
                    "a smaller --vram, a smaller picture, or end other programs that use the GPU",
                ),
                sys::CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
                    Error::device(format!("{what}: the GPU is taken"))
                        .try_("end the program that has it for itself, or another --device")
                }
                _ => Error::device(format!("{what}: {}", name(code))),
            }
        })
    }
}

/// Errors after which a context is of no more use.
fn is_sticky(code: u32) -> bool {
    matches!(code, 4 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 999)
}

fn lost(code: u32, what: &str) -> Error {
    let hint = match code {
        702 => {
            "the system's watchdog ended a kernel: a smaller picture, or a GPU that drives no display"
        }
        214 | 220 | 226 => "the GPU reports a memory or link error: check it with nvidia-smi",
        700 | 714..=719 => {
            "run again; if it repeats, --device cpu works, and a report with this message helps"
        }
        _ => "run again, and look at the driver's log if it repeats",
    };
    Error::device(format!("the GPU was lost ({what}: CUDA error {code})")).try_(hint)
}

fn name(code: sys::CUresult) -> String {
    let name = DriverError(code).error_name().map(|n| n.to_string_lossy().into_owned());
    name.unwrap_or_else(|_| format!("CUDA error {}", code as u32))
}

/// What a device says of itself.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub name: String,
    pub capability: (u32, u32),
    pub processors: u32,
    pub shared_bytes: u32,
    pub l2_bytes: u32,
    pub total_bytes: u64,
    /// `0000:01:00.0`, by which NVML knows it.
    pub bus: String,
    /// 1000 * major + 10 * minor, of the CUDA version that the driver speaks.
    pub driver: i32,
}

/// Whether the driver's library can be loaded.
pub(super) fn present() -> bool {
    // SAFETY: loads it, which runs its initialisers; it is the system's GPU driver.
    unsafe { sys::is_culib_present() }
}

/// How many devices there are; an error says why there is none.
pub(super) fn count() -> Result<i32> {
    if !present() {
        return Err(
            Error::device("no NVIDIA driver on this machine (libcuda was not found)").at("cuda")
        );
    }
    let unusable = |DriverError(code): DriverError| {
        Error::device(format!("the NVIDIA driver is there, but of no use: {}", name(code)))
            .at("cuda")
            .try_("nvidia-smi, which tells more")
    };
    result::init().map_err(unusable)?;
    let version = version().map_err(unusable)?;
    if version < OLDEST_DRIVER {
        return Err(Error::device("the NVIDIA driver is too old")
            .at("cuda")
            .found(format!("CUDA {}.{}", version / 1000, version % 1000 / 10))
            .expected("CUDA 11.8 (driver 520) or newer")
            .try_("a newer driver, or --device cpu"));
    }
    match result::device::get_count().map_err(unusable)? {
        0 => Err(Error::device("the NVIDIA driver finds no GPU").at("cuda")),
        n => Ok(n),
    }
}

fn version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}

/// The facts about device `ordinal`, which must be less than `count`.
pub(super) fn facts(ordinal: i32) -> Result<Facts> {
    use sys::CUdevice_attribute as A;
    let ask = || -> Result<Facts, DriverError> {
        let device = result::device::get(ordinal)?;
        // SAFETY: the device is valid; each call writes what it returns.
        let get = |attribute| {
            unsafe { result::device::get_attribute(device, attribute) }.map(|v| v.max(0) as u32)
        };
        let mut bus = [0u8; 32];
        // SAFETY: writes at most 32 bytes, with a terminating zero.
        unsafe { sys::cuDeviceGetPCIBusId(bus.as_mut_ptr().cast(), 32, device) }.result()?;
        let end = bus.iter().position(|&b| b == 0).unwrap_or(bus.len());
        Ok(Facts {
            name: result::device::get_name(device)?,
            capability: (
                get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            processors: get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            l2_bytes: get(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            // SAFETY: the device is valid.
            total_bytes: unsafe { result::device::total_mem(device) }? as u64,
            bus: String::from_utf8_lossy(&bus[..end]).into_owned(),
            driver: version()?,
        })
    };
    ask().map_err(|DriverError(code)| Error::device(name(code)).at(format!("cuda:{ordinal}")))
}

/// The primary context of a device, made current for the thread that opened it.
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    pub health: Health,
}

// SAFETY: a context may be used from any thread; `bind` makes it current there first.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Context {}

impl Context {
    pub fn open(ordinal: i32) -> Result<Arc<Context>> {
        let health = Health::default();
        let device = health.check(result::device::get(ordinal), "opening the device")?;
        // Threads that wait for the GPU sleep, as with events. A context that exists already keeps its ways.
        let sleep = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32;
        // SAFETY: the device is valid.
        let _ = unsafe { sys::cuDevicePrimaryCtxSetFlags_v2(device, sleep) };
        // SAFETY: the device is valid; the context is released when this is dropped.
        let raw = health
            .check(unsafe { result::primary_ctx::retain(device) }, "making a context on the GPU")?;
        let context = Arc::new(Context { device, raw, health });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context that of the calling thread.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive.
        self.health.check(unsafe { result::ctx::set_current(self.raw) }, "using the GPU's context")
    }

    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) = self.health.check(result::mem_get_info(), "asking for free memory")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; nothing that belongs to it is left, since all hold an `Arc` of it.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Work in order, beside the work of other streams.
pub(super) struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Stream {}

impl Stream {
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Stream { context: context.clone(), raw: context.health.check(raw, "making a stream")? })
    }

    /// Waits on the host until all work is done.
    pub fn synchronize(&self) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the stream is alive.
        self.context
            .health
            .check(unsafe { result::stream::synchronize(self.raw) }, "waiting for the GPU")
    }

    /// As `synchronize`, whatever happened before: for those who are about to take memory away.
    pub fn drain(&self) {
        // SAFETY: the stream is alive. An error has been told, or will be by what comes next.
        let _ = unsafe { result::stream::synchronize(self.raw) };
    }

    /// What is queued from now on runs after `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: stream and event are alive.
        self.context.health.check(
            unsafe { result::stream::wait_event(self.raw, event.raw, flags) },
            "ordering streams",
        )
    }

    /// Queues a copy of `bytes` to the device address `to`.
    ///
    /// # Safety
    /// The bytes stay as they are until the copy is done; `to` is the address of at least so many bytes of device memory that nothing else uses meanwhile.
    pub unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the caller's promise.
        self.context
            .health
            .check(unsafe { result::memcpy_htod_async(to, bytes, self.raw) }, "copying to the GPU")
    }

    /// Copies from the device address `from`, after all that was queued, and waits for it.
    ///
    /// # Safety
    /// `from` is the address of at least so many bytes of device memory.
    pub unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the caller's promise; the bytes are there until the copy is done, for it is waited for.
        let queued = unsafe { result::memcpy_dtoh_async(bytes, from, self.raw) };
        let queued = self.context.health.check(queued, "copying from the GPU");
        let done = self.synchronize(); // also after an error: nothing may write to `bytes` later
        queued.and(done)
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// The addresses in `launch` are those of device memory as large as the kernel, told its parameters, will use.
    pub unsafe fn launch(&self, function: &Function, launch: &Launch) -> Result<()> {
        let kernel = launch.kernel;
        let given = (launch.buffers.len(), launch.maps.len(), launch.params.len());
        assert_eq!(given, (kernel.buffers, kernel.maps, kernel.params), "{}", kernel.entry);
        self.context.health.alive()?;
        let maps = launch
            .maps
            .iter()
            .map(|m| encode(&self.context.health, m))
            .collect::<Result<Vec<_>>>()?;
        // The parameters hold 32-bit words: their copy is aligned for them.
        let words: Vec<u32> = launch
            .params
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let buffers =
            launch.buffers.iter().map(|b| std::ptr::from_ref(b).cast_mut().cast::<c_void>());
        let maps = maps.iter().map(|m| std::ptr::from_ref(m).cast_mut().cast::<c_void>());
        let mut arguments: Vec<*mut c_void> =
            buffers.chain(maps).chain([words.as_ptr().cast_mut().cast::<c_void>()]).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: the driver copies the arguments, whose number and sizes tests compare with the PTX; the rest is the caller's promise.
        let queued = unsafe {
            result::launch_kernel(
                function.raw,
                (x, y, z),
                (kernel.threads, 1, 1),
                kernel.shared,
                self.raw,
                &mut arguments,
            )
        };
        self.context.health.check(queued, kernel.entry)
    }

    /// From now on work is recorded instead of run.
    pub fn begin_capture(&self) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        self.context
            .health
            .check(unsafe { result::stream::begin_capture(self.raw, mode) }, "recording a graph")
    }

    /// Ends the recording and throws away what was recorded.
    pub fn discard_capture(&self) {
        // SAFETY: the stream is alive and records; a recording that went wrong gives no graph.
        if let Ok(graph) = unsafe { result::stream::end_capture(self.raw) }
            && !graph.is_null()
        {
            // SAFETY: the graph is valid and used by nothing.
            let _ = unsafe { result::graph::destroy(graph) };
        }
    }

    /// Ends the recording; what was recorded, ready to run.
    pub fn end_capture(&self) -> Result<Graph> {
        let health = &self.context.health;
        // SAFETY: the stream is alive and records.
        let graph =
            health.check(unsafe { result::stream::end_capture(self.raw) }, "recording a graph")?;
        // SAFETY: the graph is valid, and no longer needed once it is instantiated.
        let ready = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above.
        let _ = unsafe { result::graph::destroy(graph) };
        Ok(Graph { _context: self.context.clone(), raw: health.check(ready, "making a graph")? })
    }

    /// Queues everything that `graph` holds.
    ///
    /// # Safety
    /// The memory that the recorded work uses is still there.
    pub unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the caller's promise.
        self.context
            .health
            .check(unsafe { result::graph::launch(graph.raw, self.raw) }, "running a graph")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new`; queued work goes on until it is done.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}

/// Recorded work.
pub(super) struct Graph {
    _context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: a graph that is ready to run may be launched from any thread, one at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `end_capture`.
        let _ = unsafe { result::graph::exec_destroy(self.raw) };
    }
}

/// A point in a stream's work.
pub(super) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// `timed` events can be subtracted.
    pub fn new(context: &Arc<Context>, timed: bool) -> Result<Event> {
        // A thread that waits sleeps: the processors have files to read.
        let sleep = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let flags =
            if timed { sleep } else { sleep | sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 };
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle.
        let made = unsafe { sys::cuEventCreate(&mut raw, flags) }.result();
        context.health.check(made, "making an event")?;
        Ok(Event { raw, context: context.clone() })
    }

    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        self.context.health.check(
            unsafe { result::event::record(self.raw, stream.raw) },
            "marking a point in a stream",
        )
    }

    /// Waits on the host.
    pub fn synchronize(&self) -> Result<()> {
        self.context.health.alive()?;
        // SAFETY: the event is alive.
        self.context
            .health
            .check(unsafe { result::event::synchronize(self.raw) }, "waiting for the GPU")
    }

    /// Seconds from `earlier` to this one; both were recorded and reached.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64> {
        // SAFETY: both are alive.
        let milliseconds = unsafe { result::event::elapsed(earlier.raw, self.raw) };
        Ok(f64::from(self.context.health.check(milliseconds, "reading a clock")?) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`; the driver keeps it while work refers to it.
        let _ = unsafe { result::event::destroy(self.raw) };
    }
}

/// Events without timing, to use again: making one costs a call of the driver.
pub(super) struct EventPool {
    context: Arc<Context>,
    spare: Mutex<Vec<Event>>,
}

impl EventPool {
    pub fn new(context: &Arc<Context>) -> EventPool {
        EventPool { context: context.clone(), spare: Mutex::default() }
    }

    /// An event that nothing waits for.
    pub fn take(&self) -> Result<Event> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(|| Event::new(&self.context, false), Ok)
    }

    /// Takes back `event`. Whoever has to wait for it is waiting already.
    pub fn put(&self, event: Event) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

/// Device memory.
pub(super) struct Buffer {
    context: Arc<Context>,
    pub address: u64,
    pub bytes: usize,
}

impl Buffer {
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Buffer> {
        if bytes == 0 {
            return Ok(Buffer { context: context.clone(), address: 0, bytes });
        }
        context.health.alive()?;
        // SAFETY: freed when this is dropped; what it holds is not defined until it is written.
        let address = unsafe { result::malloc_sync(bytes) };
        let what = format!("setting {} of device memory aside", units::bytes(bytes as u64));
        Ok(Buffer {
            address: context.health.check(address, &what)?,
            context: context.clone(),
            bytes,
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let _ = self.context.bind();
            // SAFETY: allocated in `new`; the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Host memory that the GPU can read by itself.
pub(super) struct Pinned {
    context: Arc<Context>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain bytes, owned.
unsafe impl Send for Pinned {}
// SAFETY: as above; writing wants `&mut`.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Pinned> {
        // SAFETY: freed when this is dropped. Cached (flags 0): it is written by `read`, whose copies like caches.
        let start = unsafe { result::malloc_host(bytes, 0) };
        let what = format!("pinning {} of host memory", units::bytes(bytes as u64));
        let start = context.health.check(start, &what)?.cast::<u8>();
        Ok(Pinned { context: context.clone(), start, bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes, as long as this lives; they come from outside Rust, so their values are what they are.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// The caller has waited for every copy from these bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: allocated in `new`; owners wait for copies before they drop it.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

/// A PTX module, compiled for the device by its driver.
pub(super) struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
}

/// An entry point of a `Module`.
pub(super) struct Function {
    module: Arc<Module>,
    raw: sys::CUfunction,
    /// Bytes of dynamic shared memory that it was allowed.
    shared: u32,
    /// Sizes of its parameters in bytes, as the PTX declares them.
    parameters: Vec<usize>,
}

// SAFETY: functions and modules may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Module {}

impl Module {
    /// `ptx` is the text of a module.
    pub fn load(context: &Arc<Context>, name: &str, ptx: &str) -> Result<Arc<Module>> {
        let text = CString::new(ptx)
            .map_err(|_| Error::device("a kernel's text holds a zero byte").at(name))?;
        use sys::CUjit_option as Option_;
        let mut log = vec![0u8; 4096];
        let mut options =
            [Option_::CU_JIT_ERROR_LOG_BUFFER, Option_::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let mut raw = std::ptr::null_mut();
        // SAFETY: the text ends in a zero; it, the log and both arrays live through the call. The second value is a number, as the driver wants it.
        let loaded = unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            sys::cuModuleLoadDataEx(&mut raw, text.as_ptr().cast(), 2, options, values).result()
        };
        if let Err(e) = context.health.check(loaded, "compiling kernels for this GPU") {
            let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
            let said = String::from_utf8_lossy(&log[..end]);
            let first: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).take(3).collect();
            let e = e.at(name).try_("another driver version; --device cpu works");
            return Err(if first.is_empty() { e } else { e.found(first.join("; ")) });
        }
        Ok(Arc::new(Module { context: context.clone(), raw }))
    }

    /// The entry called `entry`, whose parameters have `parameters` bytes.
    pub fn function(self: &Arc<Module>, entry: &str, parameters: Vec<usize>) -> Result<Function> {
        let health = &self.context.health;
        let text = CString::new(entry)
            .map_err(|_| Error::device("a kernel's name holds a zero byte").at(entry))?;
        // SAFETY: the module is alive, the name ends in a zero.
        let raw = health
            .check(unsafe { result::module::get_function(self.raw, text) }, "finding a kernel");
        Ok(Function {
            module: self.clone(),
            raw: raw.map_err(|e| e.at(entry))?,
            shared: 48 << 10,
            parameters,
        })
    }
}

impl Function {
    /// Whether it takes what `kernel` says: the driver copies as many bytes as the PTX declares, whatever it was given.
    pub fn takes(&self, kernel: &Kernel) -> bool {
        let (pointers, rest) = self.parameters.split_at(kernel.buffers.min(self.parameters.len()));
        let (maps, params) = rest.split_at(kernel.maps.min(rest.len()));
        pointers.len() == kernel.buffers
            && pointers.iter().all(|&n| n == 8)
            && maps.len() == kernel.maps
            && maps.iter().all(|&n| n == 128)
            && params == [kernel.params]
    }

    /// Lets the kernel have `bytes` of dynamic shared memory: more than 48 KiB must be asked for.
    pub fn allow_shared(&mut self, bytes: u32) -> Result<()> {
        if bytes <= self.shared {
            return Ok(());
        }
        let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is valid.
        let set =
            unsafe { result::function::set_function_attribute(self.raw, limit, bytes as i32) };
        self.module.context.health.check(set, "asking for shared memory")?;
        self.shared = bytes;
        Ok(())
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: loaded in `load`; no function of it is left.
        let _ = unsafe { result::module::unload(self.raw) };
    }
}

/// A TMA descriptor.
fn encode(health: &Health, map: &TensorMap) -> Result<sys::CUtensorMap> {
    use sys::CUtensorMapDataType as T;
    let dtype = match map.dtype {
        DType::BF16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        _ => T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    };
    let mut out = std::mem::MaybeUninit::<sys::CUtensorMap>::zeroed();
    let (dims, strides) = ([map.cols as u64, map.rows as u64], [map.pitch as u64]);
    let (window, steps) = ([map.box_cols, map.box_rows], [1u32, 1]);
    // SAFETY: every array has as many entries as two dimensions want; the driver fills `out`, and a zeroed descriptor is a value too.
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
