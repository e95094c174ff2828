//! One warp: registers, positions of lanes, pending copies; and the operations among its lanes.

use crate::machine::regs::Regs;
use crate::program::{Redux, ShuffleMode, VoteMode, WarpOp};

/// A pending `cp.async` of one lane.
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    pub lane: u8,
    pub bytes: u8,
    /// Counts the copies of its lane.
    pub number: u64,
    /// How many bytes are read from memory; the others are zero.
    pub wanted: u8,
    /// Number of the group among those of its lane.
    pub group: u32,
    /// Offset in shared memory.
    pub to: u32,
    /// On the host.
    pub from: usize,
}

pub(crate) struct Warp {
    pub index: usize,
    pub regs: Regs,
    /// Lanes that exist.
    pub full: u32,
    /// Lanes that have not exited.
    pub live: u32,
    /// All live lanes are at `pc`; otherwise `pcs` has their positions.
    pub uniform: bool,
    pub pc: u32,
    pub pcs: [u32; 32],
    /// Lanes that wait at a `sync` instruction for others of their warp.
    pub parked: u32,
    /// Local memory of all lanes, one after the other.
    pub local: Vec<u8>,
    /// Groups of `cp.async` that each lane has committed.
    pub committed: [u32; 32],
    /// The barrier instruction at which it waits.
    pub asleep: Option<u32>,
    /// Stores by the copy engine, and the groups of them that each lane has committed.
    pub stores: Vec<crate::machine::bulk::BulkStore>,
    pub stores_committed: [u32; 32],
    /// Pending products of the warpgroup, and groups of them.
    pub flights: Vec<crate::machine::flights::Flight>,
    pub products_committed: u32,
    /// For each word: how many pending products have it as accumulator, and as operand.
    pub busy: Vec<[u16; 2]>,
    /// `wgmma.fence`s executed, and how many there were when each word was written, plus one.
    pub fences: u32,
    pub written: Vec<u32>,
}

impl Warp {
    /// The lanes to run next and their position: those with the lowest program counter.
    pub(crate) fn pick(&mut self) -> Option<(u32, u32)> {
        if self.uniform {
            self.scatter();
        }
        let ready = self.live & !self.parked;
        let mut pc = u32::MAX;
        for l in 0..32 {
            if ready >> l & 1 == 1 {
                pc = pc.min(self.pcs[l]);
            }
        }
        if ready == 0 {
            return None;
        }
        // Lanes that wait at the same instruction run with the others.
        let mut mask = 0;
        for l in 0..32 {
            if self.live >> l & 1 == 1 && self.pcs[l] == pc {
                mask |= 1 << l;
            }
        }
        self.parked &= !mask;
        if mask == self.live {
            self.uniform = true;
            self.pc = pc;
        }
        Some((pc, mask))
    }

    /// Gives each lane its own program counter.
    pub(crate) fn scatter(&mut self) {
        if self.uniform {
            self.pcs = [self.pc; 32];
            self.uniform = false;
        }
    }

    /// Moves lanes to an instruction.
    #[inline]
    pub(crate) fn advance(&mut self, mask: u32, to: u32) {
        if self.uniform {
            self.pc = to;
            return;
        }
        for l in 0..32 {
            if mask >> l & 1 == 1 {
                self.pcs[l] = to;
            }
        }
    }

    /// The common value of a register among lanes, or that of the first lane.
    pub(crate) fn first(&self, slot: u32, mask: u32) -> u32 {
        self.regs.words[slot as usize][mask.trailing_zeros() as usize & 31]
    }

    /// An operation among the lanes of `mask`, all of which are here.
    pub(crate) fn exchange(&mut self, op: &WarpOp, mask: u32) {
        let regs = &mut self.regs;
        match op {
            WarpOp::Sync => {}
            WarpOp::Shuffle { mode, d, pred, a, b, c } => {
                let [a, b, c] = [a, b, c].map(|s| regs.words[*s as usize]);
                let (mut out, mut found) = (a, 0u32);
                for l in 0..32u32 {
                    // Lanes form segments of a width; `c` holds the mask of segment bits and the
                    // last lane to read.
                    let (i, segment, clamp) =
                        (l as usize, c[l as usize] >> 8 & 31, c[l as usize] & 31);
                    let n = b[i] & 31;
                    let (least, most) = (l & segment, l & segment | clamp & !segment);
                    let (from, inside) = match mode {
                        ShuffleMode::Up => (l.wrapping_sub(n), l as i32 - n as i32 >= most as i32),
                        ShuffleMode::Down => (l + n, l + n <= most),
                        ShuffleMode::Butterfly => (l ^ n, (l ^ n) <= most),
                        ShuffleMode::Index => {
                            (least | n & !segment, (least | n & !segment) <= most)
                        }
                    };
                    let from = if inside { from & 31 } else { l };
                    // The result of a lane that does not take part is undefined.
                    out[i] = if mask >> from & 1 == 1 { a[from as usize] } else { u32::MAX };
                    found |= (inside as u32) << l;
                }
                regs.put_word(*d, out, mask);
                if let Some(p) = pred {
                    regs.put_pred(*p, found, mask);
                }
            }
            WarpOp::Vote { mode, d, pred, negate } => {
                let p = regs.preds[*pred as usize];
                let ballot = (if *negate { !p } else { p }) & mask;
                let all = |yes: bool| if yes { !0 } else { 0 };
                match mode {
                    VoteMode::Ballot => regs.put_word(*d, [ballot; 32], mask),
                    VoteMode::All => regs.put_pred(*d, all(ballot == mask), mask),
                    VoteMode::Any => regs.put_pred(*d, all(ballot != 0), mask),
                    VoteMode::Uniform => {
                        regs.put_pred(*d, all(ballot == 0 || ballot == mask), mask)
                    }
                }
            }
            WarpOp::Match { all, wide, d, pred, a } => {
                let x: [u64; 32] = if *wide {
                    regs.doubles[*a as usize]
                } else {
                    regs.words[*a as usize].map(|x| x as u64)
                };
                let equal =
                    |l: usize| (0..32).fold(0u32, |m, o| m | ((x[o] == x[l]) as u32) << o) & mask;
                let mut out: [u32; 32] = std::array::from_fn(equal);
                if *all {
                    let same = out[mask.trailing_zeros() as usize & 31] == mask;
                    out = [if same { mask } else { 0 }; 32];
                    if let Some(p) = pred {
                        regs.put_pred(*p, if same { !0 } else { 0 }, mask);
                    }
                }
                regs.put_word(*d, out, mask);
            }
            WarpOp::Redux { op, d, a } => {
                let x = regs.words[*a as usize];
                let values = (0..32).filter(|l| mask >> l & 1 == 1).map(|l| x[l]);
                let f: fn(u32, u32) -> u32 = match op {
                    Redux::Add => u32::wrapping_add,
                    Redux::Min(false) => u32::min,
                    Redux::Max(false) => u32::max,
                    Redux::Min(true) => |x, y| (x as i32).min(y as i32) as u32,
                    Redux::Max(true) => |x, y| (x as i32).max(y as i32) as u32,
                    Redux::And => |x, y| x & y,
                    Redux::Or => |x, y| x | y,
                    Redux::Xor => |x, y| x ^ y,
                };
                let r = values.reduce(f).unwrap_or(0);
                regs.put_word(*d, [r; 32], mask);
            }
            WarpOp::Elect { d, pred } => {
                let leader = mask.trailing_zeros();
                regs.put_pred(*pred, 1 << (leader & 31), mask);
                if let Some(d) = d {
                    regs.put_word(*d, [leader; 32], mask);
                }
            }
        }
    }
}
