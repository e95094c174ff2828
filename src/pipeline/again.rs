//! Drawing an image again: the model and the LoRAs that its file names.

use std::path::{Path, PathBuf};

use super::embedded;
use super::images::Provenance;
use super::request::{LoraChoice, Request, Settings};
use crate::error::{Error, Kind, Result};
use crate::library;
use crate::library::places::{ModelPlaces, Role};
use crate::library::synthetic::Synthetic;

/// What [`Options::model`](super::request::Options::model) takes for the model that made an image.
///
/// # Errors
/// [`Kind::Missing`] if the model is not on this machine, or the image file does not name it.
pub fn recorded_model(found: &Provenance, places: &ModelPlaces) -> Result<String> {
    let name = found.settings.model.trim();
    // Other programs have other hashes.
    let hash = if found.is_own() { found.settings.model_hash.as_str() } else { "" };
    if name.is_empty() {
        return Err(Error::missing("the image file does not name its model")
            .try_("{model} with the model to draw with"));
    }
    if is_embedded(name, hash) {
        return Ok("embedded".into());
    }
    if let Some(synthetic) = Synthetic::of_label(name).filter(|s| s.path().is_file()) {
        return Ok(synthetic.model());
    }
    let path = places.recorded_model(name, hash)?;
    Ok(path.to_string_lossy().into_owned())
}

/// Whether the model inside the program is recorded: by its name, and by its hash if there is one.
fn is_embedded(name: &str, hash: &str) -> bool {
    let Ok(bytes) = embedded::model() else { return false };
    let has_hash =
        || library::open_bytes(bytes, embedded::EMBEDDED).is_ok_and(|model| model.hash == hash);
    name == embedded::EMBEDDED && (hash.is_empty() || has_hash())
}

/// Looks up the LoRAs of `request` that come from `recorded`, and replaces the paths of those that
/// were moved. They may be in `beside`, the folder of the image.
///
/// # Errors
/// [`Kind::Missing`] for a LoRA that is not on this machine, or is another file of this name.
pub fn find_recorded_loras(
    request: &mut Request,
    recorded: &Settings,
    places: &ModelPlaces,
    beside: &Path,
) -> Result<()> {
    let hashes: Vec<(&LoraChoice, &str)> = recorded
        .all_loras()
        .enumerate()
        .map(|(i, lora)| (lora, recorded.lora_hashes.get(i).map_or("", String::as_str)))
        .collect();
    let hash_of =
        |lora: &LoraChoice| hashes.iter().find(|(known, _)| *known == lora).map(|(_, hash)| *hash);
    for lora in request.prompt.loras() {
        let Some(hash) = hash_of(lora) else { continue };
        let found = places.named(&lora.name, Role::Lora);
        let before = found.clone().ok();
        let path = places
            .recorded_add_on(Role::Lora, &lora.name, found, hash, beside)
            .map_err(|e| explained(e, lora))?;
        if before.is_none_or(|before| before != path) {
            return Err(Error::missing("the LoRA that made the image has another name now")
                .at_message(lora.place())
                .found(path.display())
                .try_("{prompt} with the new name in its tag"));
        }
    }
    for lora in &mut request.loras {
        let Some(hash) = hash_of(lora) else { continue };
        let own = match lora.tag {
            true => places.named(&lora.name, Role::Lora),
            false => places.resolve(&lora.name, Role::Lora),
        };
        let before = own.clone().ok();
        let found = own.or_else(|e| named_in_other_folders(&lora.name, e, places, Role::Lora));
        let path = places
            .recorded_add_on(Role::Lora, &lora.name, found, hash, beside)
            .map_err(|e| explained(e, lora))?;
        if before.is_none_or(|before| before != path) {
            *lora = LoraChoice { name: path.to_string_lossy().into(), tag: false, ..lora.clone() };
        }
    }
    Ok(())
}

/// The same for the ControlNets of `request` that `recorded` has at the same place.
///
/// # Errors
/// [`Kind::Missing`] for a ControlNet that is not on this machine, or is another file of this name.
pub fn find_recorded_controlnets(
    request: &mut Request,
    recorded: &Settings,
    places: &ModelPlaces,
    beside: &Path,
) -> Result<()> {
    let hashes = recorded.controlnet_hashes.iter().map(String::as_str).chain(std::iter::repeat(""));
    let recorded = recorded.controlnets.iter().zip(hashes);
    for (choice, (known, hash)) in request.controlnets.iter_mut().zip(recorded) {
        if choice.name != known.name {
            continue;
        }
        let role = Role::ControlNet;
        let own = places.resolve(&choice.name, role);
        let before = own.clone().ok();
        let found = own.or_else(|e| named_in_other_folders(&choice.name, e, places, role));
        let path = places
            .recorded_add_on(role, &choice.name, found, hash, beside)
            .map_err(|e| e.at_message(choice.place()))?;
        if before.is_none_or(|before| before != path) {
            choice.name = path.to_string_lossy().into();
        }
    }
    Ok(())
}

/// A file that was not found by its path, by its file name alone: another program may keep it in
/// other folders, and files are moved.
fn named_in_other_folders(
    name: &str,
    error: Error,
    places: &ModelPlaces,
    role: Role,
) -> Result<PathBuf> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    match error.kind() {
        Kind::Missing if last != name => places.named(last, role).map_err(|_| error),
        _ => Err(error),
    }
}

fn explained(e: Error, lora: &LoraChoice) -> Error {
    let e = e.at_message(lora.place());
    match e.hint() {
        Some(_) => e,
        None => e.try_("{lora} with its file, or with another one"),
    }
}

/// The work of `settings` in multiples of a model's usual work, where `usual` are the settings of
/// the model's defaults.
pub fn work(settings: &Settings, usual: &Settings) -> f64 {
    let of = |s: &Settings| {
        let passes = if s.cfg_scale == 1.0 { 1.0 } else { 2.0 };
        passes * (s.images() * s.steps) as f64 * (s.width * s.height) as f64
    };
    of(settings) / of(usual).max(1.0)
}
