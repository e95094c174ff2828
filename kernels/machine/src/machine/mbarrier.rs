//! `mbarrier`: barriers in shared memory that count arrivals and bytes.

use crate::decode::{Decoded, at, unknown};
use crate::machine::access::lanes;
use crate::machine::block::Env;
use crate::machine::clocks::Clock;
use crate::machine::shared::Touch;
use crate::machine::warp::Warp;
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::text::Arg;
use crate::read::types::{Slot, Type};
use crate::report::{Fault, FaultKind, FindingKind};

/// The effect of an instruction on a barrier; numbers are slots of words.
pub(crate) enum MbarrierOp {
    Init(u32),
    Invalidate,
    /// Arrivals (one, if not given), bytes to expect, slot of the state.
    Arrive {
        count: Option<u32>,
        expect: Option<u32>,
        state: Option<u32>,
    },
    Expect(u32),
    Complete(u32),
    /// Waits for the phase of a parity, or for that of a state; `blocking` lets others run.
    Wait {
        pred: u32,
        parity: Option<u32>,
        state: Option<u32>,
        blocking: bool,
    },
    /// Arrives when the lane's `cp.async` copies are complete.
    AfterCopies {
        counted: bool,
    },
}

pub(crate) struct Mbarrier {
    pub op: MbarrierOp,
    pub address: Address,
}

/// The state of one barrier.
pub(crate) struct State {
    expected: i64,
    pending: i64,
    bytes: i64,
    /// The number of completed phases.
    phase: u64,
    /// The clock of the arrivals of this phase, and that of all completed phases.
    current: Clock,
    over: Clock,
    /// Interval and warp of the initialisation, which must be visible to the copy engine.
    by: (u32, usize),
    waiting: u32,
}

/// An arrival that waits for a lane's copies.
pub(crate) struct Deferred {
    barrier: u32,
    warp: usize,
    lane: usize,
    /// How many copies the lane had started.
    copies: u64,
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let done = |op, address| Ok((Action::Mbarrier(Mbarrier { op, address }), Class::Barrier, 0));
    if parts.contains(&"noComplete") || parts.iter().any(|p| p.starts_with("multicast")) {
        return Err(unknown());
    }
    let state = |b: &mut Builder, a: &Arg| -> Result<Option<u32>, Error> {
        match b.any(a)? {
            Some(Slot::Double(s)) => Ok(Some(s)),
            None => Ok(None),
            _ => Err(unknown()),
        }
    };
    let word = |b: &mut Builder, i: usize| b.src_word(at(args, i)?);
    match parts[1] {
        "init" => {
            let address = b.address(at(args, 0)?)?;
            done(MbarrierOp::Init(word(b, 1)?), address)
        }
        "inval" => done(MbarrierOp::Invalidate, b.address(at(args, 0)?)?),
        "arrive" => {
            let expects = parts.contains(&"expect_tx");
            // Without a destination the address comes first.
            let first = matches!(args.first(), Some(Arg::Name(_))) as usize;
            let state = if first == 1 { state(b, &args[0])? } else { None };
            let address = b.address(at(args, first)?)?;
            let number = args.get(first + 1).map(|a| b.src_word(a)).transpose()?;
            let (count, expect) =
                if expects { (None, Some(number.ok_or_else(unknown)?)) } else { (number, None) };
            done(MbarrierOp::Arrive { count, expect, state }, address)
        }
        "expect_tx" => {
            let address = b.address(at(args, 0)?)?;
            done(MbarrierOp::Expect(word(b, 1)?), address)
        }
        "complete_tx" => {
            let address = b.address(at(args, 0)?)?;
            done(MbarrierOp::Complete(word(b, 1)?), address)
        }
        "try_wait" | "test_wait" => {
            let Arg::Name(p) = at(args, 0)? else { return Err(unknown()) };
            let pred = b.dst_pred(p)?;
            let address = b.address(at(args, 1)?)?;
            let blocking = parts[1] == "try_wait";
            let (parity, state) = if parts.contains(&"parity") {
                (Some(word(b, 2)?), None)
            } else {
                (None, Some(b.src::<u64>(at(args, 2)?, Type::B64)?))
            };
            done(MbarrierOp::Wait { pred, parity, state, blocking }, address)
        }
        _ => Err(unknown()),
    }
}

/// `cp.async.mbarrier.arrive{.noinc}`
pub(crate) fn decode_copy(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let op = MbarrierOp::AfterCopies { counted: parts.contains(&"noinc") };
    Ok((Action::Mbarrier(Mbarrier { op, address: b.address(at(args, 0)?)? }), Class::Barrier, 0))
}

/// What happens to the warp after a wait.
pub(crate) enum Waited {
    On,
    /// It must execute the instruction again when it is woken.
    Blocked,
    /// It continues, but others should run first.
    Yield,
}

impl Env<'_> {
    pub(crate) fn mbarrier(
        &mut self,
        w: &mut Warp,
        m: &Mbarrier,
        mask: u32,
    ) -> Result<Waited, Fault> {
        let addresses = self.shared_addresses(w, m.address);
        let (offsets, kept) = self.shared_offsets(w, addresses, mask, 8);
        if kept != mask {
            // A barrier at an invalid address is recorded, and a wait for it does not block.
            if let MbarrierOp::Wait { pred, .. } = m.op {
                w.regs.put_pred(pred, !0, mask);
            }
            return Ok(Waited::On);
        }
        if let MbarrierOp::Wait { pred, parity, state, blocking } = m.op {
            return self.wait(w, &offsets, mask, pred, parity, state, blocking);
        }
        let word = |w: &Warp, slot: u32, l: usize| w.regs.words[slot as usize][l];
        for l in lanes(mask) {
            let barrier = offsets[l];
            match &m.op {
                MbarrierOp::Init(count) => {
                    let count = word(w, *count, l) as i64;
                    if count == 0 || count >= 1 << 20 {
                        return self
                            .fault(FaultKind::Barrier, format!("mbarrier for {count} arrivals"));
                    }
                    self.touch(w, Touch::Write, &offsets, 1 << l, 8);
                    let by = (self.shared.clocks.now[w.index], w.index);
                    let (current, over) = (Clock::ZERO, Clock::ZERO);
                    let state = State {
                        expected: count,
                        pending: count,
                        bytes: 0,
                        phase: 0,
                        current,
                        over,
                        by,
                        waiting: 0,
                    };
                    self.mbarriers.insert(barrier, state);
                }
                MbarrierOp::Invalidate => {
                    self.touch(w, Touch::Write, &offsets, 1 << l, 8);
                    self.mbarriers.remove(&barrier);
                }
                MbarrierOp::Arrive { count, expect, state } => {
                    self.touch(w, Touch::Atomic, &offsets, 1 << l, 8);
                    let phase = self.known(barrier)?.phase;
                    if let Some(e) = expect {
                        let bytes = word(w, *e, l) as i64;
                        self.known(barrier)?.bytes += bytes;
                    }
                    let n = count.map_or(1, |c| word(w, c, l) as i64);
                    self.arrive(w.index, barrier, n)?;
                    if let Some(s) = state {
                        w.regs.doubles[*s as usize][l] = phase;
                    }
                }
                MbarrierOp::Expect(bytes) => {
                    self.touch(w, Touch::Atomic, &offsets, 1 << l, 8);
                    let bytes = word(w, *bytes, l) as i64;
                    self.known(barrier)?.bytes += bytes;
                }
                MbarrierOp::Complete(bytes) => {
                    let bytes = word(w, *bytes, l) as i64;
                    self.complete(barrier, bytes)?;
                }
                MbarrierOp::AfterCopies { counted } => {
                    if !counted {
                        self.known(barrier)?.pending += 1;
                    }
                    let copies = self.started[w.index][l];
                    self.deferred.push(Deferred { barrier, warp: w.index, lane: l, copies });
                    self.look_again(barrier);
                }
                MbarrierOp::Wait { .. } => {}
            }
        }
        Ok(Waited::On)
    }

    /// A barrier that was initialised.
    pub(crate) fn known(&mut self, barrier: u32) -> Result<&mut State, Fault> {
        if !self.mbarriers.contains_key(&barrier) {
            return self.fault(FaultKind::Barrier, "mbarrier without initialisation");
        }
        self.mbarriers.get_mut(&barrier).map_or_else(|| unreachable!(), Ok)
    }

    fn arrive(&mut self, warp: usize, barrier: u32, count: i64) -> Result<(), Fault> {
        self.known(barrier)?;
        if let Some(state) = self.mbarriers.get_mut(&barrier) {
            self.shared.clocks.release(warp, &mut state.current);
            state.pending -= count;
            if state.pending < 0 {
                return self.fault(FaultKind::Barrier, "more arrivals than the mbarrier expects");
            }
        }
        self.turn(barrier);
        Ok(())
    }

    /// Counts bytes that were copied.
    pub(crate) fn complete(&mut self, barrier: u32, bytes: i64) -> Result<(), Fault> {
        self.known(barrier)?.bytes -= bytes;
        self.turn(barrier);
        Ok(())
    }

    /// An operation is pending for a barrier: warps that already wait for it execute the wait
    /// again, which performs the operation.
    pub(crate) fn look_again(&mut self, barrier: u32) {
        let waiting =
            self.mbarriers.get_mut(&barrier).map_or(0, |s| std::mem::take(&mut s.waiting));
        for w in lanes(waiting) {
            self.blocked[w] = false;
        }
    }

    /// Adds the stamp of bytes that the copy engine wrote.
    pub(crate) fn brought(&mut self, barrier: u32, stamp: u32) {
        if let Some(s) = self.mbarriers.get_mut(&barrier) {
            let known = &mut s.current.known[crate::machine::clocks::ENGINE];
            *known = stamp.max(*known);
        }
    }

    /// Begins the next phase if all have arrived.
    fn turn(&mut self, barrier: u32) {
        let Some(s) = self.mbarriers.get_mut(&barrier) else { return };
        if s.pending != 0 || s.bytes != 0 {
            return;
        }
        s.phase += 1;
        s.pending = s.expected;
        let current = std::mem::replace(&mut s.current, Clock::ZERO);
        for (to, from) in
            [(&mut s.over.known, &current.known), (&mut s.over.fenced, &current.fenced)]
        {
            for (to, from) in to.iter_mut().zip(from) {
                *to = (*from).max(*to);
            }
        }
        for w in lanes(std::mem::take(&mut s.waiting)) {
            self.blocked[w] = false;
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn wait(
        &mut self,
        w: &mut Warp,
        offsets: &[u32; 32],
        mask: u32,
        pred: u32,
        parity: Option<u32>,
        state: Option<u32>,
        blocking: bool,
    ) -> Result<Waited, Fault> {
        self.touch(w, Touch::Atomic, offsets, mask, 8);
        let mut passed = 0;
        for l in lanes(mask) {
            let barrier = offsets[l];
            let over = |s: &State| match (parity, state) {
                (Some(p), _) => s.phase & 1 != w.regs.words[p as usize][l] as u64 & 1,
                (_, Some(x)) => s.phase != w.regs.doubles[x as usize][l],
                _ => true,
            };
            if !over(self.known(barrier)?) {
                // Everything that is pending for this barrier is performed now, and not before.
                self.bring(barrier)?;
                self.settle(barrier)?;
            }
            let s = self.known(barrier)?;
            if over(s) {
                let clock = s.over;
                self.shared.clocks.acquire(w.index, &clock);
                passed |= 1 << l;
            } else if blocking {
                s.waiting |= 1 << w.index;
                self.blocked[w.index] = true;
                return Ok(Waited::Blocked);
            }
        }
        w.regs.put_pred(pred, passed, mask);
        Ok(if passed == mask { Waited::On } else { Waited::Yield })
    }

    /// Performs the copies whose completion is an arrival at this barrier.
    fn settle(&mut self, barrier: u32) -> Result<(), Fault> {
        let (now, later) =
            std::mem::take(&mut self.deferred).into_iter().partition(|d| d.barrier == barrier);
        self.deferred = later;
        let now: Vec<Deferred> = now;
        for d in now {
            self.land(d.warp, |p| p.lane as usize == d.lane && p.number < d.copies);
            self.arrive(d.warp, barrier, 1)?;
        }
        Ok(())
    }

    /// Whether the copy engine can rely on the initialisation of a barrier, as far as a warp knows.
    pub(crate) fn ready_for_engine(
        &mut self,
        w: &Warp,
        lane: usize,
        barrier: u32,
    ) -> Result<(), Fault> {
        let (stamp, by) = self.known(barrier)?.by;
        if self.place.checks && stamp > self.shared.clocks.of[w.index].fenced[by] {
            let address = (barrier + crate::read::parse::spaces::SHARED_START) as u64;
            self.note(FindingKind::Asynchronous, w.index, lane, address, Some(by as u32 * 32));
        }
        Ok(())
    }
}
