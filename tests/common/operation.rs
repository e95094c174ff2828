//! One operation on a backend, without a plan: operands and weights one behind the other. Used by
//! tests and by benchmarks.

use flux_fast::backend::{Backend, Layout, Place, Places, WeightKey};
use flux_fast::error::Result;
use flux_fast::op::{Op, Use};
use flux_fast::tensor::{HostWeight, Tensor};

/// Distance between beginnings: places are multiples of it.
const ALIGN: usize = 256;

/// Places for `tensors`, which are the inputs 0, 1 and so on, and for the scratch memory of `op`;
/// and the bytes of the arena that contains them.
pub fn place(
    backend: &dyn Backend,
    op: &Op,
    tensors: &[Tensor],
    weights: &[HostWeight],
) -> (Places, usize) {
    let mut places = Places::default();
    let mut next = 0;
    for tensor in tensors {
        places.inputs.push(next);
        next += tensor.bytes().next_multiple_of(ALIGN);
    }
    places.scratch = next;
    let scratch = backend.scratch_bytes(op, &|w| &weights[w.id as usize]);
    (places, next + scratch.next_multiple_of(ALIGN))
}

/// Reserves an arena of `arena_bytes` bytes and memory for `weights`, which are the weights 0, 1
/// and so on of `op`, and loads them. Returns their keys and their bytes on the device.
pub fn reserve_and_load(
    backend: &mut dyn Backend,
    op: &Op,
    weights: &[HostWeight],
    arena_bytes: usize,
) -> Result<(Vec<WeightKey>, usize)> {
    let mut uses = vec![Use::Vector; weights.len()];
    for (weight, how) in op.weight_uses() {
        uses[weight.id as usize] = how;
    }
    let sizes: Vec<usize> =
        weights.iter().zip(&uses).map(|(w, how)| backend.weight_bytes(w, *how)).collect();
    let resident_bytes = sizes.iter().map(|n| n.next_multiple_of(ALIGN)).sum();
    backend.reserve(Layout { arena_bytes, resident_bytes, ring_bytes: 0 }, 0)?;
    let (mut keys, mut at) = (Vec::new(), 0);
    for (i, weight) in weights.iter().enumerate() {
        let key = WeightKey::new(i as u32);
        backend.load(key, Place::Resident(at), weight, uses[i])?;
        keys.push(key);
        at += sizes[i].next_multiple_of(ALIGN);
    }
    Ok((keys, sizes.iter().sum()))
}
