//! Files that were opened together: their components, and why they are not what was asked for.

use std::sync::Arc;

use serde_json::Value;

use super::config::folder_config;
use super::unit::Unit;
use crate::error::{Error, Result};
use crate::message::Message;
use crate::spec::{Component, Families, Family, Role};
use crate::weights::ComponentWeights;
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::{MAX_JSON_BYTES, parse_json};
use crate::weights::dialect::recognise::{
    Recognised, foreign_metadata, foreign_model, foreign_part, foreign_storage, is_lora, recognise,
};
use crate::weights::dialect::storage;

/// Files that were opened together, and the components in them.
pub struct OpenedUnit {
    families: Families,
    /// The paths, unless the bytes are in memory.
    pub unit: Option<Unit>,
    /// The files.
    pub files: Vec<Arc<WeightFile>>,
    /// The components that were recognised.
    pub found: Vec<Recognised>,
}

impl OpenedUnit {
    /// Opens the files of `unit`.
    pub fn unit(unit: Unit, families: Families) -> Result<Self> {
        let files = unit
            .paths
            .iter()
            .map(|p| WeightFile::open(p).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        Ok(OpenedUnit { unit: Some(unit), ..OpenedUnit::files(files, families) })
    }

    /// Recognises the components of open files.
    pub fn files(files: Vec<Arc<WeightFile>>, families: Families) -> Self {
        let found = recognise(&names(&files), families);
        OpenedUnit { families, unit: None, files, found }
    }

    /// The metadata's `config`: one object per component, tokenizer and scheduler.
    pub fn config(&self) -> Result<Option<Value>> {
        // GGUF has one namespace for all programs, so our key has a prefix.
        let of = |f: &Arc<WeightFile>| {
            let metadata = &f.header.metadata;
            metadata.get(if f.is_gguf() { "flux_fast.config" } else { "config" }).cloned()
        };
        let file = self.files.iter().find_map(|f| Some((f, of(f)?)));
        let Some((file, text)) = file else { return Ok(None) };
        match parse_json("metadata `config`", text.as_bytes(), MAX_JSON_BYTES) {
            Ok(config @ Value::Object(_)) => Ok(Some(config)),
            Ok(_) => {
                Err(Error::model("metadata `config` is not a JSON object").at_path(&file.path))
            }
            Err(e) => Err(e.at_path(&file.path)),
        }
    }

    /// The configuration of `component`: that of the metadata, else the `config.json` next to the
    /// files.
    pub fn component_config(&self, component: Component) -> Result<Option<Value>> {
        let key = component.diffusers.folder;
        match (self.config()?.and_then(|c| c.get(key).cloned()), &self.unit) {
            (None, Some(unit)) => folder_config(unit.folder(), component),
            (config, _) => Ok(config),
        }
    }

    /// Whether it has `component`.
    pub fn has(&self, component: Component) -> bool {
        self.found.iter().any(|f| f.component == component)
    }

    /// The weights of `component`, as the readers of its format see them.
    ///
    /// # Errors
    /// If there are none, or if they cannot be read.
    pub fn weights(&self, component: Component) -> Result<ComponentWeights> {
        let found = self.found.iter().find(|f| f.component == component);
        let found = found.ok_or_else(|| self.is_not(&[component]))?;
        ComponentWeights::collect(&self.files, found, &self.found)
    }

    /// The family of its transformer, if it has one.
    pub fn family(&self) -> Option<&'static Family> {
        let transformer = self.found.iter().find(|f| f.component.role == Role::Transformer)?;
        self.families.of(transformer.component)
    }

    /// Why these files are none of the `wanted` components, and what to do instead.
    pub fn is_not(&self, wanted: &[Component]) -> Error {
        let options: Vec<_> = wanted.iter().filter_map(|c| c.option).collect();
        let wanted = titles(wanted);
        let names = names(&self.files);
        let holds_no = |found: &str| Error::model(format!("holds no {wanted}")).found(found);
        let metadata = |file: &WeightFile| foreign_metadata(&file.header.metadata);
        let e = if is_lora(&names) {
            Error::model("this is a LoRA, not a model").try_(Message::with(
                "give it with {lora}, and with {model} the {} model that it was trained for",
                [Message::plain(self.families.titles())],
            ))
        } else if let Some(model) = foreign_model(&names) {
            holds_no(model.what).try_(model.advice)
        } else if let Some(program) = self.files.iter().find_map(|f| metadata(f)) {
            storage::unsupported(program)
        } else if let Some((format, name)) = foreign_storage(names.iter().copied()) {
            storage::unsupported(format).at(name)
        } else if let Some(found) = self.found.first() {
            let e = holds_no(found.component.title);
            match found.component.option {
                None if found.component.role == Role::Control => {
                    let file = format!("{}:IMAGE", self.files[0].path.display());
                    let option = Message::parameter_with("controlnet", file);
                    e.try_(Message::with("give it with {}", [option]))
                }
                None => e,
                // That of another family.
                Some(option) if options.contains(&option) => {
                    e.try_("use the one that was made for this transformer")
                }
                Some(option) => {
                    let file = self.files[0].path.display();
                    e.try_(Message::with(
                        "give it with {}",
                        [Message::parameter_with(option, file)],
                    ))
                }
            }
        } else if let Some(part) = foreign_part(&names) {
            holds_no(part.what).try_(part.advice)
        } else {
            let architecture = self.files[0].header.metadata.get("general.architecture");
            holds_no(&match (architecture, names.as_slice()) {
                (Some(name), _) => format!("a GGUF file of the architecture {name}"),
                (None, []) => "no tensors at all".into(),
                (None, names) => {
                    format!("tensors such as {}", names[..names.len().min(3)].join(", "))
                }
            })
        };
        e.at_path(self.unit.as_ref().map_or(&self.files[0].path, |u| u.place()))
    }
}

fn names(files: &[Arc<WeightFile>]) -> Vec<&str> {
    files.iter().flat_map(|f| &f.header.tensors).map(|t| t.name.as_str()).collect()
}

/// The titles of components, for messages.
pub fn titles(components: &[Component]) -> String {
    components.iter().map(|c| c.title).collect::<Vec<_>>().join(" or ")
}
