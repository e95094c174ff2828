//! The report of a launch: what it did, its errors, and why it stopped.

use crate::program::{CLASSES, Class, Entry};
use std::fmt;

/// Why a launch stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The kernel executed `trap`.
    Trap,
    /// Warps wait for each other, or for threads that have ended.
    Deadlock,
    /// Threads of a warp diverged at an instruction that they must execute together.
    Divergence,
    /// A barrier in shared memory was used without initialisation, or with too many arrivals.
    Barrier,
    /// The kernel used a feature that the machine does not support.
    Unsupported,
    /// The launch itself is wrong, such as too many threads.
    Launch,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl std::error::Error for Fault {}

/// Kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FindingKind {
    /// Two warps, or lanes of one warp, accessed the same shared bytes without synchronisation, and
    /// at least one access was a write. Or two blocks stored different values to the same global
    /// bytes.
    Race,
    /// A read of shared bytes that were never written.
    Uninitialised,
    /// An access outside all mapped ranges, or beyond the shared memory. It was skipped.
    OutOfBounds,
    /// An address that is not aligned for the access. It was skipped.
    Misaligned,
    /// Registers or shared memory were used while an asynchronous operation on them was pending, or
    /// a fence before it is missing.
    Asynchronous,
}

/// One of the first errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    /// The kernel.
    pub entry: String,
    /// Line of the PTX and the instruction on it.
    pub line: u32,
    pub text: String,
    pub block: [u32; 3],
    /// Index of the thread in its block.
    pub thread: u32,
    /// Shared addresses as the kernel sees them, or global ones.
    pub address: u64,
    /// The thread that raced, or the first one of its warp.
    pub other: Option<u32>,
    /// The other block of a race between blocks: both stored different values to the same global
    /// bytes.
    pub other_block: Option<[u32; 3]>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(
            f,
            "{:?}: {} line {} `{}` block ({x}, {y}, {z}) thread {} address {:#x}",
            self.kind, self.entry, self.line, self.text, self.thread, self.address
        )?;
        match (self.other, self.other_block) {
            (Some(o), _) => write!(f, " with thread {o}"),
            (None, Some([x, y, z])) => write!(f, " with block ({x}, {y}, {z})"),
            _ => Ok(()),
        }
    }
}

/// Counters of one instruction.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub executed: u64,
    pub wavefronts: u64,
    pub ideal_wavefronts: u64,
    pub sectors: u64,
    pub ideal_sectors: u64,
}

/// The cost of one instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hot {
    pub entry: String,
    /// Index of the instruction in its kernel.
    pub pc: usize,
    pub line: u32,
    pub text: String,
    /// How many warps executed it.
    pub executed: u64,
    /// Wavefronts of shared memory, and the least possible number.
    pub wavefronts: u64,
    pub ideal_wavefronts: u64,
    /// Sectors of global memory, 32 bytes each, and the least possible number.
    pub sectors: u64,
    pub ideal_sectors: u64,
    /// Whether it is in a loop.
    pub in_loop: bool,
}

/// Sums over instructions, each executed by a warp.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub instructions: u64,
    pub integer: u64,
    pub float: u64,
    pub convert: u64,
    /// Functions such as `ex2`, `rcp`, `rsqrt`, and divisions.
    pub special: u64,
    /// `mma` and `wgmma` instructions.
    pub mma: u64,
    /// Their floating-point operations.
    pub mma_flops: u64,
    pub loads: u64,
    pub stores: u64,
    pub shared_loads: u64,
    pub shared_stores: u64,
    pub copies: u64,
    pub shuffles: u64,
    pub barriers: u64,
    pub branches: u64,
    pub other: u64,
    /// 32-byte sectors of global memory that loads, stores and `cp.async` accessed, and the least
    /// number for their bytes.
    pub load_sectors: u64,
    pub load_ideal: u64,
    pub store_sectors: u64,
    pub store_ideal: u64,
    pub copy_sectors: u64,
    pub copy_ideal: u64,
    /// Passes through shared memory, and the least number without bank conflicts.
    pub wavefronts: u64,
    pub ideal_wavefronts: u64,
}

impl Counts {
    /// The ratio of accessed to needed sectors of all global accesses; 1 is best.
    pub fn sector_ratio(&self) -> f64 {
        let (a, b) = (
            self.load_sectors + self.store_sectors + self.copy_sectors,
            self.load_ideal + self.store_ideal + self.copy_ideal,
        );
        if b == 0 { 1.0 } else { a as f64 / b as f64 }
    }

    /// The ratio of passes through shared memory to the least number of passes; 1 means no bank
    /// conflicts.
    pub fn conflict_ratio(&self) -> f64 {
        if self.ideal_wavefronts == 0 {
            1.0
        } else {
            self.wavefronts as f64 / self.ideal_wavefronts as f64
        }
    }

    fn add(&mut self, class: Class, flops: u64, t: &Tally) {
        let n = t.executed;
        self.instructions += n;
        let slot = match class {
            Class::Integer => &mut self.integer,
            Class::Float => &mut self.float,
            Class::Convert => &mut self.convert,
            Class::Special => &mut self.special,
            Class::Mma | Class::Wgmma => &mut self.mma,
            Class::Load => &mut self.loads,
            Class::Store => &mut self.stores,
            Class::SharedLoad => &mut self.shared_loads,
            Class::SharedStore => &mut self.shared_stores,
            Class::CopyAsync => &mut self.copies,
            Class::Shuffle => &mut self.shuffles,
            Class::Barrier => &mut self.barriers,
            Class::Branch => &mut self.branches,
            Class::Other => &mut self.other,
        };
        *slot += n;
        self.mma_flops += n * flops;
        let (touched, ideal) = match class {
            Class::Load => (&mut self.load_sectors, &mut self.load_ideal),
            Class::CopyAsync => (&mut self.copy_sectors, &mut self.copy_ideal),
            _ => (&mut self.store_sectors, &mut self.store_ideal),
        };
        *touched += t.sectors;
        *ideal += t.ideal_sectors;
        self.wavefronts += t.wavefronts;
        self.ideal_wavefronts += t.ideal_wavefronts;
    }

    fn merge(&mut self, o: &Counts) {
        let pairs: [(&mut u64, u64); 24] = [
            (&mut self.instructions, o.instructions),
            (&mut self.integer, o.integer),
            (&mut self.float, o.float),
            (&mut self.convert, o.convert),
            (&mut self.special, o.special),
            (&mut self.mma, o.mma),
            (&mut self.mma_flops, o.mma_flops),
            (&mut self.loads, o.loads),
            (&mut self.stores, o.stores),
            (&mut self.shared_loads, o.shared_loads),
            (&mut self.shared_stores, o.shared_stores),
            (&mut self.copies, o.copies),
            (&mut self.shuffles, o.shuffles),
            (&mut self.barriers, o.barriers),
            (&mut self.branches, o.branches),
            (&mut self.other, o.other),
            (&mut self.load_sectors, o.load_sectors),
            (&mut self.load_ideal, o.load_ideal),
            (&mut self.store_sectors, o.store_sectors),
            (&mut self.store_ideal, o.store_ideal),
            (&mut self.copy_sectors, o.copy_sectors),
            (&mut self.copy_ideal, o.copy_ideal),
            (&mut self.wavefronts, o.wavefronts),
            (&mut self.ideal_wavefronts, o.ideal_wavefronts),
        ];
        for (a, b) in pairs {
            *a += b;
        }
    }
}

/// How many findings a report contains, at most four of a kind at an instruction.
pub const FINDINGS: usize = 16;

/// The results of a launch.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub blocks: u64,
    pub counts: Counts,
    /// The same for instructions inside of loops.
    pub loops: Counts,
    pub races: u64,
    pub uninitialised: u64,
    pub out_of_bounds: u64,
    pub misaligned: u64,
    pub asynchronous: u64,
    /// The first findings, in the order of the blocks; a few of each kind at each instruction.
    pub findings: Vec<Finding>,
    hot: Vec<Hot>,
}

impl Report {
    pub(crate) fn new(entry: &Entry, tallies: &[Tally]) -> Report {
        const { assert!(CLASSES == 15) };
        let mut r = Report::default();
        for (pc, (i, t)) in entry.code.iter().zip(tallies).enumerate() {
            r.counts.add(i.class, i.flops, t);
            if i.in_loop {
                r.loops.add(i.class, i.flops, t);
            }
            if t.executed > 0 {
                r.hot.push(Hot {
                    entry: entry.name.clone(),
                    pc,
                    line: i.line,
                    text: i.text.clone(),
                    executed: t.executed,
                    wavefronts: t.wavefronts,
                    ideal_wavefronts: t.ideal_wavefronts,
                    sectors: t.sectors,
                    ideal_sectors: t.ideal_sectors,
                    in_loop: i.in_loop,
                });
            }
        }
        r
    }

    /// Whether there was no error. Bank conflicts and wasted sectors are not errors.
    pub fn clean(&self) -> bool {
        self.races == 0
            && self.uninitialised == 0
            && self.out_of_bounds == 0
            && self.misaligned == 0
            && self.asynchronous == 0
    }

    /// Every instruction that ran, in the order of the program.
    pub fn hot(&self) -> &[Hot] {
        &self.hot
    }

    /// Adds the results of another launch.
    pub fn merge(&mut self, other: &Report) {
        self.blocks += other.blocks;
        self.counts.merge(&other.counts);
        self.loops.merge(&other.loops);
        self.races += other.races;
        self.uninitialised += other.uninitialised;
        self.out_of_bounds += other.out_of_bounds;
        self.misaligned += other.misaligned;
        self.asynchronous += other.asynchronous;
        let room = FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.iter().take(room).cloned());
        for h in &other.hot {
            match self
                .hot
                .iter_mut()
                .find(|m| m.pc == h.pc && m.entry == h.entry && m.text == h.text)
            {
                Some(m) => {
                    m.executed += h.executed;
                    m.wavefronts += h.wavefronts;
                    m.ideal_wavefronts += h.ideal_wavefronts;
                    m.sectors += h.sectors;
                    m.ideal_sectors += h.ideal_sectors;
                }
                None => self.hot.push(h.clone()),
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let c = &self.counts;
        writeln!(
            f,
            "{} blocks, {} warp instructions ({} integer, {} float, {} convert, {} special, {} mma = {:.3} GFLOP, {} shuffles, {} barriers)",
            self.blocks,
            c.instructions,
            c.integer,
            c.float,
            c.convert,
            c.special,
            c.mma,
            c.mma_flops as f64 * 1e-9,
            c.shuffles,
            c.barriers
        )?;
        for (name, c) in [("all", &self.counts), ("in loops", &self.loops)] {
            writeln!(
                f,
                "{name}: sectors/ideal: loads {}/{}, cp.async {}/{}, stores {}/{} (ratio {:.3}); shared wavefronts/ideal {}/{} (ratio {:.3})",
                c.load_sectors,
                c.load_ideal,
                c.copy_sectors,
                c.copy_ideal,
                c.store_sectors,
                c.store_ideal,
                c.sector_ratio(),
                c.wavefronts,
                c.ideal_wavefronts,
                c.conflict_ratio()
            )?;
        }
        write!(
            f,
            "races {}, uninitialised {}, out of bounds {}, misaligned {}, asynchronous {}",
            self.races, self.uninitialised, self.out_of_bounds, self.misaligned, self.asynchronous
        )?;
        for x in &self.findings {
            write!(f, "\n  {x}")?;
        }
        let mut worst: Vec<&Hot> =
            self.hot.iter().filter(|h| h.wavefronts > h.ideal_wavefronts).collect();
        worst.sort_by_key(|h| std::cmp::Reverse(h.wavefronts - h.ideal_wavefronts));
        for h in worst.iter().take(4) {
            write!(
                f,
                "\n  bank conflicts: {} line {} `{}` {} wavefronts, ideal {}{}",
                h.entry,
                h.line,
                h.text,
                h.wavefronts,
                h.ideal_wavefronts,
                if h.in_loop { ", in a loop" } else { "" }
            )?;
        }
        Ok(())
    }
}

impl Tally {
    pub(crate) fn add(&mut self, o: &Tally) {
        self.executed += o.executed;
        self.wavefronts += o.wavefronts;
        self.ideal_wavefronts += o.ideal_wavefronts;
        self.sectors += o.sectors;
        self.ideal_sectors += o.ideal_sectors;
    }
}
