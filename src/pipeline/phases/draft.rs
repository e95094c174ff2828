//! From the programs that a phase may run to plans: the variant that fits is chosen, with its LoRAs
//! and weights.

use crate::backend::Backend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::event::Phase;
use crate::op::Program;
use crate::pipeline::int8;
use crate::pipeline::loras::LoraSet;
use crate::pipeline::report::PhaseReport;
use crate::plan::{self, PhasePlan, streamed_blocks};
use crate::stream::NETS;
use crate::tensor::HostWeight;
use crate::weights::ComponentWeights;

/// A program that a phase may run.
pub struct Draft<'a> {
    /// The phase, for events and reports.
    pub phase: Phase,
    /// Where the weights of the program come from.
    pub weights: &'a ComponentWeights,
    /// Not every request needs the program: its weights are placed behind those of all others.
    pub optional: bool,
    /// The program in its variants, the preferred one first; a variant is recorded only when it is
    /// tried. Empty if this request does not need the program.
    pub variants: Box<dyn Iterator<Item = Variant> + 'a>,
}

impl<'a> Draft<'a> {
    /// A program that every request needs, in one variant.
    pub fn always(
        phase: Phase,
        weights: &'a ComponentWeights,
        record: impl FnOnce() -> Variant + 'a,
    ) -> Draft<'a> {
        Draft { phase, weights, optional: false, variants: Box::new(std::iter::once_with(record)) }
    }

    /// A program that only some requests need; `variants` is empty for the others.
    pub fn optional<I>(phase: Phase, weights: &'a ComponentWeights, variants: I) -> Draft<'a>
    where
        I: IntoIterator<Item = Variant, IntoIter: 'a>,
    {
        Draft { phase, weights, optional: true, variants: Box::new(variants.into_iter()) }
    }
}

/// The networks that the programs of a phase run, where these are not parts of the model.
#[derive(Default)]
pub struct Nets<'a> {
    /// The number of the opened network that [`Draft::weights`] are of; 0 for the model.
    pub owner: u32,
    /// Networks that run within the programs, by their number less 1
    /// ([`WeightSpec::net`](crate::op::WeightSpec::net)): their weights, and the number of the
    /// opened network.
    pub others: Vec<(&'a ComponentWeights, u32)>,
}

impl Nets<'_> {
    /// By number of the network: its owner.
    fn owners(&self) -> [u32; NETS] {
        let mut owners = [0; NETS];
        owners[0] = self.owner;
        owners[1..].iter_mut().zip(&self.others).for_each(|(to, (_, owner))| *to = *owner);
        owners
    }
}

/// One way to do the work of a program.
pub struct Variant {
    /// The recorded program, without LoRAs.
    pub program: Program,
    /// How often it runs in one generation.
    pub runs: usize,
    /// The program computes a part of what it is for in each run.
    pub band: Option<Band>,
}

impl Variant {
    /// A program that computes everything, `runs` times.
    pub fn whole(program: Program, runs: usize) -> Variant {
        Variant { program, runs, band: None }
    }
}

/// How the work of a program is divided into bands of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    /// Rows of a band.
    pub rows: usize,
    /// Bytes that pass between the host and the device in one generation.
    pub moved_bytes: u64,
}

/// A program with its plan and weights.
pub struct PlannedProgram {
    /// The phase that runs it.
    pub phase: Phase,
    /// Distinguishes the weights of this program from those of the other programs of the model.
    pub number: u32,
    /// The program, with the LoRAs of the request.
    pub program: Program,
    /// Where its tensors and weights are placed.
    pub plan: PhasePlan,
    /// Its weights, in the order of `program.weights`.
    pub weights: Vec<HostWeight>,
    /// See [`Tenancy::owners`](crate::stream::Tenancy::owners).
    pub owners: [u32; NETS],
    /// Where its resident weights begin when all programs keep theirs, in bytes.
    pub resident_base: usize,
    /// See [`Draft::optional`].
    pub optional: bool,
    /// See [`Variant::band`].
    pub band: Option<Band>,
    /// Operations of products that may be computed in 8-bit integers.
    int8_flops: u64,
    /// The type in which the device computes.
    activation: DType,
}

/// Why there is no plan.
pub enum Refused {
    /// The budget is too small; this many bytes are enough.
    TooSmall(u64),
    /// No budget is enough.
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(e: Error) -> Self {
        Refused::Failed(e)
    }
}

/// The device, the budget and the LoRAs for which drafts are planned.
pub struct Planner<'a> {
    /// Added to every program that has weights which they change.
    pub loras: &'a LoraSet,
    /// The device that will run the programs.
    pub backend: &'a dyn Backend,
    /// Device memory, in bytes.
    pub budget: u64,
}

/// A planned variant, which may not fit.
struct Attempt {
    planned: PlannedProgram,
    /// The smallest budget with which it can run, in bytes; `Err` if the device cannot run it with
    /// any budget.
    needed: Result<u64>,
}

impl Attempt {
    fn needed_bytes(&self) -> u64 {
        *self.needed.as_ref().unwrap_or(&u64::MAX)
    }
}

impl Planner<'_> {
    /// The best variants of all `drafts`, which are numbered from `first` on, and the bytes that
    /// the largest of them needs.
    pub fn best_variants(
        &self,
        drafts: Vec<Draft<'_>>,
        nets: &Nets<'_>,
        first: u32,
    ) -> Result<(Vec<PlannedProgram>, u64), Refused> {
        let (mut programs, mut least) = (Vec::new(), 0);
        for (number, draft) in (first..).zip(drafts) {
            if let Some((program, needed)) = self.best_variant(draft, nets, number)? {
                programs.push(program);
                least = least.max(needed);
            }
        }
        Ok((programs, least))
    }

    /// Plans the first variant of `draft` that fits the budget, or the one that needs the least,
    /// with the bytes that it needs. `None` if there is no variant.
    ///
    /// # Errors
    /// [`Refused::Failed`] if the device can run no variant.
    pub fn best_variant(
        &self,
        draft: Draft<'_>,
        nets: &Nets<'_>,
        number: u32,
    ) -> Result<Option<(PlannedProgram, u64)>, Refused> {
        let Draft { phase, weights, optional, variants } = draft;
        let mut best: Option<Attempt> = None;
        for variant in variants {
            let Variant { program, runs, band } = variant;
            let component = weights.component();
            let used = self.backend.caps().int8;
            let (program, weights) =
                self.loras.apply_among(weights, &nets.others, program, used)?;
            let (plan, needed) = self.plan(&program, &weights, runs)?;
            let int8_flops = int8::flops(component, &program);
            let planned = PlannedProgram {
                phase,
                number,
                program,
                plan,
                weights,
                owners: nets.owners(),
                resident_base: 0,
                optional,
                band,
                int8_flops,
                activation: self.backend.caps().activation,
            };
            let attempt = Attempt { planned, needed };
            if best.as_ref().is_none_or(|b| attempt.needed_bytes() <= b.needed_bytes()) {
                best = Some(attempt);
            }
            if best.as_ref().is_some_and(|b| b.needed_bytes() <= self.budget) {
                break;
            }
        }
        match best {
            Some(Attempt { planned, needed }) => Ok(Some((planned, needed?))),
            None => Ok(None),
        }
    }

    /// The plan of `program`, and the smallest budget with which it can run, in bytes. A program
    /// that does not fit is planned without a bound: only the number is of use then.
    fn plan(
        &self,
        program: &Program,
        weights: &[HostWeight],
        runs: usize,
    ) -> Result<(PhasePlan, Result<u64>)> {
        let Planner { backend, budget, .. } = *self;
        let uses = program.uses();
        let bytes: Vec<usize> =
            weights.iter().zip(uses).map(|(w, how)| backend.weight_bytes(w, how)).collect();
        let weight = |w: crate::tensor::Weight| &weights[w.id as usize];
        let scratch: Vec<usize> =
            program.steps.iter().map(|s| backend.scratch_bytes(&s.op, &weight)).collect();
        let grain = backend.caps().grain;
        let can_run =
            |s: &crate::op::Step| backend.can_run(&s.op, &weight).map_err(|e| e.at(&s.label));
        let needed = match program.steps.iter().try_for_each(can_run) {
            Ok(()) => Ok(plan::least_bytes(program, &bytes, &scratch, grain)),
            Err(e) => Err(e),
        };
        let fits = needed.as_ref().is_ok_and(|&n| n <= budget);
        let bound = if fits { budget } else { u64::MAX };
        Ok((plan::phase(program, runs, &bytes, &scratch, grain, bound)?, needed))
    }
}

impl PlannedProgram {
    /// The type in which the device computes.
    pub(super) fn activation(&self) -> DType {
        self.activation
    }

    /// The line of this program in a plan's report.
    pub(super) fn report(&self) -> PhaseReport {
        let (blocks_streamed, blocks) = streamed_blocks(&self.program, &self.plan.residency);
        PhaseReport {
            phase: self.phase.name(),
            program: self.program.name.clone(),
            runs: self.plan.runs,
            operations: self.program.steps.len(),
            teraflop: self.program.flops() as f64 / 1e12,
            int8_teraflop: self.int8_flops as f64 / 1e12,
            int8: self.weights.iter().any(|w| w.int8.is_some()),
            weight_bytes: self.plan.weight_bytes,
            arena_bytes: self.plan.arena.bytes as u64,
            resident_bytes: self.plan.residency.resident_bytes as u64,
            ring_bytes: self.plan.residency.ring_bytes as u64,
            streamed_bytes_per_run: self.plan.streamed_bytes(),
            blocks,
            blocks_streamed,
            peak_bytes: self.plan.peak_bytes(),
            seconds: None,
            bands: if self.band.is_some() { self.plan.runs } else { 0 },
            moved_bytes: self.band.map_or(0, |band| band.moved_bytes),
        }
    }
}
