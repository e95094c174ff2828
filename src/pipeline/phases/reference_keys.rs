//! Keys and values of reference images, for all steps.

use super::transformer::Transformer;
use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, not_finite,
    start_operations,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::pipeline::progress::Listener;

/// Computes [`Values::reference_keys`] from [`Values::references`], for a transformer that keeps
/// them ([`Transformer::keeps_references`]).
pub struct ReferenceKeys<'a> {
    /// The transformer.
    pub flux: Transformer<'a>,
    /// There are steps that read them.
    pub is_needed: bool,
}

impl GenerationPhase for ReferenceKeys<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let record = move || {
            let (program, _) = self.flux.reference_keys(activation)?;
            Some(Variant::whole(program, 1))
        };
        let variant = std::iter::once_with(record).flatten();
        let variants = variant.take(usize::from(self.is_needed));
        vec![Draft::optional(Phase::References, self.flux.weights(), variants)]
    }

    /// Keys and values, as if the device computed in f32.
    fn host_bytes(&self) -> u64 {
        4 * self.flux.reference_elements() as u64
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let planned = &programs[0];
        let program = &planned.program;
        let (_, rope) =
            self.flux.reference_keys(planned.activation()).expect("the program was recorded");
        let mut progress = start_operations(programs, on)?;
        let mut session = device.session(planned)?;
        session.write_f32(program.input("references"), &values.references)?;
        session.write_f32(program.input("rope"), &rope)?;
        // The last row of the modulation is that of the references.
        let rows = values.modulation.chunks_exact(self.flux.modulation_cols());
        let modulation = rows.last().expect("there is a row of the references");
        session.write_f32(program.input("modulation"), modulation)?;
        session.run(false, &mut |_, _| progress.step())?;
        values.reference_keys.clear();
        for io in &program.outputs {
            let mut bytes = vec![0; io.tensor.bytes()];
            session.read_rows(io.tensor, 0, &mut bytes)?;
            let mut elements = bytes.chunks_exact(io.tensor.dtype.size());
            if !elements.all(|b| io.tensor.dtype.decode(b).is_finite()) {
                return Err(not_finite(&mut session, planned)?);
            }
            values.reference_keys.push(bytes);
        }
        session.finish()?;
        progress.end()
    }
}
