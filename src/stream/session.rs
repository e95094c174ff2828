//! One phase on a device: its inputs, its runs, its outputs.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::holdings::Holdings;
use super::ring::Ring;
use crate::backend::{Backend, Place, Places, Run, WeightKey};
use crate::dtype::DType;
use crate::error::{Error, Kind, Result};
use crate::op::{Program, Step, Use, WeightSpec};
use crate::plan::PhasePlan;
use crate::tensor::{ByteSource, HostPart, HostWeight, Tensor};

/// The most networks that one program runs.
pub const NETS: usize = 5;

/// How a session shares the device with the sessions of other phases.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tenancy {
    /// By number of a network ([`WeightSpec::net`]): the owner that its weights have in their
    /// [`WeightKey`].
    pub owners: [u32; NETS],
    /// Number of the phase, which its weights have in their [`WeightKey`].
    pub phase: u32,
    /// Number of the set of side matrices (LoRAs) that the program uses; 0 if it has none.
    pub side_set: u32,
    /// Byte offset from which its resident weights are placed.
    pub resident_base: usize,
    /// The resident weights stay loaded when the session ends, unless a run failed.
    pub keep: bool,
}

/// One phase that is ready to run, once or many times.
///
/// A session loads the weights of its [`Program`] in the order of their first use, as far ahead as
/// the ring has room. Dropping it frees its weights as [`Session::finish`] does.
pub struct Session<'a> {
    pub(super) backend: &'a mut dyn Backend,
    holdings: &'a mut Holdings,
    program: &'a Program,
    plan: &'a PhasePlan,
    weights: Vec<HostWeight>,
    pub(super) places: Places,
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
    /// Inputs with token ids that were not written yet.
    unwritten: Vec<Tensor>,
    /// The networks that the current or next run and the one after it leave out, one bit each.
    absent: [u32; 2],
    /// How many segments of the current run are done; 0 between runs.
    segments_done: usize,
    /// Identifies the runs of this session, if all of them are the same: nothing passes through the
    /// ring.
    same: Option<Run>,
    /// A run ended in an error: a weight may not have been loaded.
    failed: bool,
}

/// Number of the next session, unique in the process.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

impl<'a> Session<'a> {
    /// A session of `program`. `weights[id]` belongs to `program.weights[id]`. Memory must have
    /// been reserved through `holdings`.
    pub fn new(
        backend: &'a mut dyn Backend,
        holdings: &'a mut Holdings,
        program: &'a Program,
        plan: &'a PhasePlan,
        weights: Vec<HostWeight>,
        tenancy: Tenancy,
    ) -> Self {
        assert_eq!(weights.len(), program.weights.len());
        // Numbered by network, so that those of the model keep their keys with and without others.
        let mut counts = [0; NETS];
        let mut key = |spec: &WeightSpec| {
            let net = spec.net as usize;
            counts[net] += 1;
            WeightKey {
                side_set: if spec.side.is_some() { tenancy.side_set } else { 0 },
                owner: tenancy.owners[net],
                phase: tenancy.phase,
                id: counts[net] - 1,
            }
        };
        let places = Places {
            inputs: plan.arena.inputs.clone(),
            temps: plan.arena.temps.clone(),
            outputs: plan.arena.outputs.clone(),
            scratch: 0,
            weights: program.weights.iter().map(&mut key).collect(),
        };
        let id = SESSIONS.fetch_add(1, Ordering::Relaxed);
        Session {
            ring: Ring::new(plan.residency.ring_bytes),
            sources: sources(&weights),
            uses: program.uses(),
            unwritten: program.token_ids().map(|(tensor, _)| tensor).collect(),
            same: (plan.residency.ring_bytes == 0).then_some(Run { id, done: 0 }),
            backend,
            holdings,
            program,
            plan,
            weights,
            places,
            tenancy,
            next: 0,
            ahead: false,
            absent: [0; 2],
            segments_done: 0,
            failed: false,
        }
    }

    /// Writes a whole input, rounded to its element type.
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

    /// Writes a whole input of token ids or other indices.
    ///
    /// Every index must be a row of the table in which [`Embed`](crate::op::Embed) looks it up.
    /// Devices rely on that: they do not check indices.
    ///
    /// # Errors
    /// [`Kind::Argument`] for an index that is not in the table; nothing is written then.
    pub fn write_i32(&mut self, tensor: Tensor, values: &[i32]) -> Result<()> {
        assert_eq!(values.len(), tensor.rows * tensor.cols, "{tensor}");
        assert_eq!(tensor.dtype, DType::I32, "{tensor}");
        self.program.check_ids(tensor, values)?;
        self.backend.write(self.places.of(&tensor), bytemuck::cast_slice(values))?;
        self.unwritten.retain(|t| t.slot != tensor.slot);
        Ok(())
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

    /// Writes `bytes` into an input, from its row `first` on, as they are.
    pub fn write_rows(&mut self, tensor: Tensor, first: usize, bytes: &[u8]) -> Result<()> {
        let offset = first * tensor.cols * tensor.dtype.size();
        assert!(offset + bytes.len() <= tensor.bytes(), "{tensor}");
        self.backend.write(self.places.of(&tensor) + offset, bytes)
    }

    /// Reads bytes of a tensor, from its row `first` on, as they are.
    pub fn read_rows(&mut self, tensor: Tensor, first: usize, bytes: &mut [u8]) -> Result<()> {
        let offset = first * tensor.cols * tensor.dtype.size();
        assert!(offset + bytes.len() <= tensor.bytes(), "{tensor}");
        self.backend.read(self.places.of(&tensor) + offset, bytes)
    }

    /// Leaves the steps and weights of some networks out of the next run: those whose number is a
    /// bit of `next` (see [`Step::net`]), and of the run after it those of `then`.
    pub fn leave_out(&mut self, next: u32, then: u32) {
        if next != self.absent[0]
            && let Some(same) = &mut self.same
        {
            // These are other runs than those before.
            *same = Run { id: SESSIONS.fetch_add(1, Ordering::Relaxed), done: 0 };
        }
        self.absent = [next, then];
    }

    /// Runs the program once.
    ///
    /// `more` says that another run follows: then its first weights are loaded while this run ends.
    /// `each` is called after every step with the index of the step.
    ///
    /// # Errors
    /// [`Kind::Cancelled`] if `each` returned `Break`; otherwise what the device reports.
    pub fn run(
        &mut self,
        more: bool,
        each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    ) -> Result<()> {
        assert_eq!(self.segments_done, 0, "the last run is not complete");
        let done = self.run_once(more, each);
        self.failed |= done.as_ref().is_err_and(|e| e.kind() != Kind::Cancelled);
        done
    }

    /// Runs the segment `name` of the program, which must be the next one: a run is complete when
    /// the last segment has run.
    ///
    /// Between segments the caller may read and write the tensors that a segment passes on
    /// ([`Segment::passed_on`](crate::op::Segment::passed_on)). `more` and `each` are those of
    /// [`Session::run`]. The results are bitwise those of a whole run.
    pub fn run_segment(
        &mut self,
        name: &str,
        more: bool,
        each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    ) -> Result<()> {
        let segments = &self.program.segments;
        let next = &segments[self.segments_done];
        assert_eq!(next.name, name, "segments run in their order");
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
        self.run_steps(steps, more, &mut |_, i, step| report(each, i, step))?;
        self.backend.end()?;
        Ok(())
    }

    fn run_once(
        &mut self,
        more: bool,
        each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    ) -> Result<()> {
        let all = 0..self.program.steps.len();
        if self.backend.begin(self.same)? {
            // The device replays the whole run, so cancellation is checked only afterwards.
            self.backend.end()?;
            let mut steps = self.program.steps.iter().enumerate();
            steps.try_for_each(|(i, step)| report(each, i, step))?;
        } else {
            self.run_steps(all.clone(), more, &mut |_, i, step| report(each, i, step))?;
            if !self.backend.end()? {
                self.backend.begin(None)?;
                self.run_steps(all, more, &mut |_, _, _| Ok(()))?;
                self.backend.end()?;
            }
        }
        if let Some(run) = &mut self.same {
            run.done += 1;
        }
        Ok(())
    }

    /// How many steps the program has.
    pub(super) fn steps(&self) -> usize {
        self.program.steps.len()
    }

    /// Runs `steps`, and calls `each` after each of them.
    pub(super) fn run_steps(
        &mut self,
        steps: Range<usize>,
        more: bool,
        each: &mut dyn FnMut(&mut Self, usize, &Step) -> Result<()>,
    ) -> Result<()> {
        assert!(self.unwritten.is_empty(), "no token ids in {:?}", self.unwritten);
        let program = self.program;
        let mut block = "";
        for i in steps.clone() {
            let step = &program.steps[i];
            if (self.absent[0] >> step.net) & 1 == 1 {
                continue;
            }
            self.load_ahead(more)?;
            if i == steps.start || step.block() != block {
                block = step.block();
                self.sources.iter().try_for_each(|source| source.check())?;
            }
            for w in step.op.weights() {
                if !self.holdings.contains(self.places.key(w)) && !self.ring.contains(w.id) {
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
        // Loads that ran ahead already count for the next run. Without them, it starts at the
        // first weight.
        if steps.end == program.steps.len() {
            if !std::mem::take(&mut self.ahead) {
                self.next = 0;
            }
            self.absent[0] = self.absent[1];
        }
        Ok(())
    }

    /// Starts every load for which there is room, in the order of first use.
    fn load_ahead(&mut self, more: bool) -> Result<()> {
        let order = &self.plan.residency.order;
        // A part of the autoencoder may have no weights.
        if order.is_empty() {
            return Ok(());
        }
        loop {
            if self.next == order.len() {
                if !more || self.ahead {
                    return Ok(());
                }
                (self.next, self.ahead) = (0, true);
            }
            let id = order[self.next];
            let net = self.program.weights[id as usize].net;
            if (self.absent[usize::from(self.ahead)] >> net) & 1 == 1 {
                self.next += 1;
                continue;
            }
            let started = match self.plan.residency.resident[id as usize] {
                Some(offset) => self.load_resident(id, self.tenancy.resident_base + offset)?,
                None => self.load_into_ring(id)?,
            };
            if !started {
                return Ok(());
            }
            self.next += 1;
        }
    }

    /// Loads weight `id` at byte `at` of the resident weights, unless it is there. Returns true.
    fn load_resident(&mut self, id: u32, at: usize) -> Result<bool> {
        let key = self.places.weights[id as usize];
        if !self.holdings.has(key, at) {
            let bytes = self.plan.residency.bytes[id as usize];
            self.holdings.make_room(self.backend, key, at, bytes)?;
            self.load(id, Place::Resident(at))?;
            self.holdings.insert(key, at, bytes);
        }
        Ok(true)
    }

    /// Loads weight `id` into the ring; false if it must wait for room there, or if the current run
    /// still uses its last copy.
    fn load_into_ring(&mut self, id: u32) -> Result<bool> {
        if self.ring.contains(id) {
            return Ok(false);
        }
        let bytes = self.plan.residency.bytes[id as usize];
        let Some(offset) = self.ring.take(id, bytes) else { return Ok(false) };
        let loaded = self.load(id, Place::Ring { offset, again: self.plan.runs > 1 });
        if loaded.is_err() {
            self.ring.free(id); // it was never loaded, so there is nothing to forget
        }
        loaded.map(|()| true)
    }

    fn load(&mut self, id: u32, place: Place) -> Result<()> {
        let (key, how) = (self.places.weights[id as usize], self.uses[id as usize]);
        self.backend.load(key, place, &self.weights[id as usize], how)
    }

    /// Ends the phase. The weights in the ring are dropped, and the resident ones too unless they
    /// are to be kept.
    pub fn finish(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let keep = self.tenancy.keep && !self.failed;
        self.backend.sync()?;
        for (id, &key) in self.places.weights.iter().enumerate() {
            if self.ring.free(id as u32) || (!keep && self.holdings.remove(key)) {
                self.backend.forget(key)?;
            }
        }
        Ok(())
    }
}

impl Drop for Session<'_> {
    /// After an error or a cancelled run weights are still loaded: drop them, so that the next
    /// generation starts without them.
    fn drop(&mut self) {
        let _ = self.release(); // the first error was already returned
    }
}

/// Calls `each` after a step; an error if it returns `Break`.
fn report(
    each: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
    i: usize,
    step: &Step,
) -> Result<()> {
    match each(i, step) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled("stopped").at(&step.label)),
    }
}

/// The files behind the weights, each once.
fn sources(weights: &[HostWeight]) -> Vec<Arc<dyn ByteSource>> {
    let mut sources: Vec<Arc<dyn ByteSource>> = Vec::new();
    for (source, _) in weights.iter().flat_map(|w| &w.parts).flat_map(HostPart::ranges) {
        if !sources.iter().any(|s| Arc::ptr_eq(s, source)) {
            sources.push(source.clone());
        }
    }
    sources
}
