//! The modulation of the blocks of ControlNets for every step.

use super::modulate::{pooled_rows, timestep_rows};
use super::{
    Draft, GenerationPhase, Nets, PlannedProgram, SharedDevice, Values, Variant, run_once,
    start_operations,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::flux1::control::modulate_control;
use crate::pipeline::controlnets::Controlling;
use crate::pipeline::model::Model;
use crate::pipeline::progress::Listener;

/// Computes [`ControlValues::modulation`](super::ControlValues::modulation) of one ControlNet.
pub struct ControlModulate<'a> {
    /// The model, for a request without this ControlNet.
    pub model: &'a Model,
    /// Its number in the request.
    pub number: usize,
    /// The ControlNet, if the request has as many.
    pub control: Option<&'a Controlling>,
    /// The guidance of the request, if its model has an embedding for it.
    pub guidance: Option<f32>,
    /// The noise level before each step, and the last one.
    pub sigmas: Vec<f32>,
}

/// The guidance of a ControlNet with an embedding for it where the model has none: that of
/// FLUX.1 \[dev\].
const GUIDANCE: f32 = 3.5;

impl GenerationPhase for ControlModulate<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let rows = (self.sigmas.len() - 1).max(1);
        let record = move |control: &Controlling| {
            Variant::whole(modulate_control(&control.net.network.config, rows, activation), 1)
        };
        let weights = self.control.map_or(&self.model.vae.weights, |c| &c.net.network.weights);
        vec![Draft::optional(Phase::Modulate, weights, self.control.into_iter().map(record))]
    }

    fn nets(&self) -> Nets<'_> {
        Nets { owner: self.control.map_or(0, |c| c.net.number), others: Vec::new() }
    }

    fn host_bytes(&self) -> u64 {
        let cols = self.control.map_or(0, |c| c.net.network.config.modulation_cols());
        (4 * (self.sigmas.len() - 1) * cols) as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let (planned, rows) = (&programs[0], self.sigmas.len() - 1);
        if rows == 0 {
            return Ok(());
        }
        let program = &planned.program;
        let mut progress = start_operations(programs, on)?;
        let mut session = device.session(planned)?;
        let timesteps = timestep_rows(&self.sigmas, 1);
        session.write_f32(program.input("timestep"), &timesteps)?;
        if self.control.is_some_and(|c| c.net.network.config.flux.guidance) {
            let guidance = vec![self.guidance.unwrap_or(GUIDANCE); rows];
            session.write_f32(program.input("guidance"), &guidance)?;
        }
        // The prompt comes before the negative one.
        let one = program.input("pooled").cols;
        let pooled = pooled_rows(&values.text.pooled[..one], rows);
        session.write_f32(program.input("pooled"), &pooled)?;
        values.controls[self.number].modulation =
            run_once(session, planned, "modulation", &mut |_, _| progress.step())?;
        progress.end()
    }
}
