//! `models`: the models, components and LoRAs on this machine, with the names to use for them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::args::How;
use super::components;
use super::output;
use crate::error::Result;
use crate::pipeline::embedded_model;
use crate::pipeline::models::{Listing, ModelKind, ModelPlaces};
use crate::spec::Role;
use crate::text::one_line;
use crate::units;

/// Everything that was found, and the folders that were searched.
#[derive(Debug, Serialize)]
pub struct Report {
    pub models: Vec<Listing>,
    pub looked_in: Vec<String>,
    /// Folders and files that could not be read.
    pub notes: Vec<String>,
}

/// Prints the list. An empty list is not an error.
pub fn models(how: How) -> Result<()> {
    let report = report();
    if how.json { output::json(&json!(report)) } else { output::text(&text(&report)) }
}

/// Searches the folders of models that belong to this machine, and lists what they contain.
pub fn report() -> Report {
    let places = ModelPlaces::of_process();
    let models = embedded().into_iter().chain(places.list()).collect();
    Report { models, looked_in: places.searched(), notes: places.notes().to_vec() }
}

/// The model inside the program, if this build has it.
fn embedded() -> Option<Listing> {
    Some(Listing {
        is_named: true,
        name: "embedded".into(),
        kind: ModelKind::Model,
        what: "FLUX transformer (dev), ComfyUI, fp8; with T5, CLIP, VAE; animals, plants and food \
               at 128x128"
            .into(),
        bytes: embedded_model().ok()?.len() as u64,
        place: "inside the program".into(),
        path: "embedded".into(),
    })
}

/// The sections of the list: title (with the option to use; `{}` is those of components) and the
/// kinds in it.
#[allow(clippy::type_complexity, reason = "a table that is read in one place")]
const SECTIONS: [(&str, fn(ModelKind) -> bool); 4] = [
    ("models (--model)", |kind| kind == ModelKind::Model),
    (
        "components ({}; found automatically next to a model or in these folders)",
        |kind| matches!(kind, ModelKind::Part(part) if part.role != Role::Control),
    ),
    ("LoRAs (--lora, or <lora:NAME:STRENGTH> in the prompt)", |kind| kind == ModelKind::Lora),
    (
        "ControlNets (--controlnet NAME:IMAGE)",
        |kind| matches!(kind, ModelKind::Part(part) if part.role == Role::Control),
    ),
];

/// The list as text. `embedded` is in most builds, so it does not count as found.
pub fn text(report: &Report) -> String {
    let Report { models, looked_in, notes } = report;
    let mut text = String::new();
    for (title, is_of) in SECTIONS {
        let rows: Vec<&Listing> = models.iter().filter(|m| is_of(m.kind)).collect();
        if !rows.is_empty() {
            let options: Vec<_> =
                components::options().into_keys().map(|name| format!("--{name}")).collect();
            text += &format!("{}:\n", title.replace("{}", &options.join(", ")));
            text += &table(&rows);
        }
    }
    // There may be hundreds of models for other programs: only their number is printed.
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for other in models.iter().filter(|m| m.kind == ModelKind::Other) {
        *others.entry(other.what.as_str()).or_default() += 1;
    }
    if !others.is_empty() {
        text += "other files, which cannot be used (--json lists them):\n";
        text += &others
            .iter()
            .map(|(what, n)| format!("  {n} x {}\n", one_line(what)))
            .collect::<String>();
    }
    text += &notes.iter().map(|note| format!("warning: {}\n", one_line(note))).collect::<String>();
    if !models.iter().any(|m| m.kind == ModelKind::Model && m.name != "embedded") {
        text += "no FLUX.1 or FLUX.2 model was found in:\n";
        text +=
            &looked_in.iter().map(|place| format!("  {}\n", one_line(place))).collect::<String>();
        text += "  try: flux-fast pull black-forest-labs/FLUX.2-klein-4B (or FLUX.1-schnell), or \
                 give a path with --model, or set COMFYUI_PATH to ComfyUI's folder\n";
    }
    text
}

fn table(rows: &[&Listing]) -> String {
    let names: Vec<_> = rows.iter().map(|r| one_line(&r.name)).collect();
    let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0).min(60);
    let line = |(r, name): (&&Listing, _)| {
        let (bytes, what, place) = (units::bytes(r.bytes), one_line(&r.what), one_line(&r.place));
        format!("  {name:<width$}  {bytes:>10}  {what} [{place}]\n")
    };
    rows.iter().zip(names).map(line).collect()
}
