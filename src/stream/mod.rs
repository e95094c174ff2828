//! Runs a `Program` under a `PhasePlan`: brings weights in execution order, keeps the residents, passes the others through the ring, tells each step.
//!
//! The weights' order never changes, so the next load is always known: loads run ahead of the computation as far as the ring has room, over the end of a run
//! into the next one. Weights never change either, so to evict is to forget.

use std::collections::{HashMap, VecDeque};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, Layout, Place, Places, Run, WeightKey};
use crate::dtype::DType;
use crate::error::{Error, Kind, Result};
use crate::op::{Op, Program, Step, Use};
use crate::plan::PhasePlan;
use crate::tensor::{ByteSource, HostPart, HostWeight, Tensor, View};

/// What a device holds between phases and between generations.
#[derive(Default)]
pub struct Holdings {
    layout: Option<Layout>,
    /// Where each resident weight lies, and its bytes.
    resident: HashMap<WeightKey, (usize, usize)>,
    /// The resident weights lie where generations that keep them put them.
    kept: bool,
    /// See [`Holdings::set_peak`].
    peak_bytes: u64,
}

impl Holdings {
    /// The largest memory that a phase of the generation to come needs, in bytes: as much is
    /// allocated for its first phase.
    pub fn set_peak(&mut self, bytes: u64) {
        self.peak_bytes = bytes;
    }

    /// Makes sure that at least `layout` is set aside. If what is there will do, it is used again, and the weights in it too when both they and the phase to come
    /// are of the kind that `keep` (then every phase has bytes of its own); otherwise the phases lie over one another, and what is there must go.
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

    /// Forgets the matrices of all LoRAs but those of `loras`.
    pub fn keep_loras(&mut self, backend: &mut dyn Backend, loras: u32) -> Result<()> {
        let other = |key: &WeightKey| ![0, u64::from(loras)].contains(&(key.0 >> LORAS));
        for key in self.resident.keys().copied().filter(other).collect::<Vec<_>>() {
            self.resident.remove(&key);
            backend.forget(key)?;
        }
        Ok(())
    }

    /// Whether `key` lies at `at`.
    fn has(&self, key: WeightKey, at: usize) -> bool {
        self.resident.get(&key).is_some_and(|(found, _)| *found == at)
    }

    /// Makes room at `at` for `bytes` bytes of `key`: whoever lies there (a LoRA of an earlier generation, a phase that is not always there) is forgotten.
    fn settle(
        &mut self,
        backend: &mut dyn Backend,
        key: WeightKey,
        at: usize,
        bytes: usize,
    ) -> Result<()> {
        let meets =
            |(from, len): (usize, usize)| from < at + bytes.max(1) && at < from + len.max(1);
        let gone =
            self.resident.iter().filter(|(k, place)| **k == key || meets(**place)).map(|(k, _)| *k);
        for old in gone.collect::<Vec<_>>() {
            self.resident.remove(&old);
            backend.forget(old)?;
        }
        Ok(())
    }

    /// Forgets every weight and the memory set aside.
    pub fn clear(&mut self, backend: &mut dyn Backend) -> Result<()> {
        self.resident.drain().try_for_each(|(key, _)| backend.forget(key))?;
        self.layout = None;
        Ok(())
    }
}

/// How a session shares the device with the sessions of other phases.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tenancy {
    /// Makes the keys of this program's weights differ from those of other phases.
    pub phase: u32,
    /// Tells the matrices of these LoRAs from those of others.
    pub loras: u32,
    /// Byte offset from which its resident weights lie.
    pub resident_base: usize,
    /// They stay there when the session ends, however it ends.
    pub keep: bool,
}

/// One phase that is ready to run, once or many times.
pub struct Session<'a> {
    backend: &'a mut dyn Backend,
    holdings: &'a mut Holdings,
    program: &'a Program,
    plan: &'a PhasePlan,
    weights: Vec<HostWeight>,
    places: Places,
    tenancy: Tenancy,
    ring: Ring,
    /// The next entry of `plan.residency.order` to load.
    next: usize,
    /// Whether `next` has passed the end and counts for the run after this one.
    ahead: bool,
    /// The files behind the weights, each once.
    sources: Vec<Arc<dyn ByteSource>>,
    /// How the program uses each weight.
    uses: Vec<Use>,
    /// How many segments of the present run are done; 0 between runs.
    segments_done: usize,
    /// Runs of this session, where they are all alike: nothing passes through the ring.
    alike: Option<Run>,
    /// A run ended in an error: a weight may not have come.
    failed: bool,
}

/// The bits of a key from here on tell whose LoRAs a matrix is of; 0 is the model.
const LORAS: u32 = 40;

/// Sessions are told apart by number, in the whole process.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

impl<'a> Session<'a> {
    /// `weights[id]` belongs to `program.weights[id]`. Memory must have been reserved through `holdings`.
    pub fn new(
        backend: &'a mut dyn Backend,
        holdings: &'a mut Holdings,
        program: &'a Program,
        plan: &'a PhasePlan,
        weights: Vec<HostWeight>,
        tenancy: Tenancy,
    ) -> Self {
        assert_eq!(weights.len(), program.weights.len());
        let places = Places {
            inputs: plan.arena.inputs.clone(),
            temps: plan.arena.temps.clone(),
            outputs: plan.arena.outputs.clone(),
            scratch: 0,
            weights: (0..program.weights.len())
                .map(|id| {
                    let loras = if program.weights[id].lora.is_some() {
                        u64::from(tenancy.loras)
                    } else {
                        0
                    };
                    WeightKey(loras << LORAS | u64::from(tenancy.phase) << 32 | id as u64)
                })
                .collect(),
        };
        let ring = Ring::new(plan.residency.ring_bytes);
        let mut sources: Vec<Arc<dyn ByteSource>> = Vec::new();
        for (source, _) in weights.iter().flat_map(|w| &w.parts).flat_map(HostPart::ranges) {
            if !sources.iter().any(|s| Arc::ptr_eq(s, source)) {
                sources.push(source.clone());
            }
        }
        let uses = program.uses();
        let id = SESSIONS.fetch_add(1, Ordering::Relaxed);
        // Ids are looked at by the host in every run.
        let embeds = program.steps.iter().any(|s| matches!(s.op, Op::Embed(_)));
        let alike = (plan.residency.ring_bytes == 0 && !embeds).then_some(Run { id, done: 0 });
        Session {
            backend,
            holdings,
            program,
            plan,
            weights,
            places,
            tenancy,
            ring,
            next: 0,
            ahead: false,
            sources,
            uses,
            segments_done: 0,
            alike,
            failed: false,
        }
    }

    /// Writes a whole input, element by element in its own type.
    pub fn write_f32(&mut self, tensor: Tensor, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), tensor.rows * tensor.cols, "{tensor}");
        match tensor.dtype {
            DType::F32 => self.backend.write(self.places.of(&tensor), bytemuck::cast_slice(values)),
            dtype => {
                let mut bytes = Vec::with_capacity(tensor.bytes());
                values.iter().for_each(|&v| dtype.encode(v, &mut bytes));
                self.backend.write(self.places.of(&tensor), &bytes)
            }
        }
    }

    /// Writes token ids or other indices.
    pub fn write_i32(&mut self, tensor: Tensor, values: &[i32]) -> Result<()> {
        assert_eq!(
            (values.len(), tensor.dtype),
            (tensor.rows * tensor.cols, DType::I32),
            "{tensor}"
        );
        self.backend.write(self.places.of(&tensor), bytemuck::cast_slice(values))
    }

    /// Reads a whole tensor as f32.
    pub fn read_f32(&mut self, tensor: Tensor) -> Result<Vec<f32>> {
        if tensor.dtype == DType::F32 {
            let mut values = vec![0f32; tensor.rows * tensor.cols];
            self.backend.read(self.places.of(&tensor), bytemuck::cast_slice_mut(&mut values))?;
            return Ok(values);
        }
        let mut bytes = vec![0u8; tensor.bytes()];
        self.backend.read(self.places.of(&tensor), &mut bytes)?;
        Ok(bytes.chunks_exact(tensor.dtype.size()).map(|b| tensor.dtype.decode(b)).collect())
    }

    /// Runs the program once. `more` says that another run follows, so that its first weights are already brought while this one ends. `each` is
    /// called after every step with its index; `Break` stops there with `Kind::Cancelled`.
    pub fn run(
        &mut self,
        more: bool,
        each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    ) -> Result<()> {
        assert_eq!(self.segments_done, 0, "the run before is not complete");
        let done = self.run_once(more, each);
        self.failed |= done.as_ref().is_err_and(|e| e.kind() != Kind::Cancelled);
        done
    }

    /// Runs the segment `name` of the program, which must be the next one: a run is complete when
    /// the last segment has run. In between the caller may read and write the tensors that a segment
    /// passes on ([`Segment::passed_on`](crate::op::Segment::passed_on)). `more` and `each` are
    /// those of [`Session::run`]. The results are bitwise those of a whole run.
    pub fn run_segment(
        &mut self,
        name: &str,
        more: bool,
        each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    ) -> Result<()> {
        let segments = &self.program.segments;
        let next = &segments[self.segments_done];
        assert_eq!(next.name, name, "the segments run in their order");
        let (steps, last) = (next.steps.clone(), self.segments_done + 1 == segments.len());
        self.segments_done = if last { 0 } else { self.segments_done + 1 };
        let done = self.run_part(steps, more, each);
        self.failed |= done.as_ref().is_err_and(|e| e.kind() != Kind::Cancelled);
        done
    }

    /// Runs some steps without recording them for a replay.
    fn run_part(
        &mut self,
        steps: Range<usize>,
        more: bool,
        each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    ) -> Result<()> {
        self.backend.begin(None)?;
        self.run_with(steps, more, &mut |_, i, step| go_on(each, i, step))?;
        self.backend.end()?;
        Ok(())
    }

    fn run_once(
        &mut self,
        more: bool,
        each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    ) -> Result<()> {
        let all = 0..self.program.steps.len();
        if self.backend.begin(self.alike)? {
            // Replayed as a whole; a device that does so is quick enough to be asked after it.
            self.backend.end()?;
            self.program.steps.iter().enumerate().try_for_each(|(i, step)| go_on(each, i, step))?;
        } else {
            self.run_with(all.clone(), more, &mut |_, i, step| go_on(each, i, step))?;
            if !self.backend.end()? {
                self.backend.begin(None)?;
                self.run_with(all, more, &mut |_, _, _| Ok(()))?;
                self.backend.end()?;
            }
        }
        if let Some(run) = &mut self.alike {
            run.done += 1;
        }
        Ok(())
    }

    /// Runs once more from the present inputs and returns the label of the first step that writes a number that is not finite. Slow: for the error message.
    pub fn first_not_finite(&mut self) -> Result<Option<String>> {
        let mut found = None;
        self.run_with(0..self.program.steps.len(), false, &mut |session, _, step| {
            for view in step.op.checked_outputs() {
                if found.is_none() && !session.finite(view)? {
                    found = Some(step.label.clone());
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Whether every element of `view` is finite; read some rows at a time, so that nothing large is held and a device is not asked for each row.
    fn finite(&mut self, view: View) -> Result<bool> {
        const BYTES: usize = 4 << 20;
        let size = view.tensor.dtype.size();
        let (pitch, from) = (view.tensor.cols * size, view.col * size);
        let most = (BYTES / pitch.max(1)).max(1);
        let mut rows = vec![0u8; most.min(view.rows()) * pitch];
        for first in (0..view.rows()).step_by(most) {
            let block = &mut rows[..most.min(view.rows() - first) * pitch];
            self.backend.read(self.places.of(&view.tensor) + first * pitch, block)?;
            let wrong = |row: &[u8]| {
                row[from..from + view.cols * size]
                    .chunks_exact(size)
                    .any(|b| !view.tensor.dtype.decode(b).is_finite())
            };
            if block.chunks_exact(pitch).any(wrong) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn run_with(
        &mut self,
        steps: Range<usize>,
        more: bool,
        each: &mut dyn FnMut(&mut Self, usize, &Step) -> Result<()>,
    ) -> Result<()> {
        let program = self.program;
        let mut block = "";
        for i in steps.clone() {
            let step = &program.steps[i];
            self.pump(more)?;
            if i == steps.start || step.block() != block {
                block = step.block();
                self.sources.iter().try_for_each(|source| source.check())?;
            }
            for w in step.op.weights() {
                let key = self.places.key(w);
                if !self.holdings.resident.contains_key(&key) && !self.ring.holds(w.id) {
                    return Err(Error::memory(
                        "the weight ring is too small for the order of the weights",
                    )
                    .at(&step.label));
                }
            }
            self.places.scratch = self.plan.arena.scratch[i];
            self.backend.run(step, &self.places).map_err(|e| e.at(&step.label))?;
            for w in step.op.weights() {
                if self.plan.residency.last_use[w.id as usize] == i && self.ring.free(w.id) {
                    self.backend.forget(self.places.key(w))?;
                }
            }
            each(self, i, step)?;
        }
        // Loads that ran ahead already count for the next run.
        if steps.end == program.steps.len() && !std::mem::take(&mut self.ahead) {
            self.next = 0;
        }
        Ok(())
    }

    /// Starts every load that there is room for, in execution order.
    fn pump(&mut self, more: bool) -> Result<()> {
        let plan = self.plan;
        loop {
            if self.next == plan.residency.order.len() {
                if !more || self.ahead {
                    return Ok(());
                }
                (self.next, self.ahead) = (0, true);
            }
            let id = plan.residency.order[self.next];
            let key = self.places.weights[id as usize];
            let weight = &self.weights[id as usize];
            match plan.residency.resident[id as usize] {
                Some(offset) => {
                    let (at, bytes) =
                        (self.tenancy.resident_base + offset, plan.residency.bytes[id as usize]);
                    if !self.holdings.has(key, at) {
                        self.holdings.settle(self.backend, key, at, bytes)?;
                        self.backend.load(
                            key,
                            Place::Resident(at),
                            weight,
                            self.uses[id as usize],
                        )?;
                        self.holdings.resident.insert(key, (at, bytes));
                    }
                }
                None => {
                    if self.ring.holds(id) {
                        return Ok(()); // still in use by this run
                    }
                    let Some(offset) = self.ring.take(id, plan.residency.bytes[id as usize]) else {
                        return Ok(());
                    };
                    let place = Place::Ring { offset, again: plan.runs > 1 };
                    if let Err(e) = self.backend.load(key, place, weight, self.uses[id as usize]) {
                        self.ring.free(id); // it never came: nothing to forget
                        return Err(e);
                    }
                }
            }
            self.next += 1;
        }
    }

    /// Ends the phase. Ring weights are forgotten; residents too unless they are to be kept.
    pub fn finish(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let keep = self.tenancy.keep && !self.failed;
        self.backend.sync()?;
        for (id, key) in self.places.weights.iter().enumerate() {
            if self.ring.free(id as u32) || (!keep && self.holdings.resident.remove(key).is_some())
            {
                self.backend.forget(*key)?;
            }
        }
        Ok(())
    }
}

impl Drop for Session<'_> {
    /// An error or a cancelled run leaves weights behind: forget them so that the next generation starts clean.
    fn drop(&mut self) {
        let _ = self.release(); // after an error there is nobody left to tell
    }
}

/// Asks `each` after a step whether to go on.
fn go_on(
    each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    i: usize,
    step: &Step,
) -> Result<()> {
    match each(i, step) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled("stopped").at(&step.label)),
    }
}

/// A circular buffer of weights, first in, first out.
struct Ring {
    capacity: usize,
    /// (weight id, start, bytes, freed), oldest first.
    entries: VecDeque<(u32, usize, usize, bool)>,
}

impl Ring {
    fn new(capacity: usize) -> Self {
        Ring { capacity, entries: VecDeque::new() }
    }

    fn holds(&self, id: u32) -> bool {
        self.entries.iter().any(|e| e.0 == id && !e.3)
    }

    /// Room for `bytes`, or `None` until older entries are freed.
    fn take(&mut self, id: u32, bytes: usize) -> Option<usize> {
        let start = match (self.entries.front(), self.entries.back()) {
            (Some(&(_, first, _, _)), Some(&(_, last, len, _))) => {
                let end = last + len;
                if last >= first {
                    // Free: behind the last entry, or before the first.
                    if end + bytes <= self.capacity {
                        end
                    } else if bytes <= first {
                        0
                    } else {
                        return None;
                    }
                } else if end + bytes <= first {
                    end
                } else {
                    return None;
                }
            }
            _ if bytes <= self.capacity => 0,
            _ => return None,
        };
        self.entries.push_back((id, start, bytes, false));
        Some(start)
    }

    /// Frees `id`'s entry; whether there was one.
    fn free(&mut self, id: u32) -> bool {
        let Some(entry) = self.entries.iter_mut().find(|e| e.0 == id && !e.3) else { return false };
        entry.3 = true;
        while self.entries.front().is_some_and(|e| e.3) {
            self.entries.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random sizes through a small ring: live entries never overlap, and the ring always empties.
    #[test]
    fn ring_entries_never_overlap() {
        let mut state = 12345u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for capacity in [64, 100, 1000] {
            let mut ring = Ring::new(capacity);
            let mut live: VecDeque<(u32, usize, usize)> = VecDeque::new();
            for id in 0..2000u32 {
                let bytes = 1 + random(capacity);
                let at = loop {
                    if let Some(at) = ring.take(id, bytes) {
                        break at;
                    }
                    let (old, ..) =
                        live.pop_front().expect("an empty ring takes anything up to its capacity");
                    assert!(ring.free(old) && !ring.holds(old));
                };
                assert!(at + bytes <= capacity);
                for &(_, s, n) in &live {
                    assert!(s + n <= at || at + bytes <= s, "overlap");
                }
                live.push_back((id, at, bytes));
                assert!(ring.holds(id));
            }
        }
        assert_eq!(Ring::new(10).take(0, 11), None);
    }
}
