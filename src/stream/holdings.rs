//! The weights that stay on a device from one phase to the next.

use std::collections::HashMap;

use crate::backend::{Backend, Layout, WeightKey};
use crate::error::Result;

/// A range of the memory for resident weights, in bytes.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: usize,
    bytes: usize,
}

impl Range {
    /// Whether the ranges share a byte. An empty range counts as one byte.
    fn overlaps(self, other: Range) -> bool {
        self.start < other.start + other.bytes.max(1)
            && other.start < self.start + self.bytes.max(1)
    }
}

/// The memory that is allocated on a device and the weights in it, between phases and between
/// generations.
#[derive(Default)]
pub struct Holdings {
    layout: Option<Layout>,
    /// Where each resident weight is.
    resident: HashMap<WeightKey, Range>,
    /// The resident weights were loaded by phases that have memory of their own.
    kept: bool,
    /// See [`Holdings::set_peak`].
    peak_bytes: u64,
}

impl Holdings {
    /// Sets the largest memory that a phase of the next generation needs, in bytes: as much is
    /// allocated for its first phase.
    pub fn set_peak(&mut self, bytes: u64) {
        self.peak_bytes = bytes;
    }

    /// Makes sure that at least `layout` is allocated.
    ///
    /// Memory that is large enough is used again. The weights in it stay loaded if `keep` is set
    /// and was set for the last phase: then every phase has bytes of its own. Otherwise phases
    /// share memory, so the current weights are dropped.
    pub fn reserve(&mut self, backend: &mut dyn Backend, layout: Layout, keep: bool) -> Result<()> {
        let enough = |have: Layout| {
            have.arena_bytes >= layout.arena_bytes
                && have.resident_bytes >= layout.resident_bytes
                && have.ring_bytes >= layout.ring_bytes
        };
        let apart = self.resident.is_empty() || (keep && self.kept);
        self.kept = keep;
        if apart && self.layout.is_some_and(enough) {
            return Ok(());
        }
        self.clear(backend)?;
        backend.reserve(layout, self.peak_bytes)?;
        self.layout = Some(layout);
        Ok(())
    }

    /// Drops the side matrices of every set but `set`.
    pub fn keep_sides(&mut self, backend: &mut dyn Backend, set: u32) -> Result<()> {
        self.evict(backend, |key, _| key.side_set != 0 && key.side_set != set)
    }

    /// Drops the weights of every network that is not a part of the model, but those of `owners`.
    pub fn keep_owners(&mut self, backend: &mut dyn Backend, owners: &[u32]) -> Result<()> {
        self.evict(backend, |key, _| key.owner != 0 && !owners.contains(&key.owner))
    }

    /// Whether `key` is loaded at all.
    pub(super) fn contains(&self, key: WeightKey) -> bool {
        self.resident.contains_key(&key)
    }

    /// Whether `key` is loaded at offset `at`.
    pub(super) fn has(&self, key: WeightKey, at: usize) -> bool {
        self.resident.get(&key).is_some_and(|range| range.start == at)
    }

    /// Evicts every weight that overlaps the `bytes` at offset `at`, and `key` wherever it is. Such
    /// weights are side matrices of an earlier generation, or belong to a phase that some
    /// generations leave out.
    pub(super) fn make_room(
        &mut self,
        backend: &mut dyn Backend,
        key: WeightKey,
        at: usize,
        bytes: usize,
    ) -> Result<()> {
        let wanted = Range { start: at, bytes };
        self.evict(backend, |old, range| old == key || range.overlaps(wanted))
    }

    /// Records that `key` was loaded at offset `at`.
    pub(super) fn insert(&mut self, key: WeightKey, at: usize, bytes: usize) {
        self.resident.insert(key, Range { start: at, bytes });
    }

    /// Records that `key` is not loaded any more; returns whether it was.
    pub(super) fn remove(&mut self, key: WeightKey) -> bool {
        self.resident.remove(&key).is_some()
    }

    fn evict(
        &mut self,
        backend: &mut dyn Backend,
        which: impl Fn(WeightKey, Range) -> bool,
    ) -> Result<()> {
        let found = self.resident.iter().filter(|(key, range)| which(**key, **range));
        for key in found.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.resident.remove(&key);
            backend.forget(key)?;
        }
        Ok(())
    }

    /// Drops every weight and the allocated memory.
    pub fn clear(&mut self, backend: &mut dyn Backend) -> Result<()> {
        self.resident.drain().try_for_each(|(key, _)| backend.forget(key))?;
        self.layout = None;
        Ok(())
    }
}
