//! A parsed module: entry points as decoded instructions.

use crate::machine::regs::Alu;
use crate::read::types::{Slot, Special};
use std::collections::HashMap;
use std::fmt;

/// The reason why a text could not be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Counted from 1; 0 if the error is not at a line.
    pub line: u32,
    pub message: String,
}

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Error {
        Error { line: 0, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for Error {}

/// A PTX file.
pub struct Module {
    pub(crate) version: String,
    pub(crate) target: String,
    pub(crate) entries: Vec<Entry>,
    pub(crate) by_name: HashMap<String, usize>,
}

impl Module {
    /// Reads PTX. An unsupported instruction is an error, even if it would never be executed.
    pub fn parse(text: &str) -> Result<Module, Error> {
        crate::read::parse::module(text)
    }

    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The value of `.version`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The value of `.target`.
    pub fn target(&self) -> &str {
        &self.target
    }
}

/// A parameter of an entry point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Its offset in the parameter bytes.
    pub offset: usize,
    pub bytes: usize,
    pub align: usize,
}

/// A kernel.
pub struct Entry {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) max_threads: Option<u32>,
    /// Bytes of `.shared` variables of known size; dynamic shared memory begins after them.
    pub(crate) static_shared: usize,
    /// Bytes of local memory of each thread.
    pub(crate) local: usize,
    pub(crate) code: Vec<Inst>,
    pub(crate) words: usize,
    pub(crate) doubles: usize,
    pub(crate) preds: usize,
    pub(crate) constants: Vec<(Slot, u64)>,
    pub(crate) specials: Vec<(Slot, Special)>,
    /// Module variables in the constant and global state spaces, at `spaces::MODULE`.
    pub(crate) data: std::sync::Arc<Vec<u8>>,
    /// Global atomics make blocks depend on each other, so they run in order.
    pub(crate) ordered: bool,
    /// Whether it has products of warpgroups, so that the use of registers is checked.
    pub(crate) watched: bool,
}

impl Entry {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes of all parameters, the gaps between them included.
    pub fn params_bytes(&self) -> usize {
        self.params.last().map_or(0, |p| p.offset + p.bytes)
    }

    /// The launch bounds (`__launch_bounds__`).
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }

    /// Bytes of shared memory without the dynamic shared memory of a launch.
    pub fn shared_bytes(&self) -> usize {
        self.static_shared
    }

    /// The number of its instructions.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }
}

/// Kinds of instructions that the report counts separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    Integer,
    Float,
    Convert,
    Special,
    Mma,
    Wgmma,
    Load,
    Store,
    SharedLoad,
    SharedStore,
    CopyAsync,
    Shuffle,
    Barrier,
    Branch,
    Other,
}

pub(crate) const CLASSES: usize = Class::Other as usize + 1;

/// An instruction.
pub(crate) struct Inst {
    pub guard: Option<Guard>,
    pub action: Action,
    pub class: Class,
    /// Floating-point operations of a whole warp in `mma` and `wgmma`.
    pub flops: u64,
    pub in_loop: bool,
    pub line: u32,
    pub text: String,
    /// Words that it reads and writes, and whether it only copies one; present if a kernel has
    /// products of warpgroups.
    pub reads: Vec<u32>,
    pub writes: Vec<u32>,
    pub is_move: bool,
}

/// `@p` or `@!p`
#[derive(Clone, Copy)]
pub(crate) struct Guard {
    pub pred: u32,
    pub negate: bool,
}

/// State spaces of `ld` and `st`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// A base register, which holds 32 or 64 bits, and an offset.
#[derive(Clone, Copy)]
pub(crate) struct Address {
    pub base: Slot,
    pub offset: i64,
}

/// A load or a store of 1, 2, 4 or 8 elements by each lane.
pub(crate) struct Access {
    pub space: Space,
    pub address: Address,
    /// Bytes of an element.
    pub size: usize,
    /// Loads sign-extend it.
    pub signed: bool,
    /// `None` for `_`.
    pub elements: Vec<Option<Slot>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

pub(crate) struct Atomic {
    pub space: Space,
    pub op: AtomOp,
    pub ty: crate::read::types::Type,
    pub address: Address,
    pub result: Option<Slot>,
    pub operands: [u32; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redux {
    Add,
    Min(bool),
    Max(bool),
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// Operations of a whole warp, with the slot of the mask of lanes that take part.
pub(crate) enum WarpOp {
    Shuffle { mode: ShuffleMode, d: u32, pred: Option<u32>, a: u32, b: u32, c: u32 },
    Vote { mode: VoteMode, d: u32, pred: u32, negate: bool },
    Match { all: bool, wide: bool, d: u32, pred: Option<u32>, a: u32 },
    Redux { op: Redux, d: u32, a: u32 },
    Sync,
    Elect { d: Option<u32>, pred: u32 },
}

/// A block barrier: `bar.sync`, `bar.arrive`, `bar.red`.
pub(crate) struct Bar {
    pub id: u32,
    /// Slot of the number of threads, if given.
    pub count: Option<u32>,
    pub arrive: bool,
    /// `.aligned`: the whole warp must execute it together.
    pub aligned: bool,
    pub reduce: Option<BarReduce>,
}

pub(crate) struct BarReduce {
    pub op: VoteOp,
    pub d: Slot,
    pub pred: u32,
    pub negate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoteOp {
    And,
    Or,
    Popc,
}

/// The effect of an instruction.
pub(crate) enum Action {
    /// Registers only.
    Alu(Alu),
    Branch(u32),
    /// Slot of the index, targets.
    BranchIndexed(u32, Vec<u32>),
    Exit,
    Trap,
    Nop,
    /// The clock of the machine, in instructions.
    Clock(Slot),
    ActiveMask(u32),
    Load(Access),
    Store(Access),
    Atomic(Atomic),
    /// The slot of the mask of lanes.
    Warp(WarpOp, u32),
    Bar(Bar),
    Ldmatrix {
        count: usize,
        transposed: bool,
        address: Address,
        d: [u32; 4],
    },
    Stmatrix {
        count: usize,
        transposed: bool,
        address: Address,
        s: [u32; 4],
    },
    /// The whole warp must take part.
    Mma(Alu),
    CopyAsync {
        bytes: usize,
        to: Address,
        from: Address,
        source_bytes: Option<u32>,
        ignore: Option<(u32, bool)>,
    },
    CopyCommit,
    /// Waits until at most this many groups are pending.
    CopyWait(u32),
    /// Waits for all copies, committed or not.
    CopyWaitAll,
    Mbarrier(crate::machine::mbarrier::Mbarrier),
    /// A copy by the copy engine.
    Bulk(crate::machine::bulk::Bulk),
    BulkCommit,
    BulkWait(u32),
    /// Makes ordinary writes visible to the copy engine and the tensor cores.
    ProxyFence,
    Wgmma(Box<crate::machine::wgmma::Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait(u32),
}
