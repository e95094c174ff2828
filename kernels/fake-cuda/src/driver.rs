//! The state of the driver, and what every call does before and after its own work.

use crate::capture::{Capture, Mark};
use crate::device::Device;
use crate::module::{Function, Module};
use crate::report::Counts;
use crate::settings::{Kind, Settings};
use crate::space::Space;
use crate::status::*;
use crate::stream::{Node, Stream, Ticket};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;

/// A handle of any kind. Every handle is unique, and none is a valid address.
pub type Id = u64;

pub struct Context {
    pub device: usize,
    /// Its memory overhead at the time of its creation.
    cost: u64,
    /// The error after which every call fails.
    pub failed: Option<Code>,
    /// The stream with the handle 0.
    pub legacy: Id,
    /// The stream with the handle 2, of each thread.
    pub own: BTreeMap<String, Id>,
    streams: u64,
}

pub struct Event {
    pub context: Id,
    pub flags: u32,
    pub mark: Mark,
    /// The last recorded mark and its time.
    pub passed: Option<(Ticket, Instant)>,
    pub polls: u32,
    /// For the log.
    pub number: u64,
}

/// A range of pinned memory.
pub struct Pinned {
    pub bytes: u64,
    pub context: Id,
    /// Whether the driver allocated it (otherwise the program registered it).
    pub allocated: bool,
    pub flags: u32,
}

pub struct Graph {
    pub context: Id,
    pub nodes: Arc<Vec<Node>>,
}

pub struct Driver {
    pub settings: Settings,
    pub started: bool,
    pub devices: Vec<Device>,
    pub contexts: BTreeMap<Id, Context>,
    pub streams: BTreeMap<Id, Stream>,
    pub events: BTreeMap<Id, Event>,
    pub modules: BTreeMap<Id, Module>,
    pub functions: BTreeMap<Id, Function>,
    pub graphs: BTreeMap<Id, Graph>,
    /// Instantiated graphs.
    pub programs: BTreeMap<Id, Graph>,
    pub captures: BTreeMap<Id, Capture>,
    pub pinned: BTreeMap<u64, Pinned>,
    pub pinned_bytes: u64,
    pub space: Space,
    pub counts: Counts,
    pub lines: Vec<String>,
    pub said_skipping: bool,
    ids: u64,
    numbers: u64,
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::new()));

thread_local! {
    /// The stack of current contexts.
    pub static CURRENT: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
    /// Whether this thread is inside a call, and so a host function is running.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Adds a line to the log if it is on.
macro_rules! note {
    ($driver:expr, $($text:tt)*) => {
        if $driver.settings.log {
            $driver.lines.push(format!($($text)*));
        }
    };
}
pub(crate) use note;

impl Driver {
    fn new() -> Driver {
        let mut settings = Settings::default();
        if let Some(text) = std::env::var_os("FLUX_FAKE_CUDA")
            && let Err(e) = settings.apply(&text.to_string_lossy())
        {
            eprintln!("fake-cuda: FLUX_FAKE_CUDA is ignored: {e}");
        }
        Driver {
            settings,
            started: false,
            devices: Vec::new(),
            contexts: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            graphs: BTreeMap::new(),
            programs: BTreeMap::new(),
            captures: BTreeMap::new(),
            pinned: BTreeMap::new(),
            pinned_bytes: 0,
            space: Space::new(),
            counts: Counts::default(),
            lines: Vec::new(),
            said_skipping: false,
            // Small numbers, aligned like addresses, at which no memory is mapped.
            ids: 0x1000,
            numbers: 0,
        }
    }

    pub fn new_id(&mut self) -> Id {
        self.ids += 16;
        self.ids
    }

    /// Numbers for the log, for objects without a number of their own.
    pub fn new_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn start(&mut self) -> Outcome {
        if let Some(code) = self.settings.strike(Kind::Init) {
            return Err(Code(code));
        }
        self.make_devices();
        if self.devices.is_empty() {
            return Err(NO_DEVICE);
        }
        self.started = true;
        Ok(())
    }

    /// Creates the devices that the settings describe. They can only change while no context
    /// exists.
    pub fn make_devices(&mut self) {
        let same = self.devices.iter().map(|d| d.preset).eq(self.settings.visible.iter().copied());
        if !same && self.contexts.is_empty() {
            let specs = &self.settings.specs;
            self.devices =
                self.settings.visible.iter().map(|&p| Device::new(p, specs[p].clone())).collect();
        }
        for device in &mut self.devices {
            device.spec = self.settings.specs[device.preset].clone();
        }
    }

    pub fn device(&mut self, ordinal: i32) -> Outcome<&mut Device> {
        let index = usize::try_from(ordinal).map_err(|_| INVALID_DEVICE)?;
        self.devices.get_mut(index).ok_or(INVALID_DEVICE)
    }

    pub fn device_of(&mut self, context: Id) -> &mut Device {
        let index = self.contexts[&context].device;
        &mut self.devices[index]
    }

    pub fn open_context(&mut self, ordinal: i32) -> Outcome<Id> {
        if let Some(code) = self.settings.strike(Kind::Context) {
            return Err(Code(code));
        }
        let cost = self.settings.context;
        self.device(ordinal)?.open_context(cost)?;
        let (id, legacy) = (self.new_id(), self.new_id());
        self.streams.insert(legacy, Stream::new(id, true, 0));
        let device = ordinal as usize;
        self.contexts.insert(
            id,
            Context { device, cost, failed: None, legacy, own: BTreeMap::new(), streams: 0 },
        );
        note!(self, "context opened device={ordinal}");
        Ok(id)
    }

    /// Destroys a context with everything in it. Operations that are still queued do not run.
    pub fn close_context(&mut self, id: Id) {
        let Some(context) = self.contexts.remove(&id) else { return };
        self.streams.retain(|_, s| s.context != id);
        self.events.retain(|_, e| e.context != id);
        self.graphs.retain(|_, g| g.context != id);
        self.programs.retain(|_, g| g.context != id);
        let modules: Vec<Id> =
            self.modules.iter().filter(|(_, m)| m.context == id).map(|(&m, _)| m).collect();
        let streams = &self.streams;
        self.captures.retain(|&c, _| streams.values().any(|s| s.capture == Some(c)));
        modules.into_iter().for_each(|m| _ = self.unload(m));
        let device = &mut self.devices[context.device];
        let left: Vec<u64> = device
            .allocations
            .iter()
            .filter(|(_, a)| a.context == id)
            .map(|(&address, _)| address)
            .collect();
        note!(self, "context closed device={} allocations_left={}", context.device, left.len());
        for address in left {
            device.release(&mut self.space, address);
        }
        device.close_context(context.cost);
        let pinned: Vec<u64> =
            self.pinned.iter().filter(|(_, p)| p.context == id).map(|(&a, _)| a).collect();
        pinned.into_iter().for_each(|address| _ = self.unpin(address));
    }

    pub fn new_stream(&mut self, context: Id, blocking: bool) -> Outcome<Id> {
        let id = self.new_id();
        let c = self.contexts.get_mut(&context).ok_or(INVALID_CONTEXT)?;
        c.streams += 1;
        self.streams.insert(id, Stream::new(context, blocking, c.streams));
        Ok(id)
    }

    /// The stream behind a handle, the three special ones included.
    pub fn stream(&mut self, context: Id, handle: Id) -> Outcome<Id> {
        match handle {
            0 | 1 => Ok(self.contexts[&context].legacy),
            2 => {
                let thread = format!("{:?}", std::thread::current().id());
                if let Some(&id) = self.contexts[&context].own.get(&thread) {
                    return Ok(id);
                }
                let id = self.new_stream(context, true)?;
                self.contexts.get_mut(&context).ok_or(INVALID_CONTEXT)?.own.insert(thread, id);
                Ok(id)
            }
            _ => match self.streams.get(&handle) {
                Some(s) if s.context == context && !s.closed => Ok(handle),
                _ => Err(INVALID_HANDLE),
            },
        }
    }

    pub fn event(&mut self, context: Id, handle: Id) -> Outcome<&mut Event> {
        self.events.get_mut(&handle).filter(|e| e.context == context).ok_or(INVALID_HANDLE)
    }
}

/// A call without requirements: locks the driver, and turns a panic into an error code.
pub fn anywhere(call: impl FnOnce(&mut Driver) -> Outcome) -> i32 {
    if INSIDE.replace(true) {
        // Host functions must not call the driver.
        return NOT_PERMITTED.0;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut driver)
    }));
    INSIDE.set(false);
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code.0,
        Err(_) => UNKNOWN.0,
    }
}

/// A call that needs `cuInit`.
pub fn initialised(call: impl FnOnce(&mut Driver) -> Outcome) -> i32 {
    anywhere(|d| if d.started { call(d) } else { Err(NOT_INITIALIZED) })
}

/// A call that needs a current context without an error. It returns an error that occurs during the
/// call.
pub fn in_context(call: impl FnOnce(&mut Driver, Id) -> Outcome) -> i32 {
    within(false, call)
}

/// The same for calls that request work or memory: the report contains how many of them a failed
/// context refused.
pub fn for_work(call: impl FnOnce(&mut Driver, Id) -> Outcome) -> i32 {
    within(true, call)
}

fn within(work: bool, call: impl FnOnce(&mut Driver, Id) -> Outcome) -> i32 {
    initialised(|d| {
        let context = CURRENT.with_borrow(|c| c.last().copied()).ok_or(INVALID_CONTEXT)?;
        let failed = |d: &Driver| d.contexts.get(&context).ok_or(INVALID_CONTEXT).map(|c| c.failed);
        if let Some(code) = failed(d)? {
            d.counts.refused += u64::from(work);
            return Err(code);
        }
        call(d, context)?;
        failed(d)?.map_or(Ok(()), Err)
    })
}

/// Stores a result at the caller's pointer.
pub fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller of a C interface guarantees that the pointers it passes are valid.
    unsafe { to.write(value) };
    Ok(())
}
