//! Which accesses of warps are ordered: a vector clock for each warp, joined at barriers.

/// The largest number of warps in a block.
pub(crate) const WARPS: usize = 32;
/// The copy engine, which is treated as one more warp.
pub(crate) const ENGINE: usize = WARPS;
const ALL: usize = WARPS + 1;

/// Stamp of an access that is not complete: later than every clock.
pub(crate) const IN_FLIGHT: u32 = u32::MAX;
/// A warp's clock of itself: all its own accesses are ordered.
const OWN: u32 = u32::MAX - 1;

/// What a warp or a barrier knows about all warps.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    /// For each warp, the newest interval that is known to be complete.
    pub known: [u32; ALL],
    /// The same after a proxy fence: this is what the copy engine and the tensor cores can rely on.
    pub fenced: [u32; ALL],
}

impl Clock {
    pub(crate) const ZERO: Clock = Clock { known: [0; ALL], fenced: [0; ALL] };
}

/// Intervals between synchronisations have stamps that increase for the lifetime of a worker, so
/// that entries of earlier blocks in the shadow memory count as past.
pub(crate) struct Clocks {
    pub of: Vec<Clock>,
    /// The current interval of each warp.
    pub now: [u32; WARPS],
    counter: u32,
}

impl Clocks {
    pub(crate) fn new(warps: usize) -> Clocks {
        Clocks { of: vec![Clock::ZERO; warps], now: [0; WARPS], counter: 0 }
    }

    /// Begins a block. Returns true if stamps have started again from the beginning: then the
    /// shadow memory must be cleared.
    pub(crate) fn begin(&mut self) -> bool {
        let wrapped = self.counter > u32::MAX / 2;
        if wrapped {
            self.counter = 0;
        }
        let base = self.counter;
        self.now = [self.stamp(); WARPS];
        for (w, clock) in self.of.iter_mut().enumerate() {
            *clock = Clock { known: [base; ALL], fenced: [base; ALL] };
            clock.known[w] = OWN;
        }
        wrapped
    }

    /// A stamp after all others.
    pub(crate) fn stamp(&mut self) -> u32 {
        self.counter += 1;
        self.counter
    }

    /// Ends the interval of a warp and adds everything it knows to a barrier's clock.
    pub(crate) fn release(&mut self, warp: usize, to: &mut Clock) {
        let from = &self.of[warp];
        for r in 0..ALL {
            let known = if r == warp { self.now[warp] } else { from.known[r] };
            to.known[r] = to.known[r].max(known);
            to.fenced[r] = to.fenced[r].max(from.fenced[r]);
        }
        self.now[warp] = self.stamp();
    }

    /// Adds the clock of a barrier to that of a warp.
    pub(crate) fn acquire(&mut self, warp: usize, from: &Clock) {
        let to = &mut self.of[warp];
        for r in 0..ALL {
            if r != warp {
                to.known[r] = to.known[r].max(from.known[r]);
            }
            to.fenced[r] = to.fenced[r].max(from.fenced[r]);
        }
    }

    /// Synchronises the lanes of a warp: begins a new interval for accesses among them.
    pub(crate) fn meet(&mut self, warp: usize) {
        self.now[warp] = self.stamp();
    }

    /// A proxy fence: the copy engine can rely on everything that the warp knows.
    pub(crate) fn fence(&mut self, warp: usize) {
        let clock = &mut self.of[warp];
        for r in 0..ALL {
            let known = if r == warp { self.now[warp] } else { clock.known[r] };
            clock.fenced[r] = clock.fenced[r].max(known);
        }
        self.now[warp] = self.stamp();
    }
}
