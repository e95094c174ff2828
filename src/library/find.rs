//! Where component files are: in the usual folders around a transformer file.
//!
//! Only headers are read, and only of files in these folders. Files are recognised by their tensor
//! names; their file names only decide which of several is taken. Whether a file fits is decided by
//! the reader of its format: the shape in a header may be that of packed bytes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::config::folder_config;
use super::file_names::{FileName, is_gguf};
use super::opened::OpenedUnit;
use super::unit::{Contents, FolderUnits, Unit, units};
use crate::error::{Error, Result};
use crate::spec::{Component, Families, Role};

/// At most this many headers are read in one folder.
const MAX_HEADERS: usize = 64;

/// A component to look for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The component.
    pub component: Component,
    /// The families among which files are recognised.
    pub families: Families,
    /// The size that its transformer requires of it (see [`Fit`](crate::spec::Fit)); `None` if any
    /// size is accepted.
    pub size: Option<usize>,
}

impl Wanted {
    /// `component` of any size.
    pub fn any(component: Component, families: Families) -> Self {
        Wanted { component, families, size: None }
    }

    /// Whether a unit without the component may have been meant as it: nothing in it is known, and
    /// it is in a folder of transformers or is named like the component.
    fn may_mean(&self, unit: &Unit, contents: &Contents) -> bool {
        let is_transformer = self.component.role == Role::Transformer;
        let name = unit.file_name();
        contents.found.is_empty() && (is_transformer || self.component.files.is_known(&name))
    }

    /// Why `unit` is not the component.
    fn is_not(&self, unit: &Unit) -> Error {
        let opened = OpenedUnit::unit(unit.clone(), self.families);
        opened.map_or_else(|e| e, |opened| opened.is_not(&[self.component]))
    }

    /// Opens `unit` with the reader of its format. The inner error says that it does not fit.
    ///
    /// # Errors
    /// If it cannot be read.
    fn open(&self, unit: &Unit) -> Result<Result<OpenedUnit>> {
        let component = self.component;
        let title = component.title;
        let config = folder_config(unit.folder(), component)?;
        let opened = OpenedUnit::unit(unit.clone(), self.families)?;
        let weights = opened.weights(component)?.with_config(config)?;
        let size = component.0.fit.as_ref().and_then(|fit| {
            let (name, axis) = fit.own;
            weights.full_shape(name)?.get(axis).copied()
        });
        Ok(match self.size.zip(size) {
            Some((wanted, size)) if wanted != size => {
                Err(Error::model(format!("{title} for another transformer"))
                    .found(format!("width {size}"))
                    .expected(format!("width {wanted}")))
            }
            _ => Ok(opened),
        })
    }
}

/// What [`choose`] found in a folder.
#[derive(Default)]
pub struct Choice {
    /// The files to take the component from.
    pub taken: Option<Taken>,
    /// Why other files were passed over that may have been meant, each with its path.
    pub passed_over: Vec<Error>,
    /// One of these is a file of the component that is damaged or of another kind, not only one
    /// for another transformer.
    pub damaged: bool,
}

/// The files that a component is taken from.
pub struct Taken {
    /// The files, open.
    pub opened: OpenedUnit,
    /// The content of their headers.
    pub contents: Contents,
    /// The first of these files.
    first: String,
    /// Variants of the same model that were not taken, by their first files.
    variants: Vec<String>,
}

impl Taken {
    /// Where it is, and `words` for how it was found, for a message such as
    /// `/models/t5 (found in /models, model.safetensors rather than model.fp16.safetensors)`.
    pub fn describe(&self, words: &str) -> String {
        let place = self.opened.unit.as_ref().map_or(Path::new(""), Unit::place).display();
        match self.preference() {
            None => format!("{place} ({words})"),
            Some(preference) => format!("{place} ({words}, {preference})"),
        }
    }

    /// Which of several variants was taken, if there are several:
    /// `model.safetensors rather than model.fp16.safetensors`.
    pub fn preference(&self) -> Option<String> {
        let others = self.variants.join(", ");
        (!others.is_empty()).then(|| format!("{} rather than {others}", self.first))
    }
}

/// Chooses the files to take the component from, and opens them.
///
/// Names that look like the component come first, the plain file before its variants, then the
/// smaller file (an 8-bit T5 serves as well as a larger one), then the order of the paths. GGUF
/// files come last, the largest of them first: people keep many, down to two bits, and the smaller
/// the worse. Files that cannot be read, or do not fit, are passed over.
pub fn choose(folder: FolderUnits, wanted: &Wanted) -> Choice {
    let FolderUnits { mut units, broken } = folder;
    let mut choice = Choice { taken: None, passed_over: broken, damaged: false };
    units.sort_by_cached_key(|u| {
        let name = FileName::parse(&u.file_name().to_lowercase());
        let is_gguf = is_gguf(&u.file_name());
        let size = if is_gguf { u64::MAX - u.bytes } else { u.bytes };
        let rank = wanted.component.files.rank(&name.stem);
        (rank, is_gguf, name.variant_rank(), size, u.paths[0].clone())
    });
    for unit in units.iter().take(MAX_HEADERS) {
        let contents = match unit.contents(wanted.families) {
            Ok(contents) if contents.has(wanted.component) => contents,
            Ok(contents) => {
                if wanted.may_mean(unit, &contents) {
                    choice.passed_over.push(wanted.is_not(unit));
                }
                continue;
            }
            Err(e) => {
                choice.passed_over.push(e);
                continue;
            }
        };
        match wanted.open(unit) {
            Ok(Ok(opened)) => {
                let (first, variants) = (unit.file_name(), variants(unit, &units));
                choice.taken = Some(Taken { opened, contents, first, variants });
                break;
            }
            Ok(Err(misfit)) => choice.passed_over.push(at_unit(misfit, unit)),
            Err(e) => {
                choice.damaged = true;
                choice.passed_over.push(at_unit(e, unit));
            }
        }
    }
    choice
}

/// `e` with the path of `unit`, if it does not have it yet.
pub(super) fn at_unit(e: Error, unit: &Unit) -> Error {
    let place = unit.place().display().to_string();
    let has_place = e.place().is_some_and(|p| p.starts_with(&place));
    if has_place { e } else { e.at(place) }
}

/// The file names of those `units` that are other variants (fp16, bf16, ...) of the same model as
/// `unit`; of a sharded one, the first shard.
pub fn variants(unit: &Unit, units: &[Unit]) -> Vec<String> {
    let of = |u: &Unit| FileName::parse(&u.file_name());
    let own = of(unit);
    let is_variant = |u: &&Unit| {
        let other = of(u);
        other.stem == own.stem && other.variant != own.variant && other.ending == own.ending
    };
    units.iter().filter(is_variant).map(Unit::file_name).collect()
}

/// Folders of transformers, in lower case. The other components are in folders next to them
/// (ComfyUI, A1111 and Forge, diffusers).
const MODEL_FOLDERS: [&str; 4] = ["checkpoints", "unet", "diffusion_models", "stable-diffusion"];

/// The folders in which the component is looked for when the transformer is in `folder`, each with
/// the words that a message describes it by.
pub fn folders_around(folder: &Path, wanted: &Wanted) -> Vec<(PathBuf, String)> {
    let mut around = vec![(folder.to_path_buf(), "next to the model".to_string())];
    let mut below = |root: &Path| {
        around.extend(
            wanted
                .component
                .files
                .folders
                .iter()
                .map(|f| (root.join(f), format!("in {}", root.join(f).display()))),
        );
    };
    below(folder);
    // People sort their models into subfolders, at most two levels deep.
    for ancestor in folder.ancestors().take(3) {
        let name = ancestor.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_models = MODEL_FOLDERS.contains(&name.as_str())
            || wanted.families.transformers().any(|t| t.diffusers.folder == name);
        if let (true, Some(root)) = (is_models, ancestor.parent()) {
            below(root);
            break;
        }
    }
    // `vae` and `VAE` are the same folder on some systems.
    let mut seen = HashSet::new();
    around.retain(|(path, _)| path.canonicalize().map_or(true, |real| seen.insert(real)));
    around
}

/// Where a component was looked for in vain.
#[derive(Debug, Default)]
pub struct Searched {
    /// The folders.
    pub folders: Vec<PathBuf>,
    /// The files that were passed over, as [`Choice::passed_over`].
    pub passed_over: Vec<Error>,
    /// As [`Choice::damaged`].
    pub damaged: bool,
}

/// Looks for a component around a transformer in `folder`. Returns what was taken, and words for
/// where it was found.
pub fn search(folder: &Path, wanted: &Wanted) -> std::result::Result<(Taken, String), Searched> {
    let mut searched = Searched::default();
    for (path, words) in folders_around(folder, wanted) {
        let mut choice = choose(units(&path), wanted);
        if let Some(taken) = choice.taken {
            return Ok((taken, format!("found {words}")));
        }
        searched.folders.push(path);
        searched.damaged |= choice.damaged;
        searched.passed_over.append(&mut choice.passed_over);
    }
    Err(searched)
}
