//! The files that made an image, found again by the names and hashes that the image file has.

use std::path::{Path, PathBuf};

use super::open_only;
use super::places::{Entry, ModelPlaces, Role, is_called};
use super::unit::{unit_of, units};
use crate::error::{Error, Kind, Result};
use crate::weights::container::file::{FNV_OFFSET, WeightFile};

/// Ten hex digits that recognise the file, all shards, or the folder at `path`; `None` if it is not
/// a file of weights.
pub fn file_hash(path: &Path) -> Option<String> {
    let unit = match path.is_dir() {
        true => units(path).units.into_iter().next()?,
        false => unit_of(path).ok()?,
    };
    let mut hash = FNV_OFFSET;
    for path in &unit.paths {
        hash = WeightFile::open(path).ok()?.whole_fingerprint(hash);
    }
    Some(format!("{hash:016x}")[..10].to_string())
}

impl ModelPlaces {
    /// The model called `name` whose transformer has this hash, whatever its name is now. An empty
    /// hash fits any model of the name. The name comes from an image file, so it is never taken for
    /// a path.
    ///
    /// # Errors
    /// [`Kind::Missing`] if it is not in the places, [`Kind::Argument`] if several models without a
    /// hash have the name.
    pub fn recorded_model(&self, name: &str, hash: &str) -> Result<PathBuf> {
        if hash.is_empty() {
            // Other programs may keep it in folders of their own.
            let name = &name.replace('\\', "/");
            let last = name.rsplit('/').next().unwrap_or(name);
            let found = self.named(name, Role::Model).or_else(|e| match e.kind() {
                Kind::Missing if last != name => self.named(last, Role::Model),
                _ => Err(e),
            });
            return found.map_err(|e| match e.kind() {
                // Several models have the name.
                Kind::Argument if e.found_value().is_some() => e,
                _ => model_missing(name, hash),
            });
        }
        let entries = self.entries();
        let fits = |e: &&Entry| matches!(e.role, Role::Model | Role::Any);
        let (called, others): (Vec<&Entry>, Vec<&Entry>) =
            entries.iter().filter(fits).partition(|e| is_called(&e.name, name));
        let has_hash = |e: &&&Entry| open_only(&e.path).is_ok_and(|model| model.hash == hash);
        match called.iter().chain(&others).find(has_hash) {
            Some(entry) => Ok(entry.path.clone()),
            None => {
                let e = model_missing(name, hash);
                Err(match called.first() {
                    Some(entry) => e.expected(format!(
                        "a file with this hash; {} has another",
                        entry.path.display()
                    )),
                    None => e,
                })
            }
        }
    }

    /// The file for `role` (LoRAs or ControlNets) called `name` with this hash: `found` if it is
    /// that, else a file of this name in the folder `beside`, else a file with the hash in the
    /// places. An empty hash fits any file. `name` comes from an image file, so only its last
    /// part is looked for in `beside`.
    ///
    /// # Errors
    /// [`Kind::Missing`] if there is none.
    pub fn recorded_add_on(
        &self,
        role: Role,
        name: &str,
        found: Result<PathBuf>,
        hash: &str,
        beside: &Path,
    ) -> Result<PathBuf> {
        let has_hash = |path: &Path| file_hash(path).is_some_and(|own| own == hash);
        let neighbour = || {
            let fits = |path: &PathBuf| hash.is_empty() || has_hash(path);
            neighbours(name, beside).into_iter().find(fits)
        };
        if hash.is_empty() {
            return found.or_else(|e| match e.kind() {
                Kind::Missing => neighbour().ok_or_else(|| add_on_missing(role, name, e)),
                _ => Err(e),
            });
        }
        if let Ok(path) = &found
            && has_hash(&self.here().join(path))
        {
            return found;
        }
        if let Some(path) = neighbour() {
            return Ok(path);
        }
        let entries = self.entries();
        let fits = |e: &&Entry| e.role == role || e.role == Role::Any;
        let mut fitting = entries.iter().filter(fits);
        let same = fitting.find(|e| has_hash(&e.path));
        match (same, found) {
            (Some(entry), _) => Ok(entry.path.clone()),
            (None, Err(e)) if e.kind() == Kind::Missing => Err(add_on_missing(role, name, e)),
            (None, Err(e)) => Err(e),
            (None, Ok(path)) => Err(Error::missing(not_found(role))
                .found(format!("{} with another hash", path.display()))
                .expected(format!("a file with the hash {hash}"))),
        }
    }
}

/// The files in `folder` that the last part of `name` may mean.
fn neighbours(name: &str, folder: &Path) -> Vec<PathBuf> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    if last.is_empty() || last.starts_with('.') || last.contains(['\0', ':']) {
        return vec![];
    }
    let files = ["", ".safetensors", ".gguf"].map(|ending| folder.join(format!("{last}{ending}")));
    let fits = |path: &PathBuf| path.is_file() && WeightFile::open(path).is_ok();
    files.into_iter().filter(fits).collect()
}

/// The words for an add-on that is not on this machine.
fn not_found(role: Role) -> &'static str {
    match role {
        Role::ControlNet => "the ControlNet that made the image was not found",
        _ => "the LoRA that made the image was not found",
    }
}

/// The error that the file for `role` called `name` was not found, with the places from `e`.
fn add_on_missing(role: Role, name: &str, e: Error) -> Error {
    let missing = Error::missing(not_found(role)).found(name);
    let missing = match e.expected_value() {
        Some(expected) => missing.expected(expected),
        None => missing,
    };
    missing.try_(match role {
        Role::ControlNet => "{controlnet=FILE:IMAGE} with its file, or with another one",
        _ => "{lora} with its file, or with another one",
    })
}

fn model_missing(name: &str, hash: &str) -> Error {
    let found = if hash.is_empty() { name.to_string() } else { format!("{name} ({hash})") };
    Error::missing("the model that made the image was not found")
        .found(found)
        .try_("{model} with its file, or with another model to draw with")
}
