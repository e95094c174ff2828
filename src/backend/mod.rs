//! Devices that run the steps of a [`Program`](crate::op::Program).
//!
//! A [`Backend`] is given operations, bytes and places. It has no notion of the layers of a
//! network, of files or of budgets. There are three: [`cpu`], [`cuda`] and [`wgpu`].

#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
mod courier;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod forced;
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
mod form;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[cfg_attr(not(all(feature = "cuda", feature = "wgpu")), allow(dead_code, unused_imports))]
mod gpu;
#[cfg_attr(not(any(feature = "cuda", feature = "wgpu")), allow(dead_code))]
mod int8;
mod loaded;
mod options;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use options::{Compute, Device, KernelChoice};

use crate::error::Result;
use crate::op::{Op, Step, Use};
use crate::tensor::{HostWeight, Slot, Tensor, Weight};

/// The properties of a device.
#[derive(Debug, Clone)]
pub struct Caps {
    /// `cpu`, `cuda:0`, `wgpu:1` ...
    pub name: String,
    /// The name of the processor or adapter, and the instruction sets or features in use.
    pub description: String,
    /// The memory that a budget divides, in bytes (host memory for the CPU).
    pub memory_bytes: u64,
    /// Free bytes of that memory when the device was opened, after `overhead_bytes` was taken; for
    /// the CPU, all of it.
    pub free_bytes: u64,
    /// Device memory that is used besides what [`Backend::reserve`] allocates: context, code of
    /// kernels.
    pub overhead_bytes: u64,
    /// Memory is allocated in multiples of this many bytes.
    pub granularity: usize,
    /// Element type of activations.
    pub activation: crate::dtype::DType,
    /// Weights are used where they are in host memory: [`Backend::load`] copies nothing.
    pub in_place_weights: bool,
    /// How the memory is divided.
    pub grain: Grain,
    /// Whether the device uses the host memory that [`Backend::allow_host`] allows, for weights
    /// that pass in every step.
    pub pins: bool,
    /// Whether the same process can open the device again after it was lost.
    pub reopens: bool,
    /// Which products it computes in 8-bit integers.
    pub int8: Int8Use,
}

/// Which of the products that may be computed in 8-bit integers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Int8Use {
    /// None: weights that are stored for such products are decoded.
    #[default]
    Never,
    /// Those whose weights are stored for it: as integers, in a rotation.
    Stored,
    /// All, whatever the weights are stored as.
    All,
}

/// How the memory of a device is divided: rules for offsets in arena, resident weights and ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grain {
    /// Offsets are multiples of this many bytes.
    pub align: usize,
    /// No operand crosses a multiple of this many bytes (a multiple of `align`): memory is
    /// allocated in chunks of this size. The ring is one chunk.
    pub chunk: usize,
}

impl Grain {
    /// Memory in one chunk.
    pub fn whole(align: usize) -> Grain {
        Grain { align, chunk: usize::MAX / 2 / align * align }
    }

    /// The first offset from `offset` on where `bytes` bytes can be placed. An operand that is
    /// larger than a chunk begins at a chunk; the device will refuse it.
    pub fn place(&self, offset: usize, bytes: usize) -> usize {
        let at = offset.next_multiple_of(self.align);
        let crosses = bytes > 0 && at / self.chunk != (at + bytes - 1) / self.chunk;
        if crosses { at.next_multiple_of(self.chunk) } else { at }
    }
}

/// Where the operands of one program are while it runs. Offsets are bytes from the start of the
/// arena.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Offsets of the inputs, by number.
    pub inputs: Vec<usize>,
    /// Offsets of the tensors that live within a run, by number.
    pub temps: Vec<usize>,
    /// Offsets of the outputs, by number.
    pub outputs: Vec<usize>,
    /// Scratch memory of the running operation.
    pub scratch: usize,
    /// Keys of the weights of the program, indexed by [`Weight::id`].
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct WeightKey {
    /// For a factor of a side matrix (a LoRA): which set of side matrices it belongs to. 0 for the
    /// model's own weights.
    pub side_set: u32,
    /// The opened network (a ControlNet) that is not a part of the model and has the weight. 0 for
    /// the model's own weights.
    pub owner: u32,
    /// Number of the program within a generation.
    pub phase: u32,
    /// The number of the weight among those of the program that the same network has.
    pub id: u32,
}

impl WeightKey {
    /// The key of weight `id` where there is only one program.
    pub fn new(id: u32) -> WeightKey {
        WeightKey { id, ..WeightKey::default() }
    }
}

/// The memory that a device allocates before a phase runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// Activations and scratch memory, in bytes.
    pub arena_bytes: usize,
    /// Weights that stay, in bytes.
    pub resident_bytes: usize,
    /// The ring through which all other weights pass, in bytes.
    pub ring_bytes: usize,
}

/// Where a weight is to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Byte offset among the resident weights.
    Resident(usize),
    /// In the ring.
    Ring {
        /// Byte offset in the ring.
        offset: usize,
        /// The weight will pass in later runs, too.
        again: bool,
    },
}

impl Layout {
    /// The sum in bytes, rounded up to a multiple of `granularity`. Plans round every part up to
    /// the alignment of the device.
    pub fn bytes(&self, granularity: usize) -> u64 {
        (self.arena_bytes + self.resident_bytes + self.ring_bytes).next_multiple_of(granularity)
            as u64
    }
}

/// A run of a program that is the same every time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Runs with the same number run the same steps at the same places: the device may record one
    /// and replay it. The number is used for nothing else.
    pub id: u64,
    /// How often this run was done before. The first run loads the weights.
    pub done: usize,
}

/// A device. Calls come from one thread, in program order. A device can queue steps, but keeps the
/// queue short enough that progress and cancelling stay prompt.
pub trait Backend: Send {
    /// The properties of the device.
    fn caps(&self) -> &Caps;

    /// Bytes that the device needs for `weight`, used as `how`: its form on the device, with scales
    /// and padding.
    fn weight_bytes(&self, weight: &HostWeight, how: Use) -> usize;

    /// Bytes of scratch memory that `op` needs besides its operands.
    fn scratch_bytes<'w>(&self, op: &Op, weight: &dyn Fn(Weight) -> &'w HostWeight) -> usize;

    /// Checks whether the device can run `op`, before anything runs.
    ///
    /// # Errors
    /// The reason why it cannot.
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

    /// Starts to load `weight` to `place`, and returns; a [`run`](Backend::run) that uses `key`
    /// waits for it.
    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight, how: Use) -> Result<()>;

    /// Drops the weight `key`: it is not used before its next [`load`](Backend::load). Its place
    /// can be given to another weight at once, though a queued step may still read it; the device
    /// makes the next load to this place wait.
    fn forget(&mut self, key: WeightKey) -> Result<()>;

    /// Begins a run of a program. `run` is given if every weight has a place of its own, so that
    /// all runs of this program are alike. Returns true if the device replays an earlier one: then
    /// no step follows, only [`end`](Backend::end).
    fn begin(&mut self, _run: Option<Run>) -> Result<bool> {
        Ok(false)
    }

    /// Runs or queues one step.
    fn run(&mut self, step: &Step, places: &Places) -> Result<()>;

    /// Ends a run. Returns false if the run was recorded but none of it was done: then its steps
    /// must be given again.
    fn end(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// Sets how much host memory the device may use for weights that it copies, in bytes. The
    /// largest program that runs several times copies `passing` bytes in each run: the device may
    /// prepare memory for them.
    fn allow_host(&mut self, _bytes: u64, _passing: u64) {}

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
