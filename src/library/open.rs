//! From a path to a checkpoint: the components of the file or folder, those that were given, and
//! those that were found around it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::file_names::model_name;
use super::find::{self, Wanted};
use super::opened::{OpenedUnit, titles};
use super::places::ModelPlaces;
use super::similar::no_such_path;
use super::unit::{Unit, unit_of, units};
use crate::error::{Error, Result};
use crate::spec::{Component, FAMILIES, Families};
use crate::tensor::ByteSource;
use crate::weights::container::file::WeightFile;

/// What to open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// A `.safetensors` file, one of its shards or their index, or a folder.
    pub model: PathBuf,
    /// Files or folders of components, by the option that gives them (`vae`). They take precedence
    /// over those of the model.
    pub components: BTreeMap<String, PathBuf>,
}

impl Files {
    /// Only the model; everything else is looked for.
    pub fn model(path: impl Into<PathBuf>) -> Self {
        Files { model: path.into(), ..Files::default() }
    }

    /// The same with the file of one more component, by its option: `vae`.
    pub fn with(mut self, option: &str, path: impl Into<PathBuf>) -> Self {
        self.components.insert(option.into(), path.into());
        self
    }
}

/// Opens a model and the components around it. Components that cannot be found are left out;
/// [`Checkpoint::need`] says so when one is needed.
pub fn open(files: &Files) -> Result<Checkpoint> {
    open_among(files, None, FAMILIES)
}

/// The same with these families. Components that do not lie next to the model are looked for in
/// `places`, too.
pub fn open_among(
    files: &Files,
    places: Option<&ModelPlaces>,
    families: Families,
) -> Result<Checkpoint> {
    let path = files.model.as_path();
    let (main, folder) = main_unit(path, families)?;
    let mut checkpoint = with_given(&main, name_of(path), files, families)?;
    checkpoint.search(&folder, places, families)?;
    let roots = [Some(folder.as_path()), folder.parent()];
    if let Some(root) = roots.into_iter().flatten().find(|r| r.join("model_index.json").is_file()) {
        checkpoint.add_folder(root)?;
    }
    checkpoint.set_hash();
    Ok(checkpoint)
}

/// Opens a model of which there are only the shapes, with the components that `files` give.
pub(crate) fn open_shapes(
    shapes: WeightFile,
    files: &Files,
    families: Families,
) -> Result<Checkpoint> {
    let main = OpenedUnit::files(vec![Arc::new(shapes)], families);
    let mut checkpoint = with_given(&main, name_of(&files.model), files, families)?;
    checkpoint.shapes_only = true;
    checkpoint.set_hash();
    Ok(checkpoint)
}

/// The components that `files` give and, where they give none, those of `main`.
fn with_given(
    main: &OpenedUnit,
    name: String,
    files: &Files,
    families: Families,
) -> Result<Checkpoint> {
    let Some(family) = main.family() else {
        return Err(main.is_not(&families.transformers().collect::<Vec<_>>()));
    };
    let mut checkpoint = Checkpoint::empty(name, family);
    if let Some(option) = files.components.keys().find(|o| family.option(o).is_none()) {
        return Err(
            Error::argument(format!("{} has no such component", family.title)).at_parameter(option)
        );
    }
    for &component in family.components {
        let given = component.option.and_then(|option| files.components.get(option));
        let Some(given) = given else { continue };
        let opened = OpenedUnit::unit(given_unit(given, component, families)?, families)?;
        if !opened.has(component) {
            return Err(opened.is_not(&[component]));
        }
        checkpoint.add(&opened, &[component])?;
        checkpoint.found.push(format!("{component}: {} (given)", given.display()));
    }
    checkpoint.add(main, family.components)?;
    Ok(checkpoint)
}

impl Checkpoint {
    /// Looks for the components that are absent: around `folder`, then in `places`.
    fn search(
        &mut self,
        folder: &Path,
        places: Option<&ModelPlaces>,
        families: Families,
    ) -> Result<()> {
        // A search through all places takes time, and most models have their components next to
        // them.
        let entries = OnceCell::new();
        for &component in self.family.components {
            if self.get(component).is_some() {
                continue;
            }
            let wanted = Wanted { component, families, size: self.required_size(component) };
            let found = find::search(folder, &wanted).or_else(|mut searched| {
                let Some(places) = places else { return Err(searched) };
                let entries = entries.get_or_init(|| places.entries());
                let found = places.component(entries, &wanted);
                let mut folders = places.component_folders(component);
                folders.retain(|f| !searched.contains(f));
                searched.append(&mut folders);
                found.ok_or(searched)
            });
            match found {
                Ok((unit, _, place)) => {
                    self.found
                        .push(format!("{component}: {} (found {place})", unit.place().display()));
                    self.add(&OpenedUnit::unit(unit, families)?, &[component])?;
                }
                Err(searched) => {
                    self.searched.insert(component, searched);
                }
            }
        }
        if let (Some(places), Some(_)) = (places, entries.get()) {
            self.found.extend(places.notes.iter().cloned());
        }
        Ok(())
    }
}

/// Opens the file or folder at `path` alone, whichever components it has; nothing around it is
/// searched. In a diffusers folder that is the transformer.
pub fn open_only(path: &Path) -> Result<Checkpoint> {
    let families = FAMILIES;
    let (main, folder) = main_unit(path, families)?;
    let first = main.found.first().and_then(|f| families.of(f.component));
    let Some(family) = main.family().or(first) else {
        return Err(main.is_not(&families.transformers().collect::<Vec<_>>()));
    };
    let mut checkpoint = Checkpoint::empty(name_of(path), family);
    checkpoint.add(&main, family.components)?;
    if folder.join("model_index.json").is_file() {
        checkpoint.add_folder(&folder)?;
    }
    checkpoint.set_hash();
    Ok(checkpoint)
}

/// Opens a model in memory: one file with all components, such as the embedded model.
/// Best aligned to 8 bytes.
pub fn open_bytes(bytes: &'static [u8], name: &str) -> Result<Checkpoint> {
    open_source(Arc::new(bytes), name)
}

/// The same over any bytes, such as those of [`crate::weights::synth::to_bytes`].
pub fn open_source(source: Arc<dyn ByteSource>, name: &str) -> Result<Checkpoint> {
    open_source_among(source, name, FAMILIES)
}

/// The same with these families.
pub fn open_source_among(
    source: Arc<dyn ByteSource>,
    name: &str,
    families: Families,
) -> Result<Checkpoint> {
    let file = WeightFile::of(source, Path::new(name), None)?;
    let main = OpenedUnit::files(vec![Arc::new(file)], families);
    let Some(family) = main.family() else {
        return Err(main.is_not(&families.transformers().collect::<Vec<_>>()));
    };
    let mut checkpoint = Checkpoint::empty(name.into(), family);
    checkpoint.add(&main, family.components)?;
    checkpoint.set_hash();
    Ok(checkpoint)
}

/// The model at `path`, and the folder around which the rest is looked for. Of a diffusers folder
/// the model is its transformer; of another folder it is the only transformer among its files.
fn main_unit(path: &Path, families: Families) -> Result<(OpenedUnit, PathBuf)> {
    if !path.exists() {
        return Err(no_such_path(path));
    }
    let (unit, folder) = match path.is_dir() {
        true => (unit_in(path, families)?, path.into()),
        false => (unit_of(path)?, parent(path)),
    };
    Ok((OpenedUnit::unit(unit, families)?, folder))
}

/// The transformer in a folder.
fn unit_in(folder: &Path, families: Families) -> Result<Unit> {
    if folder.join("model_index.json").is_file() {
        for transformer in families.transformers() {
            let units = units(&folder.join(transformer.diffusers.folder))?;
            if let Some((unit, _)) = find::choose(units, &Wanted::any(transformer, families)) {
                return Ok(unit);
            }
        }
    }
    let mut transformers = Vec::new();
    let mut broken = None;
    for unit in units(folder)? {
        match unit.contents(families) {
            Ok(contents) if families.transformers().any(|t| contents.has(t)) => {
                transformers.push(unit)
            }
            Ok(_) => {}
            Err(e) => broken = broken.or(Some(e)),
        }
    }
    match (transformers.len(), broken) {
        (1, _) => Ok(transformers.remove(0)),
        (0, Some(e)) => Err(e),
        (0, None) => {
            let titles = titles(&families.transformers().collect::<Vec<_>>());
            Err(Error::model(format!("no {titles} in this folder")).at_path(folder).expected(
                "a model_index.json with a transformer folder, or a .safetensors or .gguf file of \
                 a transformer",
            ))
        }
        (n, _) => {
            let names: Vec<String> =
                transformers.iter().map(|u| u.place().display().to_string()).collect();
            Err(Error::model(format!("{n} transformers in this folder"))
                .at_path(folder)
                .found(names.join(", "))
                .try_("give the path of one of them"))
        }
    }
}

/// The unit that the user gave for `component`: a file, or a folder that contains one.
fn given_unit(path: &Path, component: Component, families: Families) -> Result<Unit> {
    let option = component.option.unwrap_or("model");
    if !path.exists() {
        return Err(no_such_path(path).at_parameter(option));
    }
    if !path.is_dir() {
        return unit_of(path).map_err(|e| e.at_parameter(option));
    }
    let choice = find::choose(units(path)?, &Wanted::any(component, families));
    choice.map(|(unit, _)| unit).ok_or_else(|| {
        Error::missing(format!("no {} in this folder", component.title))
            .at_path(path)
            .at_parameter(option)
    })
}

/// The folder of `path`, as an absolute path: its name shows whether it is one of ComfyUI's or
/// A1111's.
fn parent(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    path.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The name of the model at `path`.
fn name_of(path: &Path) -> String {
    let repository = path.components().find_map(|c| {
        let name = c.as_os_str().to_string_lossy().into_owned();
        name.strip_prefix("models--").and_then(|r| r.rsplit("--").next().map(str::to_string))
    });
    let real = || path.canonicalize().ok()?.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = match (repository, path.is_dir()) {
        (Some(repository), true) => return repository,
        (_, true) => path.file_name().map(|n| n.to_string_lossy().into_owned()).or_else(real),
        (_, false) => path.file_name().map(|n| model_name(&n.to_string_lossy())),
    };
    name.unwrap_or_default()
}
