//! From the user's names to files: paths, synthetic models, and names that are looked up in the
//! places where models are kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::places::{ModelPlaces, Role};
use super::synthetic::Synthetic;
use super::{Checkpoint, Files};
use crate::error::{Error, Result};
use crate::event::Event;

/// Which weights to use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelFiles {
    /// A file, a folder, a name or an id that [`ModelPlaces`] finds, `embedded`, or
    /// `synthetic:...`. `None` means the embedded model.
    pub model: Option<String>,
    /// Component files or their names, by the option that gives them (`vae`), where the model file
    /// does not contain them and they are not searched for.
    pub components: BTreeMap<String, PathBuf>,
    /// Only plans are made: a synthetic model is opened as shapes and its file is not written.
    pub plan_only: bool,
}

/// Where a model comes from.
pub enum ModelSource {
    /// The model inside the binary.
    Embedded,
    /// A synthetic model, in these files once it is written.
    Synthetic(Synthetic, Files),
    /// A synthetic model as shapes only, with the component files that were given.
    Shapes(Synthetic, Files),
    /// Files that exist.
    Files(Files),
}

/// Resolves the names in `files`, and reports the file found for each. Nothing is opened yet, so
/// that a misspelt name is an error at once.
pub fn find(
    files: &ModelFiles,
    places: &ModelPlaces,
    tell: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<ModelSource> {
    let model = match files.model.as_deref() {
        None | Some("embedded") => {
            if let Some((option, path)) = files.components.iter().next() {
                return Err(Error::argument(
                    "the embedded model cannot be combined with other components",
                )
                .at_parameter(option)
                .found(path.display())
                .try_("{model} with the transformer that they belong to"));
            }
            return Ok(ModelSource::Embedded);
        }
        Some(model) => model,
    };
    let synthetic = model.strip_prefix("synthetic:").map(Synthetic::parse).transpose()?;
    let path = match &synthetic {
        Some(synthetic) => synthetic.path(),
        None => one(Path::new(model), Role::Model, "model", places, tell)?,
    };
    let mut components = BTreeMap::new();
    for (option, name) in &files.components {
        let at = |e: Error| e.at_parameter(option);
        let Some(component) = places.families.option(option) else {
            return Err(at(Error::argument("no model has a component of this name")));
        };
        let path = one(name, Role::of(component), option, places, tell).map_err(at)?;
        components.insert(option.clone(), path);
    }
    let plan_only = files.plan_only;
    let files = Files { model: path, components };
    Ok(match synthetic {
        Some(synthetic) if plan_only => ModelSource::Shapes(synthetic, files),
        Some(synthetic) => ModelSource::Synthetic(synthetic, files),
        None => ModelSource::Files(files),
    })
}

/// The file or folder that a name stands for.
fn one(
    name: &Path,
    role: Role,
    what: &str,
    places: &ModelPlaces,
    tell: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<PathBuf> {
    // A name that is not text can only be a path.
    let Some(text) = name.to_str() else { return Ok(name.into()) };
    let path = places.resolve(text, role).map_err(|e| match places.notes() {
        [] => e,
        // The reason may be a folder that could not be read.
        notes => e.found(notes.join("; ")),
    })?;
    if path == name {
        // Shown as it was typed, unless relative paths start in another folder than the process's.
        return Ok(if path.exists() { path } else { places.here().join(path) });
    }
    let place =
        places.place_of(&path).map_or(String::new(), |words| format!(" (found in {words})"));
    tell(Event::note(format!("{what}: {}{place}", path.display())))?;
    Ok(path)
}

/// Opens the model, with the components next to it and in `places`. The file of a synthetic model
/// is written first. `None` stands for the embedded model.
pub fn open(
    found: ModelSource,
    places: &ModelPlaces,
    tell: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<Option<Checkpoint>> {
    let files = match found {
        ModelSource::Embedded => return Ok(None),
        ModelSource::Synthetic(synthetic, files) => {
            synthetic.make(&files.model, tell)?;
            files
        }
        ModelSource::Shapes(synthetic, files) => {
            let shapes = synthetic.shapes()?;
            return super::open_shapes(shapes, &files, places.families).map(Some);
        }
        ModelSource::Files(files) => files,
    };
    super::open_among(&files, Some(places), places.families).map(Some)
}
