//! From what the user named to files: paths, synthetic models, and names that are looked up where models lie.

use std::path::{Path, PathBuf};

use super::places::{Places, Role};
use super::synthetic::Synthetic;
use super::{Checkpoint, Files};
use crate::error::{Error, Result};
use crate::event::Event;

/// Which weights to use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelFiles {
    /// A file, a folder, a name or an id that `Places` knows, `embedded`, or `synthetic:...`; `None` means the embedded model.
    pub model: Option<String>,
    /// Component files or their names, where the model file does not hold them and they are not to be looked for.
    pub clip: Option<PathBuf>,
    pub t5: Option<PathBuf>,
    pub vae: Option<PathBuf>,
}

/// What is to be opened.
pub enum Found {
    /// The model inside the binary.
    Embedded,
    Synthetic(Synthetic, Files),
    Files(Files),
}

/// Finds what `files` name, and says aloud what a name was found to mean. Nothing is opened yet, so that a slip of the pen is told at once.
pub fn find(
    files: &ModelFiles,
    places: &Places,
    tell: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<Found> {
    let parts = [("clip", &files.clip), ("t5", &files.t5), ("vae", &files.vae)];
    let model = match files.model.as_deref() {
        None | Some("embedded") => {
            if let Some((flag, path)) = parts.iter().find_map(|(f, p)| Some((f, p.as_ref()?))) {
                return Err(Error::argument("the embedded model takes no other components")
                    .at(format!("--{flag}"))
                    .found(path.display())
                    .try_("--model with the transformer that they belong to"));
            }
            return Ok(Found::Embedded);
        }
        Some(model) => model,
    };
    let synthetic = model.strip_prefix("synthetic:").map(Synthetic::parse).transpose()?;
    let path = match &synthetic {
        Some(synthetic) => synthetic.path(),
        None => one(Path::new(model), Role::Model, "model", places, tell)?,
    };
    let mut part = |flag, path: &Option<PathBuf>, role| {
        path.as_ref()
            .map(|path| one(path, role, flag, places, tell).map_err(|e| e.at(format!("--{flag}"))))
            .transpose()
    };
    let (clip, t5) = (part("clip", &files.clip, Role::Text)?, part("t5", &files.t5, Role::Text)?);
    let files = Files { model: path, clip, t5, vae: part("vae", &files.vae, Role::Vae)? };
    Ok(match synthetic {
        Some(synthetic) => Found::Synthetic(synthetic, files),
        None => Found::Files(files),
    })
}

/// The file or folder that one name means.
fn one(
    name: &Path,
    role: Role,
    what: &str,
    places: &Places,
    tell: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<PathBuf> {
    // What is no text can only be a path.
    let Some(text) = name.to_str() else { return Ok(name.into()) };
    let path = places.resolve(text, role).map_err(|e| match places.notes.as_slice() {
        [] => e,
        // The list of folders that could not be read may be why.
        notes => e.found(notes.join("; ")),
    })?;
    if path == name {
        // Shown as it was typed, unless the places are seen from another folder than the process's.
        return Ok(if path.exists() { path } else { places.here().join(path) });
    }
    let place =
        places.words_of(&path).map_or(String::new(), |words| format!(" (found in {words})"));
    tell(Event::Note(format!("{what}: {}{place}", path.display())))?;
    Ok(path)
}

/// Opens what was found, with the components beside it and in `places`. A synthetic model is made first.
pub fn open(
    found: Found,
    places: &Places,
    tell: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<Option<Checkpoint>> {
    let files = match found {
        Found::Embedded => return Ok(None),
        Found::Synthetic(synthetic, files) => {
            synthetic.make(&files.model, tell)?;
            files
        }
        Found::Files(files) => files,
    };
    super::open_among(&files, Some(places)).map(Some)
}
