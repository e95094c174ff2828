//! Barriers of a block, by number.

use crate::machine::block::Env;
use crate::machine::clocks::Clock;
use crate::machine::warp::Warp;
use crate::program::*;
use crate::read::types::Slot;
use crate::report::{Fault, FaultKind};

/// A block barrier.
#[derive(Clone)]
pub(crate) struct Barrier {
    arrived: u32,
    expected: Option<u32>,
    waiting: Vec<usize>,
    clock: Clock,
    /// Votes so far, and those of the completed round.
    votes: [u32; 3],
    result: [u32; 3],
}

impl Barrier {
    pub(crate) fn new() -> Barrier {
        Barrier {
            arrived: 0,
            expected: None,
            waiting: vec![],
            clock: Clock::ZERO,
            votes: [0; 3],
            result: [0; 3],
        }
    }

    /// Clears the state of an earlier block.
    pub(crate) fn reset(&mut self) {
        *self = Barrier::new();
    }
}

impl Env<'_> {
    /// Counts a warp at a barrier. Returns true if it must wait.
    pub(crate) fn barrier(&mut self, w: &mut Warp, bar: &Bar, mask: u32) -> Result<bool, Fault> {
        if mask != w.full {
            return self.fault(
                FaultKind::Divergence,
                format!("only lanes {mask:#010x} of warp {} arrived", w.index),
            );
        }
        let id = w.first(bar.id, mask) as usize;
        let Some(b) = self.barriers.get_mut(id) else {
            return self.fault(FaultKind::Unsupported, format!("barrier {id}"));
        };
        let threads = self.place.dims.iter().product::<u32>().next_multiple_of(32);
        let expected = bar.count.map_or(threads, |c| w.first(c, mask));
        if !expected.is_multiple_of(32) || expected > threads || expected == 0 {
            return self.fault(
                FaultKind::Divergence,
                format!("barrier {id} for {expected} of {threads} threads"),
            );
        }
        if b.expected.is_some_and(|e| e != expected) {
            return self.fault(
                FaultKind::Divergence,
                format!("barrier {id} with different numbers of threads"),
            );
        }
        if let Some(r) = &bar.reduce {
            let p = w.regs.preds[r.pred as usize];
            let ones = (if r.negate { !p } else { p } & mask).count_ones();
            b.votes = [b.votes[0] + ones, b.votes[1] + mask.count_ones(), 0];
        }
        b.expected = Some(expected);
        b.arrived += 32;
        self.shared.clocks.release(w.index, &mut b.clock);
        if !bar.arrive {
            b.waiting.push(w.index);
            self.blocked[w.index] = true;
        }
        if b.arrived >= expected {
            let clock = std::mem::replace(&mut b.clock, Clock::ZERO);
            b.result = std::mem::take(&mut b.votes);
            (b.arrived, b.expected) = (0, None);
            for other in b.waiting.drain(..) {
                self.shared.clocks.acquire(other, &clock);
                self.blocked[other] = false;
            }
        }
        // Even the last warp lets the others run first, through `asleep`.
        Ok(!bar.arrive)
    }

    /// Continues after the barrier at which the warp waited.
    pub(crate) fn wake(&mut self, w: &mut Warp, inst: &Inst) {
        let Action::Bar(bar) = &inst.action else { return };
        let Some(r) = &bar.reduce else { return };
        let [ones, all, _] = self.barriers[w.first(bar.id, w.full) as usize].result;
        let yes = match r.op {
            VoteOp::And => ones == all,
            _ => ones > 0,
        };
        match r.d {
            Slot::Pred(p) => w.regs.put_pred(p, if yes { !0 } else { 0 }, w.full),
            Slot::Word(s) | Slot::Double(s) => w.regs.put_word(s, [ones; 32], w.full),
        }
    }
}
