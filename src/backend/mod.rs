//! Devices that run recorded steps. A backend knows operations, bytes and places; it never knows layers, files or budgets.

mod courier;
pub mod cpu;
pub mod cuda;
mod forced;
mod form;
mod gpu;
mod loaded;
mod options;
pub mod wgpu;

pub use options::{Compute, Device, KernelChoice};

use crate::error::Result;
use crate::op::{Op, Step, Use};
use crate::tensor::{HostWeight, Slot, Tensor, Weight};

/// What a device can do and hold.
#[derive(Debug, Clone)]
pub struct Caps {
    /// `cpu`, `cuda:0`, `wgpu:1` ...
    pub name: String,
    /// What people call it: the processor's or adapter's name and the instruction sets or features in use.
    pub description: String,
    /// The memory that a budget divides, in bytes (host memory for the CPU).
    pub memory_bytes: u64,
    /// What of it was free when the device was opened, `overhead_bytes` already taken; for the CPU, all of it.
    pub free_bytes: u64,
    /// Device memory that is used beside what `reserve` sets aside: context, kernels' code.
    pub overhead_bytes: u64,
    /// Memory is handed out in multiples of this many bytes.
    pub granularity: usize,
    /// Element type of activations.
    pub activation: crate::dtype::DType,
    /// Weights are used where they lie in host memory; `load` copies nothing.
    pub in_place_weights: bool,
    /// How places are to be given out.
    pub grain: Grain,
    /// Host memory that `allow_host` grants is used, for weights that pass in every step.
    pub pins: bool,
    /// After the device was lost, the same process can open it again.
    pub reopens: bool,
}

/// How a device's memory is divided: offsets in arena, residents and ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    /// Offsets are multiples of this many bytes.
    pub align: usize,
    /// Nothing crosses a multiple of this many bytes, itself a multiple of `align`: memory is had in pieces of this size. The ring is one piece.
    pub chunk: usize,
}

impl Grain {
    /// Memory that is one piece.
    pub fn whole(align: usize) -> Grain {
        Grain { align, chunk: usize::MAX / 2 / align * align }
    }

    /// The first offset from `offset` on at which `bytes` may lie. What is larger than a piece gets pieces of its own, which the device will refuse.
    pub fn place(&self, offset: usize, bytes: usize) -> usize {
        let at = offset.next_multiple_of(self.align);
        let crosses = bytes > 0 && at / self.chunk != (at + bytes - 1) / self.chunk;
        if crosses { at.next_multiple_of(self.chunk) } else { at }
    }
}

/// Where everything of one program lies while it runs. Offsets are bytes from the start of the arena.
#[derive(Debug, Clone, Default)]
pub struct Places {
    pub inputs: Vec<usize>,
    pub temps: Vec<usize>,
    pub outputs: Vec<usize>,
    /// Scratch of the running operation.
    pub scratch: usize,
    /// Keys of the program's weights, by `Weight::id`.
    pub weights: Vec<WeightKey>,
}

impl Places {
    /// The arena offset of `tensor`.
    pub fn of(&self, tensor: &Tensor) -> usize {
        match tensor.slot {
            Slot::Input(id) => self.inputs[id as usize],
            Slot::Temp(id) => self.temps[id as usize],
            Slot::Output(id) => self.outputs[id as usize],
        }
    }

    /// The key of `weight`.
    pub fn key(&self, weight: Weight) -> WeightKey {
        self.weights[weight.id as usize]
    }
}

/// Names one loaded weight, unique among all programs of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightKey(pub u64);

/// What a device sets aside, once, before a phase runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// Activations and scratch.
    pub arena_bytes: usize,
    /// Weights that stay.
    pub resident_bytes: usize,
    /// The ring through which the other weights pass.
    pub ring_bytes: usize,
}

/// Where a loaded weight is to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Byte offset among the resident weights.
    Resident(usize),
    /// Byte offset in the ring. `again`: the weight will pass in later runs, too.
    Ring { offset: usize, again: bool },
}

impl Layout {
    /// All bytes, in memory that is handed out in pieces of `granularity`. Plans round every part up to the device's alignment.
    pub fn bytes(&self, granularity: usize) -> u64 {
        (self.arena_bytes + self.resident_bytes + self.ring_bytes).next_multiple_of(granularity)
            as u64
    }
}

/// What a device is told before a run of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Runs with the same number do the same steps at the same places: the device may record one and replay it. Never used for anything else.
    pub id: u64,
    /// How often this run has been done before; the first brings the weights.
    pub done: usize,
}

/// A device. Calls come from one thread, in program order. Steps may be queued: a device keeps few enough waiting that progress and cancelling stay prompt.
pub trait Backend: Send {
    /// What the device is.
    fn caps(&self) -> &Caps;

    /// Bytes that the device needs to hold `weight`, used as `how` (its form on the device and scales, padded).
    fn weight_bytes(&self, weight: &HostWeight, how: Use) -> usize;

    /// Bytes of scratch that `op` needs beyond its operands.
    fn scratch_bytes<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> usize;

    /// Whether the device can run `op` at all: an error says why not, before anything runs.
    fn can_run<'w>(&self, _op: &Op, _weight: &dyn Fn(Weight) -> &'w HostWeight) -> Result<()> {
        Ok(())
    }

    /// Allocates memory for one phase and drops everything that was loaded or written before.
    ///
    /// `peak_bytes` is the largest [`Layout::bytes`] of the phases to come. A device with memory of
    /// its own allocates that much now: then no later phase can fail because another program took
    /// the memory meanwhile.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) if the device has less.
    fn reserve(&mut self, layout: Layout, peak_bytes: u64) -> Result<()>;

    /// Starts to bring `weight` to `place`, and returns; a `run` that names `key` waits for it.
    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight, how: Use) -> Result<()>;

    /// `key` is not used again before its next `load`; its place may be given to another at once, though a queued step may still read it: the device
    /// sees to it that the next load there waits.
    fn forget(&mut self, key: WeightKey) -> Result<()>;

    /// A run of a program begins; `run` is given where every weight has a place of its own, so that all such runs are alike. True if the device
    /// replays an earlier one by itself: then no step follows, only `end`.
    fn begin(&mut self, _run: Option<Run>) -> Result<bool> {
        Ok(false)
    }

    /// Runs one step (or queues it).
    fn run(&mut self, step: &Step, places: &Places) -> Result<()>;

    /// The run's last step was given. False if the run was recorded but nothing of it was done: its steps must be given again.
    fn end(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// Host memory that the device may use for weights on their way, from now on, in bytes.
    fn allow_host(&mut self, _bytes: u64) {}

    /// Writes `bytes` at `offset` of the arena, after all queued steps.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Reads from `offset` of the arena, after all queued steps.
    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Waits for all queued steps.
    fn sync(&mut self) -> Result<()>;

    /// Whether the device was lost: then every further call that uses it fails.
    fn is_lost(&self) -> bool {
        false
    }
}
