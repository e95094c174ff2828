//! The pixels of control images to tokens, for ControlNets that read pixels.

use super::image_encode::pieces;
use super::{
    Draft, GenerationPhase, Nets, PlannedProgram, SharedDevice, Values, Variant, run_once,
    start_runs,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::flux1::control::{Condition, hint};
use crate::pipeline::controlnets::Controlling;
use crate::pipeline::model::Model;
use crate::pipeline::progress::Listener;

/// Computes [`ControlValues::condition`](super::ControlValues::condition) of one ControlNet.
pub struct ControlHint<'a> {
    /// The model, for a request without this ControlNet.
    pub model: &'a Model,
    /// Its number in the request.
    pub number: usize,
    /// The ControlNet, if the request has as many.
    pub control: Option<&'a Controlling>,
    /// Height and width of the image.
    pub size: (usize, usize),
}

impl ControlHint<'_> {
    /// The ControlNet, if it reads pixels.
    fn reader(&self) -> Option<&Controlling> {
        let reads =
            |c: &&Controlling| matches!(c.net.network.config.condition, Condition::Pixels { .. });
        self.control.filter(reads)
    }
}

impl GenerationPhase for ControlHint<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let (height, width) = self.size;
        let record = move |control: &Controlling| {
            Variant::whole(hint(&control.net.network.config, height, width, activation), 1)
        };
        let weights = self.reader().map_or(&self.model.vae.weights, |c| &c.net.network.weights);
        vec![Draft::optional(Phase::ImageEncode, weights, self.reader().into_iter().map(record))]
    }

    fn nets(&self) -> Nets<'_> {
        Nets { owner: self.reader().map_or(0, |c| c.net.number), others: Vec::new() }
    }

    fn host_bytes(&self) -> u64 {
        0
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let planned = &programs[0];
        let mut progress = start_runs(programs, on)?;
        let mut session = device.session(planned)?;
        let control = &mut values.controls[self.number];
        for (first, pixels) in pieces(&control.image, None) {
            let bytes = bytemuck::cast_slice(&pixels);
            session.write_rows(planned.program.input("pixels"), first, bytes)?;
        }
        control.condition = run_once(session, planned, "condition", &mut |_, _| progress.poll())?;
        progress.advance()?;
        progress.end()
    }
}
