//! `cp.async.bulk`: copies by the copy engine, of boxes of matrices (TMA) or of plain ranges.

use crate::decode::{Decoded, at, unknown};
use crate::machine::access::lanes;
use crate::machine::block::Env;
use crate::machine::shared::Touch;
use crate::machine::warp::Warp;
use crate::program::*;
use crate::read::builder::Builder;
use crate::read::parse::spaces::{self, SHARED_START};
use crate::read::text::Arg;
use crate::read::types::Type;
use crate::report::{Fault, FaultKind, FindingKind};
use crate::tensor_map::TensorMap;

/// The global side of a copy; numbers are slots.
pub(crate) enum BulkSide {
    /// Address of the descriptor, column and row.
    Box { map: Address, at: [u32; 2] },
    /// Address and bytes.
    Range { address: Address, bytes: u32 },
}

pub(crate) struct Bulk {
    pub side: BulkSide,
    pub shared: Address,
    /// Loads complete at this barrier; stores by groups.
    pub barrier: Option<Address>,
}

/// The same for one lane.
#[derive(Clone, Copy)]
enum Part {
    Box { map: TensorMap, column: i64, row: i64 },
    Range { address: u64, bytes: u32 },
}

/// A pending load.
pub(crate) struct Load {
    barrier: u32,
    part: Part,
    to: u32,
    warp: usize,
    lane: usize,
}

impl Load {
    /// Warp, lane, and offset in shared memory.
    pub(crate) fn place(&self) -> (usize, usize, u32) {
        (self.warp, self.lane, self.to)
    }
}

/// A pending store.
pub(crate) struct BulkStore {
    part: Part,
    from: u32,
    lane: usize,
    group: u32,
}

impl Part {
    fn bytes(&self) -> u32 {
        match self {
            Part::Box { map, .. } => map.box_rows * map.box_cols * map.element_bytes,
            Part::Range { bytes, .. } => *bytes,
        }
    }

    /// Calls `f` for pieces of at most 16 bytes, for the part inside the matrix: position in shared
    /// memory without swizzle, address, bytes. `f` is called for every chunk of 16 bytes first,
    /// with no bytes.
    fn pieces(&self, mut f: impl FnMut(u32, u64, u32)) {
        match *self {
            Part::Range { address, bytes } => (0..bytes).step_by(16).for_each(|o| {
                f(o, 0, 0);
                f(o, address + o as u64, 16.min(bytes - o));
            }),
            Part::Box { map, column, row } => {
                let element = map.element_bytes as i64;
                let (width, all) = (map.box_cols as i64 * element, map.cols as i64 * element);
                for r in 0..map.box_rows as i64 {
                    let inside = (0..map.rows as i64).contains(&(row + r));
                    for c in (0..width).step_by(16) {
                        f((r * width + c) as u32, 0, 0);
                        let first = column * element + c;
                        let (from, to) = (first.max(0), (first + 16).min(all));
                        if inside && from < to {
                            let address = map.address + (row + r) as u64 * map.pitch + from as u64;
                            f((r * width + c + from - first) as u32, address, (to - from) as u32);
                        }
                    }
                }
            }
        }
    }

    /// The position of a piece in shared memory: the swizzle exchanges 16-byte chunks by bits of
    /// the address.
    fn place(&self, start: u32, piece: u32) -> u32 {
        let a = start + SHARED_START + piece;
        let mask = match self {
            Part::Box { map, .. } => map.swizzle.max(16) / 16 - 1,
            Part::Range { .. } => 0,
        };
        (a ^ (a >> 7 & mask) << 4) - SHARED_START
    }
}

pub(crate) fn decode(b: &mut Builder, parts: &[&str], args: &[Arg]) -> Decoded {
    let done = |a| Ok((a, Class::CopyAsync, 0));
    match parts[3] {
        "commit_group" => return done(Action::BulkCommit),
        "wait_group" => {
            let n = match args.last() {
                Some(Arg::Name(n)) => crate::read::text::integer(n).ok_or_else(unknown)?,
                _ => return Err(unknown()),
            };
            return done(Action::BulkWait(n as u32));
        }
        "prefetch" => return done(Action::Nop),
        _ => {}
    }
    if parts.iter().any(|p| p.starts_with("multicast") || p.starts_with("im2col") || *p == "reduce")
    {
        return Err(unknown());
    }
    let tensor = parts[3] == "tensor";
    if tensor && parts[4] != "2d" {
        return Err(unknown());
    }
    // The destination comes first.
    let spaces: Vec<&&str> =
        parts.iter().filter(|p| p.starts_with("shared") || **p == "global").collect();
    let load = spaces.first().is_some_and(|p| p.starts_with("shared"))
        && spaces.get(1) == Some(&&"global");
    let store = spaces.first() == Some(&&"global")
        && spaces.get(1).is_some_and(|p| p.starts_with("shared"));
    if !load && !store {
        return Err(unknown());
    }
    let (to, from) = (at(args, 0)?, at(args, 1)?);
    let (global, shared) = if load { (from, to) } else { (to, from) };
    let side = match global {
        Arg::Address { coordinates, .. } if tensor => {
            let [x, y] = &coordinates[..] else { return Err(unknown()) };
            let slots = [b.src_word(&Arg::Name(x.clone()))?, b.src_word(&Arg::Name(y.clone()))?];
            BulkSide::Box { map: b.address(global)?, at: slots }
        }
        _ => BulkSide::Range {
            address: b.address(global)?,
            bytes: b.src::<u32>(at(args, 2)?, Type::U32)?,
        },
    };
    let barrier = if load { Some(b.address(at(args, if tensor { 2 } else { 3 })?)?) } else { None };
    done(Action::Bulk(Bulk { side, shared: b.address(shared)?, barrier }))
}

impl Env<'_> {
    /// The 128 bytes of a descriptor.
    fn tensor_map(&mut self, address: u64) -> Result<TensorMap, Fault> {
        let bytes: Option<[u8; 128]> = if address >> 60 == spaces::PARAM >> 60 {
            let o = (address & (u64::MAX >> 4)) as usize;
            self.place.params.get(o..o + 128).and_then(|b| b.try_into().ok())
        } else {
            let found = self.place.memory.find(address, 128);
            // SAFETY: `find` has checked the bytes.
            found.map(|p| unsafe { (p as *const [u8; 128]).read_unaligned() })
        };
        let Some(map) = bytes.as_ref().and_then(TensorMap::decode) else {
            return self
                .fault(FaultKind::Unsupported, format!("no matrix descriptor at {address:#x}"));
        };
        let width = map.box_cols as u64 * map.element_bytes as u64;
        let wrong = !address.is_multiple_of(64)
            || map.address % 16 != 0
            || map.pitch % 16 != 0
            || map.box_rows == 0
            || map.box_rows > 256
            || map.box_cols > 256
            || width == 0
            || !width.is_multiple_of(16)
            || (map.swizzle != 0
                && (width > map.swizzle as u64 || ![32, 64, 128].contains(&map.swizzle)));
        if wrong {
            return self.fault(
                FaultKind::Unsupported,
                format!("descriptor that the driver would reject: {map:?}"),
            );
        }
        Ok(map)
    }

    fn part(&mut self, w: &Warp, side: &BulkSide, l: usize) -> Result<Part, Fault> {
        match side {
            BulkSide::Box { map, at } => {
                let map = self.addresses(w, *map)[l];
                let map = self.tensor_map(map)?;
                let [column, row] = at.map(|s| w.regs.words[s as usize][l] as i32 as i64);
                Ok(Part::Box { map, column, row })
            }
            BulkSide::Range { address, bytes } => Ok(Part::Range {
                address: self.addresses(w, *address)[l],
                bytes: w.regs.words[*bytes as usize][l],
            }),
        }
    }

    pub(crate) fn bulk(&mut self, w: &mut Warp, b: &Bulk, mask: u32) -> Result<(), Fault> {
        let barriers = b.barrier.map(|a| self.shared_addresses(w, a));
        let shared = self.shared_addresses(w, b.shared);
        for l in lanes(mask) {
            let part = self.part(w, &b.side, l)?;
            let bytes = part.bytes();
            let tensor = matches!(part, Part::Box { .. });
            let align = if tensor { 128 } else { 16 };
            let at = shared[l].wrapping_sub(SHARED_START);
            if !shared[l].is_multiple_of(align) || bytes % 16 != 0 {
                self.note(FindingKind::Misaligned, w.index, l, shared[l] as u64, None);
                continue;
            }
            if at as u64 + bytes as u64 > self.shared.bytes.len() as u64 {
                self.note(FindingKind::OutOfBounds, w.index, l, shared[l] as u64, None);
                continue;
            }
            if !self.check_global(w, l, &part) {
                continue;
            }
            let touch = if barriers.is_some() { Touch::Launch } else { Touch::EngineRead };
            self.touch_part(w.index, l, &part, at, touch);
            match &barriers {
                Some(b) => {
                    let barrier = b[l].wrapping_sub(SHARED_START);
                    self.ready_for_engine(w, l, barrier)?;
                    self.loads.push(Load { barrier, part, to: at, warp: w.index, lane: l });
                    self.look_again(barrier);
                }
                None => w.stores.push(BulkStore {
                    part,
                    from: at,
                    lane: l,
                    group: w.stores_committed[l],
                }),
            }
        }
        Ok(())
    }

    /// Bounds and sectors of the global side.
    fn check_global(&mut self, w: &Warp, l: usize, part: &Part) -> bool {
        let mut outside = None;
        let (mut sectors, mut bytes, mut last) = (0, 0, u64::MAX);
        let memory = self.place.memory;
        part.pieces(|_, address, n| {
            if n == 0 {
                return;
            }
            if memory.find(address, n as u64).is_none() {
                outside = outside.or(Some(address));
            }
            bytes += n as u64;
            if address / 32 != last {
                last = address / 32;
                sectors += 1;
            }
        });
        if let Some(a) = outside {
            self.note(FindingKind::OutOfBounds, w.index, l, a, None);
            return false;
        }
        let t = self.tally();
        t.sectors += sectors;
        t.ideal_sectors += u64::div_ceil(bytes, 32);
        true
    }

    fn touch_part(&mut self, warp: usize, lane: usize, part: &Part, start: u32, touch: Touch) {
        if !self.place.checks {
            return;
        }
        // The swizzle only exchanges chunks within the range of the copy.
        for o in (0..part.bytes()).step_by(16) {
            if let Some(p) = self.shared.touch(touch, warp, lane, start + o, 16) {
                self.shared_problem(warp, lane, start + o, p);
            }
        }
    }

    /// Performs all loads that complete at a barrier.
    pub(crate) fn bring(&mut self, barrier: u32) -> Result<(), Fault> {
        let mut i = 0;
        while i < self.loads.len() {
            if self.loads[i].barrier != barrier {
                i += 1;
                continue;
            }
            let load = self.loads.remove(i);
            let part = load.part;
            let (memory, shared) = (self.place.memory, &mut self.shared.bytes);
            part.pieces(|o, address, n| {
                let at = part.place(load.to, o) as usize;
                if n == 0 {
                    shared[at..at + 16].fill(0);
                } else if let Some(source) = memory.find(address, n as u64) {
                    // SAFETY: `find` has checked the bytes.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            source,
                            shared[at..at + n as usize].as_mut_ptr(),
                            n as usize,
                        )
                    };
                }
            });
            let stamp = self.shared.clocks.stamp();
            self.touch_part(load.warp, load.lane, &part, load.to, Touch::EngineLand(stamp));
            self.brought(barrier, stamp);
            self.complete(barrier, part.bytes() as i64)?;
        }
        Ok(())
    }

    /// Performs the stores of lanes: all but their newest `keep` groups, or all.
    pub(crate) fn flush(&mut self, w: &mut Warp, mask: u32, keep: Option<u32>) {
        let stores = std::mem::take(&mut w.stores);
        let (now, later): (Vec<_>, Vec<_>) = stores.into_iter().partition(|s| {
            mask >> s.lane & 1 == 1 && keep.is_none_or(|n| s.group + n < w.stores_committed[s.lane])
        });
        w.stores = later;
        for s in now {
            let (memory, shared) = (self.place.memory, &self.shared.bytes);
            s.part.pieces(|o, address, n| {
                let at = s.part.place(s.from, o) as usize;
                if n > 0
                    && let Some(to) = memory.find(address, n as u64)
                {
                    // SAFETY: `find` has checked the bytes.
                    unsafe { std::ptr::copy_nonoverlapping(shared[at..].as_ptr(), to, n as usize) };
                }
            });
            self.touch_part(w.index, s.lane, &s.part, s.from, Touch::EngineDone);
        }
    }
}
