//! From a path to a checkpoint: what the file or folder holds, what was given beside it, and what was found around it.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::config::{folder_config, max_length, read_json};
use super::find::{self, Unit, Widths};
use super::places::Places;
use crate::error::{Error, Result};
use crate::tensor::ByteSource;
use crate::weights::container::file::WeightFile;
use crate::weights::dialect::recognise::{
    Found, foreign_model, foreign_storage, is_lora, recognise,
};
use crate::weights::dialect::storage;
use crate::weights::{Component, ComponentWeights};

/// What to open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// A `.safetensors` file, one of its shards or their index, or a folder.
    pub model: PathBuf,
    /// Files or folders of components; they win over what the model holds.
    pub clip: Option<PathBuf>,
    pub t5: Option<PathBuf>,
    pub vae: Option<PathBuf>,
}

impl Files {
    /// Only the model; everything else is looked for.
    pub fn model(path: impl Into<PathBuf>) -> Self {
        Files { model: path.into(), ..Files::default() }
    }

    fn given(&self, component: Component) -> Option<&Path> {
        match component {
            Component::Flux => None,
            Component::T5 => self.t5.as_deref(),
            Component::Clip => self.clip.as_deref(),
            Component::Vae => self.vae.as_deref(),
        }
    }
}

/// A model with the components that were found; `need` gives one or says where it was looked for.
pub struct Checkpoint {
    /// The file's name without its ending, the folder's name, or the repository's in a Hugging Face cache.
    pub name: String,
    pub flux: Option<ComponentWeights>,
    pub t5: Option<ComponentWeights>,
    pub clip: Option<ComponentWeights>,
    pub vae: Option<ComponentWeights>,
    /// `scheduler_config.json`.
    pub scheduler: Option<Value>,
    /// This project's defaults for generation (`generation_config.json`).
    pub generation: Option<Value>,
    /// How many tokens T5 is given, where the model says so.
    pub t5_max_length: Option<usize>,
    pub clip_tokenizer: Option<PathBuf>,
    pub t5_tokenizer: Option<PathBuf>,
    /// Ten hex digits that recognise the transformer's files.
    pub hash: String,
    /// Lines for the user: `t5: /path (found beside the model)`, warnings of the map.
    pub found: Vec<String>,
    /// Where components that are absent were looked for.
    searched: Vec<(Component, Vec<PathBuf>)>,
}

impl Checkpoint {
    /// The component, if it is there.
    pub fn get(&self, component: Component) -> Option<&ComponentWeights> {
        match component {
            Component::Flux => &self.flux,
            Component::T5 => &self.t5,
            Component::Clip => &self.clip,
            Component::Vae => &self.vae,
        }
        .as_ref()
    }

    /// The component, or an error that names the flag and the places.
    pub fn need(&self, component: Component) -> Result<&ComponentWeights> {
        if let Some(weights) = self.get(component) {
            return Ok(weights);
        }
        let places = self
            .searched
            .iter()
            .find(|(c, _)| *c == component)
            .map(|(_, p)| p.as_slice())
            .unwrap_or_default();
        let e = Error::missing(format!("the {} is missing", component.title())).at(&self.name);
        let e = match places {
            [] => e,
            places => e.expected(format!(
                "a .safetensors or .gguf file of it in {}",
                places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
            )),
        };
        Err(match component {
            Component::Flux => e,
            _ => e.try_(format!(
                "give its file with --{}, or flux-fast pull {}",
                component.name(),
                source(component)
            )),
        })
    }

    fn slot(&mut self, component: Component) -> &mut Option<ComponentWeights> {
        match component {
            Component::Flux => &mut self.flux,
            Component::T5 => &mut self.t5,
            Component::Clip => &mut self.clip,
            Component::Vae => &mut self.vae,
        }
    }

    fn empty(name: String) -> Self {
        Checkpoint {
            name,
            flux: None,
            t5: None,
            clip: None,
            vae: None,
            scheduler: None,
            generation: None,
            t5_max_length: None,
            clip_tokenizer: None,
            t5_tokenizer: None,
            hash: String::new(),
            found: vec![],
            searched: vec![],
        }
    }

    /// Takes in the components of one opened unit that are not there yet, and what its metadata says.
    fn take(&mut self, opened: &Opened, wanted: &[Component]) -> Result<()> {
        let metadata = opened.config()?;
        for found in opened.found.iter().filter(|f| wanted.contains(&f.component)) {
            if self.get(found.component).is_some() {
                continue;
            }
            let config = metadata.as_ref().and_then(|c| c.get(found.component.folder())).cloned();
            let config = match (config, &opened.unit) {
                (None, Some(unit)) => folder_config(unit, found.component)?,
                (config, _) => config,
            };
            let weights = ComponentWeights::collect(&opened.files, found, &opened.found)?
                .with_config(config)?;
            *self.slot(found.component) = Some(weights);
        }
        if let Some(config) = &metadata {
            let part = |key: &str| config.get(key).filter(|v| !v.is_null()).cloned();
            self.scheduler = self.scheduler.take().or_else(|| part("scheduler"));
            self.generation = self.generation.take().or_else(|| part("generation"));
            self.t5_max_length =
                self.t5_max_length.or_else(|| part("tokenizer_2").as_ref().and_then(max_length));
        }
        self.found.extend(opened.files.iter().filter_map(|f| f.note.clone()));
        Ok(())
    }

    /// What lies in a diffusers folder beside the weights.
    fn take_folder(&mut self, root: &Path) -> Result<()> {
        let (scheduler, generation) = (
            read_json(&root.join("scheduler/scheduler_config.json"))?,
            read_json(&root.join("generation_config.json"))?,
        );
        self.scheduler = self.scheduler.take().or(scheduler);
        self.generation = self.generation.take().or(generation);
        let tokenizer = read_json(&root.join("tokenizer_2/tokenizer_config.json"))?;
        self.t5_max_length = self.t5_max_length.or(tokenizer.as_ref().and_then(max_length));
        // The folders, since CLIP's may hold merges.txt in place of tokenizer.json.
        self.clip_tokenizer = Some(root.join("tokenizer")).filter(|p| p.is_dir());
        self.t5_tokenizer = Some(root.join("tokenizer_2")).filter(|p| p.is_dir());
        Ok(())
    }

    fn widths(&self) -> Widths {
        let shape = |name: &str| self.flux.as_ref().and_then(|f| f.shape(name));
        Widths {
            t5: shape("txt_in.weight").map(|s| s.1),
            clip: shape("vector_in.in_layer.weight").map(|s| s.1),
            latent: shape("final_layer.linear.weight").map(|s| s.0 / 4),
        }
    }
}

/// A repository's file that serves as `component` with every FLUX.1; of T5, the form that costs least.
fn source(component: Component) -> &'static str {
    match component {
        Component::Flux | Component::Vae => "black-forest-labs/FLUX.1-schnell/ae.safetensors",
        Component::T5 => "comfyanonymous/flux_text_encoders/t5xxl_fp8_e4m3fn.safetensors",
        Component::Clip => "comfyanonymous/flux_text_encoders/clip_l.safetensors",
    }
}

/// Files that were opened together, and what they hold.
struct Opened {
    unit: Option<Unit>,
    files: Vec<Arc<WeightFile>>,
    found: Vec<Found>,
}

impl Opened {
    fn unit(unit: Unit) -> Result<Self> {
        let files = unit
            .paths
            .iter()
            .map(|p| WeightFile::open(p).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        Ok(Opened { unit: Some(unit), ..Opened::files(files) })
    }

    fn files(files: Vec<Arc<WeightFile>>) -> Self {
        let found = recognise(&names(&files));
        Opened { unit: None, files, found }
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

    /// Why these files are no `wanted`, in words that help.
    fn is_not(&self, wanted: Component) -> Error {
        let names = names(&self.files);
        let e = if is_lora(&names) {
            Error::model("this is a LoRA, not a model")
                .try_("--lora with it, and --model with the FLUX.1 model that it was trained for")
        } else if let Some(format) = names.iter().find_map(|n| foreign_storage(n)) {
            storage::unsupported(format)
        } else if let Some(found) = self.found.first() {
            let e =
                Error::model(format!("holds no {}", wanted.title())).found(found.component.title());
            match found.component {
                Component::Flux => e,
                other => e.try_(format!(
                    "give it with --{} {}",
                    other.name(),
                    self.files[0].path.display()
                )),
            }
        } else {
            let found = foreign_model(&names).map(str::to_string);
            let found = found.unwrap_or_else(|| match names.as_slice() {
                [] => "no tensors at all".into(),
                names => format!("tensors such as {}", names[..names.len().min(3)].join(", ")),
            });
            Error::model(format!("holds no {}", wanted.title())).found(found)
        };
        e.at_path(self.unit.as_ref().map_or(&self.files[0].path, |u| u.place()))
    }
}

fn names(files: &[Arc<WeightFile>]) -> Vec<&str> {
    files.iter().flat_map(|f| &f.header.tensors).map(|t| t.name.as_str()).collect()
}

/// Opens a model and what belongs to it. Components that cannot be found are left out; `Checkpoint::need` says so when one is wanted.
pub fn open(files: &Files) -> Result<Checkpoint> {
    open_among(files, None)
}

/// The same; components that do not lie beside the model are looked for in `places`, too.
pub fn open_among(files: &Files, places: Option<&Places>) -> Result<Checkpoint> {
    let path = files.model.as_path();
    if !path.exists() {
        return Err(find::no_such(path));
    }
    let (unit, folder) =
        if path.is_dir() { main_unit(path)? } else { (find::unit_of(path)?, parent(path)) };
    let main = Opened::unit(unit)?;
    if !main.has(Component::Flux) {
        return Err(main.is_not(Component::Flux));
    }
    let mut checkpoint = Checkpoint::empty(name_of(path));
    for component in Component::ALL {
        if let Some(given) = files.given(component) {
            let opened = Opened::unit(given_unit(given, component)?)?;
            if !opened.has(component) {
                return Err(opened.is_not(component));
            }
            checkpoint.take(&opened, &[component])?;
            checkpoint.found.push(format!("{component}: {} (given)", given.display()));
        }
    }
    checkpoint.take(&main, &Component::ALL)?;
    let widths = checkpoint.widths();
    // Looking through all places takes time, and most models have their components beside them.
    let entries = OnceCell::new();
    for component in Component::ALL {
        if checkpoint.get(component).is_some() {
            continue;
        }
        let found = find::search(&folder, component, &widths).or_else(|mut searched| {
            let Some(places) = places else { return Err(searched) };
            let found =
                places.component(entries.get_or_init(|| places.entries()), component, &widths);
            let folders = places.component_folders(component);
            searched
                .extend(folders.into_iter().filter(|f| !searched.contains(f)).collect::<Vec<_>>());
            found.ok_or(searched)
        });
        match found {
            Ok((unit, _, place)) => {
                checkpoint
                    .found
                    .push(format!("{component}: {} (found {place})", unit.place().display()));
                checkpoint.take(&Opened::unit(unit)?, &[component])?;
            }
            Err(searched) => checkpoint.searched.push((component, searched)),
        }
    }
    if let (Some(places), Some(_)) = (places, entries.get()) {
        checkpoint.found.extend(places.notes.iter().cloned());
    }
    let roots = [Some(folder.as_path()), folder.parent()];
    if let Some(root) = roots.into_iter().flatten().find(|r| r.join("model_index.json").is_file()) {
        checkpoint.take_folder(root)?;
    }
    checkpoint.hash = checkpoint.flux.as_ref().map(ComponentWeights::hash).unwrap_or_default();
    Ok(checkpoint)
}

/// Opens what lies at `path` itself, whichever components these are; nothing is looked for around it. Of a diffusers folder that is the transformer.
pub fn open_only(path: &Path) -> Result<Checkpoint> {
    if !path.exists() {
        return Err(find::no_such(path));
    }
    let (unit, folder) =
        if path.is_dir() { main_unit(path)? } else { (find::unit_of(path)?, parent(path)) };
    let main = Opened::unit(unit)?;
    if main.found.is_empty() {
        return Err(main.is_not(Component::Flux));
    }
    let mut checkpoint = Checkpoint::empty(name_of(path));
    checkpoint.take(&main, &Component::ALL)?;
    if folder.join("model_index.json").is_file() {
        checkpoint.take_folder(&folder)?;
    }
    checkpoint.hash = checkpoint.flux.as_ref().map(ComponentWeights::hash).unwrap_or_default();
    Ok(checkpoint)
}

/// Opens a model that lies in memory: one file that holds all it has, such as the embedded model. Best aligned to 8 bytes.
pub fn open_bytes(bytes: &'static [u8], name: &str) -> Result<Checkpoint> {
    open_source(Arc::new(bytes), name)
}

/// The same over any bytes, such as those of `synth::to_bytes`.
pub fn open_source(source: Arc<dyn ByteSource>, name: &str) -> Result<Checkpoint> {
    let main = Opened::files(vec![Arc::new(WeightFile::of(source, Path::new(name), None)?)]);
    if !main.has(Component::Flux) {
        return Err(main.is_not(Component::Flux));
    }
    let mut checkpoint = Checkpoint::empty(name.into());
    checkpoint.take(&main, &Component::ALL)?;
    checkpoint.hash = checkpoint.flux.as_ref().map(ComponentWeights::hash).unwrap_or_default();
    Ok(checkpoint)
}

/// The transformer of a folder, and the folder around which the rest is looked for: a diffusers model's `transformer`, or the one
/// transformer among the folder's files.
fn main_unit(folder: &Path) -> Result<(Unit, PathBuf)> {
    let inner = folder.join("transformer");
    if folder.join("model_index.json").is_file()
        && let Some((unit, _)) =
            find::choose(find::units(&inner)?, Component::Flux, &Widths::default())
    {
        return Ok((unit, folder.into()));
    }
    let mut fluxes = Vec::new();
    let mut broken = None;
    for unit in find::units(folder)? {
        match unit.look() {
            Ok(look) if look.has(Component::Flux) => fluxes.push(unit),
            Ok(_) => {}
            Err(e) => broken = broken.or(Some(e)),
        }
    }
    match (fluxes.len(), broken) {
        (1, _) => Ok((fluxes.remove(0), folder.into())),
        (0, Some(e)) => Err(e),
        (0, None) => Err(Error::model("no FLUX transformer in this folder").at_path(folder).expected(
            "a model_index.json with a transformer folder, or a .safetensors or .gguf file of a transformer",
        )),
        (n, _) => {
            let names: Vec<String> = fluxes.iter().map(|u| u.place().display().to_string()).collect();
            Err(Error::model(format!("{n} transformers in this folder"))
                .at_path(folder)
                .found(names.join(", "))
                .try_("give the path of one of them"))
        }
    }
}

/// The unit that the user gave for `component`: a file, or a folder that holds one.
fn given_unit(path: &Path, component: Component) -> Result<Unit> {
    if !path.exists() {
        return Err(find::no_such(path).at(format!("--{component}")));
    }
    if !path.is_dir() {
        return find::unit_of(path).map_err(|e| e.at(format!("--{component}")));
    }
    let choice = find::choose(find::units(path)?, component, &Widths::default());
    choice.map(|(unit, _)| unit).ok_or_else(|| {
        Error::missing(format!("no {} in this folder", component.title()))
            .at_path(path)
            .at(format!("--{component}"))
    })
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
        (_, false) => path.file_stem().map(|n| n.to_string_lossy().into_owned()),
    };
    let name = name.unwrap_or_default();
    // A shard is named after its model.
    name.split("-00").next().unwrap_or_default().trim_end_matches(".safetensors.index").to_string()
}
