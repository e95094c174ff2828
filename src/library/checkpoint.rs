//! A model that was opened: the weights of its components, and the settings of its configuration
//! files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::{max_length, read_json};
use super::find::Searched;
use super::opened::OpenedUnit;
use super::places::ModelPlaces;
use crate::error::{Error, Kind, Result};
use crate::message::Message;
use crate::spec::{Component, Families, Family};
use crate::weights::ComponentWeights;

/// The key of the metadata's `config` that repeats a part of `model_index.json`.
pub(super) const MODEL_INDEX: &str = "model_index";

/// How many files that were passed over an error lists.
const MAX_LISTED: usize = 10;

/// Nothing was searched, because the files were given.
static NOT_SEARCHED: Searched = Searched { folders: vec![], passed_over: vec![], damaged: false };

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
    /// The file that contains `generation`.
    pub generation_file: Option<PathBuf>,
    /// The number of tokens of a prompt, where the model says so.
    max_lengths: BTreeMap<Component, usize>,
    /// The folders of tokenizers next to the weights.
    tokenizers: BTreeMap<Component, PathBuf>,
    /// The class of its pipeline in `model_index.json`.
    pipeline: Option<String>,
    /// Whether `model_index.json` says that it was distilled to few steps; `None` without the file,
    /// or what the metadata of a converted file repeats of it.
    distilled: Option<bool>,
    /// Ten hex digits that recognise the transformer's files.
    pub hash: String,
    /// Some weights have shapes only: a run can be planned, not made.
    pub shapes_only: bool,
    /// Lines for the user: `t5: /path (found next to the model)`, warnings about files.
    pub found: Vec<String>,
    /// Where absent components were looked for, and which files were passed over.
    pub(super) searched: BTreeMap<Component, Searched>,
    /// Where optional components are looked for; `None` if the model is not in a folder.
    pub(super) around: Option<Around>,
    /// The sizes that the transformer requires of components, once it was taken out.
    required: BTreeMap<Component, usize>,
}

/// Where the components of a model are looked for.
#[derive(Clone)]
pub(super) struct Around {
    /// The folder of the model.
    pub folder: PathBuf,
    /// The places behind it.
    pub places: Option<ModelPlaces>,
    /// The families among which files are recognised.
    pub families: Families,
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
    /// [`Kind::Missing`] with the option that gives it and the places where it was looked for;
    /// [`Kind::Model`] if a file of it was found there that cannot be used.
    pub fn need(&self, component: Component) -> Result<&ComponentWeights> {
        self.get(component).ok_or_else(|| self.missing(component))
    }

    /// Takes the weights of `component` out; the errors are those of [`Checkpoint::need`].
    pub fn take(&mut self, component: Component) -> Result<ComponentWeights> {
        self.weights.remove(&component).ok_or_else(|| self.missing(component))
    }

    /// Splits off what is optional: the components that were given, and what is needed to look for
    /// the others with [`Checkpoint::find_optional`].
    pub fn split_optional(&mut self) -> Checkpoint {
        let mut rest = Checkpoint::empty(self.name.clone(), self.family);
        rest.around.clone_from(&self.around);
        for &component in self.family.components.iter().filter(|c| c.role.is_optional()) {
            rest.required.extend(self.required_size(component).map(|size| (component, size)));
            rest.weights.extend(self.weights.remove(&component).map(|w| (component, w)));
        }
        rest
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
        let Searched { folders, passed_over, damaged } =
            self.searched.get(&component).unwrap_or(&NOT_SEARCHED);
        // A file of it that cannot be used is the fault, unless another one is still incomplete.
        let damaged = *damaged && passed_over.iter().all(|e| e.kind() != Kind::Missing);
        let (kind, what) = match damaged {
            true => (Kind::Model, "that was found cannot be used"),
            false => (Kind::Missing, "is missing"),
        };
        let what = format!("the {} {what}{}", component.title, list_passed_over(passed_over));
        let e = Error::new(kind, what).at(&self.name);
        let folders: Vec<String> = folders.iter().map(|p| p.display().to_string()).collect();
        let e = match folders.is_empty() {
            true => e,
            false => {
                e.expected(format!("a .safetensors or .gguf file of it in {}", folders.join(", ")))
            }
        };
        match (component.option, component.source) {
            (Some(option), Some(source)) => e.try_(Message::with(
                "give its file with {}, or {:pull {}}",
                [Message::parameter(option), Message::plain(source)],
            )),
            (Some(option), None) => {
                e.try_(Message::with("give its file with {}", [Message::parameter(option)]))
            }
            (None, _) => e,
        }
    }

    /// A checkpoint of `family` without components.
    pub(super) fn empty(name: String, family: &'static Family) -> Self {
        Checkpoint {
            name,
            family,
            weights: BTreeMap::new(),
            scheduler: None,
            generation: None,
            generation_file: None,
            pipeline: None,
            distilled: None,
            max_lengths: BTreeMap::new(),
            tokenizers: BTreeMap::new(),
            hash: String::new(),
            shapes_only: false,
            found: vec![],
            searched: BTreeMap::new(),
            around: None,
            required: BTreeMap::new(),
        }
    }

    /// Adds the components of an opened unit that are still absent, and the settings of its
    /// metadata.
    pub(super) fn add(&mut self, opened: &OpenedUnit, wanted: &[Component]) -> Result<()> {
        let metadata = opened.config()?;
        for found in opened.found.iter().filter(|f| wanted.contains(&f.component)) {
            if self.get(found.component).is_some() {
                continue;
            }
            let config = opened.component_config(found.component)?;
            let weights = ComponentWeights::collect(&opened.files, found, &opened.found)?
                .with_config(config)?;
            self.weights.insert(found.component, weights);
        }
        if let Some(config) = &metadata {
            let part = |key: &str| config.get(key).filter(|v| !v.is_null()).cloned();
            self.scheduler = self.scheduler.take().or_else(|| part("scheduler"));
            let file = opened.files.first().map(|f| f.path.clone()).unwrap_or_default();
            self.set_generation(part("generation"), file);
            self.add_lengths(|folder| Ok(part(folder)))?;
            if let Some(index) = part(MODEL_INDEX).filter(|_| self.pipeline.is_none()) {
                self.set_pipeline(&index);
            }
        }
        self.found.extend(opened.files.iter().filter_map(|f| f.note.clone()));
        Ok(())
    }

    /// Sets the defaults for generation, if they are still absent and `file` has some.
    fn set_generation(&mut self, generation: Option<Value>, file: PathBuf) {
        if self.generation.is_none() && generation.is_some() {
            self.generation = generation;
            self.generation_file = Some(file);
        }
    }

    /// Adds the prompt lengths that are still absent, from the configurations of the tokenizers.
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

    /// Sets what `model_index.json` says of the model.
    fn set_pipeline(&mut self, index: &Value) {
        self.pipeline = index.get("_class_name").and_then(Value::as_str).map(str::to_string);
        if self.pipeline.as_deref() == Some(self.family.pipeline_class) {
            let distilled = index.get("is_distilled").and_then(Value::as_bool);
            self.distilled = Some(distilled.unwrap_or(false));
        } else if self.pipeline.is_some() && self.pipeline.as_deref() == self.kept_class() {
            let distilled = index.get("is_distilled").and_then(Value::as_bool);
            self.distilled = Some(distilled.unwrap_or(true));
        }
    }

    /// Whether the model was distilled to few steps, where its family has models of both kinds:
    /// what its files say, else what it is called.
    pub fn distilled(&self) -> Option<bool> {
        let words = self.family.undistilled?;
        Some(self.distilled.unwrap_or_else(|| !self.is_called(words)))
    }

    /// Whether the model keeps keys and values of reference images over all steps: what its files
    /// say, else what it is called.
    pub fn keeps_references(&self) -> bool {
        let Some(kept) = &self.family.keeps_references else { return false };
        self.pipeline.as_deref() == Some(kept.pipeline_class) || self.is_called(kept.words)
    }

    /// The pipeline of such models.
    fn kept_class(&self) -> Option<&'static str> {
        self.family.keeps_references.as_ref().map(|kept| kept.pipeline_class)
    }

    /// Whether one of the model's names has all `words`, each alone or before a number.
    fn is_called(&self, words: &[&str]) -> bool {
        let is = |word: &str, of: &str| {
            let rest = of.strip_prefix(word);
            rest.is_some_and(|rest| rest.chars().next().is_none_or(|c| c.is_ascii_digit()))
        };
        let has_all = |name: &String| {
            let parts = || name.split(|c: char| !c.is_alphanumeric());
            words.iter().all(|word| parts().any(|part| is(word, part)))
        };
        self.called().iter().any(has_all)
    }

    /// What `model_index.json` says of the kind of model, for the metadata of a converted file,
    /// which may have another name.
    pub(super) fn model_index(&self) -> Option<Value> {
        let distilled = self.distilled()?;
        let kept = self.kept_class().filter(|_| self.keeps_references());
        let class = kept.unwrap_or(self.family.pipeline_class);
        Some(serde_json::json!({ "_class_name": class, "is_distilled": distilled }))
    }

    /// Adds the settings and tokenizers of a diffusers folder.
    pub(super) fn add_folder(&mut self, root: &Path) -> Result<()> {
        let index = read_json(&root.join("model_index.json"))?.unwrap_or_default();
        self.set_pipeline(&index);
        let scheduler = read_json(&root.join("scheduler/scheduler_config.json"))?;
        self.scheduler = self.scheduler.take().or(scheduler);
        let file = root.join("generation_config.json");
        self.set_generation(read_json(&file)?, file);
        self.add_lengths(|folder| read_json(&root.join(folder).join("tokenizer_config.json")))?;
        for component in self.family.components {
            // The folders, since CLIP's may contain merges.txt in place of tokenizer.json.
            let folder = component.0.tokenizer.as_ref().map(|t| root.join(t.folder));
            if let Some(folder) = folder.filter(|f| f.is_dir()) {
                self.tokenizers.insert(*component, folder);
            }
        }
        Ok(())
    }

    /// What the transformer is called, in lower case: the name of the checkpoint, the last folders
    /// and the names of its files, and what its metadata and its configuration name.
    pub fn called(&self) -> Vec<String> {
        /// `models--org--name/snapshots/HASH/transformer/FILE`.
        const FOLDERS: usize = 5;
        const KEYS: [&str; 5] = [
            "general.name",
            "general.basename",
            "modelspec.title",
            "modelspec.architecture",
            "_name_or_path",
        ];
        let mut called = vec![self.name.clone()];
        called.extend(self.pipeline.clone());
        let transformer = self.get(self.family.transformer());
        for path in transformer.into_iter().flat_map(ComponentWeights::files) {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
            let names = path.components().rev().take(FOLDERS);
            called.extend(names.map(|c| c.as_os_str().to_string_lossy().into_owned()));
        }
        called.extend(transformer.into_iter().flat_map(|t| t.metadata(&KEYS)).map(str::to_string));
        let config = transformer.and_then(ComponentWeights::config);
        let path = config.and_then(|c| c.get("_name_or_path")).and_then(Value::as_str);
        called.extend(path.map(str::to_string));
        called.iter().map(|name| name.to_lowercase()).collect()
    }

    /// The size that the transformer requires of `component`.
    pub(super) fn required_size(&self, component: Component) -> Option<usize> {
        if let Some(size) = self.required.get(&component) {
            return Some(*size);
        }
        let fit = component.0.fit.as_ref()?;
        let (name, axis) = fit.transformer;
        let shape = self.get(self.family.transformer())?.full_shape(name)?;
        Some(shape.get(axis)? / fit.divisor)
    }

    /// Computes the hash of the transformer's files.
    pub(super) fn set_hash(&mut self) {
        let transformer = self.get(self.family.transformer());
        self.hash = transformer.map(ComponentWeights::hash).unwrap_or_default();
    }
}

/// ` (files that cannot be used: ...)`, with the reasons; empty if there are no such files.
pub(super) fn list_passed_over(passed_over: &[Error]) -> String {
    if passed_over.is_empty() {
        return String::new();
    }
    let listed: Vec<String> = passed_over.iter().take(MAX_LISTED).map(Error::to_string).collect();
    let more = match passed_over.len() - listed.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!(" (files that cannot be used: {}{more})", listed.join("; "))
}
