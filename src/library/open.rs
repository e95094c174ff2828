//! From a path to a checkpoint: what the file or folder holds, what was given beside it, and what was found around it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::config::{folder_config, max_length, read_json};
use super::file_names::model_name;
use super::find::{self, Wanted};
use super::places::ModelPlaces;
use super::similar::no_such_path;
use super::unit::{Unit, unit_of, units};
use crate::error::{Error, Result};
use crate::spec::{Component, FAMILIES, Families, Family, Role};
use crate::tensor::ByteSource;
use crate::weights::ComponentWeights;
use crate::weights::container::file::WeightFile;
use crate::weights::dialect::recognise::{
    Recognised, foreign_model, foreign_storage, is_lora, recognise,
};
use crate::weights::dialect::storage;

/// What to open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// A `.safetensors` file, one of its shards or their index, or a folder.
    pub model: PathBuf,
    /// Files or folders of components, by the option that gives them (`vae`). They take precedence
    /// over what the model holds.
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

/// A model with the components that were found.
pub struct Checkpoint {
    /// The file's name without its ending, the folder's name, or the repository's in a Hugging Face
    /// cache.
    pub name: String,
    /// The family that its components belong to.
    pub family: &'static Family,
    /// The weights, by component.
    weights: BTreeMap<Component, ComponentWeights>,
    /// `scheduler_config.json`.
    pub scheduler: Option<Value>,
    /// This project's defaults for generation (`generation_config.json`).
    pub generation: Option<Value>,
    /// The number of tokens of a prompt, where the model says so.
    max_lengths: BTreeMap<Component, usize>,
    /// The folders of tokenizers next to the weights.
    tokenizers: BTreeMap<Component, PathBuf>,
    /// Ten hex digits that recognise the transformer's files.
    pub hash: String,
    /// Some weights have shapes only: a run can be planned, not made.
    pub shapes_only: bool,
    /// Lines for the user: `t5: /path (found beside the model)`, warnings of the map.
    pub found: Vec<String>,
    /// The places in which absent components were looked for.
    searched: BTreeMap<Component, Vec<PathBuf>>,
}

impl Checkpoint {
    /// The components that are there, in the order of their roles.
    pub fn components(&self) -> impl Iterator<Item = Component> {
        self.weights.keys().copied()
    }

    /// The weights of `component`, if they are there.
    pub fn get(&self, component: Component) -> Option<&ComponentWeights> {
        self.weights.get(&component)
    }

    /// The weights of `component`.
    ///
    /// # Errors
    /// [`crate::error::Kind::Missing`] with the option that gives it and the places where it was
    /// looked for.
    pub fn need(&self, component: Component) -> Result<&ComponentWeights> {
        self.get(component).ok_or_else(|| self.missing(component))
    }

    /// Takes the weights of `component` out; the errors are those of [`Checkpoint::need`].
    pub fn take(&mut self, component: Component) -> Result<ComponentWeights> {
        self.weights.remove(&component).ok_or_else(|| self.missing(component))
    }

    /// The number of tokens that the model gives this text encoder, where it says so.
    pub fn max_length(&self, component: Component) -> Option<usize> {
        self.max_lengths.get(&component).copied()
    }

    /// The folder of this text encoder's tokenizer, if there is one next to the weights.
    pub fn tokenizer(&self, component: Component) -> Option<&Path> {
        self.tokenizers.get(&component).map(PathBuf::as_path)
    }

    fn missing(&self, component: Component) -> Error {
        let e = Error::missing(format!("the {} is missing", component.title)).at(&self.name);
        let e = match self.searched.get(&component).map_or(&[][..], Vec::as_slice) {
            [] => e,
            places => e.expected(format!(
                "a .safetensors or .gguf file of it in {}",
                places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
            )),
        };
        match (component.option, component.source) {
            (Some(option), Some(source)) => {
                e.try_(format!("give its file with --{option}, or flux-fast pull {source}"))
            }
            (Some(option), None) => e.try_(format!("give its file with --{option}")),
            (None, _) => e,
        }
    }

    fn empty(name: String, family: &'static Family) -> Self {
        Checkpoint {
            name,
            family,
            weights: BTreeMap::new(),
            scheduler: None,
            generation: None,
            max_lengths: BTreeMap::new(),
            tokenizers: BTreeMap::new(),
            hash: String::new(),
            shapes_only: false,
            found: vec![],
            searched: BTreeMap::new(),
        }
    }

    /// Takes in the components of one opened unit that are not there yet, and what its metadata
    /// says.
    fn add(&mut self, opened: &OpenedUnit, wanted: &[Component]) -> Result<()> {
        let metadata = opened.config()?;
        for found in opened.found.iter().filter(|f| wanted.contains(&f.component)) {
            if self.get(found.component).is_some() {
                continue;
            }
            let key = found.component.diffusers.folder;
            let config = metadata.as_ref().and_then(|c| c.get(key)).cloned();
            let config = match (config, &opened.unit) {
                (None, Some(unit)) => folder_config(unit, found.component)?,
                (config, _) => config,
            };
            let weights = ComponentWeights::collect(&opened.files, found, &opened.found)?
                .with_config(config)?;
            self.weights.insert(found.component, weights);
        }
        if let Some(config) = &metadata {
            let part = |key: &str| config.get(key).filter(|v| !v.is_null()).cloned();
            self.scheduler = self.scheduler.take().or_else(|| part("scheduler"));
            self.generation = self.generation.take().or_else(|| part("generation"));
            self.add_lengths(|folder| Ok(part(folder)))?;
        }
        self.found.extend(opened.files.iter().filter_map(|f| f.note.clone()));
        Ok(())
    }

    /// Takes in the prompt lengths that are not there yet from the tokenizers' configurations.
    fn add_lengths(&mut self, config: impl Fn(&str) -> Result<Option<Value>>) -> Result<()> {
        for component in self.family.components {
            let Some(tokenizer) = component.0.tokenizer.as_ref().filter(|t| t.sets_length) else {
                continue;
            };
            if let Some(length) = config(tokenizer.folder)?.as_ref().and_then(max_length) {
                self.max_lengths.entry(*component).or_insert(length);
            }
        }
        Ok(())
    }

    /// Takes in what lies in a diffusers folder next to the weights.
    fn add_folder(&mut self, root: &Path) -> Result<()> {
        let (scheduler, generation) = (
            read_json(&root.join("scheduler/scheduler_config.json"))?,
            read_json(&root.join("generation_config.json"))?,
        );
        self.scheduler = self.scheduler.take().or(scheduler);
        self.generation = self.generation.take().or(generation);
        self.add_lengths(|folder| read_json(&root.join(folder).join("tokenizer_config.json")))?;
        for component in self.family.components {
            // The folders, since CLIP's may hold merges.txt in place of tokenizer.json.
            let folder = component.0.tokenizer.as_ref().map(|t| root.join(t.folder));
            if let Some(folder) = folder.filter(|f| f.is_dir()) {
                self.tokenizers.insert(*component, folder);
            }
        }
        Ok(())
    }

    /// The size that the transformer requires of `component`.
    fn required_size(&self, component: Component) -> Option<usize> {
        let fit = component.0.fit.as_ref()?;
        let (name, axis) = fit.transformer;
        let shape = self.get(self.family.transformer())?.full_shape(name)?;
        Some(shape.get(axis)? / fit.divisor)
    }

    fn set_hash(&mut self) {
        let transformer = self.get(self.family.transformer());
        self.hash = transformer.map(ComponentWeights::hash).unwrap_or_default();
    }
}

/// Files that were opened together, and what they hold.
struct OpenedUnit {
    families: Families,
    unit: Option<Unit>,
    files: Vec<Arc<WeightFile>>,
    found: Vec<Recognised>,
}

impl OpenedUnit {
    fn unit(unit: Unit, families: Families) -> Result<Self> {
        let files = unit
            .paths
            .iter()
            .map(|p| WeightFile::open(p).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        Ok(OpenedUnit { unit: Some(unit), ..OpenedUnit::files(files, families) })
    }

    fn files(files: Vec<Arc<WeightFile>>, families: Families) -> Self {
        let found = recognise(&names(&files), families);
        OpenedUnit { families, unit: None, files, found }
    }

    /// The metadata's `config`: an object of objects.
    fn config(&self) -> Result<Option<Value>> {
        // GGUF's keys are everybody's: ours has our name.
        let of = |f: &Arc<WeightFile>| {
            let metadata = &f.header.metadata;
            metadata.get(if f.is_gguf() { "flux_fast.config" } else { "config" }).cloned()
        };
        let file = self.files.iter().find_map(|f| Some((f, of(f)?)));
        let Some((file, text)) = file else { return Ok(None) };
        match serde_json::from_str(&text) {
            Ok(config @ Value::Object(_)) => Ok(Some(config)),
            Ok(_) => {
                Err(Error::model("metadata `config` is not a JSON object").at_path(&file.path))
            }
            Err(e) => {
                Err(Error::model(format!("metadata `config` is not JSON: {e}")).at_path(&file.path))
            }
        }
    }

    fn has(&self, component: Component) -> bool {
        self.found.iter().any(|f| f.component == component)
    }

    /// The family of its transformer, if it has one.
    fn family(&self) -> Option<&'static Family> {
        let transformer = self.found.iter().find(|f| f.component.role == Role::Transformer)?;
        self.families.of(transformer.component)
    }

    /// Why these files are none of the `wanted` components, and what to do instead.
    fn is_not(&self, wanted: &[Component]) -> Error {
        let wanted = titles(wanted);
        let names = names(&self.files);
        let e = if is_lora(&names) {
            Error::model("this is a LoRA, not a model").try_(format!(
                "--lora with it, and --model with the {} model that it was trained for",
                self.families.titles()
            ))
        } else if let Some(format) = names.iter().find_map(|n| foreign_storage(n)) {
            storage::unsupported(format)
        } else if let Some(found) = self.found.first() {
            let e = Error::model(format!("holds no {}", wanted)).found(found.component.title);
            match found.component.option {
                None => e,
                Some(option) => {
                    e.try_(format!("give it with --{option} {}", self.files[0].path.display()))
                }
            }
        } else {
            let found = foreign_model(&names).map(str::to_string);
            let found = found.unwrap_or_else(|| match names.as_slice() {
                [] => "no tensors at all".into(),
                names => format!("tensors such as {}", names[..names.len().min(3)].join(", ")),
            });
            Error::model(format!("holds no {}", wanted)).found(found)
        };
        e.at_path(self.unit.as_ref().map_or(&self.files[0].path, |u| u.place()))
    }
}

fn names(files: &[Arc<WeightFile>]) -> Vec<&str> {
    files.iter().flat_map(|f| &f.header.tensors).map(|t| t.name.as_str()).collect()
}

/// Opens a model and what belongs to it. Components that cannot be found are left out;
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
        return Err(Error::argument(format!("{} has no such component", family.title))
            .at(format!("--{option}")));
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
        // Looking through all places takes time, and most models have their components beside them.
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

/// Opens what lies at `path` itself, whichever components these are; nothing is looked for around
/// it. In a diffusers folder that is the transformer.
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

/// Opens a model that lies in memory: one file that holds everything, such as the embedded model.
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
                "a model_index.json with a transformer folder, or a .safetensors or .gguf file of a transformer",
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

/// The unit that the user gave for `component`: a file, or a folder that holds one.
fn given_unit(path: &Path, component: Component, families: Families) -> Result<Unit> {
    let option = format!("--{}", component.option.unwrap_or("model"));
    if !path.exists() {
        return Err(no_such_path(path).at(option));
    }
    if !path.is_dir() {
        return unit_of(path).map_err(|e| e.at(option));
    }
    let choice = find::choose(units(path)?, &Wanted::any(component, families));
    choice.map(|(unit, _)| unit).ok_or_else(|| {
        Error::missing(format!("no {} in this folder", component.title)).at_path(path).at(option)
    })
}

/// The titles of components, for messages.
fn titles(components: &[Component]) -> String {
    components.iter().map(|c| c.title).collect::<Vec<_>>().join(" or ")
}

/// The folder of `path`, absolute: `.` has no name by which ComfyUI's and A1111's folders could be known.
fn parent(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    path.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// What to call the model at `path`.
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
