//! What the phases have in common when they run.

use std::ops::ControlFlow;

use super::PlannedProgram;
use crate::error::{Error, Result};
use crate::op::Step;
use crate::pipeline::progress::{Listener, Progress};
use crate::stream::Session;

/// The most device memory that one of `programs` needs, in bytes.
pub fn peak_bytes(programs: &[PlannedProgram]) -> u64 {
    programs.iter().map(|p| p.plan.peak_bytes()).max().unwrap_or(0)
}

/// Begins the phase of `programs`, each of which runs once: its steps are their operations. There
/// must be a program.
///
/// # Errors
/// If the listener cancels.
pub fn start_operations<'a>(programs: &[PlannedProgram], on: Listener<'a>) -> Result<Progress<'a>> {
    let steps = programs.iter().map(|p| p.program.steps.len()).sum();
    Progress::start(programs[0].phase, steps, peak_bytes(programs), on)
}

/// Begins the phase of `programs`: its steps are their runs. There must be a program.
///
/// # Errors
/// If the listener cancels.
pub fn start_runs<'a>(programs: &[PlannedProgram], on: Listener<'a>) -> Result<Progress<'a>> {
    let runs = programs.iter().map(|p| p.plan.runs).sum();
    Progress::start(programs[0].phase, runs, peak_bytes(programs), on)
}

/// Runs `planned` once in `session`, to which its inputs were written, and ends the session.
/// `on_step` is called after every operation. Returns the output `name`.
///
/// # Errors
/// If a number of the output is not finite, if the device or the file of the weights fails, and if
/// `on_step` breaks.
pub fn run_once(
    mut session: Session<'_>,
    planned: &PlannedProgram,
    name: &str,
    on_step: &mut dyn FnMut(usize, &Step) -> ControlFlow<()>,
) -> Result<Vec<f32>> {
    session.run(false, on_step)?;
    let values = session.read_f32(planned.program.output(name))?;
    check_finite(&values, &mut session, planned)?;
    session.finish()?;
    Ok(values)
}

/// Checks that all `values` are finite.
///
/// # Errors
/// If one is not: the program runs again, so that the error names the first step that wrote one.
pub fn check_finite(values: &[f32], session: &mut Session, planned: &PlannedProgram) -> Result<()> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    Err(not_finite(session, planned)?)
}

/// The error for a run of `planned` whose output has a number that is not finite. It names the
/// first step that wrote one.
pub fn not_finite(session: &mut Session, planned: &PlannedProgram) -> Result<Error> {
    let program = &planned.program;
    let place = match session.first_not_finite()? {
        Some(label) => format!("{}: {label}", program.name),
        None => program.name.clone(),
    };
    let e = Error::not_finite("the numbers are not finite, no image is written").at(place);
    Ok(match program.weights.iter().any(|w| w.side.is_some()) {
        true => e.try_("a smaller strength of the LoRAs, or no LoRA: they change these layers"),
        false => e.try_(
            "download the weights again if they may be damaged; if their type is too narrow for \
             this model, use {compute=f32}",
        ),
    })
}
