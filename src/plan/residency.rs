//! Which weights stay on the device, and which pass through a ring, under a budget.

use std::collections::HashMap;

use crate::backend::Grain;
use crate::op::Program;

/// Weights below this size in bytes always stay: streaming them would cost many loads and save
/// little memory.
const SMALL_BYTES: usize = 1 << 16;

/// Where the weights of one program are placed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Residency {
    /// By weight id: the byte offset among the resident weights, or `None` for a weight that passes
    /// through the ring.
    pub resident: Vec<Option<usize>>,
    /// Size of the memory for all resident weights.
    pub resident_bytes: usize,
    /// The part of it for what is added to the model: side matrices (LoRAs) and weights of further
    /// networks. They are placed after all other weights, so that these keep their places when the
    /// additions change.
    pub added_bytes: usize,
    /// Bytes of side matrices.
    pub side_bytes: usize,
    /// Size of the ring; zero if every weight is resident.
    pub ring_bytes: usize,
    /// Bytes that pass through the ring in one run.
    pub streamed_bytes: u64,
    /// By weight id: its size, padded.
    pub bytes: Vec<usize>,
    /// Weight ids in the order of their first use.
    pub order: Vec<u32>,
    /// By weight id: the last step that uses it.
    pub last_use: Vec<usize>,
    /// By weight id: whether it is added to the model, see
    /// [`added_bytes`](Residency::added_bytes).
    pub is_added: Vec<bool>,
}

/// Divides `budget` bytes among resident weights and the ring.
///
/// If every weight fits, all are resident. Otherwise the ring gets room for the two largest
/// consecutive blocks (one in use, one being loaded), or what is left. The rest of the budget is
/// for resident weights, spread evenly over the program: so there is computation between any two
/// streamed blocks, during which the next one is loaded.
///
/// # Errors
/// The smallest budget that is large enough, in bytes.
pub fn residency(
    program: &Program,
    weight_bytes: &[usize],
    grain: Grain,
    budget: u64,
) -> Result<Residency, u64> {
    let n = program.weights.len();
    let bytes: Vec<usize> = weight_bytes.iter().map(|b| b.next_multiple_of(grain.align)).collect();
    let is_side: Vec<bool> = program.weights.iter().map(|w| w.side.is_some()).collect();
    let is_added: Vec<bool> =
        program.weights.iter().map(|w| w.side.is_some() || w.net != 0).collect();
    let always_stays = |id: usize| bytes[id] < SMALL_BYTES || is_side[id];
    let mut order: Vec<u32> = Vec::with_capacity(n);
    let mut last_use = vec![0; n];
    let mut seen = vec![false; n];
    let mut blocks: Vec<usize> = Vec::new(); // streamable bytes of each block, in order
    let mut block = "";
    for (i, step) in program.steps.iter().enumerate() {
        if i == 0 || step.block() != block {
            block = step.block();
            blocks.push(0);
        }
        for w in step.op.weights() {
            let id = w.id as usize;
            last_use[id] = i;
            if !std::mem::replace(&mut seen[id], true) {
                order.push(w.id);
                if !always_stays(id) {
                    *blocks.last_mut().expect("pushed above") += bytes[id];
                }
            }
        }
    }

    let total: u64 = bytes.iter().map(|&b| b as u64).sum();
    let small: u64 = (0..n).filter(|&id| always_stays(id)).map(|id| bytes[id] as u64).sum();
    let mut stay = vec![true; n];
    let mut ring_bytes = 0;
    let place_all = |stay: &[bool]| {
        let mut resident = vec![None; n];
        let own = |id: usize| stay[id] && !is_added[id];
        let added = |id: usize| stay[id] && is_added[id];
        let own = place(&mut resident, &order, &bytes, &own, grain, 0, 0);
        let end = place(&mut resident, &order, &bytes, &added, grain, 0, own);
        (resident, end, end - own)
    };
    let (mut resident, mut resident_bytes, mut added_bytes) = place_all(&stay);
    if resident_bytes as u64 > budget {
        // All large weights of a step must be in the ring at once. The ring wraps around, where up
        // to the size of a weight is wasted.
        let most = program.steps.iter().map(|s| {
            let ids = s.op.weights().into_iter().map(|w| w.id as usize);
            let large = ids.filter(|&id| !always_stays(id)).map(|id| bytes[id]).collect::<Vec<_>>();
            if large.len() > 1 { 2 * large.iter().sum::<usize>() } else { large.iter().sum() }
        });
        let least_ring = most.max().unwrap_or(0) as u64;
        if small + least_ring > budget {
            return Err(total.min(small + least_ring));
        }
        let pair = blocks
            .windows(2)
            .map(|w| w[0] + w[1])
            .chain(blocks.first().copied())
            .max()
            .unwrap_or(0) as u64;
        // The ring must be one piece of memory.
        let ring = pair.min(grain.chunk as u64).max(least_ring).min(budget - small);
        ring_bytes = ring as usize;
        let mut room = budget - small - ring;
        loop {
            spread(&order, &bytes, &always_stays, room, &mut stay);
            (resident, resident_bytes, added_bytes) = place_all(&stay);
            // How much is lost at the borders between pieces of memory is not known before.
            let over = (resident_bytes as u64 + ring).saturating_sub(budget);
            if over == 0 || room == 0 {
                break;
            }
            room = room.saturating_sub(over);
        }
    }
    let streamed_bytes =
        (0..n).filter(|&id| resident[id].is_none()).map(|id| bytes[id] as u64).sum();
    let side_bytes = (0..n).filter(|&id| is_side[id]).map(|id| bytes[id]).sum();
    Ok(Residency {
        resident,
        resident_bytes,
        added_bytes,
        side_bytes,
        ring_bytes,
        streamed_bytes,
        bytes,
        order,
        last_use,
        is_added,
    })
}

impl Residency {
    /// Places the model's own resident weights again, from byte `base` of the memory that the
    /// phases share; offsets count from `base`. Returns the end of these weights, counted from the
    /// start of that memory. [`move_added`](Residency::move_added) places what is added to them.
    pub fn move_to(&mut self, base: usize, grain: Grain) -> usize {
        let stay: Vec<bool> = self
            .resident
            .iter()
            .zip(&self.is_added)
            .map(|(at, added)| at.is_some() && !added)
            .collect();
        let end =
            place(&mut self.resident, &self.order, &self.bytes, &|id| stay[id], grain, base, base);
        self.resident_bytes = end - base + self.added_bytes;
        end
    }

    /// Places what is added to the model from byte `from` of the same memory; returns the end.
    pub fn move_added(&mut self, base: usize, from: usize, grain: Grain) -> usize {
        let stay: Vec<bool> = self
            .resident
            .iter()
            .zip(&self.is_added)
            .map(|(at, added)| at.is_some() && *added)
            .collect();
        let end =
            place(&mut self.resident, &self.order, &self.bytes, &|id| stay[id], grain, base, from);
        self.added_bytes = end - from;
        end
    }
}

/// Sets the offsets of the weights for which `which` returns true: they are placed from byte
/// `from`, and their offsets count from `base`. Returns their end.
fn place(
    resident: &mut [Option<usize>],
    order: &[u32],
    bytes: &[usize],
    which: &dyn Fn(usize) -> bool,
    grain: Grain,
    base: usize,
    from: usize,
) -> usize {
    let mut end = from;
    for id in order.iter().map(|&id| id as usize) {
        if which(id) {
            let at = grain.place(end, bytes[id]);
            resident[id] = Some(at - base);
            end = at + bytes[id];
        }
    }
    end
}

/// Marks large weights as streamed, except for about `room` bytes of them, which are spread evenly
/// in program order.
fn spread(
    order: &[u32],
    bytes: &[usize],
    small: &dyn Fn(usize) -> bool,
    room: u64,
    stay: &mut [bool],
) {
    let large: Vec<usize> = order.iter().map(|&id| id as usize).filter(|&id| !small(id)).collect();
    let total: u64 = large.iter().map(|&id| bytes[id] as u64).sum();
    let (mut passed, mut kept) = (0u64, 0u64);
    for id in large {
        let b = bytes[id] as u64;
        passed += b;
        // Keep this one if less than room / total of the bytes so far was kept, and it fits.
        let due = (room as u128 * passed as u128 / total as u128) as u64;
        stay[id] = kept + b <= due.min(room);
        if stay[id] {
            kept += b;
        }
    }
}

/// How many blocks of the program have a streamed weight, and how many blocks there are.
pub fn streamed_blocks(program: &Program, residency: &Residency) -> (usize, usize) {
    let mut blocks: HashMap<&str, bool> = HashMap::new();
    for step in &program.steps {
        for w in step.op.weights() {
            *blocks.entry(step.block()).or_default() |= residency.resident[w.id as usize].is_none();
        }
    }
    (blocks.values().filter(|&&s| s).count(), blocks.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::model::FluxConfig;
    use crate::model::flux1::{DenoiseShape, denoise};

    fn dev() -> (Program, Vec<usize>) {
        let s = DenoiseShape { images: 1, cfg: false, text_tokens: 512, height: 64, width: 64 };
        let p = denoise(&FluxConfig::dev(), &s, DType::BF16);
        let bytes = p.weights.iter().map(|w| w.rows * w.cols).collect(); // fp8
        (p, bytes)
    }

    #[test]
    fn dev_in_fp8_without_modulation_is_8_7_gb() {
        let (p, bytes) = dev();
        let r = residency(&p, &bytes, Grain::whole(256), u64::MAX).unwrap();
        assert_eq!(r.ring_bytes, 0);
        assert!((8.6e9..8.8e9).contains(&(r.resident_bytes as f64)), "{}", r.resident_bytes);
    }

    #[test]
    fn every_budget_is_respected_and_used() {
        let (p, bytes) = dev();
        let least = residency(&p, &bytes, Grain::whole(256), 0).unwrap_err();
        assert!(residency(&p, &bytes, Grain::whole(256), least - 1).is_err());
        for budget in [least, least + 1, 1 << 30, 4 << 30, 8 << 30] {
            let r = residency(&p, &bytes, Grain::whole(256), budget).unwrap();
            let held = (r.resident_bytes + r.ring_bytes) as u64;
            assert!(held <= budget, "{held} > {budget}");
            if budget > 2 << 30 {
                assert!(held as f64 > 0.9 * budget as f64, "only {held} of {budget} used");
            }
            let all: u64 = r.bytes.iter().map(|&b| b as u64).sum();
            assert_eq!(r.resident_bytes as u64 + r.streamed_bytes, all);
        }
    }

    #[test]
    fn no_weight_crosses_the_border_of_a_piece_of_memory() {
        let (p, bytes) = dev();
        let grain = Grain { align: 256, chunk: 1 << 30 };
        let least = residency(&p, &bytes, grain, 0).unwrap_err();
        for budget in [least, 3_000_000_000, 6_000_000_000, 20_000_000_000] {
            let mut r = residency(&p, &bytes, grain, budget).unwrap();
            assert!(
                (r.resident_bytes + r.ring_bytes) as u64 <= budget && r.ring_bytes <= grain.chunk
            );
            for base in [0, 700 << 20] {
                r.move_to(base, grain);
                let mut last = 0;
                for id in r.order.iter().map(|&id| id as usize) {
                    let Some(offset) = r.resident[id] else { continue };
                    assert!(offset >= last && (base + offset) % 256 == 0, "{offset} after {last}");
                    assert_eq!((base + offset) >> 30, (base + offset + r.bytes[id] - 1) >> 30);
                    last = offset + r.bytes[id];
                }
                assert_eq!(last, r.resident_bytes);
            }
        }
    }

    #[test]
    fn resident_weights_are_spread_over_the_program() {
        let (p, bytes) = dev();
        let r = residency(&p, &bytes, Grain::whole(256), 6_000_000_000).unwrap();
        let half = |range: std::ops::Range<usize>| {
            r.order[range]
                .iter()
                .filter(|&&id| r.resident[id as usize].is_some())
                .map(|&id| r.bytes[id as usize] as f64)
                .sum::<f64>()
        };
        let (a, b) = (half(0..r.order.len() / 2), half(r.order.len() / 2..r.order.len()));
        let total = |range: std::ops::Range<usize>| {
            r.order[range].iter().map(|&id| r.bytes[id as usize] as f64).sum::<f64>()
        };
        let (fa, fb) =
            (a / total(0..r.order.len() / 2), b / total(r.order.len() / 2..r.order.len()));
        assert!((fa - fb).abs() < 0.1, "{fa} of the first half, {fb} of the second");
    }

    /// The weights of the model keep their places when LoRAs change, and so do the streamed ones.
    #[test]
    fn side_matrices_are_resident_and_placed_after_all_other_weights() {
        let (base, base_bytes) = dev();
        let with = |rank: usize| {
            let (p, _) = dev();
            let p = p.with_sides(&|w| w.name.contains("linear").then_some(rank));
            let bytes: Vec<usize> = p
                .weights
                .iter()
                .map(|w| w.rows * w.cols * if w.side.is_some() { 2 } else { 1 })
                .collect();
            (p, bytes)
        };
        let grain = Grain::whole(256);
        let none = residency(&base, &base_bytes, grain, u64::MAX).unwrap();
        for rank in [4, 16, 128] {
            let (p, bytes) = with(rank);
            let mut r = residency(&p, &bytes, grain, u64::MAX).unwrap();
            assert_eq!(r.resident[..none.resident.len()], none.resident, "rank {rank}");
            assert!(r.side_bytes > 0 && r.resident_bytes == none.resident_bytes + r.added_bytes);
            let first =
                r.resident[none.resident.len()..].iter().map(|at| at.unwrap()).min().unwrap();
            assert!(first >= none.resident_bytes);
            // They can be moved away from the others.
            let end = r.move_to(1 << 20, grain);
            assert_eq!(end, (1 << 20) + none.resident_bytes);
            let sides = r.move_added(1 << 20, 1 << 34, grain);
            assert_eq!(r.resident[..none.resident.len()], none.resident);
            let first =
                r.resident[none.resident.len()..].iter().map(|at| at.unwrap()).min().unwrap();
            assert_eq!((first, sides), ((1 << 34) - (1 << 20), (1 << 34) + r.added_bytes));
            // Under a budget they are resident, and the ring is not larger.
            let budget = 4_000_000_000;
            let tight = residency(&p, &bytes, grain, budget).unwrap();
            let without = residency(&base, &base_bytes, grain, budget).unwrap();
            assert!(tight.resident[none.resident.len()..].iter().all(Option::is_some));
            assert_eq!(tight.ring_bytes, without.ring_bytes);
            assert!((tight.resident_bytes + tight.ring_bytes) as u64 <= budget);
        }
    }
}
