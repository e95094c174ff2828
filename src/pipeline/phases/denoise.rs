//! The transformer, once per step.

use super::preview::preview;
use super::transformer::Transformer;
use super::{
    Draft, GenerationPhase, Nets, PlannedProgram, SharedDevice, Values, Variant, not_finite,
    start_runs,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::{Event, Phase};
use crate::model::flux1::control::input_names;
use crate::model::flux2::KEPT;
use crate::pipeline::progress::Listener;
use crate::pipeline::request::Image;
use crate::stream::Session;

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

impl Denoise<'_> {
    /// Writes what the ControlNets see in every step, and how strongly they act.
    fn write_controls(
        &self,
        session: &mut Session<'_>,
        planned: &PlannedProgram,
        values: &Values,
    ) -> Result<()> {
        for (i, (control, seen)) in self.flux.controls().iter().zip(&values.controls).enumerate() {
            let names = input_names(i);
            let condition = seen.condition.repeat(self.flux.shape().images);
            session.write_f32(planned.program.input(names.condition), &condition)?;
            if let Some(mode) = control.mode()? {
                session.write_f32(planned.program.input(names.mode), &mode)?;
            }
            let strength = planned.program.input(names.strength);
            session.write_f32(strength, &vec![control.choice.strength; strength.cols])?;
        }
        Ok(())
    }

    /// Writes what the ControlNets see in step `step` of `steps`, and leaves those out that do not
    /// act in it.
    fn set_controls(
        &self,
        session: &mut Session<'_>,
        planned: &PlannedProgram,
        values: &Values,
        (step, steps): (usize, usize),
    ) -> Result<()> {
        for (i, seen) in values.controls.iter().enumerate() {
            let names = input_names(i);
            let cols = seen.modulation.len() / steps;
            let modulation = &seen.modulation[step * cols..(step + 1) * cols];
            session.write_f32(planned.program.input(names.modulation), modulation)?;
        }
        // Their numbers in the program begin at 1.
        let absent = |step: usize| {
            let all = self.flux.controls().iter().enumerate();
            let idle = all.filter(|(_, control)| !control.choice.acts_in(step, steps));
            idle.fold(0, |bits, (i, _)| bits | 2 << i)
        };
        session.leave_out(absent(step), absent((step + 1).min(steps - 1)));
        Ok(())
    }
}

impl GenerationPhase for Denoise<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let runs = self.sigmas.len() - 1;
        let record = move || Variant::whole(self.flux.denoise(activation), runs);
        vec![Draft::always(Phase::Denoise, self.flux.weights(), record)]
    }

    fn nets(&self) -> Nets<'_> {
        let controls = self.flux.controls().iter();
        let others = controls.map(|c| (&c.net.network.weights, c.net.number)).collect();
        Nets { owner: 0, others }
    }

    /// The latents before and after a step, and what ControlNets see, twice while it is repeated
    /// for every image.
    fn host_bytes(&self) -> u64 {
        let shape = self.flux.shape();
        let columns = self.flux.controls().iter().map(|c| c.net.network.config.condition_cols);
        let (own, control) = (self.flux.channels(), columns.sum::<usize>());
        let tokens = shape.image_tokens();
        (4 * tokens * (shape.images * own + (shape.images + 1) * control)) as u64
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
        let mut progress = start_runs(programs, on)?;
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
        self.write_controls(&mut session, planned, values)?;
        session.write_f32(io("latents"), &values.latents)?;
        let rows = self.flux.modulation_rows() * self.flux.modulation_cols();
        let rows = values.modulation.chunks_exact(rows);
        for (i, (modulation, levels)) in rows.zip(self.sigmas.windows(2)).enumerate() {
            session.write_f32(io("modulation"), modulation)?;
            session.write_f32(io("step"), &[levels[1] - levels[0], self.cfg_scale])?;
            self.set_controls(&mut session, planned, values, (i, steps))?;
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
