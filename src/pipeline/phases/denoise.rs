//! The transformer, once per step.

use super::preview::preview;
use super::transformer::Transformer;
use super::{Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, not_finite};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::{Event, Phase};
use crate::model::flux2::KEPT;
use crate::pipeline::progress::{Listener, Progress};
use crate::pipeline::request::Image;

/// Takes [`Values::latents`] from the first noise level to the last.
pub struct Denoise<'a> {
    /// The transformer.
    pub flux: Transformer<'a>,
    /// The noise level before each step, and the last one.
    pub sigmas: Vec<f32>,
    /// True classifier-free guidance; 1 is off.
    pub cfg_scale: f32,
}

impl Denoise<'_> {
    /// The text embeddings for every sequence of the batch, from one embedding per prompt.
    fn context(&self, text: &[f32]) -> Vec<f32> {
        let shape = self.flux.shape();
        let per_prompt = text.len() / shape.prompts();
        text.chunks_exact(per_prompt)
            .flat_map(|c| c.iter().copied().cycle().take(c.len() * shape.images))
            .collect()
    }
}

impl GenerationPhase for Denoise<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let record = move || Variant {
            program: self.flux.denoise(activation),
            runs: self.sigmas.len() - 1,
            band: None,
        };
        vec![Draft {
            phase: Phase::Denoise,
            weights: self.flux.weights(),
            optional: false,
            variants: Box::new(std::iter::once_with(record)),
        }]
    }

    /// The latents before and after a step, and the rotation table.
    fn host_bytes(&self) -> u64 {
        let shape = self.flux.shape();
        let latents = shape.images * shape.image_tokens() * self.flux.channels();
        (4 * latents) as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let planned = &programs[0];
        let steps = self.sigmas.len() - 1;
        if steps == 0 {
            return Ok(());
        }
        let mut progress = Progress::start(Phase::Denoise, steps, planned.plan.peak_bytes(), on)?;
        let mut session = device.session(planned)?;
        let io = |name| planned.program.input(name);
        session.write_f32(io("text"), &self.context(&values.text.context))?;
        session.write_f32(io("rope"), &self.flux.rope())?;
        if self.flux.keeps_references() {
            let kept = planned.program.inputs.iter().filter(|io| io.name == KEPT);
            for (io, bytes) in kept.zip(&values.reference_keys) {
                session.write_rows(io.tensor, 0, bytes)?;
            }
        } else if !values.references.is_empty() {
            session.write_f32(io("references"), &values.references)?;
        }
        if !values.condition.is_empty() {
            let condition = values.condition.repeat(self.flux.shape().images);
            session.write_f32(io("condition"), &condition)?;
        }
        session.write_f32(io("latents"), &values.latents)?;
        let rows = self.flux.modulation_rows() * self.flux.modulation_cols();
        let rows = values.modulation.chunks_exact(rows);
        for (i, (modulation, levels)) in rows.zip(self.sigmas.windows(2)).enumerate() {
            session.write_f32(io("modulation"), modulation)?;
            session.write_f32(io("step"), &[levels[1] - levels[0], self.cfg_scale])?;
            session.run(i + 1 < steps, &mut |_, _| progress.poll())?;
            let mut latents = session.read_f32(io("latents"))?;
            if latents.iter().any(|v| !v.is_finite()) {
                session.write_f32(io("latents"), &values.latents)?;
                let e = not_finite(&mut session, planned)?;
                return Err(e.at(format!("step {} of {steps}", i + 1)));
            }
            if let Some(kept) = &values.kept {
                kept.apply(&mut latents, self.sigmas[0], levels[0], levels[1]);
                session.write_f32(io("latents"), &latents)?;
            }
            let preview = preview(&self.flux, &values.latents, &latents, levels);
            values.latents = latents;
            progress.advance()?;
            if let Some(Image { width, height, rgb }) = preview.filter(|_| i + 1 < steps) {
                progress.note(Event::Preview { width, height, rgb })?;
            }
        }
        session.finish()?;
        progress.end()
    }
}
