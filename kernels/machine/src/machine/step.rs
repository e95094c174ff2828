//! Runs a warp, one instruction after the other, until it waits or ends.

use crate::machine::block::Env;
use crate::machine::mbarrier::Waited;
use crate::machine::warp::Warp;
use crate::program::*;
use crate::read::types::Slot;
use crate::report::{Fault, FaultKind};

/// Why a warp stopped running.
pub(crate) enum Stop {
    Blocked,
    /// It polls something.
    Yield,
    Done,
}

/// How many instructions a warp may run before others get a turn.
const STRETCH: u64 = 1 << 24;

impl<'a> Env<'a> {
    pub(crate) fn run_warp(&mut self, w: &mut Warp) -> Result<Stop, Fault> {
        let code = &self.place.entry.code;
        if let Some(pc) = w.asleep.take() {
            self.wake(w, &code[pc as usize]);
        }
        let watched = self.place.entry.watched && self.place.checks;
        let until = self.time + STRETCH;
        loop {
            if w.live == 0 {
                self.flush(w, w.full, None);
                return Ok(Stop::Done);
            }
            if self.time > until {
                return Ok(Stop::Yield);
            }
            let picked = if w.uniform && w.parked == 0 { Some((w.pc, w.live)) } else { w.pick() };
            let Some((pc, here)) = picked else {
                return self.fault(
                    FaultKind::Divergence,
                    "lanes of a warp wait for lanes that never arrive",
                );
            };
            self.pc = pc;
            let inst = &code[pc as usize];
            let mask = match inst.guard {
                None => here,
                Some(g) => {
                    let p = w.regs.preds[g.pred as usize];
                    here & if g.negate { !p } else { p }
                }
            };
            self.time += 1;
            self.tallies[pc as usize].executed += 1;
            if watched && mask != 0 {
                self.registers(w, inst, mask);
            }
            match &inst.action {
                Action::Alu(f) => {
                    if mask != 0 {
                        f(&mut w.regs, mask);
                    }
                }
                Action::Branch(target) => {
                    if mask == here {
                        w.advance(here, *target);
                    } else if mask == 0 {
                        w.advance(here, pc + 1);
                    } else {
                        w.scatter();
                        w.advance(mask, *target);
                        w.advance(here & !mask, pc + 1);
                    }
                    continue;
                }
                Action::BranchIndexed(slot, targets) => {
                    w.scatter();
                    w.advance(here & !mask, pc + 1);
                    for l in (0..32).filter(|l| mask >> l & 1 == 1) {
                        let i = w.regs.words[*slot as usize][l] as usize;
                        let Some(t) = targets.get(i) else {
                            return self.fault(FaultKind::Trap, "branch index out of range");
                        };
                        w.pcs[l] = *t;
                    }
                    continue;
                }
                Action::Exit => {
                    w.live &= !mask;
                    w.advance(here & !mask, pc + 1);
                    continue;
                }
                _ if mask == 0 => {}
                Action::Bar(bar) => {
                    if !bar.aligned && mask != w.live {
                        w.parked |= here;
                        w.scatter();
                        if w.live & !w.parked == 0 {
                            return self
                                .fault(FaultKind::Divergence, "lanes wait at different barriers");
                        }
                        continue;
                    }
                    w.advance(here, pc + 1);
                    if self.barrier(w, bar, mask)? {
                        w.asleep = Some(pc);
                        return Ok(Stop::Blocked);
                    }
                    continue;
                }
                Action::Warp(op, members) => {
                    let need = w.first(*members, mask) & w.live;
                    if need & !mask != 0 {
                        // Some of the members have not arrived yet.
                        w.scatter();
                        w.parked |= here;
                        if w.live & !w.parked == 0 {
                            return self.fault(
                                FaultKind::Divergence,
                                "lanes that should take part wait elsewhere",
                            );
                        }
                        continue;
                    }
                    if matches!(op, WarpOp::Sync) {
                        self.shared.clocks.meet(w.index);
                    }
                    w.exchange(op, mask);
                }
                Action::Mbarrier(m) => match self.mbarrier(w, m, mask)? {
                    Waited::On => {}
                    Waited::Blocked => {
                        w.asleep = Some(pc);
                        return Ok(Stop::Blocked);
                    }
                    Waited::Yield => {
                        w.advance(here, pc + 1);
                        return Ok(Stop::Yield);
                    }
                },
                action => self.act(w, inst, action, mask)?,
            }
            w.advance(here, pc + 1);
        }
    }

    fn act(&mut self, w: &mut Warp, inst: &Inst, action: &Action, mask: u32) -> Result<(), Fault> {
        match action {
            Action::Trap => return self.fault(FaultKind::Trap, "trap"),
            Action::Nop => {}
            Action::Clock(slot) => match slot {
                Slot::Word(s) => w.regs.put_word(*s, [self.time as u32; 32], mask),
                Slot::Double(s) => w.regs.put_double(*s, [self.time; 32], mask),
                Slot::Pred(_) => {}
            },
            Action::ActiveMask(d) => w.regs.put_word(*d, [mask; 32], mask),
            Action::Load(a) => return self.load(w, a, mask),
            Action::Store(a) => return self.store(w, a, mask),
            Action::Atomic(a) => return self.atomic(w, a, mask),
            Action::Mma(f) => {
                self.whole(mask)?;
                f(&mut w.regs, mask);
            }
            Action::Ldmatrix { count, transposed, address, d } => {
                self.whole(mask)?;
                self.ldmatrix(w, *count, *transposed, *address, d);
            }
            Action::Stmatrix { count, transposed, address, s } => {
                self.whole(mask)?;
                self.stmatrix(w, *count, *transposed, *address, s);
            }
            Action::CopyAsync { bytes, to, from, source_bytes, ignore } => {
                self.copy(w, *bytes, *to, *from, *source_bytes, *ignore, mask)
            }
            Action::CopyCommit => {
                (0..32).filter(|l| mask >> l & 1 == 1).for_each(|l| w.committed[l] += 1)
            }
            Action::CopyWait(n) => self.land_groups(w, mask, Some(*n)),
            Action::CopyWaitAll => self.land_groups(w, mask, None),
            Action::Bulk(b) => return self.bulk(w, b, mask),
            Action::BulkCommit => {
                (0..32).filter(|l| mask >> l & 1 == 1).for_each(|l| w.stores_committed[l] += 1)
            }
            Action::BulkWait(n) => self.flush(w, mask, Some(*n)),
            Action::ProxyFence => self.shared.clocks.fence(w.index),
            Action::Wgmma(m) => {
                self.whole(mask)?;
                return self.wgmma(w, m);
            }
            Action::WgmmaFence => {
                self.whole(mask)?;
                w.fences += 1;
            }
            Action::WgmmaCommit => {
                self.whole(mask)?;
                w.products_committed += 1;
            }
            Action::WgmmaWait(n) => {
                self.whole(mask)?;
                self.wgmma_wait(w, *n);
            }
            _ => return self.fault(FaultKind::Unsupported, inst.text.clone()),
        }
        Ok(())
    }

    /// Fails unless all lanes take part.
    fn whole(&self, mask: u32) -> Result<(), Fault> {
        if mask == !0 {
            Ok(())
        } else {
            self.fault(FaultKind::Divergence, format!("only lanes {mask:#010x} arrived"))
        }
    }
}
