//! What a run allocates, decided before anything runs: the place of every tensor, which weights
//! stay on the device, and which pass through the ring.
//!
//! A plan is a pure function of a program, the sizes of its weights and a budget. It decides places
//! and order, never arithmetic: the same program gives the same bits under every plan.

mod liveness;
mod residency;

pub use liveness::{Arena, arena};
pub use residency::{Residency, residency, streamed_blocks};

use crate::backend::{Grain, Layout};
use crate::error::{Error, Result};
use crate::op::Program;
use crate::units;

/// The plan of one phase: a program that runs once or several times in a generation.
#[derive(Debug, Clone)]
pub struct PhasePlan {
    /// Where the tensors are.
    pub arena: Arena,
    /// Where the weights are.
    pub residency: Residency,
    /// How often the program runs in one generation (steps, tiles).
    pub runs: usize,
    /// Bytes of all weights of the phase in the form that the device uses.
    pub weight_bytes: u64,
}

impl PhasePlan {
    /// The sizes of the memory that the device allocates for this phase.
    pub fn layout(&self) -> Layout {
        Layout {
            arena_bytes: self.arena.bytes,
            resident_bytes: self.residency.resident_bytes,
            ring_bytes: self.residency.ring_bytes,
        }
    }

    /// The memory that the phase uses on the device, in bytes.
    pub fn peak_bytes(&self) -> u64 {
        (self.arena.bytes + self.residency.resident_bytes + self.residency.ring_bytes) as u64
    }

    /// Bytes that are copied to the device in each run after the first.
    pub fn streamed_bytes(&self) -> u64 {
        self.residency.streamed_bytes
    }
}

/// Plans one phase under a budget of `budget` bytes.
///
/// `weight_bytes[id]` are the bytes that the device needs for weight `id`, and `scratch[i]` those
/// that step `i` needs besides its operands. `grain` is the device's.
///
/// # Errors
/// [`Kind::Memory`](crate::error::Kind::Memory) for a budget that is too small, with the smallest
/// one that is large enough.
pub fn phase(
    program: &Program,
    runs: usize,
    weight_bytes: &[usize],
    scratch: &[usize],
    grain: Grain,
    budget: u64,
) -> Result<PhasePlan> {
    let arena = arena(program, scratch, grain);
    let left = budget.saturating_sub(arena.bytes as u64);
    let residency = residency(program, weight_bytes, grain, left).map_err(|least| {
        Error::memory(format!("the {} phase does not fit in the memory budget", program.name))
            .found(units::bytes(budget))
            .expected(format!(
                "at least {} ({} for activations, {} for the largest weights)",
                units::bytes(arena.bytes as u64 + least),
                units::bytes(arena.bytes as u64),
                units::bytes(least)
            ))
            .try_("a larger {ram} or {vram}, or a smaller image")
    })?;
    Ok(PhasePlan {
        arena,
        residency,
        runs,
        weight_bytes: weight_bytes.iter().map(|&b| b as u64).sum(),
    })
}

/// The smallest budget under which [`phase`] succeeds, in bytes.
pub fn least_bytes(
    program: &Program,
    weight_bytes: &[usize],
    scratch: &[usize],
    grain: Grain,
) -> u64 {
    let arena = arena(program, scratch, grain).bytes as u64;
    match residency(program, weight_bytes, grain, 0) {
        Ok(_) => arena,
        Err(least) => arena + least,
    }
}
