//! One block: its warps take turns, each running until it waits.

use crate::bulk::Load;
use crate::clocks::{Clock, ENGINE};
use crate::mbarrier::{Deferred, State, Waited};
use crate::memory::Memory;
use crate::parse::spaces::SHARED_START;
use crate::program::*;
use crate::report::{FINDINGS, Fault, FaultKind, FindingKind, Tally};
use crate::shared::Shared;
use crate::types::{Slot, Special};
use crate::warp::{Pending, Warp};
use crate::wgmma::Group;
use std::collections::HashMap;

/// What a launch is, for one block.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub entry: &'a Entry,
    pub memory: &'a Memory,
    pub params: &'a [u8],
    pub grid: [u32; 3],
    pub dims: [u32; 3],
    pub block: [u32; 3],
    pub checks: bool,
}

/// A finding before its texts are looked up.
#[derive(Clone, Copy)]
pub(crate) struct Note {
    pub kind: FindingKind,
    pub pc: u32,
    pub block: [u32; 3],
    pub thread: u32,
    pub address: u64,
    pub other: Option<u32>,
}

impl Note {
    /// Whether there are few others of the kind at the same instruction.
    pub(crate) fn is_news(&self, others: &[Note]) -> bool {
        others.iter().filter(|n| (n.kind, n.pc) == (self.kind, self.pc)).count() < ALIKE
    }
}

/// A block barrier.
#[derive(Clone)]
pub(crate) struct Barrier {
    arrived: u32,
    expected: Option<u32>,
    waiting: Vec<usize>,
    clock: Clock,
    /// Votes so far, and those of the round that is over.
    votes: [u32; 3],
    result: [u32; 3],
}

/// Everything of a block but its warps.
pub(crate) struct Env<'a> {
    pub place: Place<'a>,
    pub shared: Shared,
    pub tallies: Vec<Tally>,
    pub counts: [u64; 5],
    pub notes: Vec<Note>,
    pub pc: u32,
    /// Instructions of all warps, as the clock.
    pub time: u64,
    barriers: Vec<Barrier>,
    pub blocked: Vec<bool>,
    /// `cp.async` copies of each warp that have not landed, and how many each lane has started.
    pub copies: Vec<Vec<Pending>>,
    pub started: Vec<[u64; 32]>,
    /// Barriers in shared memory, by offset.
    pub mbarriers: HashMap<u32, State>,
    pub deferred: Vec<Deferred>,
    /// Loads by the copy engine on their way.
    pub loads: Vec<Load>,
    pub groups: Vec<Group>,
}

/// Why a warp stopped running.
enum Stop {
    Blocked,
    /// It polls something.
    Yield,
    Done,
}

/// Most findings of one kind at one instruction.
const ALIKE: usize = 4;

/// How often all warps may poll in vain, and how many instructions a warp may run at a stretch.
const PATIENCE: u32 = 10_000;
const STRETCH: u64 = 1 << 24;

impl Env<'_> {
    pub(crate) fn note(&mut self, kind: FindingKind, warp: usize, lane: usize, address: u64, other: Option<u32>) {
        self.counts[kind as usize] += 1;
        let thread = (warp * 32 + lane) as u32;
        let note = Note { kind, pc: self.pc, block: self.place.block, thread, address, other };
        if self.notes.len() < FINDINGS && note.is_news(&self.notes) {
            self.notes.push(note);
        }
    }

    pub(crate) fn fault<T>(&self, kind: FaultKind, message: impl Into<String>) -> Result<T, Fault> {
        let i = self.place.entry.code.get(self.pc as usize);
        let (line, text) = i.map_or((0, ""), |i| (i.line, i.text.as_str()));
        let message = format!(
            "{} at {} line {line} `{text}` in block {:?}",
            message.into(),
            self.place.entry.name,
            self.place.block
        );
        Err(Fault { kind, message })
    }

    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.tallies[self.pc as usize]
    }
}

/// A worker's block, used again for the next one.
pub(crate) struct Block<'a> {
    pub env: Env<'a>,
    warps: Vec<Warp>,
}

impl<'a> Block<'a> {
    pub(crate) fn new(place: Place<'a>, dynamic_shared: usize) -> Block<'a> {
        let threads = place.dims.iter().product::<u32>() as usize;
        let entry = place.entry;
        let count = threads.div_ceil(32);
        let warps = (0..count)
            .map(|index| {
                let left = threads - index * 32;
                let mut w = Warp {
                    index,
                    regs: Default::default(),
                    full: if left >= 32 { !0 } else { (1 << left) - 1 },
                    live: 0,
                    uniform: true,
                    pc: 0,
                    pcs: [0; 32],
                    parked: 0,
                    local: vec![0xff; entry.local * 32],
                    committed: [0; 32],
                    asleep: None,
                    stores: vec![],
                    stores_committed: [0; 32],
                    flights: vec![],
                    products_committed: 0,
                    busy: vec![],
                    fences: 0,
                    written: vec![],
                };
                if entry.watched {
                    w.busy = vec![[0; 2]; entry.words];
                    w.written = vec![0; entry.words];
                }
                w.regs.words = vec![[0; 32]; entry.words];
                w.regs.doubles = vec![[0; 32]; entry.doubles];
                w.regs.preds = vec![0; entry.preds];
                w
            })
            .collect();
        let barrier =
            Barrier { arrived: 0, expected: None, waiting: vec![], clock: Clock::ZERO, votes: [0; 3], result: [0; 3] };
        Block {
            env: Env {
                place,
                shared: Shared::new(entry.static_shared + dynamic_shared, count, place.checks),
                tallies: vec![Tally::default(); entry.code.len()],
                counts: [0; 5],
                notes: vec![],
                pc: 0,
                time: 0,
                barriers: vec![barrier; 17],
                blocked: vec![false; count],
                copies: (0..count).map(|_| vec![]).collect(),
                started: vec![[0; 32]; count],
                mbarriers: HashMap::new(),
                deferred: vec![],
                loads: vec![],
                groups: vec![],
            },
            warps,
        }
    }

    /// Runs a block to its end.
    pub(crate) fn run(&mut self, block: [u32; 3]) -> Result<(), Fault> {
        let env = &mut self.env;
        env.place.block = block;
        env.shared.begin();
        env.time = 0;
        for b in &mut env.barriers {
            (b.arrived, b.expected, b.votes) = (0, None, [0; 3]);
            b.waiting.clear();
        }
        env.blocked.fill(false);
        env.copies.iter_mut().for_each(Vec::clear);
        env.started.fill([0; 32]);
        env.mbarriers.clear();
        env.deferred.clear();
        env.loads.clear();
        env.groups = (0..self.warps.len().div_ceil(4)).map(|_| Group::default()).collect();
        for w in &mut self.warps {
            start(w, &env.place, env.shared.bytes.len() as u32);
        }
        let mut done = vec![false; self.warps.len()];
        let mut idle = 0;
        loop {
            let (mut moved, mut yielded) = (false, false);
            for w in &mut self.warps {
                if done[w.index] || env.blocked[w.index] {
                    continue;
                }
                match env.run_warp(w)? {
                    Stop::Done => {
                        done[w.index] = true;
                        moved = true;
                    }
                    Stop::Blocked => moved = true,
                    Stop::Yield => yielded = true,
                }
            }
            if done.iter().all(|d| *d) {
                return self.end();
            }
            idle = if moved { 0 } else { idle + 1 };
            if !moved && (!yielded || idle > PATIENCE) {
                return self.deadlock(&done);
            }
        }
    }

    /// What must be so when all warps have ended.
    fn end(&mut self) -> Result<(), Fault> {
        let env = &mut self.env;
        if !env.groups_even() {
            return env.fault(FaultKind::Divergence, "the warps of a warpgroup executed different numbers of products");
        }
        if let Some(load) = env.loads.first() {
            // The copy engine would write into the shared memory of another block.
            let (warp, lane, to) = load.place();
            env.note(FindingKind::Asynchronous, warp, lane, (to + SHARED_START) as u64, None);
        }
        Ok(())
    }

    fn deadlock(&mut self, done: &[bool]) -> Result<(), Fault> {
        let mut text = String::from("warps wait forever:");
        for w in &self.warps {
            let what = match w.asleep {
                _ if done[w.index] => "has ended".to_string(),
                Some(pc) => {
                    self.env.pc = pc;
                    let i = &self.env.place.entry.code[pc as usize];
                    format!("waits at line {} `{}`", i.line, i.text)
                }
                None => "waits".to_string(),
            };
            text.push_str(&format!(" warp {} {what};", w.index));
        }
        self.env.fault(FaultKind::Deadlock, text)
    }
}

/// Puts a warp at the beginning.
fn start(w: &mut Warp, place: &Place, shared_bytes: u32) {
    (w.live, w.uniform, w.pc, w.parked, w.asleep) = (w.full, true, 0, 0, None);
    w.committed = [0; 32];
    w.stores.clear();
    w.stores_committed = [0; 32];
    w.flights.clear();
    (w.products_committed, w.fences) = (0, 0);
    w.busy.fill([0; 2]);
    w.written.fill(0);
    w.regs.words.fill([0; 32]);
    w.regs.doubles.fill([0; 32]);
    w.regs.preds.fill(0);
    for &(slot, bits) in &place.entry.constants {
        match slot {
            Slot::Word(s) => w.regs.words[s as usize] = [bits as u32; 32],
            Slot::Double(s) => w.regs.doubles[s as usize] = [bits; 32],
            Slot::Pred(_) => {}
        }
    }
    for &(slot, special) in &place.entry.specials {
        let [dx, dy, _] = place.dims;
        let value = |l: u32| {
            let t = w.index as u32 * 32 + l;
            match special {
                Special::Tid(0) => t % dx,
                Special::Tid(1) => t / dx % dy,
                Special::Tid(_) => t / dx / dy,
                Special::Ntid(a) => place.dims[a as usize],
                Special::Ctaid(a) => place.block[a as usize],
                Special::Nctaid(a) => place.grid[a as usize],
                Special::Lane => l,
                Special::Warp => w.index as u32,
                Special::Warps => place.dims.iter().product::<u32>().div_ceil(32),
                Special::MaskEq => 1 << l,
                Special::MaskLt => (1 << l) - 1,
                Special::MaskLe => u32::MAX >> (31 - l),
                Special::MaskGt => !(u32::MAX >> (31 - l)),
                Special::MaskGe => !((1 << l) - 1),
                Special::SharedBytes => shared_bytes,
                Special::Zero => 0,
                Special::One => 1,
            }
        };
        let lanes: [u32; 32] = std::array::from_fn(|l| value(l as u32));
        match slot {
            Slot::Word(s) => w.regs.words[s as usize] = lanes,
            Slot::Double(s) => w.regs.doubles[s as usize] = lanes.map(|x| x as u64),
            Slot::Pred(_) => {}
        }
    }
}

impl<'a> Env<'a> {
    fn run_warp(&mut self, w: &mut Warp) -> Result<Stop, Fault> {
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
            let Some((pc, here)) = w.pick() else {
                return self.fault(FaultKind::Divergence, "lanes of a warp wait for lanes that never come");
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
                            return self.fault(FaultKind::Divergence, "lanes wait at different barriers");
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
                        // Others of the members have yet to come here.
                        w.scatter();
                        w.parked |= here;
                        if w.live & !w.parked == 0 {
                            return self.fault(FaultKind::Divergence, "lanes that should take part wait elsewhere");
                        }
                        continue;
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
            Action::CopyCommit => (0..32).filter(|l| mask >> l & 1 == 1).for_each(|l| w.committed[l] += 1),
            Action::CopyWait(n) => self.land_groups(w, mask, Some(*n)),
            Action::CopyWaitAll => self.land_groups(w, mask, None),
            Action::Bulk(b) => return self.bulk(w, b, mask),
            Action::BulkCommit => (0..32).filter(|l| mask >> l & 1 == 1).for_each(|l| w.stores_committed[l] += 1),
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
        if mask == !0 { Ok(()) } else { self.fault(FaultKind::Divergence, format!("only lanes {mask:#010x} came to")) }
    }

    /// A warp comes to a barrier. True if it must wait.
    fn barrier(&mut self, w: &mut Warp, bar: &Bar, mask: u32) -> Result<bool, Fault> {
        if mask != w.full {
            return self.fault(FaultKind::Divergence, format!("only lanes {mask:#010x} of warp {} came to", w.index));
        }
        let id = w.first(bar.id, mask) as usize;
        let Some(b) = self.barriers.get_mut(id) else {
            return self.fault(FaultKind::Unsupported, format!("barrier {id}"));
        };
        let threads = self.place.dims.iter().product::<u32>().next_multiple_of(32);
        let expected = bar.count.map_or(threads, |c| w.first(c, mask));
        if expected % 32 != 0 || expected > threads || expected == 0 {
            return self.fault(FaultKind::Divergence, format!("barrier {id} for {expected} of {threads} threads"));
        }
        if b.expected.is_some_and(|e| e != expected) {
            return self.fault(FaultKind::Divergence, format!("barrier {id} with different numbers of threads"));
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
        // Even the last one lets the others run on first, through `asleep`.
        Ok(!bar.arrive)
    }

    /// Goes on behind the barrier at which the warp slept.
    fn wake(&mut self, w: &mut Warp, inst: &Inst) {
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

    /// Thread to name for the other side of a race.
    pub(crate) fn shared_problem(&mut self, w: usize, lane: usize, offset: u32, p: crate::shared::Problem) {
        let address = (offset + SHARED_START) as u64;
        match p {
            crate::shared::Problem::Race { warp, lane: other } => {
                // The copy engine is no thread.
                let other = (warp as usize != ENGINE).then(|| warp * 32 + other.unwrap_or(0));
                self.note(FindingKind::Race, w, lane, address, other)
            }
            crate::shared::Problem::Unfenced { warp, lane: other } => {
                self.note(FindingKind::Asynchronous, w, lane, address, Some(warp * 32 + other))
            }
            crate::shared::Problem::Uninitialised => self.note(FindingKind::Uninitialised, w, lane, address, None),
        }
    }
}
