//! The networks of FLUX.1 Redux: SigLIP's vision tower and the adapter. They are looked for and
//! opened at the first request with a style, since other requests do not need them.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::model::{Model, Network, Networks};
use crate::error::{Error, Kind, Result};
use crate::library::Checkpoint;
use crate::library::networks;
use crate::message::Message;
use crate::model::{ReduxConfig, SiglipConfig, redux, siglip};
use crate::spec::Component;
use crate::spec::flux1::{REDUX, SIGLIP};
use crate::weights::ComponentWeights;

/// The networks that turn images into tokens like those of a prompt.
pub struct StyleNetworks {
    /// The vision tower.
    pub siglip: Network<SiglipConfig>,
    /// The adapter that reads its tokens.
    pub redux: Network<ReduxConfig>,
}

/// Opens [`StyleNetworks`] when they are needed.
pub struct Styles {
    networks: OnceLock<StyleNetworks>,
    /// The components that were given, and where others are looked for.
    rest: Mutex<Checkpoint>,
}

impl Styles {
    /// From the optional components of a model.
    pub fn new(rest: Checkpoint) -> Styles {
        Styles { networks: OnceLock::new(), rest: Mutex::new(rest) }
    }

    /// Whether both networks were given or are found. They are not opened.
    pub fn are_there(&self) -> bool {
        if self.networks.get().is_some() {
            return true;
        }
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        [REDUX, SIGLIP]
            .into_iter()
            .all(|component| rest.find_optional(component).is_ok() && rest.get(component).is_some())
    }

    /// The networks for `model`, opened at the first call. Notes for the user are added to `notes`
    /// then.
    ///
    /// # Errors
    /// [`Kind::Missing`] if one of the networks is not found, [`Kind::Model`] if they are damaged
    /// or do not belong together.
    pub fn networks(&self, model: &Model, notes: &mut Vec<Message>) -> Result<&StyleNetworks> {
        if let Some(networks) = self.networks.get() {
            return Ok(networks);
        }
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        if self.networks.get().is_none() {
            let opened = open(&mut rest, model, notes)?;
            // Nobody else sets it while the lock is held.
            let _ = self.networks.set(opened);
        }
        Ok(self.networks.get().expect("it was set"))
    }
}

fn open(rest: &mut Checkpoint, model: &Model, notes: &mut Vec<Message>) -> Result<StyleNetworks> {
    let Networks::Flux1(flux) = &model.networks else {
        return Err(unsupported());
    };
    for component in [REDUX, SIGLIP] {
        rest.find_optional(component)?;
    }
    let weights = need(rest, REDUX)?;
    let (redux, more) = networks::network(weights, ReduxConfig::read, redux::tensors)?;
    notes.extend(more.into_iter().map(Message::plain));
    let (found, expected) = (redux.outputs, flux.flux.config.context);
    if found != expected {
        return Err(Error::model("the Redux adapter was made for another transformer")
            .at(weights.place())
            .at_parameter("redux")
            .found(format!("tokens of {found} values"))
            .expected(format!("{expected}, as T5's"))
            .try_("{redux} with flux1-redux-dev.safetensors, for FLUX.1 [dev] and [schnell]"));
    }
    let weights = need(rest, SIGLIP)?;
    let (siglip, more) = networks::network(weights, SiglipConfig::read, siglip::tensors)?;
    notes.extend(more.into_iter().map(Message::plain));
    let (found, expected) = (siglip.width, redux.inputs);
    if found != expected {
        return Err(Error::model("the Redux adapter does not read this vision tower")
            .at(weights.place())
            .at_parameter("siglip")
            .found(format!("SigLIP of width {found}"))
            .expected(format!("width {expected}"))
            .try_("{siglip} with the tower that the adapter was trained with"));
    }
    notes.extend(rest.found.drain(..).map(Message::plain));
    Ok(StyleNetworks {
        siglip: Network { config: siglip, weights: rest.take(SIGLIP)? },
        redux: Network { config: redux, weights: rest.take(REDUX)? },
    })
}

/// The weights of a network of [`StyleNetworks`]; an error names what they are needed for.
fn need(rest: &Checkpoint, component: Component) -> Result<&ComponentWeights> {
    rest.need(component).map_err(|e| match e.kind() {
        Kind::Missing => e.at_parameter("style"),
        _ => e,
    })
}

/// The error for styles with a model of another family.
pub fn unsupported() -> Error {
    Error::argument("this model does not read style images: FLUX.1 Redux is for FLUX.1 only")
        .at_parameter("style")
        .try_(
            "{reference}: FLUX.2 looks at the image itself, and the prompt says what of it to use",
        )
}
