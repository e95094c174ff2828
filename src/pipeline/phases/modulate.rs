//! The shift, scale and gate vectors of every block for every step, in one pass.

use super::{Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, check_finite};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::FluxConfig;
use crate::model::flux1;
use crate::pipeline::model::Network;
use crate::pipeline::progress::{Listener, Progress};

/// Computes [`Values::modulation`] from the pooled text embedding.
pub struct Modulate<'a> {
    /// The transformer.
    pub flux: &'a Network<FluxConfig>,
    /// Prompts per step: two with true CFG.
    pub prompts: usize,
    /// Distilled guidance, if the model has an embedding for it.
    pub guidance: Option<f32>,
    /// The noise level before each step, and the last one.
    pub sigmas: Vec<f32>,
}

impl Modulate<'_> {
    fn rows(&self) -> usize {
        (self.sigmas.len() - 1) * self.prompts
    }
}

impl GenerationPhase for Modulate<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let record = move || Variant {
            // Without a step the program is planned as for one, and does not run.
            program: flux1::modulate(&self.flux.config, self.rows().max(self.prompts), activation),
            runs: 1,
            band: None,
        };
        vec![Draft {
            phase: Phase::Modulate,
            weights: &self.flux.weights,
            optional: false,
            variants: Box::new(std::iter::once_with(record)),
        }]
    }

    fn host_bytes(&self) -> u64 {
        (self.rows() * self.flux.config.modulation_cols() * 4) as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let (planned, rows) = (&programs[0], self.rows());
        if rows == 0 {
            return Ok(());
        }
        let program = &planned.program;
        let mut progress =
            Progress::start(Phase::Modulate, program.steps.len(), planned.plan.peak_bytes(), on)?;
        let mut session = device.session(planned)?;
        // diffusers passes on sigma * 1000 and divides again; both roundings are kept, so that the
        // angle of the embedding is the same float.
        let timesteps: Vec<f32> = self.sigmas[..self.sigmas.len() - 1]
            .iter()
            .flat_map(|&t| std::iter::repeat_n(t * 1000.0 / 1000.0, self.prompts))
            .collect();
        session.write_f32(program.input("timestep"), &timesteps)?;
        if let Some(guidance) = self.guidance {
            session.write_f32(program.input("guidance"), &vec![guidance; rows])?;
        }
        let pooled = &values.text.pooled;
        let all = rows * (pooled.len() / self.prompts);
        let pooled: Vec<f32> = pooled.iter().copied().cycle().take(all).collect();
        session.write_f32(program.input("pooled"), &pooled)?;
        session.run(false, &mut |_, _| progress.step())?;
        values.modulation = session.read_f32(program.output("modulation"))?;
        check_finite(&values.modulation, &mut session, planned)?;
        session.finish()?;
        progress.end()
    }
}
