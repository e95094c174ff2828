//! Which accesses of warps are ordered: a vector clock for each warp, joined at barriers.

/// Most warps of a block.
pub(crate) const WARPS: usize = 32;
/// The copy engine, as one more warp.
pub(crate) const ENGINE: usize = WARPS;
const ALL: usize = WARPS + 1;

/// Stamp of an access that is not over: after every clock.
pub(crate) const IN_FLIGHT: u32 = u32::MAX;
/// A warp's clock of itself: all its own accesses are ordered.
const OWN: u32 = u32::MAX - 1;

/// What somebody knows of all warps.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    /// For each warp, the newest interval that is known to be over.
    pub known: [u32; ALL],
    /// The same, where a proxy fence lies between: what the copy engine and the tensor cores may rely on.
    pub fenced: [u32; ALL],
}

impl Clock {
    pub(crate) const ZERO: Clock = Clock { known: [0; ALL], fenced: [0; ALL] };
}

/// Intervals between synchronisations carry stamps that grow through the life of a worker, so that what earlier blocks left in the shadow
/// memory counts as long past.
pub(crate) struct Clocks {
    pub of: Vec<Clock>,
    /// The interval in which each warp is.
    pub now: [u32; WARPS],
    counter: u32,
}

impl Clocks {
    pub(crate) fn new(warps: usize) -> Clocks {
        Clocks { of: vec![Clock::ZERO; warps], now: [0; WARPS], counter: 0 }
    }

    /// Begins a block. True when stamps have run out and started again: the shadow memory must be cleared.
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

    /// Ends the interval of a warp and adds all it knows to a barrier's clock.
    pub(crate) fn release(&mut self, warp: usize, to: &mut Clock) {
        let from = &self.of[warp];
        for r in 0..ALL {
            let known = if r == warp { self.now[warp] } else { from.known[r] };
            to.known[r] = to.known[r].max(known);
            to.fenced[r] = to.fenced[r].max(from.fenced[r]);
        }
        self.now[warp] = self.stamp();
    }

    /// A warp learns what a barrier knows.
    pub(crate) fn acquire(&mut self, warp: usize, from: &Clock) {
        let to = &mut self.of[warp];
        for r in 0..ALL {
            if r != warp {
                to.known[r] = to.known[r].max(from.known[r]);
            }
            to.fenced[r] = to.fenced[r].max(from.fenced[r]);
        }
    }

    /// The lanes of a warp meet: a new interval for what they do among themselves.
    pub(crate) fn meet(&mut self, warp: usize) {
        self.now[warp] = self.stamp();
    }

    /// A proxy fence: the engine may see all that the warp knows.
    pub(crate) fn fence(&mut self, warp: usize) {
        let clock = &mut self.of[warp];
        for r in 0..ALL {
            let known = if r == warp { self.now[warp] } else { clock.known[r] };
            clock.fenced[r] = clock.fenced[r].max(known);
        }
        self.now[warp] = self.stamp();
    }
}
