//! The shift, scale and gate vectors of every block for every step, in one pass.

use super::transformer::Transformer;
use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, run_once,
    start_operations,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::pipeline::progress::Listener;

/// Computes [`Values::modulation`], from the pooled text embedding too if the transformer reads it.
pub struct Modulate<'a> {
    /// The transformer.
    pub flux: Transformer<'a>,
    /// Distilled guidance, if the model has an embedding for it.
    pub guidance: Option<f32>,
    /// The noise level before each step, and the last one.
    pub sigmas: Vec<f32>,
}

impl Modulate<'_> {
    /// Rows of all steps, and of references that are kept.
    fn rows(&self) -> usize {
        match self.sigmas.len() - 1 {
            0 => 0,
            steps => {
                steps * self.flux.modulation_rows() + usize::from(self.flux.keeps_references())
            }
        }
    }
}

impl GenerationPhase for Modulate<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        // If the schedule has no step (strength 0), the program is planned for one step and is not
        // run.
        let rows = self.rows().max(self.flux.modulation_rows());
        let record = move || Variant::whole(self.flux.modulate(rows, activation), 1);
        vec![Draft::always(Phase::Modulate, self.flux.weights(), record)]
    }

    fn host_bytes(&self) -> u64 {
        (self.rows() * self.flux.modulation_cols() * 4) as u64
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
        let mut progress = start_operations(programs, on)?;
        let mut session = device.session(planned)?;
        let mut timesteps = timestep_rows(&self.sigmas, self.flux.modulation_rows());
        // References that are kept are images without noise.
        timesteps.resize(rows, 0.0);
        session.write_f32(program.input("timestep"), &timesteps)?;
        if let Some(guidance) = self.guidance {
            session.write_f32(program.input("guidance"), &vec![guidance; rows])?;
        }
        let pooled = &values.text.pooled;
        if !pooled.is_empty() {
            let pooled = pooled_rows(pooled, rows / self.flux.modulation_rows());
            session.write_f32(program.input("pooled"), &pooled)?;
        }
        values.modulation = run_once(session, planned, "modulation", &mut |_, _| progress.step())?;
        progress.end()
    }
}

/// The timestep of each step of `sigmas`, `per_step` times.
pub(super) fn timestep_rows(sigmas: &[f32], per_step: usize) -> Vec<f32> {
    // diffusers passes on sigma * 1000 and divides again; both roundings are kept, so that the
    // angle of the embedding is the same float.
    let steps = sigmas[..sigmas.len() - 1].iter();
    steps.flat_map(|&t| std::iter::repeat_n(t * 1000.0 / 1000.0, per_step)).collect()
}

/// `pooled`, once for each of `steps` steps.
pub(super) fn pooled_rows(pooled: &[f32], steps: usize) -> Vec<f32> {
    pooled.repeat(steps)
}
