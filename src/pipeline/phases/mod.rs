//! The programs and plans of one generation, all made before anything runs, so that a request that cannot fit is refused at once.

pub(crate) mod tiles;

use self::tiles::{Cuts, OVERLAP, TILE, cuts};
use super::loras::LoraSet;
use super::model::Model;
use super::report::PhaseReport;
use super::request::Settings;
use crate::backend::{Backend, Grain, Layout};
use crate::error::{Error, Result};
use crate::event::Phase;
use crate::model::flux1::DenoiseShape;
use crate::model::{clip, flux1, t5, vae};
use crate::op::Program;
use crate::plan::{self, PhasePlan, streamed_blocks};
use crate::tensor::HostWeight;

/// A program with its plan and weights.
pub struct Ready {
    pub phase: Phase,
    /// Distinguishes this program's weights from those of the others.
    pub index: u32,
    pub program: Program,
    pub plan: PhasePlan,
    pub weights: Vec<HostWeight>,
    /// Where its resident weights begin when all phases keep theirs.
    pub resident_base: usize,
}

/// Everything one generation runs.
pub struct Phases {
    /// The number of the set of LoRAs beside them.
    pub loras: u32,
    pub shape: DenoiseShape,
    pub clip: Ready,
    pub t5: Ready,
    pub modulate: Ready,
    pub encode: Option<(Ready, Tiling)>,
    pub denoise: Ready,
    pub decode: (Ready, Tiling),
    /// All phases' weights fit beside the largest arena: they stay loaded from one generation to the next.
    pub keep: bool,
    /// What every phase asks the device for when `keep`.
    pub shared: Layout,
}

/// Why there is no plan.
pub enum Refused {
    /// The budget is too small; this many bytes would do.
    TooSmall(u64),
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(e: Error) -> Self {
        Refused::Failed(e)
    }
}

/// How a plane of latents is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiling {
    pub rows: Cuts,
    pub cols: Cuts,
    pub overlap: usize,
    /// Smaller than the usual tile because of the budget: the pixels may differ slightly from those of a larger budget.
    pub reduced: bool,
}

impl Tiling {
    fn new(height: usize, width: usize, most: usize) -> Self {
        let overlap = OVERLAP.min((most / 3) & !1);
        let (rows, cols) = (cuts(height, most, overlap), cuts(width, most, overlap));
        Tiling { rows, cols, overlap, reduced: most < TILE }
    }

    /// Tiles in the plane.
    pub fn count(&self) -> usize {
        self.rows.starts.len() * self.cols.starts.len()
    }

    /// The corners of all tiles, (top, left) in latent pixels.
    pub fn corners(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.rows
            .starts
            .iter()
            .flat_map(|&top| self.cols.starts.iter().map(move |&left| (top, left)))
    }

    /// Height and width of every tile in latent pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.rows.len, self.cols.len)
    }
}

impl Phases {
    /// Plans `settings`, of whose schedule `steps` are to be done (fewer than all with image-to-image), on `backend` under `budget` bytes.
    pub fn new(
        model: &Model,
        loras: &LoraSet,
        settings: &Settings,
        steps: usize,
        backend: &dyn Backend,
        budget: u64,
    ) -> Result<Self, Refused> {
        let act = backend.caps().activation;
        let token = model.token_pixels();
        let cfg = settings.cfg_scale != 1.0;
        let (height, width) = (settings.height / token, settings.width / token);
        let shape = DenoiseShape {
            images: settings.count,
            cfg,
            text_tokens: model.t5_length,
            height,
            width,
        };
        let prompts = shape.prompts();

        // Why a phase cannot be run with any memory, if one cannot.
        let impossible = std::cell::Cell::new(None::<Error>);
        // The least that every phase tried so far could do with.
        let least = std::cell::Cell::new(0u64);
        let ready = |phase,
                     index,
                     program: Program,
                     runs,
                     weights: Vec<HostWeight>|
         -> Result<(Ready, u64)> {
            let uses = program.uses();
            let bytes: Vec<usize> =
                weights.iter().zip(&uses).map(|(w, &how)| backend.weight_bytes(w, how)).collect();
            let weight = |w: crate::tensor::Weight| &weights[w.id as usize];
            let scratch: Vec<usize> =
                program.steps.iter().map(|s| backend.scratch_bytes(&s.op, &weight)).collect();
            let grain = backend.caps().grain;
            let refused = program.steps.iter().find_map(|s| {
                let can = backend.can_run(&s.op, &weight);
                can.err().map(|e| e.at(&s.label))
            });
            let needed = match refused {
                None => plan::least_bytes(&program, &bytes, &scratch, grain),
                // No memory would do; another tile may.
                Some(e) => {
                    impossible.replace(Some(e));
                    u64::MAX
                }
            };
            // A phase that does not fit is planned without bound: only the number is wanted then, for the refusal below.
            let bound = if needed > budget { u64::MAX } else { budget };
            let plan = plan::phase(&program, runs, &bytes, &scratch, grain, bound)?;
            Ok((Ready { phase, index, program, plan, weights, resident_base: 0 }, needed))
        };
        let single = |phase, index, program: Program, runs, weights| -> Result<Ready> {
            let (ready, needed) = ready(phase, index, program, runs, weights)?;
            least.set(least.get().max(needed));
            Ok(ready)
        };
        let (program, weights) =
            model.clip.with_loras(clip::encode(&model.clip.config, prompts, act), loras)?;
        let clip = single(Phase::TextEncode, 0, program, 1, weights)?;
        let program = t5::encode(&model.t5.config, prompts, model.t5_length, act);
        let (program, weights) = model.t5.with_loras(program, loras)?;
        let t5 = single(Phase::TextEncode, 1, program, 1, weights)?;
        let program = flux1::modulate(&model.flux.config, steps.max(1) * prompts, act);
        let (program, weights) = model.flux.with_loras(program, loras)?;
        let modulate = single(Phase::Modulate, 2, program, 1, weights)?;
        let (program, weights) =
            model.flux.with_loras(flux1::denoise(&model.flux.config, &shape, act), loras)?;
        let denoise = single(Phase::Denoise, 3, program, steps, weights)?;

        // The usual tile, or the largest smaller one that fits.
        let tiled = |phase,
                     index,
                     runs: usize,
                     record: &dyn Fn(usize, usize) -> Program|
         -> Result<(Ready, Tiling)> {
            let mut tiles = [TILE, 96, 64, 48, 32, 24, 16].into_iter().map(|most| {
                let tiling = Tiling::new(2 * height, 2 * width, most);
                let (h, w) = tiling.size();
                let (program, weights) = model.vae.with_loras(record(h, w), loras)?;
                let (ready, needed) = ready(phase, index, program, runs * tiling.count(), weights)?;
                Ok((ready, tiling, needed))
            });
            let mut best = tiles.next().expect("there are sizes")?;
            for smaller in tiles {
                if best.2 <= budget {
                    break;
                }
                let smaller = smaller?;
                if smaller.2 < best.2 {
                    best = smaller;
                }
            }
            least.set(least.get().max(best.2));
            Ok((best.0, best.1))
        };
        let (vae_config, factor) = (&model.vae.config, model.vae.config.factor());
        let encode = match settings.strength {
            Some(_) => Some(tiled(Phase::ImageEncode, 4, 1, &|h, w| {
                vae::encode(vae_config, h * factor, w * factor, act)
            })?),
            None => None,
        };
        let decode =
            tiled(Phase::Decode, 5, settings.count, &|h, w| vae::decode(vae_config, h, w, act))?;

        if least.get() == u64::MAX
            && let Some(e) = impossible.take()
        {
            return Err(Refused::Failed(e));
        }
        if least.get() > budget {
            return Err(Refused::TooSmall(least.get()));
        }
        let mut phases = Phases {
            loras: loras.number,
            shape,
            clip,
            t5,
            modulate,
            encode,
            denoise,
            decode,
            keep: false,
            shared: Layout::default(),
        };
        phases.share(budget, backend.caps().grain);
        Ok(phases)
    }

    /// Decides whether all weights can stay between generations, and where each phase's begin.
    fn share(&mut self, budget: u64, grain: Grain) {
        let mut layout = Layout::default();
        let mut all_resident = true;
        for ready in self.all_mut() {
            ready.resident_base = layout.resident_bytes;
            layout.resident_bytes = ready.plan.residency.move_to(layout.resident_bytes, grain);
            layout.arena_bytes = layout.arena_bytes.max(ready.plan.arena.bytes);
            all_resident &= ready.plan.residency.ring_bytes == 0;
        }
        // LoRAs come behind all of it: others may take their place, and the model stays where it is.
        for ready in self.all_mut() {
            let base = ready.resident_base;
            layout.resident_bytes =
                ready.plan.residency.move_sides(base, layout.resident_bytes, grain);
        }
        self.keep = all_resident && layout.bytes(1) <= budget;
        self.shared = layout;
        if !self.keep {
            for ready in self.all_mut() {
                ready.resident_base = 0;
                let end = ready.plan.residency.move_to(0, grain);
                let end = ready.plan.residency.move_sides(0, end, grain);
                ready.plan.residency.resident_bytes = end;
            }
        }
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Ready> {
        // The one that not every request has comes last: the others' places stay where they are.
        let encode = self.encode.as_mut().map(|e| &mut e.0);
        [&mut self.clip, &mut self.t5, &mut self.modulate, &mut self.denoise, &mut self.decode.0]
            .into_iter()
            .chain(encode)
    }

    /// Every program in the order in which it runs.
    pub fn all(&self) -> impl Iterator<Item = &Ready> {
        let encode = self.encode.as_ref().map(|e| &e.0);
        [&self.clip, &self.t5].into_iter().chain(encode).chain([
            &self.modulate,
            &self.denoise,
            &self.decode.0,
        ])
    }

    /// What the device holds at most, in memory that is handed out in pieces of `granularity`.
    pub fn peak_bytes(&self, granularity: usize) -> u64 {
        if self.keep {
            return self.shared.bytes(granularity);
        }
        self.all().map(|r| r.plan.layout().bytes(granularity)).max().unwrap_or(0)
    }
}

impl Ready {
    /// For `flux-fast plan`.
    pub fn report(&self) -> PhaseReport {
        let (blocks_streamed, blocks) = streamed_blocks(&self.program, &self.plan.residency);
        PhaseReport {
            phase: self.phase.name(),
            program: self.program.name.clone(),
            runs: self.plan.runs,
            operations: self.program.steps.len(),
            teraflop: self.program.flops() as f64 / 1e12,
            weight_bytes: self.plan.weight_bytes,
            arena_bytes: self.plan.arena.bytes as u64,
            resident_bytes: self.plan.residency.resident_bytes as u64,
            ring_bytes: self.plan.residency.ring_bytes as u64,
            streamed_bytes_per_run: self.plan.streamed_bytes(),
            blocks,
            blocks_streamed,
            peak_bytes: self.plan.peak_bytes(),
        }
    }
}
