//! The names under which clients ask for models, LoRAs and ControlNets. They come from an index: no
//! name that a client sends is ever joined to a path.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::broker::Catalog;
use super::fault::Fault;
use super::model_names::{family_name, inputs_of, same_family, tool_of};
use crate::error::{Error, Kind, Result};
use crate::library::file_names::{model_name, without_ending};
use crate::library::places::Role;
use crate::pipeline::models::{ModelKind, ModelPlaces};
use crate::pipeline::request::Options;
use crate::pipeline::{ControlNetInputs, ModelInputs};
use crate::spec::flux1::CONTROLNET;
use add_ons::inputs_with_styles;

/// The name of the model inside the program.
const EMBEDDED: &str = "flux-tiny";
/// Names that other services give their models. Clients send them whatever the server has.
const FOREIGN: [&str; 4] = ["gpt-image*", "chatgpt-image*", "dall-e*", "flux-pro*"];
/// How many names are remembered, and how long they may be, in bytes.
const MAX_FOUND: usize = 1000;
const MAX_NAME: usize = 256;
/// How long a list of the folders is used.
const LIST_KEPT: Duration = Duration::from_secs(30);

/// A model as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServedModel {
    /// Its name.
    pub name: String,
    /// What the worker opens; `None` is the default model.
    pub open: Option<String>,
}

/// A line of the list of models or LoRAs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// The name that clients send.
    pub name: String,
    /// A description of the file.
    pub what: String,
    /// The size of its files, in bytes; 0 for the embedded model.
    pub bytes: u64,
    /// What it reads besides the prompt, for a model; `None` if that is not known.
    pub inputs: Option<ModelInputs>,
    /// What it reads besides its image, for a ControlNet.
    #[serde(default)]
    pub controlnet: Option<ControlNetInputs>,
    /// The file; `None` for the default model, and for files of other machines.
    #[serde(skip)]
    path: Option<PathBuf>,
}

impl Listed {
    /// A model of which only the name is known.
    pub fn named(name: &str) -> Self {
        let (name, what) = (name.to_string(), String::new());
        Listed { name, what, bytes: 0, inputs: None, controlnet: None, path: None }
    }
}

/// The models and LoRAs of the server.
pub struct Models {
    default: OnceLock<String>,
    /// The catalog of the workers on other machines, in place of the folders of this one.
    elsewhere: Option<Mutex<Arc<Catalog>>>,
    /// The name of the default model on the command line.
    given: Option<String>,
    /// Its file without links, unless it is inside the program or made by it.
    default_file: Option<PathBuf>,
    /// Pattern, which may end in `*`, and name.
    aliases: Vec<(String, String)>,
    places: ModelPlaces,
    listed: Mutex<Option<Listing>>,
    /// The last names with the models that they mean, so that not every request lists the folders.
    found: Mutex<HashMap<(Role, String), Lookup>>,
}

/// When the folders were read, and what they contain.
type Listing = (Instant, Vec<(ModelKind, Listed)>);

/// When a name was looked up, and the file that it means.
type Lookup = (Instant, Option<PathBuf>);

impl Models {
    /// The default model that `options` name, `aliases` (name and model), and what the folders of
    /// this machine contain.
    pub fn new(options: &Options, aliases: Vec<(String, String)>) -> Self {
        let given = options.files.model.clone();
        let default = given.as_deref().map_or(EMBEDDED.into(), name_of);
        let places = options.places.clone().unwrap_or_else(ModelPlaces::of_process);
        let default_file = given
            .as_deref()
            .filter(|name| *name != "embedded" && !name.starts_with("synthetic:"))
            .and_then(|name| places.resolve(name, Role::Model).ok())
            .and_then(|path| real(&path));
        Models {
            default: OnceLock::from(default),
            elsewhere: None,
            given,
            default_file,
            aliases,
            places,
            listed: Mutex::default(),
            found: Mutex::default(),
        }
    }

    /// The models of workers on other machines, once [`learn`](Models::learn) is told of them. The
    /// default model is that of `options`, which is a name here, or else that of most workers.
    pub fn of_cluster(options: &Options, aliases: Vec<(String, String)>) -> Self {
        let mut models = Models::new(&Options::default(), aliases);
        models.default = OnceLock::new();
        if let Some(name) = &options.files.model {
            models.default.set(name_of(name)).ok();
        }
        models.elsewhere = Some(Mutex::default());
        models
    }

    /// Takes note of what workers on other machines have.
    pub fn learn(&self, catalog: Catalog) {
        if let Some(elsewhere) = &self.elsewhere
            && !catalog.models.is_empty()
        {
            self.default.get_or_init(|| catalog.default.clone());
            *elsewhere.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        }
    }

    fn elsewhere(&self) -> Option<Arc<Catalog>> {
        let elsewhere = self.elsewhere.as_ref()?;
        Some(elsewhere.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// The name of the default model; empty if no worker has ever named one.
    pub fn default_name(&self) -> &str {
        self.default.get().map_or("", String::as_str)
    }

    fn default_model(&self) -> ServedModel {
        ServedModel { name: self.default_name().to_string(), open: None }
    }

    /// The model that workers on other machines have under `name`, whatever its case and ending.
    fn named_elsewhere(
        &self,
        catalog: &Catalog,
        name: &str,
    ) -> std::result::Result<ServedModel, Fault> {
        let name = if name == "embedded" { EMBEDDED } else { name };
        let model = self.listed_elsewhere(&catalog.models, name, "model")?;
        match model.name == self.default_name() {
            true => Ok(self.default_model()),
            false => Ok(ServedModel { name: model.name.clone(), open: Some(model.name.clone()) }),
        }
    }

    /// The model that a client calls `name`; the default model without one. It may read folders.
    ///
    /// # Errors
    /// 404 with the names that there are.
    pub fn find(&self, name: Option<&str>) -> std::result::Result<ServedModel, Fault> {
        if self.default_name().is_empty() {
            return Err(
                Fault::new(503, "no_worker", "no worker has joined the cluster yet").retry_after(5)
            );
        }
        let Some(name) = name.filter(|name| !name.trim().is_empty()) else {
            return Ok(self.default_model());
        };
        if name == self.default_name() || name == "default" || Some(name) == self.given.as_deref() {
            return Ok(self.default_model());
        }
        if let Some((_, model)) = self.aliases.iter().find(|(alias, _)| alias == name) {
            return self.named(model);
        }
        let found = self.named(name);
        if found.is_err() {
            if let Some(model) = self.of_tool(name) {
                return self.named(&model);
            }
            let patterns = self.aliases.iter().map(|(alias, model)| (&**alias, Some(&**model)));
            let foreign = FOREIGN.iter().map(|pattern| (*pattern, None));
            for (pattern, model) in patterns.chain(foreign) {
                let start = pattern.strip_suffix('*');
                if start.is_some_and(|start| name.starts_with(start)) {
                    return model.map_or_else(|| Ok(self.default_model()), |m| self.named(m));
                }
            }
            if let Some(model) = self.of_family(name) {
                return self.named(&model);
            }
        }
        found
    }

    /// The model that `name` describes in the words of another service, such as `flux-dev` or
    /// `black-forest-labs/FLUX.1-dev`. The default model is preferred; otherwise there must be only
    /// one.
    fn of_family(&self, name: &str) -> Option<String> {
        family_name(name)?;
        // The default model is known without a look into folders.
        same_family(name, std::iter::once(self.default_name()))
            .or_else(|| same_family(name, self.models().iter().map(|model| model.name.as_str())))
    }

    /// The model that does what `name` says, such as `flux-pro-1.0-fill`: the default model if it
    /// does, or the only one.
    fn of_tool(&self, name: &str) -> Option<String> {
        let tool = tool_of(name)?;
        if tool_of(self.default_name()) == Some(tool) {
            return Some(self.default_name().to_string());
        }
        let mut models = self.models();
        models.retain(|model| tool_of(&model.name) == Some(tool));
        match models.as_slice() {
            [one] => Some(one.name.clone()),
            _ => None,
        }
    }

    fn named(&self, name: &str) -> std::result::Result<ServedModel, Fault> {
        if name == self.default_name() || Some(name) == self.given.as_deref() {
            return Ok(self.default_model());
        }
        if let Some(catalog) = self.elsewhere() {
            return self.named_elsewhere(&catalog, name);
        }
        if name == "embedded" || name == EMBEDDED {
            return Ok(ServedModel { name: EMBEDDED.into(), open: Some("embedded".into()) });
        }
        match self.path(name, Role::Model) {
            Ok(path) if self.default_file.is_some() && real(&path) == self.default_file => {
                Ok(self.default_model())
            }
            Ok(path) => match path.to_str() {
                Some(open) => {
                    let name = self.one_name(name, &path);
                    Ok(ServedModel { name, open: Some(open.into()) })
                }
                None => Err(self.unknown("model", self.models())),
            },
            Err(e) => Err(self.refused(&e, "model", self.models())),
        }
    }

    /// The one name that a model has here, whatever a client calls it: that of its file, unless
    /// another file has it too. Jobs for one file are jobs for one model.
    fn one_name(&self, name: &str, path: &Path) -> String {
        let file = path.file_name().and_then(|file| file.to_str()).map(model_name);
        let names = file.into_iter().chain([without_ending(name).to_string()]);
        let is_taken =
            |name: &str| name == self.default_name() || name == EMBEDDED || name == "embedded";
        let means_it = |name: &String| {
            !is_taken(name) && self.path(name, Role::Model).is_ok_and(|found| found == path)
        };
        names.into_iter().find(means_it).unwrap_or_else(|| name.into())
    }

    /// What the model called `name`, which is not the default model, reads besides the prompt;
    /// `None` if that is not known. It may read folders.
    pub fn inputs(&self, name: &str) -> Option<ModelInputs> {
        if let Some(catalog) = self.elsewhere() {
            return catalog.models.iter().find(|model| model.name == name)?.inputs;
        }
        if name == EMBEDDED {
            return Some(self.embedded_inputs());
        }
        let path = self.path(name, Role::Model).ok()?;
        let all = self.of_kind(ModelKind::Model);
        let listed = all.iter().find(|listed| listed.path.as_ref() == Some(&path))?;
        inputs_with_styles(listed, self.has_style_networks())
    }

    /// The file that a name means, from memory if it was looked up lately.
    fn path(&self, name: &str, role: Role) -> Result<PathBuf> {
        let lock = || self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (role, name.to_string());
        match lock().get(&key) {
            Some((since, Some(path))) if since.elapsed() < LIST_KEPT && path.exists() => {
                return Ok(path.clone());
            }
            Some((since, None)) if since.elapsed() < LIST_KEPT => {
                return Err(Error::missing("no model of this name was found"));
            }
            _ => {}
        }
        let named = self.places.named(name, role);
        let known = match &named {
            Ok(path) => Some(path.clone()),
            Err(e) if e.kind() == Kind::Missing => None,
            Err(_) => return named,
        };
        let mut found = lock();
        found.retain(|_, (since, _)| since.elapsed() < LIST_KEPT);
        if found.len() < MAX_FOUND && name.len() <= MAX_NAME {
            found.insert(key, (Instant::now(), known));
        }
        named
    }

    fn refused(&self, error: &Error, what: &str, all: Vec<Listed>) -> Fault {
        match error.kind() {
            Kind::Argument if error.found_value().is_some() => ambiguous(what),
            _ => self.unknown(what, all),
        }
    }

    fn unknown(&self, what: &str, all: Vec<Listed>) -> Fault {
        let names: Vec<String> = all.into_iter().map(|m| m.name).take(20).collect();
        let there = if names.is_empty() { "there is none".into() } else { names.join(", ") };
        Fault::new(
            404,
            format!("{what}_not_found").as_str(),
            format!("there is no {what} of this name"),
        )
        .parameter(what)
        .hint(format!("one of: {there}"))
    }

    /// The models of this server, the default one first. It may read folders.
    pub fn models(&self) -> Vec<Listed> {
        if let Some(catalog) = self.elsewhere() {
            return catalog.models.clone();
        }
        let mut models = self.of_kind(ModelKind::Model);
        models.retain(|m| {
            let is_default = self.default_file.is_some()
                && m.path.as_deref().is_some_and(|path| real(path) == self.default_file);
            m.name != self.default_name() && !is_default
        });
        let has_networks = self.has_style_networks();
        for model in &mut models {
            model.inputs = inputs_with_styles(model, has_networks);
        }
        let what = if self.default_name() == EMBEDDED {
            "the embedded model"
        } else {
            "the default model"
        };
        models.insert(0, Listed { what: what.into(), ..Listed::named(self.default_name()) });
        models
    }

    /// What a worker can open for others: the list, and the model inside the program.
    pub fn all(&self) -> Vec<Listed> {
        let mut models = self.models();
        if !models.iter().any(|model| model.name == EMBEDDED) && cfg!(feature = "embedded") {
            let (what, inputs) = ("the embedded model".into(), Some(self.embedded_inputs()));
            models.push(Listed { what, inputs, ..Listed::named(EMBEDDED) });
        }
        models
    }

    /// For tests: calls `f` as if it read the folders.
    #[cfg(test)]
    pub fn while_listing(&self, f: impl FnOnce()) {
        let _listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        f();
    }

    fn of_kind(&self, kind: ModelKind) -> Vec<Listed> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = listed.as_ref().filter(|(since, _)| since.elapsed() < LIST_KEPT);
        if fresh.is_none() {
            let all = self.places.list().into_iter().filter_map(|entry| {
                let is_net = entry.kind == ModelKind::Part(CONTROLNET);
                let net = is_net.then(|| ControlNetInputs::of(&entry.path).ok());
                let listed = Listed {
                    inputs: Some(inputs_of(&entry.name, &entry.what)),
                    controlnet: net.flatten(),
                    name: entry.name,
                    bytes: entry.bytes,
                    what: entry.what,
                    path: Some(entry.path),
                };
                // A file whose name is not unique is listed by its path: it has no name here.
                entry.is_named.then_some((entry.kind, listed))
            });
            *listed = Some((Instant::now(), all.collect()));
        }
        let all = listed.iter().flat_map(|(_, all)| all);
        all.filter(|(k, _)| *k == kind).map(|(_, listed)| listed.clone()).collect()
    }
}

/// The fault of a name that several files have.
fn ambiguous(what: &str) -> Fault {
    Fault::new(422, "ambiguous_name", format!("{what}: several files have this name"))
        .parameter(what)
        .hint("use the longer name of the list")
}

/// The name of the model that the command line calls `given`.
fn name_of(given: &str) -> String {
    match given {
        "embedded" => EMBEDDED.to_string(),
        name if name.starts_with("synthetic:") => name.to_string(),
        path => Path::new(path).file_stem().unwrap_or_default().to_string_lossy().into(),
    }
}

/// A path without links.
fn real(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok()
}

/// `NAME=MODEL`.
///
/// # Errors
/// [`Kind::Argument`] if it is something else.
pub fn parse_alias(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((name, model)) if !name.is_empty() && !model.is_empty() => {
            Ok((name.into(), model.into()))
        }
        _ => Err(Error::argument("not an alias").found(text).expected("NAME=MODEL")),
    }
}

mod add_ons;
mod listed;
#[cfg(test)]
mod tests;

pub use listed::is_listed;
