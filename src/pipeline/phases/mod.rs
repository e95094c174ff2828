//! The phases of one generation: a list that is planned before anything runs, so that a request
//! that cannot fit is refused at once, and then run from first to last.
//!
//! A model family supplies the list ([`flux1`] for FLUX.1, [`flux2`] for FLUX.2). A phase is a
//! [`GenerationPhase`]: it names the programs that it may run ([`Draft`]), and runs them once they
//! are planned ([`PlannedProgram`]). What phases pass on to one another is in [`Values`].

mod bands;
mod control_hint;
mod control_modulate;
mod decode;
mod denoise;
mod draft;
mod flux1;
mod flux2;
mod hidden_states;
mod image_encode;
mod keep;
mod modulate;
mod planes;
mod preview;
mod reference_encode;
mod reference_keys;
mod run;
mod style_encode;
#[cfg(all(test, feature = "embedded"))]
mod tests;
mod text_encode;
pub(crate) mod tokens;
mod transformer;

pub use draft::{Band, Draft, Nets, PlannedProgram, Planner, Refused, Variant};
pub use flux1::{Flux1Inputs, flux1};
pub use flux2::flux2;
pub use image_encode::blacken;
pub use keep::{KeptLatents, MaskSampling};
pub use run::{check_finite, not_finite, peak_bytes, run_once, start_operations, start_runs};

use super::loras::LoraSet;
use super::open_device::OpenDevice;
use super::progress::Listener;
use super::report::PhaseReport;
use super::request::{Image, Mask};
use super::text_cache::Text;
use crate::backend::{Backend, Grain, Layout};
use crate::dtype::DType;
use crate::error::Result;
use crate::stream::{Session, Tenancy};

/// One phase of a generation.
pub trait GenerationPhase {
    /// The programs that the phase runs, in that order, for a device that computes in `activation`.
    ///
    /// Every program that the phase runs for any request is in the list: one that this request does
    /// not need has no variants. So a program has the same number in every generation of a model,
    /// and weights that stay on the device are found again.
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>>;

    /// The programs that replace those of [`GenerationPhase::drafts`] if they do not fit in the
    /// budget: they need less memory, take longer and compute the same. None by default.
    fn small_drafts(&self, _activation: DType) -> Vec<Draft<'_>> {
        Vec::new()
    }

    /// The networks of all these programs, if they are not parts of the model.
    fn nets(&self) -> Nets<'_> {
        Nets::default()
    }

    /// Host memory that the phase needs besides the plans of its programs, in bytes: what it passes
    /// on in [`Values`], and its working memory.
    fn host_bytes(&self) -> u64;

    /// Runs `programs`, the planned ones of [`GenerationPhase::drafts`] or of
    /// [`GenerationPhase::small_drafts`]. Not called if there are none.
    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()>;
}

/// The values that the phases of one generation pass on to the next ones.
#[derive(Default)]
pub struct Values {
    /// The image that image-to-image starts from, in the size of the request.
    pub init: Option<Image>,
    /// What FLUX.1 Fill, Canny and Depth see besides the noise: the image with the part to repaint,
    /// or the control image.
    pub condition_image: Option<Image>,
    /// The part of the condition image that is to be repainted.
    pub hole: Option<Mask>,
    /// The condition as packed tokens of one image.
    pub condition: Vec<f32>,
    /// What each ControlNet sees.
    pub controls: Vec<ControlValues>,
    /// The latents that are kept outside of a mask; the image encoder computes them.
    pub kept: Option<KeptLatents>,
    /// The reference images, in the sizes in which the model reads them.
    pub reference_images: Vec<Image>,
    /// The style images, in the size in which SigLIP reads them.
    pub style_images: Vec<Image>,
    /// The embeddings of the prompts, with those of style images behind each.
    pub text: Text,
    /// The modulation of every step, one row per step and prompt, step slowest; then one row of
    /// references that are kept, if there are any.
    pub modulation: Vec<f32>,
    /// Latents of the reference images as packed tokens, one after another.
    pub references: Vec<f32>,
    /// Keys and values of the references in every block, in the type in which the device computes,
    /// if the model keeps them over all steps.
    pub reference_keys: Vec<Vec<u8>>,
    /// The latents of all images as packed tokens, image after image: first the noise, at the end
    /// what is decoded.
    pub latents: Vec<f32>,
    /// The finished images.
    pub images: Vec<Image>,
}

/// What one ControlNet sees.
pub struct ControlValues {
    /// Its image, in the size of the request.
    pub image: Image,
    /// The part of it that is repainted, for a ControlNet that reads one.
    pub mask: Option<Mask>,
    /// The image as packed tokens.
    pub condition: Vec<f32>,
    /// The modulation of every step.
    pub modulation: Vec<f32>,
}

/// The device that the programs of one generation share.
pub struct SharedDevice<'a> {
    device: &'a mut OpenDevice,
    sharing: Sharing,
}

/// How the programs of one generation share the device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sharing {
    /// The number of the set of LoRAs.
    loras: u32,
    /// What every program asks the device for if all weights stay loaded from one generation to the
    /// next: they all fit next to the largest arena. `None` if each program asks for its own
    /// layout.
    kept: Option<Layout>,
}

/// A phase with its planned programs.
struct PlannedPhase<'a> {
    phase: Box<dyn GenerationPhase + 'a>,
    programs: Vec<PlannedProgram>,
}

/// Everything one generation runs, in order.
pub struct Phases<'a> {
    list: Vec<PlannedPhase<'a>>,
    sharing: Sharing,
}

impl<'a> Phases<'a> {
    /// Plans the programs of `list` with `loras` on `backend`, within `budget` bytes.
    pub fn plan(
        list: Vec<Box<dyn GenerationPhase + 'a>>,
        loras: &LoraSet,
        backend: &dyn Backend,
        budget: u64,
    ) -> Result<Self, Refused> {
        let planner = Planner { loras, backend, budget };
        let activation = backend.caps().activation;
        let mut planned = Vec::new();
        let (mut number, mut least) = (0, 0);
        for phase in list {
            let best = {
                let nets = phase.nets();
                let (drafts, small) = (phase.drafts(activation), phase.small_drafts(activation));
                let (first, second) = (number, number + drafts.len() as u32);
                number = second + small.len() as u32;
                let best = planner.best_variants(drafts, &nets, first);
                let bytes = |plan: &Result<_, _>| plan.as_ref().map_or(u64::MAX, |(_, n)| *n);
                if small.is_empty() || bytes(&best) <= budget {
                    best
                } else {
                    let other = planner.best_variants(small, &nets, second);
                    if bytes(&other) < bytes(&best) { other } else { best }
                }
            };
            let (programs, needed) = best?;
            least = least.max(needed);
            planned.push(PlannedPhase { phase, programs });
        }
        if least > budget {
            return Err(Refused::TooSmall(least));
        }
        let sharing = Sharing { loras: loras.number, kept: None };
        let mut phases = Phases { list: planned, sharing };
        phases.share(budget, backend.caps().grain);
        Ok(phases)
    }

    /// Places the weights of each program in the memory that all share, and decides whether they
    /// can all stay there between generations.
    fn share(&mut self, budget: u64, grain: Grain) {
        let mut layout = Layout::default();
        let mut all_resident = true;
        for planned in self.by_memory() {
            planned.resident_base = layout.resident_bytes;
            layout.resident_bytes = planned.plan.residency.move_to(layout.resident_bytes, grain);
            layout.arena_bytes = layout.arena_bytes.max(planned.plan.arena.bytes);
            all_resident &= planned.plan.residency.ring_bytes == 0;
        }
        // LoRAs and ControlNets are placed behind all of it: others may take their place, and the
        // model's weights stay where they are.
        for planned in self.by_memory() {
            let base = planned.resident_base;
            layout.resident_bytes =
                planned.plan.residency.move_added(base, layout.resident_bytes, grain);
        }
        if all_resident && layout.bytes(1) <= budget {
            self.sharing.kept = Some(layout);
            return;
        }
        for planned in self.by_memory() {
            planned.resident_base = 0;
            let end = planned.plan.residency.move_to(0, grain);
            let end = planned.plan.residency.move_added(0, end, grain);
            planned.plan.residency.resident_bytes = end;
        }
    }

    /// The programs in the order of their weights in memory. Those that not every request needs
    /// come last, so that the places of the others are the same with and without them.
    fn by_memory(&mut self) -> impl Iterator<Item = &mut PlannedProgram> {
        let mut programs: Vec<_> = self.list.iter_mut().flat_map(|p| &mut p.programs).collect();
        programs.sort_by_key(|p| p.optional);
        programs.into_iter()
    }

    /// The programs in the order in which they run.
    pub fn programs(&self) -> impl Iterator<Item = &PlannedProgram> {
        self.list.iter().flat_map(|p| &p.programs)
    }

    /// The lines of a plan's report, in the order in which the programs run. The programs of one
    /// phase that work in bands share a line.
    pub fn reports(&self) -> Vec<PhaseReport> {
        let mut reports: Vec<PhaseReport> = Vec::new();
        for report in self.programs().map(PlannedProgram::report) {
            match reports.last_mut() {
                Some(last) if last.bands > 0 && report.bands > 0 && last.phase == report.phase => {
                    last.join(&report);
                }
                _ => reports.push(report),
            }
        }
        reports
    }

    /// Whether all weights stay loaded from one generation to the next.
    pub fn keeps_weights(&self) -> bool {
        self.sharing.kept.is_some()
    }

    /// The most device memory in use at one time, in bytes, if the device allocates it in units of
    /// `granularity` bytes.
    pub fn peak_bytes(&self, granularity: usize) -> u64 {
        match self.sharing.kept {
            Some(layout) => layout.bytes(granularity),
            None => self.programs().map(|p| p.plan.layout().bytes(granularity)).max().unwrap_or(0),
        }
    }

    /// Bytes of weights that pass to the device in each run of a program that runs several times,
    /// at most.
    pub fn passing_bytes(&self) -> u64 {
        let several = self.programs().filter(|p| p.plan.runs > 1);
        several.map(|p| p.plan.streamed_bytes()).max().unwrap_or(0)
    }

    /// Runs every phase on `device`.
    pub fn run(
        &self,
        device: &mut OpenDevice,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let mut device = SharedDevice { device, sharing: self.sharing };
        let mut needed = self.list.iter().filter(|p| !p.programs.is_empty());
        needed.try_for_each(|p| p.phase.run(&p.programs, &mut device, values, &mut *on))
    }
}

impl SharedDevice<'_> {
    /// A session that runs `planned`.
    pub fn session<'s>(&'s mut self, planned: &'s PlannedProgram) -> Result<Session<'s>> {
        let (backend, holdings) = self.device.parts()?;
        let keep = self.sharing.kept.is_some();
        let layout = self.sharing.kept.unwrap_or_else(|| planned.plan.layout());
        holdings.reserve(backend, layout, keep)?;
        let tenancy = Tenancy {
            phase: planned.number,
            owners: planned.owners,
            side_set: self.sharing.loras,
            resident_base: planned.resident_base,
            keep,
        };
        let weights = planned.weights.clone();
        Ok(Session::new(backend, holdings, &planned.program, &planned.plan, weights, tenancy))
    }
}
