//! The ControlNets of a request: their files are found and opened once, and checked against the
//! model.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::inputs::ControlNetInputs;
use super::model::{Model, Network, Networks};
use super::opened_file::OpenedFile;
use super::request::{ControlMode, ControlNetChoice};
use crate::error::{Error, Result};
use crate::library;
use crate::library::file_hash;
use crate::library::networks;
use crate::library::places::{ModelPlaces, Role};
use crate::model::ControlConfig;
use crate::model::flux1::control;
use crate::model::flux1::control::Condition;
use crate::spec::flux1::CONTROLNET;

/// How many ControlNets stay open.
const KEPT: usize = 8;

/// A ControlNet that was opened.
pub struct ControlNet {
    /// Distinguishes it from all others of the pipeline; not 0.
    pub number: u32,
    /// Sizes and weights.
    pub network: Network<ControlConfig>,
    /// A hash of its file.
    pub hash: String,
    /// Lines for the user about its tensors.
    notes: Vec<String>,
}

/// A ControlNet of a request.
#[derive(Clone)]
pub struct Controlling {
    /// What the request says.
    pub choice: ControlNetChoice,
    /// The opened network.
    pub net: Arc<ControlNet>,
}

impl Controlling {
    /// The embedding of its mode; `None` for a network without modes.
    pub fn mode(&self) -> Result<Option<Vec<f32>>> {
        let ControlMode(mode) = match self.choice.mode {
            Some(mode) => mode,
            None => return Ok(None),
        };
        let Network { config, weights } = &self.net.network;
        let modes = config.modes.unwrap_or_default();
        let table = weights.get(control::MODES, 0, modes, config.flux.hidden)?;
        table.rows_to_f32(&[mode]).map(Some)
    }

    /// A line for the user.
    pub fn line(&self) -> String {
        let ControlConfig { flux, .. } = &self.net.network.config;
        format!(
            "controlnet: {} at {} ({}, {} double and {} single blocks)",
            self.choice.name,
            self.choice.plain_strength(),
            self.net.network.weights.dialect(),
            flux.depth_double,
            flux.depth_single
        )
    }
}

/// The ControlNets that a pipeline has opened.
pub struct ControlNets {
    places: ModelPlaces,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The one that was used last is at the end.
    open: Vec<(OpenedFile, Arc<ControlNet>)>,
    /// How many were opened so far.
    count: u32,
}

impl ControlNets {
    /// None yet; names are looked up in `places`.
    pub fn new(places: &ModelPlaces) -> Self {
        ControlNets { places: places.clone(), state: Mutex::default() }
    }

    /// The ControlNets of `choices` for `model`, opened and checked.
    ///
    /// # Errors
    /// [`Kind::Missing`](crate::error::Kind::Missing) if a file is not found,
    /// [`Kind::Model`](crate::error::Kind::Model) if it is not a ControlNet for this model,
    /// [`Kind::Argument`](crate::error::Kind::Argument) for a mode that it does not have.
    pub fn open(&self, choices: &[ControlNetChoice], model: &Model) -> Result<Vec<Controlling>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut opened = Vec::new();
        for choice in choices {
            let at = |e: Error| e.at_message(choice.place());
            let path = match choice.named {
                true => self.places.named(&choice.name, Role::ControlNet),
                false => self.places.resolve(&choice.name, Role::ControlNet),
            };
            let path = path.map_err(at)?;
            let net = state.open(path).map_err(at)?;
            check(&net, choice, model).map_err(at)?;
            opened.push(Controlling { choice: choice.clone(), net });
        }
        let surplus = state.open.len().saturating_sub(KEPT);
        state.open.drain(..surplus);
        Ok(opened)
    }
}

impl State {
    /// The ControlNet in the file or folder at `path`, if it was opened before without opening it
    /// again.
    fn open(&mut self, path: PathBuf) -> Result<Arc<ControlNet>> {
        let mut file = OpenedFile::at(path)?;
        if let Some(at) = self.open.iter().position(|(known, _)| *known == file) {
            let entry = self.open.remove(at);
            let net = entry.1.clone();
            self.open.push(entry);
            return Ok(net);
        }
        self.count += 1;
        let number = self.count;
        let net = Arc::new(file.read(|path| {
            let families = crate::spec::FAMILIES;
            let weights = library::open_component(path, CONTROLNET, families)?;
            let (config, notes) = networks::controlnet(&weights)?;
            let hash = file_hash(path).unwrap_or_default();
            Ok(ControlNet { number, network: Network { config, weights }, hash, notes })
        })?);
        self.open.retain(|(known, _)| known.path != file.path);
        self.open.push((file, net.clone()));
        Ok(net)
    }
}

/// Lines for the user about tensors that are not used.
pub fn notes(all: &[Controlling]) -> impl Iterator<Item = &String> {
    all.iter().flat_map(|control| &control.net.notes)
}

/// Checks that `net` was made for the transformer of `model`, and that `choice` suits it.
fn check(net: &ControlNet, choice: &ControlNetChoice, model: &Model) -> Result<()> {
    let Networks::Flux1(networks) = &model.networks else {
        return Err(Error::argument("ControlNets are for FLUX.1, and this is a FLUX.2 model")
            .found(&model.name)
            .try_("a FLUX.1 model; FLUX.2 takes images by {reference}"));
    };
    let pixels = match net.network.config.condition {
        Condition::Pixels { .. } => control::TOKEN_PIXELS,
        Condition::Latents | Condition::MaskedLatents => model.token_pixels(),
    };
    let (own, token, model) =
        (&net.network.config.flux, model.token_pixels(), &networks.flux.config);
    for (what, found, expected) in [
        ("width", own.hidden, model.hidden),
        ("heads", own.heads, model.heads),
        ("latent channels", own.in_channels, model.out_channels),
        ("text width", own.context, model.context),
        ("pooled width", own.pooled, model.pooled),
        ("pixels of a token", pixels, token),
    ] {
        if found != expected {
            return Err(Error::model("this ControlNet was made for another transformer")
                .at(net.network.weights.place())
                .found(format!("{what} {found}"))
                .expected(format!("{what} {expected}"))
                .try_("use a ControlNet for this model, or the model that it was made for"));
        }
    }
    ControlNetInputs::from(&net.network.config).check_mode(choice)
}

/// Whether the ControlNet reads which part of its image is repainted.
pub fn reads_mask(net: &ControlNet) -> bool {
    ControlNetInputs::from(&net.network.config).mask
}
