//! Devices that run recorded steps. A backend knows operations, bytes and places; it never knows layers, files or budgets.

pub mod cpu;

use crate::error::Result;
use crate::op::{Op, Step};
use crate::tensor::{DTypes, HostWeight, Slot, Tensor, Weight};

/// What a device can do and hold.
#[derive(Debug, Clone)]
pub struct Caps {
    /// `cpu`, `cuda:0`, `wgpu:1` ...
    pub name: String,
    /// What people call it: the processor's or adapter's name and the instruction sets or features in use.
    pub description: String,
    /// The memory that a budget divides, in bytes (host memory for the CPU).
    pub memory_bytes: u64,
    /// Element type of activations.
    pub activation: crate::dtype::DType,
    /// Weights are used where they lie in host memory; `load` copies nothing.
    pub in_place_weights: bool,
    /// Offsets in the arena are multiples of this many bytes.
    pub alignment: usize,
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
    /// Byte offset in the ring.
    Ring(usize),
}

/// A device. Calls come from one thread, in program order.
pub trait Backend {
    /// What the device is.
    fn caps(&self) -> &Caps;

    /// Bytes that the device needs to hold `weight` (its stored form and scales, padded).
    fn weight_bytes(&self, weight: &HostWeight) -> usize;

    /// Bytes of scratch that `op` needs beyond its operands, `stored` giving the types in which a weight's parts are stored.
    fn scratch_bytes(&self, op: &Op, stored: &dyn Fn(Weight) -> DTypes) -> usize;

    /// Sets memory aside; what was there before is gone. Fails with `Kind::Memory` if the device cannot hold it.
    fn reserve(&mut self, layout: Layout) -> Result<()>;

    /// Starts to bring `weight` to `place`, and returns; a `run` that names `key` waits for it.
    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight) -> Result<()>;

    /// `key` is not used again before its next `load`; its place may be given to another.
    fn forget(&mut self, key: WeightKey) -> Result<()>;

    /// Runs one step (or queues it).
    fn run(&mut self, step: &Step, places: &Places) -> Result<()>;

    /// Writes `bytes` at `offset` of the arena.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Reads from `offset` of the arena, after all queued steps.
    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Waits for all queued steps.
    fn sync(&mut self) -> Result<()>;
}
