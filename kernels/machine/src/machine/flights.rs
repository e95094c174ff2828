//! Pending `wgmma` products: what they own until the program waits for them.

use crate::machine::banks::wavefronts;
use crate::machine::block::Env;
use crate::machine::operands::Matrix;
use crate::machine::shared::Touch;
use crate::machine::warp::Warp;
use crate::machine::wgmma::{Source, Wgmma};
use crate::program::*;
use crate::read::parse::spaces::SHARED_START;
use crate::report::FindingKind;

/// A pending product.
pub(crate) struct Flight {
    group: u32,
    accumulators: Vec<u32>,
    a: Vec<u32>,
    chunks: Vec<u32>,
}

impl Env<'_> {
    pub(crate) fn launch_flight(
        &mut self,
        w: &mut Warp,
        m: &Wgmma,
        a: Option<&Matrix>,
        b: &Matrix,
        first: bool,
    ) {
        let mut chunks = a.map_or(vec![], |a| a.chunks(64));
        chunks.extend(b.chunks(m.n as u32));
        let room = self.shared.bytes.len() as u32;
        let outside = chunks.iter().copied().find(|c| *c >= room || room - c < 16);
        if let Some(c) = outside {
            self.note(
                FindingKind::OutOfBounds,
                w.index,
                0,
                c.wrapping_add(SHARED_START) as u64,
                None,
            );
            chunks.retain(|c| *c < room && room - c >= 16);
        }
        if first {
            let (mut actual, mut ideal) = (0, 0);
            for eight in chunks.chunks_exact(8) {
                let mut lanes = [0; 32];
                lanes[..8].copy_from_slice(eight);
                let (x, y) = wavefronts(&lanes, 0xff, 16);
                actual += x;
                ideal += y;
            }
            let t = self.tally();
            t.wavefronts += actual;
            t.ideal_wavefronts += ideal;
        }
        for &c in &chunks {
            if let Some(p) = self.shared.touch(Touch::EngineRead, w.index, 0, c, 16) {
                self.shared_problem(w.index, 0, c, p);
            }
        }
        let a = match m.a {
            Source::Registers(slots) => slots.to_vec(),
            Source::Descriptor(_) => vec![],
        };
        // Registers that were written need a fence, and must not be owned by a pending product,
        // except as accumulators of the same kind.
        let unfenced =
            m.d.iter().chain(&a).any(|s| w.written[*s as usize] > w.fences) || w.fences == 0;
        let owned = a.iter().any(|s| w.busy[*s as usize][0] > 0)
            || m.d.iter().any(|s| w.busy[*s as usize][1] > 0);
        if unfenced || owned {
            self.note(FindingKind::Asynchronous, w.index, 0, 0, None);
        }
        m.d.iter().for_each(|s| w.busy[*s as usize][0] += 1);
        a.iter().for_each(|s| w.busy[*s as usize][1] += 1);
        w.flights.push(Flight {
            group: w.products_committed,
            accumulators: m.d.clone(),
            a,
            chunks,
        });
    }

    /// Waits for all but the newest `keep` groups of products.
    pub(crate) fn wgmma_wait(&mut self, w: &mut Warp, keep: u32) {
        let flights = std::mem::take(&mut w.flights);
        let (over, left): (Vec<_>, Vec<_>) =
            flights.into_iter().partition(|f| f.group + keep < w.products_committed);
        for f in &over {
            f.accumulators.iter().for_each(|s| w.busy[*s as usize][0] -= 1);
            f.a.iter().for_each(|s| w.busy[*s as usize][1] -= 1);
            for &c in &f.chunks {
                self.shared.touch(Touch::EngineDone, w.index, 0, c, 16);
            }
        }
        if !over.is_empty() {
            // Registers that a newer product still reads stay marked.
            for &c in left.iter().flat_map(|f| &f.chunks) {
                self.shared.touch(Touch::EngineMore, w.index, 0, c, 16);
            }
        }
        w.flights = left;
    }

    /// Checks the registers of an ordinary instruction against pending products, and records its
    /// writes.
    pub(crate) fn registers(&mut self, w: &mut Warp, inst: &Inst, mask: u32) {
        if !w.flights.is_empty() && !matches!(inst.action, Action::Wgmma(_)) {
            let reads = inst.reads.iter().any(|s| w.busy[*s as usize][0] > 0);
            let writes = inst.writes.iter().any(|s| w.busy[*s as usize] != [0, 0]);
            if inst.is_move && reads && !writes {
                // Compilers rename registers with moves; the copy has the same owner as the
                // original.
                if let (Some(f), [d]) = (w.flights.last_mut(), &inst.writes[..]) {
                    f.accumulators.push(*d);
                    w.busy[*d as usize][0] += 1;
                }
            } else if reads || writes {
                self.note(
                    FindingKind::Asynchronous,
                    w.index,
                    mask.trailing_zeros() as usize & 31,
                    0,
                    None,
                );
            }
        }
        if matches!(inst.action, Action::Wgmma(_)) {
            return;
        }
        if let (true, [d], [s]) = (inst.is_move, &inst.writes[..], &inst.reads[..]) {
            w.written[*d as usize] = w.written[*s as usize];
            return;
        }
        for d in &inst.writes {
            w.written[*d as usize] = w.fences + 1;
        }
    }
}
