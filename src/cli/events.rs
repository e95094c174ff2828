//! `--json-events`: what happens, as JSON objects on stderr, one per line.
//!
//! Every object has `event`: `note`, `warning`, `phase_start`, `step`, `phase_end`, `transfer` or
//! `error`. The objects of later versions may have more fields.

use serde_json::{Value, json};

use super::tell_raw;
use super::words::Typed;
use crate::event::{Event, Phase};

/// The object of an engine event, with the time that the rest of its phase takes by `left`, which
/// gets the number of steps; `None` for events that only offer a chance to cancel.
pub fn of(event: &Event, left: impl Fn(Phase, usize) -> Option<f64>) -> Option<Value> {
    Some(match event {
        Event::Note(text) => json!({"event": "note", "text": text.in_words(&Typed)}),
        Event::Warning(text) => json!({"event": "warning", "text": text.in_words(&Typed)}),
        Event::PhaseStart { phase, steps } => {
            json!({"event": "phase_start", "phase": phase.name(), "steps": steps})
        }
        Event::Step { phase, done, steps, seconds } => json!({
            "event": "step", "phase": phase.name(),
            "done": done, "steps": steps, "seconds": seconds,
            "seconds_left": left(*phase, steps.saturating_sub(*done)),
        }),
        Event::PhaseEnd { phase, seconds, peak_bytes } => json!({
            "event": "phase_end", "phase": phase.name(), "seconds": seconds,
            "planned_peak_bytes": peak_bytes,
        }),
        Event::Tick | Event::Preview { .. } => return None,
    })
}

/// Prints one object.
pub fn print(object: &Value) {
    tell_raw(&format!("{object}\n"));
}
