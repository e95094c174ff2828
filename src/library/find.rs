//! Where component files are: in the usual folders around a transformer file.
//!
//! Only headers are read, and only of files in these folders. Files are recognised by their tensor
//! names; their file names only decide which of several is taken.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::file_names::{FileName, is_gguf};
use super::unit::{Contents, Unit, units};
use crate::spec::{Component, Families};
use crate::weights::dialect::recognise::foreign_storage;

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

    /// Whether `contents` holds this component, of the right size, in a form that can be read.
    fn fits(&self, contents: &Contents) -> bool {
        let component = self.component;
        let is_foreign = contents.tensor_names().any(|name| foreign_storage(name).is_some());
        if !contents.has(component) || is_foreign {
            return false;
        }
        let size = component.0.fit.as_ref().and_then(|fit| {
            let (name, axis) = fit.own;
            contents.shape(component, name)?.get(axis).copied()
        });
        let has_size = self.size.zip(size).is_none_or(|(wanted, size)| wanted == size);
        has_size && component.excludes.iter().all(|name| contents.shape(component, name).is_none())
    }
}

/// Chooses from `units` the one to take the component from, and reads its headers.
///
/// Names that look like the component come first, then the smaller file (an 8-bit T5 serves as well
/// as a larger one), then the order of the paths. GGUF files come last, the largest of them first:
/// people keep many, down to two bits, and the smaller the worse. Files that cannot be read, or do
/// not fit, are skipped.
pub fn choose(mut units: Vec<Unit>, wanted: &Wanted) -> Option<(Unit, Contents)> {
    units.sort_by_cached_key(|u| {
        let name = u.file_name();
        let size = if is_gguf(&name) { u64::MAX - u.bytes } else { u.bytes };
        (name_rank(wanted.component, &name), is_gguf(&name), size, u.paths[0].clone())
    });
    units.into_iter().take(MAX_HEADERS).find_map(|unit| {
        let contents = unit.contents(wanted.families).ok().filter(|c| wanted.fits(c))?;
        Some((unit, contents))
    })
}

/// How much a file's name looks like the component; 0 is best.
fn name_rank(component: Component, name: &str) -> usize {
    let name = name.to_lowercase();
    let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
    // In a diffusers folder there may be a half-precision variant next to the plain file.
    let is_variant = matches!(FileName::parse(&name).variant.as_str(), "fp16" | "bf16");
    2 * component.files.rank(stem) + usize::from(is_variant)
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

/// Looks for a component around a transformer in `folder`. Returns the unit, its contents, and
/// words for where it was found; `Err` lists the folders that were searched.
pub fn search(
    folder: &Path,
    wanted: &Wanted,
) -> std::result::Result<(Unit, Contents, String), Vec<PathBuf>> {
    let around = folders_around(folder, wanted);
    for (path, words) in &around {
        let units = units(path).unwrap_or_default();
        if let Some((unit, contents)) = choose(units, wanted) {
            return Ok((unit, contents, words.clone()));
        }
    }
    Err(around.into_iter().map(|(path, _)| path).collect())
}
