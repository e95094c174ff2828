//! One block: its warps run alternately, each until it waits.

use crate::machine::barrier::Barrier;
use crate::machine::bulk::Load;
use crate::machine::clocks::ENGINE;
use crate::machine::mbarrier::{Deferred, State};
use crate::machine::regs::Regs;
use crate::machine::shared::Shared;
use crate::machine::step::Stop;
use crate::machine::sums::Sums;
use crate::machine::warp::{Pending, Warp};
use crate::machine::wgmma::Group;
use crate::machine::writers::Writers;
use crate::memory::Memory;
use crate::program::*;
use crate::read::parse::spaces::SHARED_START;
use crate::read::types::{Slot, Special};
use crate::report::{FINDINGS, Fault, FaultKind, FindingKind, Tally};
use std::collections::HashMap;

/// The parts of a launch that a block needs.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub entry: &'a Entry,
    pub memory: &'a Memory,
    pub params: &'a [u8],
    pub grid: [u32; 3],
    pub dims: [u32; 3],
    pub block: [u32; 3],
    pub checks: bool,
    pub sums: Sums,
    /// The writes to global memory by block, if blocks are independent of each other.
    pub writers: Option<&'a Writers>,
}

impl Place<'_> {
    /// Position of the block in the grid, counted along x first.
    pub(crate) fn number(&self) -> u32 {
        let [x, y, z] = self.block;
        x + self.grid[0] * (y + self.grid[1] * z)
    }
}

/// A finding before the text of its instruction is looked up.
#[derive(Clone, Copy)]
pub(crate) struct Note {
    pub kind: FindingKind,
    pub pc: u32,
    pub block: [u32; 3],
    pub thread: u32,
    pub address: u64,
    pub other: Option<u32>,
    pub other_block: Option<u32>,
}

impl Note {
    /// Whether there are only few findings of this kind at the same instruction.
    pub(crate) fn is_news(&self, others: &[Note]) -> bool {
        others.iter().filter(|n| (n.kind, n.pc) == (self.kind, self.pc)).count() < ALIKE
    }
}

/// The state of a block without its warps.
pub(crate) struct Env<'a> {
    pub place: Place<'a>,
    pub shared: Shared,
    pub tallies: Vec<Tally>,
    pub counts: [u64; 5],
    pub notes: Vec<Note>,
    pub pc: u32,
    /// The number of instructions of all warps, which is the clock.
    pub time: u64,
    pub barriers: Vec<Barrier>,
    pub blocked: Vec<bool>,
    /// `cp.async` copies of each warp that are pending, and how many each lane has started.
    pub copies: Vec<Vec<Pending>>,
    pub started: Vec<[u64; 32]>,
    /// Barriers in shared memory, by offset.
    pub mbarriers: HashMap<u32, State>,
    pub deferred: Vec<Deferred>,
    /// Pending loads by the copy engine.
    pub loads: Vec<Load>,
    pub groups: Vec<Group>,
}

/// The largest number of findings of one kind at one instruction.
const ALIKE: usize = 4;

/// How often all warps may poll without success.
const PATIENCE: u32 = 10_000;

impl Env<'_> {
    pub(crate) fn note(
        &mut self,
        kind: FindingKind,
        warp: usize,
        lane: usize,
        address: u64,
        other: Option<u32>,
    ) {
        self.counts[kind as usize] += 1;
        let thread = (warp * 32 + lane) as u32;
        let note = Note {
            kind,
            pc: self.pc,
            block: self.place.block,
            thread,
            address,
            other,
            other_block: None,
        };
        if self.notes.len() < FINDINGS && note.is_news(&self.notes) {
            self.notes.push(note);
        }
    }

    /// Adds the other block to the last finding, if it is the current one.
    pub(crate) fn name_block(&mut self, other: u32) {
        if let Some(n) = self.notes.last_mut()
            && n.pc == self.pc
            && n.other.is_none()
        {
            n.other_block = Some(other);
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

    /// Thread to name for the other side of a race.
    pub(crate) fn shared_problem(
        &mut self,
        w: usize,
        lane: usize,
        offset: u32,
        p: crate::machine::shared::Problem,
    ) {
        let address = (offset + SHARED_START) as u64;
        match p {
            crate::machine::shared::Problem::Race { warp, lane: other } => {
                // The copy engine is not a thread.
                let other = (warp as usize != ENGINE).then(|| warp * 32 + other.unwrap_or(0));
                self.note(FindingKind::Race, w, lane, address, other)
            }
            crate::machine::shared::Problem::Unfenced { warp, lane: other } => {
                self.note(FindingKind::Asynchronous, w, lane, address, Some(warp * 32 + other))
            }
            crate::machine::shared::Problem::Uninitialised => {
                self.note(FindingKind::Uninitialised, w, lane, address, None)
            }
        }
    }

    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.tallies[self.pc as usize]
    }
}

/// A worker's block, which is reused for the next one.
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
                    regs: Regs { sums: place.sums, ..Regs::default() },
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
        Block {
            env: Env {
                place,
                shared: Shared::new(entry.static_shared + dynamic_shared, count, place.checks),
                tallies: vec![Tally::default(); entry.code.len()],
                counts: [0; 5],
                notes: vec![],
                pc: 0,
                time: 0,
                barriers: vec![Barrier::new(); 17],
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
        env.barriers.iter_mut().for_each(Barrier::reset);
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

    /// Checks the state after all warps have ended.
    fn end(&mut self) -> Result<(), Fault> {
        let env = &mut self.env;
        if !env.groups_even() {
            return env.fault(
                FaultKind::Divergence,
                "the warps of a warpgroup executed different numbers of products",
            );
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

/// Resets a warp to the first instruction.
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
