//! Shared memory of a block, with a shadow that records which bytes were written, and which threads
//! last wrote and read each of them.

use crate::machine::clocks::{Clock, Clocks, ENGINE, IN_FLIGHT};

/// An error of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// With the warp and lane of the earlier access, if known.
    Race {
        warp: u32,
        lane: Option<u32>,
    },
    Uninitialised,
    /// The copy engine or the tensor cores read data that a thread of this warp wrote, without a
    /// proxy fence in between.
    Unfenced {
        warp: u32,
        lane: u32,
    },
}

/// How a cell was written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum How {
    #[default]
    Plain,
    Atomic,
    Engine,
}

/// The last writer of a cell: stamp of the interval, warp, lane.
#[derive(Clone, Copy, Default)]
struct Write {
    stamp: u32,
    warp: u8,
    lane: u8,
    how: How,
}

/// Cells of one size. `reads` holds, for each cell, the interval in which each warp read it last.
#[derive(Default)]
struct Cells {
    writes: Vec<Write>,
    reads: Vec<u32>,
}

impl Cells {
    fn new(cells: usize, warps: usize) -> Cells {
        Cells { writes: vec![Write::default(); cells], reads: vec![0; cells * warps] }
    }
}

/// The kind of an access to shared memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    Atomic,
    /// A write that completes later; until then no thread may access the bytes.
    Launch,
    /// The write completes.
    Land,
    /// A write of the copy engine completes, with this stamp.
    EngineLand(u32),
    /// The copy engine or the tensor cores begin to read.
    EngineRead,
    /// The copy engine or the tensor cores have read.
    EngineDone,
    /// The same, while other operations still read these bytes.
    EngineMore,
}

pub(crate) struct Shared {
    pub bytes: Vec<u8>,
    pub clocks: Clocks,
    warps: usize,
    /// A bit for each of the 16 bytes of a chunk that was written.
    written: Vec<u16>,
    /// Chunks of 16 bytes are tracked as one cell until there is a smaller access: then by words
    /// (1), or by bytes (2).
    level: Vec<u8>,
    cells: [Cells; 3],
    launched: bool,
}

impl Shared {
    pub(crate) fn new(bytes: usize, warps: usize, checks: bool) -> Shared {
        let chunks = bytes.div_ceil(16);
        let tracked = if checks { chunks } else { 0 };
        Shared {
            bytes: vec![0xff; chunks * 16],
            clocks: Clocks::new(warps),
            warps,
            written: vec![0; tracked],
            level: vec![0; tracked],
            cells: [Cells::new(tracked, warps), Cells::default(), Cells::default()],
            launched: false,
        }
    }

    /// A new block begins: contents are poison, nothing is initialised.
    pub(crate) fn begin(&mut self) {
        self.bytes.fill(0xff);
        self.written.fill(0);
        if self.clocks.begin() || self.launched {
            for c in &mut self.cells {
                c.writes.fill(Write::default());
                c.reads.fill(0);
            }
            self.launched = false;
        }
    }

    /// Tracks a chunk by smaller cells from now on.
    #[cold]
    fn split(&mut self, chunk: usize, level: u8) {
        let from = self.level[chunk];
        let (n_from, n_to) = (1usize << (2 * from), 1usize << (2 * level));
        let each = n_to / n_from;
        if self.cells[level as usize].writes.is_empty() {
            self.cells[level as usize] = Cells::new(self.level.len() * n_to, self.warps);
        }
        for i in 0..n_to {
            let (old, new) = (chunk * n_from + i / each, chunk * n_to + i);
            let write = self.cells[from as usize].writes[old];
            self.cells[level as usize].writes[new] = write;
            for w in 0..self.warps {
                let read = self.cells[from as usize].reads[old * self.warps + w];
                self.cells[level as usize].reads[new * self.warps + w] = read;
            }
        }
        self.level[chunk] = level;
    }

    /// Cells of an access within a chunk, and its bits in the chunk, if it fits the cells.
    #[inline(always)]
    fn whole_cells(&self, address: u32, bytes: u32) -> Option<(usize, usize, usize, u16)> {
        let level = self.level[address as usize / 16] as usize;
        let shift = 4 - 2 * level as u32;
        let bits = (0xffffu32 >> (16 - bytes) << (address % 16)) as u16;
        let fits = (address | bytes) & ((1 << shift) - 1) == 0;
        fits.then_some((
            level,
            (address >> shift) as usize,
            ((address + bytes) >> shift) as usize,
            bits,
        ))
    }

    /// Records an access, and returns its error if it has one. Most accesses are valid and take the
    /// fast path.
    #[inline(always)]
    pub(crate) fn touch(
        &mut self,
        touch: Touch,
        warp: usize,
        lane: usize,
        address: u32,
        bytes: u32,
    ) -> Option<Problem> {
        let good = match touch {
            Touch::Read => self.read_quickly(warp, lane, address, bytes),
            Touch::Write | Touch::Launch => self.write_quickly(touch, warp, lane, address, bytes),
            Touch::Atomic => false,
            _ => self.engine_quickly(touch, warp, lane, address, bytes),
        };
        if good { None } else { self.touch_slowly(touch, warp, lane, address, bytes) }
    }

    #[inline(always)]
    fn read_quickly(&mut self, warp: usize, lane: usize, address: u32, bytes: u32) -> bool {
        let Some((level, first, last, bits)) = self.whole_cells(address, bytes) else {
            return false;
        };
        if self.written[address as usize / 16] & bits != bits {
            return false;
        }
        let (clock, now) = (&self.clocks.of[warp], self.clocks.now[warp]);
        let cells = &mut self.cells[level];
        for cell in first..last {
            let w = cells.writes[cell];
            let apart = w.stamp == now && w.warp as usize == warp && w.lane as usize != lane;
            if w.stamp > clock.known[w.warp as usize] || apart {
                return false;
            }
            let read = &mut cells.reads[cell * self.warps + warp];
            *read = now.max(*read);
        }
        true
    }

    #[inline(always)]
    fn write_quickly(
        &mut self,
        touch: Touch,
        warp: usize,
        lane: usize,
        address: u32,
        bytes: u32,
    ) -> bool {
        let Some((level, first, last, bits)) = self.whole_cells(address, bytes) else {
            return false;
        };
        let (clock, now) = (&self.clocks.of[warp], self.clocks.now[warp]);
        let cells = &mut self.cells[level];
        for cell in first..last {
            let w = cells.writes[cell];
            let reads = &cells.reads[cell * self.warps..(cell + 1) * self.warps];
            let late = reads.iter().zip(&clock.known).fold(false, |late, (r, k)| late | (r > k));
            if late || w.stamp > clock.known[w.warp as usize] {
                return false;
            }
        }
        let stamp = if touch == Touch::Launch { IN_FLIGHT } else { now };
        if touch == Touch::Launch {
            self.launched = true;
        } else {
            self.written[address as usize / 16] |= bits;
        }
        cells.writes[first..last].fill(Write {
            stamp,
            warp: warp as u8,
            lane: lane as u8,
            how: How::Plain,
        });
        true
    }

    /// Completed writes, and the accesses of the copy engine and the tensor cores.
    fn engine_quickly(
        &mut self,
        touch: Touch,
        warp: usize,
        lane: usize,
        address: u32,
        bytes: u32,
    ) -> bool {
        let Some((level, first, last, bits)) = self.whole_cells(address, bytes) else {
            return false;
        };
        let (clock, now) = (&self.clocks.of[warp], self.clocks.now[warp]);
        let cells = &mut self.cells[level];
        let written = &mut self.written[address as usize / 16];
        let warps = self.warps;
        let read = |cells: &mut Cells, stamp| {
            (first..last).for_each(|cell| cells.reads[cell * warps + warp] = stamp)
        };
        match touch {
            Touch::Land | Touch::EngineLand(_) => {
                *written |= bits;
                let write = match touch {
                    Touch::EngineLand(stamp) => {
                        Write { stamp, warp: ENGINE as u8, lane: lane as u8, how: How::Engine }
                    }
                    _ => Write { stamp: now, warp: warp as u8, lane: lane as u8, how: How::Plain },
                };
                cells.writes[first..last].fill(write);
            }
            Touch::EngineRead => {
                let good = |w: &Write| {
                    let fenced = w.how == How::Engine || w.stamp <= clock.fenced[w.warp as usize];
                    fenced && w.stamp <= clock.known[w.warp as usize]
                };
                if *written & bits != bits || !cells.writes[first..last].iter().all(good) {
                    return false;
                }
                self.launched = true;
                read(cells, IN_FLIGHT);
            }
            Touch::EngineDone => read(cells, now),
            Touch::EngineMore => read(cells, IN_FLIGHT),
            _ => return false,
        }
        true
    }

    #[cold]
    fn touch_slowly(
        &mut self,
        touch: Touch,
        warp: usize,
        lane: usize,
        address: u32,
        bytes: u32,
    ) -> Option<Problem> {
        let (start, end) = (address as usize, (address + bytes) as usize);
        let needed = if (start | end) % 16 == 0 {
            0
        } else if (start | end) % 4 == 0 {
            1
        } else {
            2
        };
        let mut problem = None;
        let mut at = start;
        while at < end {
            let chunk = at / 16;
            let stop = end.min(chunk * 16 + 16);
            if self.level[chunk] < needed {
                self.split(chunk, needed);
            }
            let bits = (0xffffu32 >> (16 - (stop - at)) << (at % 16)) as u16;
            match touch {
                Touch::Read | Touch::Atomic | Touch::EngineRead
                    if self.written[chunk] & bits != bits =>
                {
                    problem = Some(Problem::Uninitialised)
                }
                _ => {}
            }
            if matches!(touch, Touch::Write | Touch::Land | Touch::Atomic | Touch::EngineLand(_)) {
                self.written[chunk] |= bits;
            }
            let size = 4 - 2 * self.level[chunk] as usize;
            let (first, last) = (at >> size, (stop - 1) >> size);
            for cell in first..=last {
                let level = self.level[chunk] as usize;
                if let Some(p) = self.cell(level, cell, touch, warp, lane) {
                    // A race is more informative than an uninitialised read.
                    problem = Some(p);
                }
            }
            at = stop;
        }
        problem
    }

    #[inline]
    fn cell(
        &mut self,
        level: usize,
        cell: usize,
        touch: Touch,
        warp: usize,
        lane: usize,
    ) -> Option<Problem> {
        let warps = self.warps;
        let clock: &Clock = &self.clocks.of[warp];
        let now = self.clocks.now[warp];
        let cells = &mut self.cells[level];
        let write = &mut cells.writes[cell];
        let late = write.stamp > clock.known[write.warp as usize];
        let race = Problem::Race { warp: write.warp as u32, lane: Some(write.lane as u32) };
        match touch {
            Touch::Read => {
                let read = &mut cells.reads[cell * warps + warp];
                *read = now.max(*read);
                // The lanes of a warp are ordered only by barriers, too.
                let apart = write.stamp == now
                    && write.warp as usize == warp
                    && write.lane as usize != lane;
                return (late || apart).then_some(race);
            }
            Touch::EngineRead => {
                cells.reads[cell * warps + warp] = IN_FLIGHT;
                self.launched = true;
                let unfenced =
                    write.how != How::Engine && write.stamp > clock.fenced[write.warp as usize];
                let unfenced = unfenced.then_some(Problem::Unfenced {
                    warp: write.warp as u32,
                    lane: write.lane as u32,
                });
                return if late { Some(race) } else { unfenced };
            }
            Touch::EngineDone => {
                cells.reads[cell * warps + warp] = now;
                return None;
            }
            Touch::EngineMore => {
                cells.reads[cell * warps + warp] = IN_FLIGHT;
                return None;
            }
            _ => {}
        }
        let mut problem = None;
        if !matches!(touch, Touch::Land | Touch::EngineLand(_)) {
            if late && !(touch == Touch::Atomic && write.how == How::Atomic) {
                problem = Some(race);
            }
            let reads = &cells.reads[cell * warps..(cell + 1) * warps];
            if reads.iter().zip(&clock.known).any(|(r, k)| r > k) {
                let other = reads.iter().zip(&clock.known).position(|(r, k)| r > k).unwrap_or(0);
                problem = Some(Problem::Race { warp: other as u32, lane: None });
            }
        }
        let (stamp, warp, how) = match touch {
            Touch::Launch => (IN_FLIGHT, warp, How::Plain),
            Touch::EngineLand(stamp) => (stamp, ENGINE, How::Engine),
            Touch::Atomic => (now, warp, How::Atomic),
            _ => (now, warp, How::Plain),
        };
        self.launched |= touch == Touch::Launch;
        *write = Write { stamp, warp: warp as u8, lane: lane as u8, how };
        problem
    }
}
