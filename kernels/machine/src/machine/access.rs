//! Loads, stores and atomics of a warp.

use crate::machine::banks::{sectors, wavefronts};
use crate::machine::block::Env;
use crate::machine::regs::Lanes;
use crate::machine::shared::Touch;
use crate::machine::warp::Warp;
use crate::machine::writers::Writers;
use crate::program::*;
use crate::read::parse::spaces::{self, SHARED_START};
use crate::read::types::Slot;
use crate::report::{Fault, FaultKind, FindingKind};

/// The value that a lane reads where no memory is.
pub(crate) const POISON: u64 = u64::MAX;

/// Lane numbers of a mask.
#[inline]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let l = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (l < 32).then_some(l)
    })
}

impl Env<'_> {
    pub(crate) fn addresses(&self, w: &Warp, a: Address) -> Lanes<u64> {
        match a.base {
            Slot::Word(s) => {
                w.regs.words[s as usize].map(|x| x.wrapping_add(a.offset as u32) as u64)
            }
            Slot::Double(s) => w.regs.doubles[s as usize].map(|x| x.wrapping_add(a.offset as u64)),
            Slot::Pred(_) => [0; 32],
        }
    }

    /// Addresses in shared memory; the bits for the state space are removed from generic ones.
    pub(crate) fn shared_addresses(&self, w: &Warp, a: Address) -> Lanes<u32> {
        match a.base {
            Slot::Word(s) => w.regs.words[s as usize].map(|x| x.wrapping_add(a.offset as u32)),
            Slot::Double(s) => {
                w.regs.doubles[s as usize].map(|x| (x as u32).wrapping_add(a.offset as u32))
            }
            Slot::Pred(_) => [0; 32],
        }
    }

    /// Offsets in shared memory of the lanes whose accesses are valid: aligned, and inside.
    pub(crate) fn shared_offsets(
        &mut self,
        w: &Warp,
        addresses: Lanes<u32>,
        mask: u32,
        bytes: u32,
    ) -> (Lanes<u32>, u32) {
        let room = self.shared.bytes.len() as u32;
        let mut out = addresses;
        let mut bad = 0;
        for (l, o) in out.iter_mut().enumerate() {
            let misaligned = *o & (bytes - 1);
            *o = o.wrapping_sub(SHARED_START);
            bad |= ((misaligned != 0 || *o >= room || room - *o < bytes) as u32) << l;
        }
        bad &= mask;
        for l in lanes(bad) {
            let misaligned = addresses[l] & (bytes - 1) != 0;
            let kind = if misaligned { FindingKind::Misaligned } else { FindingKind::OutOfBounds };
            self.note(kind, w.index, l, addresses[l] as u64, None);
        }
        (out, mask & !bad)
    }

    /// Records accesses of lanes to shared memory in the shadow.
    pub(crate) fn touch(
        &mut self,
        w: &Warp,
        touch: Touch,
        offsets: &Lanes<u32>,
        mask: u32,
        bytes: u32,
    ) {
        if !self.place.checks {
            return;
        }
        // The kind of access is the same for the whole loop.
        match touch {
            Touch::Read => self.touch_each(w, Touch::Read, offsets, mask, bytes),
            Touch::Write => self.touch_each(w, Touch::Write, offsets, mask, bytes),
            _ => self.touch_each(w, touch, offsets, mask, bytes),
        }
    }

    #[inline(always)]
    fn touch_each(&mut self, w: &Warp, touch: Touch, offsets: &Lanes<u32>, mask: u32, bytes: u32) {
        for l in lanes(mask) {
            if let Some(p) = self.shared.touch(touch, w.index, l, offsets[l], bytes) {
                self.shared_problem(w.index, l, offsets[l], p);
            }
        }
    }

    pub(crate) fn count_wavefronts(&mut self, offsets: &Lanes<u32>, mask: u32, bytes: usize) {
        if self.place.checks && mask != 0 {
            let (actual, ideal) = wavefronts(offsets, mask, bytes);
            let t = self.tally();
            t.wavefronts += actual;
            t.ideal_wavefronts += ideal;
        }
    }

    /// Host addresses of the lanes whose accesses to global memory are valid.
    fn global_pointers(
        &mut self,
        w: &Warp,
        addresses: &Lanes<u64>,
        mut mask: u32,
        bytes: u64,
    ) -> (Lanes<*mut u8>, u32) {
        let mut out = [std::ptr::null_mut(); 32];
        let (mut low, mut high, mut or) = (u64::MAX, 0, 0);
        for l in lanes(mask) {
            low = low.min(addresses[l]);
            high = high.max(addresses[l]);
            or |= addresses[l];
        }
        // Nearly always all lanes are in one range.
        if or % bytes == 0
            && let Some(p) = self.place.memory.find(low, (high - low).saturating_add(bytes))
        {
            for l in lanes(mask) {
                out[l] = p.wrapping_add((addresses[l] - low) as usize);
            }
        } else {
            for l in lanes(mask) {
                let a = addresses[l];
                if !a.is_multiple_of(bytes) {
                    self.note(FindingKind::Misaligned, w.index, l, a, None);
                    mask &= !(1 << l);
                } else if let Some(p) = self.place.memory.find(a, bytes) {
                    out[l] = p;
                } else {
                    self.note(FindingKind::OutOfBounds, w.index, l, a, None);
                    mask &= !(1 << l);
                }
            }
        }
        (out, mask)
    }

    /// Host addresses of lanes in a state space, and the lanes that remain. Records invalid
    /// accesses.
    pub(crate) fn pointers(
        &mut self,
        w: &mut Warp,
        space: Space,
        addresses: &Lanes<u64>,
        mask: u32,
        bytes: usize,
        touch: Touch,
    ) -> Result<(Lanes<*mut u8>, u32), Fault> {
        let plain = addresses.map(|a| a & (u64::MAX >> 4));
        match space {
            Space::Generic => {
                // Each state space in turn; a warp is rarely in more than one.
                let (mut out, mut left, mut kept) = ([std::ptr::null_mut(); 32], mask, 0);
                while left != 0 {
                    let tag = addresses[left.trailing_zeros() as usize] >> 60;
                    let group = lanes(left)
                        .filter(|l| addresses[*l] >> 60 == tag)
                        .fold(0, |m, l| m | 1 << l);
                    left &= !group;
                    let space = match tag << 60 {
                        spaces::SHARED => Space::Shared,
                        spaces::LOCAL => Space::Local,
                        spaces::PARAM => Space::Param,
                        _ => Space::Global,
                    };
                    let (p, k) = self.pointers(w, space, addresses, group, bytes, touch)?;
                    lanes(k).for_each(|l| out[l] = p[l]);
                    kept |= k;
                }
                Ok((out, kept))
            }
            Space::Global
                if addresses[mask.trailing_zeros() as usize] >> 60 == spaces::MODULE >> 60 =>
            {
                let data = self.place.entry.data.clone();
                if touch != Touch::Read {
                    return self.fault(FaultKind::Unsupported, "write to a variable of the module");
                }
                Ok(self.small(w, data.as_ptr() as *mut u8, data.len(), 0, &plain, mask, bytes))
            }
            Space::Global => {
                let (p, kept) = self.global_pointers(w, addresses, mask, bytes as u64);
                if self.place.checks && kept != 0 {
                    let (touched, ideal) = sectors(addresses, kept, bytes as u64);
                    let t = self.tally();
                    t.sectors += touched;
                    t.ideal_sectors += ideal;
                }
                Ok((p, kept))
            }
            Space::Shared => {
                let (offsets, kept) =
                    self.shared_offsets(w, addresses.map(|a| a as u32), mask, bytes as u32);
                self.count_wavefronts(&offsets, kept, bytes);
                self.touch(w, touch, &offsets, kept, bytes as u32);
                let start = self.shared.bytes.as_mut_ptr();
                Ok((offsets.map(|o| start.wrapping_add(o as usize)), kept))
            }
            Space::Local => {
                let size = self.place.entry.local;
                let start = w.local.as_mut_ptr();
                Ok(self.small(w, start, size, size, &plain, mask, bytes))
            }
            Space::Param => {
                let p = self.place.params;
                Ok(self.small(w, p.as_ptr() as *mut u8, p.len(), 0, &plain, mask, bytes))
            }
        }
    }

    /// Memory of a known size, one for all lanes or `stride` bytes apart.
    #[allow(clippy::too_many_arguments)]
    fn small(
        &mut self,
        w: &Warp,
        start: *mut u8,
        size: usize,
        stride: usize,
        offsets: &Lanes<u64>,
        mut mask: u32,
        bytes: usize,
    ) -> (Lanes<*mut u8>, u32) {
        let mut out = [std::ptr::null_mut(); 32];
        for l in lanes(mask) {
            let o = offsets[l] as usize;
            if !o.is_multiple_of(bytes) {
                self.note(FindingKind::Misaligned, w.index, l, offsets[l], None);
                mask &= !(1 << l);
            } else if o.checked_add(bytes).is_none_or(|end| end > size) {
                self.note(FindingKind::OutOfBounds, w.index, l, offsets[l], None);
                mask &= !(1 << l);
            } else {
                out[l] = start.wrapping_add(l * stride + o);
            }
        }
        (out, mask)
    }

    pub(crate) fn load(&mut self, w: &mut Warp, a: &Access, mask: u32) -> Result<(), Fault> {
        let bytes = a.size * a.elements.len();
        let addresses = self.addresses(w, a.address);
        let (pointers, kept) = self.pointers(w, a.space, &addresses, mask, bytes, Touch::Read)?;
        for (i, slot) in a.elements.iter().enumerate() {
            let Some(slot) = slot else { continue };
            let mut out = [POISON; 32];
            let at = |l: usize| pointers[l].wrapping_add(i * a.size);
            // SAFETY: `pointers` returns only lanes whose bytes are inside the memory.
            unsafe {
                if a.size == 4 && !a.signed {
                    lanes(kept)
                        .for_each(|l| out[l] = (at(l) as *const u32).read_unaligned() as u64);
                } else {
                    lanes(kept).for_each(|l| out[l] = read(at(l), a.size, a.signed));
                }
            }
            match *slot {
                Slot::Word(s) => w.regs.put_word(s, out.map(|x| x as u32), mask),
                Slot::Double(s) => w.regs.put_double(s, out, mask),
                Slot::Pred(_) => {}
            }
        }
        Ok(())
    }

    pub(crate) fn store(&mut self, w: &mut Warp, a: &Access, mask: u32) -> Result<(), Fault> {
        let bytes = a.size * a.elements.len();
        let addresses = self.addresses(w, a.address);
        if a.space == Space::Param {
            return self.fault(FaultKind::Unsupported, "store to parameters");
        }
        let (pointers, kept) = self.pointers(w, a.space, &addresses, mask, bytes, Touch::Write)?;
        if self.place.checks && a.space == Space::Shared {
            self.lane_conflicts(w, a, &addresses, kept, bytes as u64);
        }
        if let Some(writers) = self.place.writers
            && a.space != Space::Shared
            && a.space != Space::Local
            && bytes > 1
        {
            self.overwrites(w, a, writers, &addresses, kept);
        }
        for (i, slot) in a.elements.iter().enumerate() {
            let at = |l: usize| pointers[l].wrapping_add(i * a.size);
            // SAFETY: as in `load`.
            unsafe {
                match slot {
                    Some(Slot::Word(s)) if a.size == 4 => {
                        let x = &w.regs.words[*s as usize];
                        lanes(kept).for_each(|l| (at(l) as *mut u32).write_unaligned(x[l]));
                    }
                    Some(Slot::Word(s)) => {
                        let x = &w.regs.words[*s as usize];
                        lanes(kept).for_each(|l| write(at(l), a.size, x[l] as u64));
                    }
                    Some(Slot::Double(s)) => {
                        let x = &w.regs.doubles[*s as usize];
                        lanes(kept).for_each(|l| write(at(l), a.size, x[l]));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Finds lanes that store other values than another block has stored there.
    fn overwrites(
        &mut self,
        w: &Warp,
        a: &Access,
        writers: &Writers,
        addresses: &Lanes<u64>,
        mask: u32,
    ) {
        let block = self.place.number();
        for l in lanes(mask).filter(|l| addresses[*l] >> 60 == 0) {
            let mut bytes = [0u8; 32];
            for (slot, to) in a.elements.iter().zip(bytes.chunks_exact_mut(a.size)) {
                let value = match slot {
                    Some(Slot::Word(s)) => w.regs.words[*s as usize][l] as u64,
                    Some(Slot::Double(s)) => w.regs.doubles[*s as usize][l],
                    _ => 0,
                };
                to.copy_from_slice(&value.to_le_bytes()[..a.size]);
            }
            if let Some(other) =
                writers.store(addresses[l], &bytes[..a.size * a.elements.len()], block)
            {
                self.note(FindingKind::Race, w.index, l, addresses[l], None);
                self.name_block(other);
            }
        }
    }

    /// Finds lanes of one store that write different values to the same bytes.
    fn lane_conflicts(
        &mut self,
        w: &Warp,
        a: &Access,
        addresses: &Lanes<u64>,
        mask: u32,
        bytes: u64,
    ) {
        let (mut last, mut rising) = (0, true);
        for l in lanes(mask) {
            rising &= addresses[l] >= last;
            last = addresses[l] + bytes;
        }
        if rising {
            return;
        }
        let mut order: Vec<usize> = lanes(mask).collect();
        order.sort_by_key(|l| addresses[*l]);
        let differ = |x: usize, y: usize| {
            a.elements.iter().any(|slot| match slot {
                Some(Slot::Word(s)) => w.regs.words[*s as usize][x] != w.regs.words[*s as usize][y],
                Some(Slot::Double(s)) => {
                    w.regs.doubles[*s as usize][x] != w.regs.doubles[*s as usize][y]
                }
                _ => false,
            })
        };
        for p in order.windows(2) {
            let (x, y) = (p[0], p[1]);
            if addresses[x] + bytes > addresses[y] && differ(x, y) {
                let other = (w.index * 32 + x) as u32;
                self.note(FindingKind::Race, w.index, y, addresses[y] as u32 as u64, Some(other));
            }
        }
    }
}

/// # Safety
/// The bytes must be readable.
#[inline(always)]
pub(crate) unsafe fn read(p: *const u8, size: usize, signed: bool) -> u64 {
    // SAFETY: the caller has checked the bytes; reads need no alignment.
    unsafe {
        match (size, signed) {
            (1, false) => *p as u64,
            (1, true) => *p as i8 as u64,
            (2, false) => (p as *const u16).read_unaligned() as u64,
            (2, true) => (p as *const i16).read_unaligned() as u64,
            (4, false) => (p as *const u32).read_unaligned() as u64,
            (4, true) => (p as *const i32).read_unaligned() as u64,
            _ => (p as *const u64).read_unaligned(),
        }
    }
}

/// # Safety
/// The bytes must be writable.
#[inline(always)]
pub(crate) unsafe fn write(p: *mut u8, size: usize, x: u64) {
    // SAFETY: the caller has checked the bytes; writes need no alignment.
    unsafe {
        match size {
            1 => *p = x as u8,
            2 => (p as *mut u16).write_unaligned(x as u16),
            4 => (p as *mut u32).write_unaligned(x as u32),
            _ => (p as *mut u64).write_unaligned(x),
        }
    }
}
