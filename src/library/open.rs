//! From a path to a checkpoint: the components of the file or folder, those that were given, and
//! those that were found around it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Around, Checkpoint, list_passed_over};
use super::file_names::{FileName, foreign_format, is_pickle, model_name};
use super::find::{self, Wanted};
use super::networks;
use super::opened::{OpenedUnit, titles};
use super::places::ModelPlaces;
use super::similar::no_such_path;
use super::unit::{Unit, unit_of, units};
use crate::error::{Error, Kind, Result};
use crate::spec::{Component, FAMILIES, Families};
use crate::tensor::ByteSource;
use crate::weights::ComponentWeights;
use crate::weights::container::file::{WeightFile, read_header};
use crate::weights::dialect::storage;

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
    let Main { opened, folder, note } = main_unit(path, families, true)?;
    let mut checkpoint = with_given(&opened, name_of(path), files, families)?;
    checkpoint.found.extend(note);
    let around = Around { folder: folder.clone(), places: places.cloned(), families };
    checkpoint.search(&around, |component| !component.role.is_optional())?;
    checkpoint.around = Some(around);
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
        let known: Vec<&str> = family.components.iter().filter_map(|c| c.option).collect();
        return Err(Error::argument(format!("{} has no such component", family.title))
            .at_parameter(option)
            .expected(known.join(", "))
            .try_("leave it out: this model does not read it"));
    }
    for &component in family.components {
        let given = component.option.and_then(|option| files.components.get(option));
        let Some(given) = given else { continue };
        let (opened, preference) = given_unit(given, component, families)?;
        if !opened.has(component) {
            return Err(opened.is_not(&[component]));
        }
        checkpoint.add(&opened, &[component])?;
        let preference = preference.map_or(String::new(), |p| format!(", {p}"));
        checkpoint.found.push(format!("{component}: {} (given{preference})", given.display()));
    }
    checkpoint.add(main, family.components)?;
    Ok(checkpoint)
}

impl Checkpoint {
    /// Looks for an optional component, unless it was given. What was found is added to
    /// [`Checkpoint::found`]; whether it is needed is up to the caller.
    pub fn find_optional(&mut self, component: Component) -> Result<()> {
        match self.around.clone() {
            Some(around) => self.search(&around, |c| c == component),
            None => Ok(()),
        }
    }

    /// Looks for the components that are absent and `wanted`: around the folder, then in the
    /// places.
    fn search(&mut self, around: &Around, wanted: impl Fn(Component) -> bool) -> Result<()> {
        let Around { folder, places, families } = around;
        let (places, families) = (places.as_ref(), *families);
        // A search through all places takes time, and most models have their components next to
        // them.
        let entries = OnceCell::new();
        for &component in self.family.components {
            if self.get(component).is_some() || !wanted(component) {
                continue;
            }
            let wanted = Wanted { component, families, size: self.required_size(component) };
            let found = find::search(folder, &wanted).or_else(|mut searched| {
                let Some(places) = places else { return Err(searched) };
                let entries = entries.get_or_init(|| places.entries());
                places.component(entries, &wanted).map_err(|mut passed_over| {
                    let mut folders = places.component_folders(component);
                    folders.retain(|f| !searched.folders.contains(f));
                    searched.folders.append(&mut folders);
                    searched.passed_over.append(&mut passed_over);
                    searched
                })
            });
            match found {
                Ok((taken, words)) => {
                    self.found.push(format!("{component}: {}", taken.describe(&words)));
                    self.add(&taken.opened, &[component])?;
                }
                Err(searched) => {
                    self.searched.insert(component, searched);
                }
            }
        }
        if let (Some(places), Some(_)) = (places, entries.get()) {
            self.found.extend(places.notes().iter().cloned());
        }
        Ok(())
    }
}

/// Opens the file or folder at `path` alone, whichever components or add-ons it has; nothing around
/// it is searched. In a diffusers folder that is the transformer.
pub fn open_only(path: &Path) -> Result<Checkpoint> {
    let families = FAMILIES;
    let Main { opened: main, folder, note } = main_unit(path, families, false)?;
    let first = main.found.first().and_then(|f| families.of(f.component));
    let Some(family) = main.family().or(first) else {
        return Err(main.is_not(&families.transformers().collect::<Vec<_>>()));
    };
    let mut checkpoint = Checkpoint::empty(name_of(path), family);
    checkpoint.found.extend(note);
    checkpoint.add(&main, &[family.components, family.add_ons].concat())?;
    if folder.join("model_index.json").is_file() {
        checkpoint.add_folder(&folder)?;
    }
    checkpoint.set_hash();
    Ok(checkpoint)
}

/// Opens the file or folder at `path` for `component` alone, such as a ControlNet.
///
/// # Errors
/// [`Kind::Missing`] if it does not exist, [`Kind::Model`] if it is not that component.
pub fn open_component(
    path: &Path,
    component: Component,
    families: Families,
) -> Result<ComponentWeights> {
    let (opened, _) = given_unit(path, component, families)?;
    if !opened.has(component) {
        return Err(opened.is_not(&[component]));
    }
    let config = opened.component_config(component)?;
    opened.weights(component)?.with_config(config)
}

/// Opens a model in memory: one file with all components, such as the embedded model. `bytes`
/// should begin at a multiple of 8.
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

/// The files of a model, before its other components are looked for.
struct Main {
    opened: OpenedUnit,
    /// The folder around which the rest is looked for.
    folder: PathBuf,
    /// Which of several variants this is.
    note: Option<String>,
}

/// The model at `path`. In a diffusers folder it is its transformer; in another folder it is the
/// only transformer among its files. `usable` refuses a folder in which there is only one that
/// cannot be drawn with.
fn main_unit(path: &Path, families: Families, usable: bool) -> Result<Main> {
    if !path.exists() {
        return Err(no_such_path(path));
    }
    if path.is_dir() {
        let (opened, preference) = transformer_in(path, families, usable)?;
        let note = preference.map(|p| format!("model: {} ({p})", path.display()));
        return Ok(Main { opened, folder: path.into(), note });
    }
    let opened = OpenedUnit::unit(unit_of(path)?, families)?;
    Ok(Main { opened, folder: parent(path), note: None })
}

/// The transformer in a folder, and which of several variants was taken.
fn transformer_in(
    folder: &Path,
    families: Families,
    usable: bool,
) -> Result<(OpenedUnit, Option<String>)> {
    let mut passed_over = Vec::new();
    if folder.join("model_index.json").is_file() {
        let mut searched = Vec::new();
        for transformer in families.transformers() {
            let inside = folder.join(transformer.diffusers.folder);
            let choice = find::choose(units(&inside), &Wanted::any(transformer, families));
            if let Some(taken) = choice.taken {
                let preference = taken.preference();
                return Ok((taken.opened, preference));
            }
            // Families whose folders have one name pass over the same files.
            if !searched.contains(&inside) {
                passed_over.extend(choice.passed_over);
                passed_over.extend(unusable_files(&inside));
                searched.push(inside);
            }
        }
    }
    let mut transformers = Vec::new();
    let mut there = units(folder);
    passed_over.append(&mut there.broken);
    let mut others_meant = !passed_over.is_empty();
    for unit in there.units {
        match unit.contents(families) {
            Ok(contents) if families.transformers().any(|t| contents.has(t)) => {
                transformers.push(unit)
            }
            Ok(contents) => {
                others_meant |= contents.found.is_empty();
                passed_over.push(no_transformer(unit, families));
            }
            Err(e) => {
                others_meant = true;
                passed_over.push(e);
            }
        }
    }
    // One that cannot be used does not hide another. If it is alone, its use gives the reason.
    let mut rejected = Vec::new();
    if transformers.len() > 1 || (usable && others_meant) {
        transformers.retain(|unit| judge(unit, families).map_err(|e| rejected.push(e)).is_ok());
    }
    // Variants of one model, as diffusers writes them, are one transformer.
    transformers.sort_by_key(|u| FileName::parse(&u.file_name()).variant_rank());
    let variants = transformers.first().map_or(vec![], |t| find::variants(t, &transformers));
    if !transformers.is_empty() && variants.len() + 1 == transformers.len() {
        let unit = transformers.remove(0);
        let mut preference = unit.file_name();
        if !variants.is_empty() {
            preference += &format!(" rather than {}", variants.join(", "));
        }
        preference += &list_passed_over(&rejected);
        let preference = (preference != unit.file_name()).then_some(preference);
        return Ok((OpenedUnit::unit(unit, families)?, preference));
    }
    if !transformers.is_empty() {
        let names: Vec<String> = transformers.iter().map(|u| u.file_name()).collect();
        return Err(Error::model(format!("{} transformers in this folder", names.len()))
            .at_path(folder)
            .found(names.join(", "))
            .try_("give the path of one of them"));
    }
    passed_over.splice(0..0, rejected);
    passed_over.extend(unusable_files(folder));
    Err(no_transformer_in(folder, passed_over, families))
}

/// Checks the transformer in `unit` as the opening of a model does.
fn judge(unit: &Unit, families: Families) -> Result<()> {
    let check = || {
        let opened = OpenedUnit::unit(unit.clone(), families)?;
        let Some(family) = opened.family() else { return Ok(()) };
        let component = family.transformer();
        let config = opened.component_config(component)?;
        let weights = opened.weights(component)?.with_config(config)?;
        networks::check_transformer(&weights)
    };
    check().map_err(|e| find::at_unit(e, unit))
}

/// Why the files of `unit` are not a transformer.
fn no_transformer(unit: Unit, families: Families) -> Error {
    let transformers: Vec<Component> = families.transformers().collect();
    OpenedUnit::unit(unit, families).map_or_else(|e| e, |opened| opened.is_not(&transformers))
}

/// The error for a folder without a transformer that can be used: why each of its files was passed
/// over.
fn no_transformer_in(folder: &Path, mut passed_over: Vec<Error>, families: Families) -> Error {
    if passed_over.len() == 1 {
        return passed_over.remove(0);
    }
    let titles = titles(&families.transformers().collect::<Vec<_>>());
    if passed_over.is_empty() {
        return Error::model(format!("no {titles} in this folder")).at_path(folder).expected(
            "a model_index.json with a transformer folder, or a .safetensors or .gguf file of a \
             transformer",
        );
    }
    // An incomplete file is probably the one that the user wants: its error comes first, and its
    // kind becomes the kind of the whole error.
    passed_over.sort_by_key(|e| e.kind() != Kind::Missing);
    let is_missing = passed_over[0].kind() == Kind::Missing;
    let listed = list_passed_over(&passed_over);
    let what = format!("no {titles} in this folder that can be used{listed}");
    let (kind, hint) = if is_missing {
        (Kind::Missing, "download the folder again; the files that are complete are kept")
    } else {
        (Kind::Model, "a folder or file of FLUX.1 or FLUX.2 [klein] as .safetensors or .gguf")
    };
    Error::new(kind, what).at_path(folder).try_(hint)
}

/// Files in `folder` that may be meant as weights and are in formats that cannot be read, each as
/// the error of opening it.
fn unusable_files(folder: &Path) -> Vec<Error> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    let error = |path: PathBuf| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        if let Some(format) = foreign_format(&name) {
            let e = storage::unsupported(format);
            return Some(e.at_path(&path));
        }
        let read = path.is_file() && is_pickle(&name);
        read.then(|| match read_header(&path) {
            Err(e) => e,
            Ok(_) => Error::model("the extension of this file is not one of weight files")
                .at_path(&path)
                .try_("rename it: its content is a .safetensors or .gguf file"),
        })
    };
    paths.into_iter().filter_map(error).collect()
}

/// The files that the user gave for `component`, by a file or a folder that contains one, and which
/// of several variants was taken.
fn given_unit(
    path: &Path,
    component: Component,
    families: Families,
) -> Result<(OpenedUnit, Option<String>)> {
    let option = component.option.unwrap_or(component.name);
    if !path.exists() {
        return Err(no_such_path(path).at_parameter(option));
    }
    if !path.is_dir() {
        let unit = unit_of(path).map_err(|e| e.at_parameter(option))?;
        return Ok((OpenedUnit::unit(unit, families)?, None));
    }
    let wanted = Wanted::any(component, families);
    let mut choice = find::choose(units(path), &wanted);
    if choice.taken.is_none() {
        // A folder of diffusers has a folder for each component.
        let inside = find::choose(units(&path.join(component.diffusers.folder)), &wanted);
        choice.taken = inside.taken;
        choice.passed_over.extend(inside.passed_over);
    }
    if let Some(taken) = choice.taken {
        let preference = taken.preference();
        return Ok((taken.opened, preference));
    }
    if !choice.passed_over.is_empty() {
        return Err(choice.passed_over.remove(0).at_parameter(option));
    }
    Err(Error::missing(format!("no {} in this folder", component.title))
        .at_path(path)
        .at_parameter(option))
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
