//! `ldmatrix`, `stmatrix` and `cp.async`.

use crate::machine::access::lanes;
use crate::machine::banks::sectors;
use crate::machine::block::Env;
use crate::machine::regs::Lanes;
use crate::machine::shared::Touch;
use crate::machine::warp::{Pending, Warp};
use crate::program::Address;
use crate::report::FindingKind;

impl Env<'_> {
    /// Rows of 8x8 matrices of 16 bits: offsets in shared memory of the lanes whose accesses are
    /// valid.
    fn rows(
        &mut self,
        w: &Warp,
        count: usize,
        address: Address,
        touch: Touch,
    ) -> (Lanes<u32>, u32) {
        let addresses = self.shared_addresses(w, address);
        let mask = u32::MAX >> (32 - 8 * count);
        let (offsets, kept) = self.shared_offsets(w, addresses, mask, 16);
        self.count_wavefronts(&offsets, kept, 16);
        self.touch(w, touch, &offsets, kept, 16);
        (offsets, kept)
    }

    pub(crate) fn ldmatrix(
        &mut self,
        w: &mut Warp,
        count: usize,
        transposed: bool,
        address: Address,
        d: &[u32; 4],
    ) {
        let (offsets, kept) = self.rows(w, count, address, Touch::Read);
        for m in 0..count {
            // Row r is lanes 4 r .. 4 r + 4 of the register, two elements each.
            let mut rows = [[0xffu8; 16]; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let lane = m * 8 + r;
                if kept >> lane & 1 == 1 {
                    let at = offsets[lane] as usize;
                    row.copy_from_slice(&self.shared.bytes[at..at + 16]);
                }
            }
            let out = &mut w.regs.words[d[m] as usize];
            if transposed {
                for t in 0..4 {
                    let (low, high) = (rows[2 * t], rows[2 * t + 1]);
                    for g in 0..8 {
                        let pair = [low[2 * g], low[2 * g + 1], high[2 * g], high[2 * g + 1]];
                        out[g * 4 + t] = u32::from_le_bytes(pair);
                    }
                }
            } else {
                for (to, row) in out.chunks_exact_mut(4).zip(&rows) {
                    for (to, b) in to.iter_mut().zip(row.chunks_exact(4)) {
                        *to = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    }
                }
            }
        }
    }

    pub(crate) fn stmatrix(
        &mut self,
        w: &mut Warp,
        count: usize,
        transposed: bool,
        address: Address,
        s: &[u32; 4],
    ) {
        let (offsets, kept) = self.rows(w, count, address, Touch::Write);
        for m in 0..count {
            let x = &w.regs.words[s[m] as usize];
            let mut rows = [[0u16; 8]; 8];
            for l in 0..32 {
                let (g, t) = (l / 4, l % 4);
                for (j, v) in [x[l] as u16, (x[l] >> 16) as u16].into_iter().enumerate() {
                    if transposed { rows[2 * t + j][g] = v } else { rows[g][2 * t + j] = v }
                }
            }
            for (r, row) in rows.iter().enumerate() {
                let lane = m * 8 + r;
                if kept >> lane & 1 == 1 {
                    let at = offsets[lane] as usize;
                    for (b, v) in self.shared.bytes[at..at + 16].chunks_exact_mut(2).zip(row) {
                        b.copy_from_slice(&v.to_le_bytes());
                    }
                }
            }
        }
    }

    /// Issues copies; they take place when their lane waits for them, and not before.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn copy(
        &mut self,
        w: &mut Warp,
        bytes: usize,
        to: Address,
        from: Address,
        source_bytes: Option<u32>,
        ignore: Option<(u32, bool)>,
        mask: u32,
    ) {
        let (to, from) = (self.shared_addresses(w, to), self.addresses(w, from));
        let (offsets, kept) = self.shared_offsets(w, to, mask, bytes as u32);
        self.count_wavefronts(&offsets, kept, bytes);
        self.touch(w, Touch::Launch, &offsets, kept, bytes as u32);
        let mut wanted = [bytes as u32; 32];
        if let Some(s) = source_bytes {
            wanted = w.regs.words[s as usize].map(|n| n.min(bytes as u32));
        }
        if let Some((p, negate)) = ignore {
            let p = w.regs.preds[p as usize];
            let p = if negate { !p } else { p };
            lanes(p).for_each(|l| wanted[l] = 0);
        }
        let mut read = 0;
        for l in lanes(kept) {
            let n = wanted[l];
            if !from[l].is_multiple_of(bytes as u64) {
                self.note(FindingKind::Misaligned, w.index, l, from[l], None);
                continue;
            }
            let mut source = std::ptr::null_mut();
            if n > 0 {
                let Some(p) = self.place.memory.find(from[l], n as u64) else {
                    self.note(FindingKind::OutOfBounds, w.index, l, from[l], None);
                    continue;
                };
                source = p;
                read |= 1 << l;
            }
            let number = self.started[w.index][l];
            self.started[w.index][l] += 1;
            self.copies[w.index].push(Pending {
                lane: l as u8,
                bytes: bytes as u8,
                number,
                wanted: n as u8,
                group: w.committed[l],
                to: offsets[l],
                from: source as usize,
            });
        }
        if self.place.checks && read != 0 {
            let (touched, ideal) = sectors(&from, read, bytes as u64);
            let t = self.tally();
            t.sectors += touched;
            t.ideal_sectors += ideal;
        }
    }

    /// Performs the copies that the lanes of `mask` wait for: all but their newest `keep` groups,
    /// or all.
    pub(crate) fn land_groups(&mut self, w: &Warp, mask: u32, keep: Option<u32>) {
        self.land(w.index, |p| {
            let over = keep.is_none_or(|n| p.group + n < w.committed[p.lane as usize]);
            mask >> p.lane & 1 == 1 && over
        });
    }

    /// Performs some copies of a warp.
    pub(crate) fn land(&mut self, warp: usize, now: impl Fn(&Pending) -> bool) {
        let mut copies = std::mem::take(&mut self.copies[warp]);
        copies.retain(|p| {
            if !now(p) {
                return true;
            }
            let (at, n, all) = (p.to as usize, p.wanted as usize, p.bytes as usize);
            let to = &mut self.shared.bytes[at..at + all];
            // SAFETY: the bytes were checked when the copy began.
            unsafe {
                if (n, all) == (16, 16) {
                    (to.as_mut_ptr() as *mut [u8; 16]).write((p.from as *const [u8; 16]).read());
                } else {
                    to.fill(0);
                    if n > 0 {
                        std::ptr::copy_nonoverlapping(p.from as *const u8, to.as_mut_ptr(), n);
                    }
                }
            }
            if self.place.checks {
                self.shared.touch(Touch::Land, warp, p.lane as usize, p.to, p.bytes as u32);
            }
            false
        });
        self.copies[warp] = copies;
    }
}
