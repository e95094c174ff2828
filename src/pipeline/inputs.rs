//! What models read besides the prompt.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::request::{ControlMode, ControlNetChoice};
use crate::error::{Error, Result};
use crate::library;
use crate::library::networks;
use crate::message::Message;
use crate::model::ControlConfig;
use crate::model::flux1::control::Condition;
use crate::spec::FAMILIES;
use crate::spec::flux1::CONTROLNET;

/// What a model reads besides the prompt. Every model reads an image to start from, and a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ModelInputs {
    /// It reads [`Request::references`](super::request::Request::references).
    pub references: bool,
    /// It reads them in one of the sizes of FLUX.1 Kontext, and draws in that size.
    pub kontext_sizes: bool,
    /// It draws nothing without [`Request::control`](super::request::Request::control).
    pub needs_control: bool,
    /// It only repaints a part of an image.
    pub needs_mask: bool,
    /// It can be controlled by ControlNets
    /// ([`Request::controlnets`](super::request::Request::controlnets)).
    pub controlnets: bool,
    /// It reads [`Request::styles`](super::request::Request::styles), and the networks for them are
    /// there.
    pub styles: bool,
}

/// What a ControlNet reads besides its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ControlNetInputs {
    /// The number of its modes, one for each kind of image; `None` if it has no modes.
    pub modes: Option<usize>,
    /// It reads a mask: the part of its image that is repainted.
    pub mask: bool,
}

impl ControlNetInputs {
    /// What the ControlNet in the file or folder at `path` reads. Only headers are read.
    ///
    /// # Errors
    /// [`Kind::Model`](crate::error::Kind::Model) if it is not a ControlNet that can be used.
    pub fn of(path: &Path) -> Result<Self> {
        let weights = library::open_component(path, CONTROLNET, FAMILIES)?;
        networks::controlnet(&weights).map(|(config, _)| Self::from(&config))
    }

    /// The names of its modes, in the order of their numbers; those without a name are numbers.
    pub fn mode_names(self) -> Vec<String> {
        (0..self.modes.unwrap_or(0)).map(|mode| ControlMode(mode).to_string()).collect()
    }

    /// Checks that `choice` has a mode if the ControlNet has modes, and none otherwise.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument).
    pub fn check_mode(self, choice: &ControlNetChoice) -> Result<()> {
        match (self.modes, choice.mode) {
            (None, None) => Ok(()),
            (None, Some(mode)) => Err(Error::argument("this ControlNet has no modes")
                .found(format!("mode={mode}"))
                .try_("leave the mode out")),
            (Some(n), None) => {
                let named = n.min(ControlMode::NAMES.len());
                Err(Error::argument("this ControlNet needs to know what its image is")
                    .found("no mode")
                    .expected(format!("mode={}", self.mode_names()[..named].join(" or ")))
                    .try_(Message::parameter_with("controlnet", "FILE:IMAGE,mode=canny")))
            }
            (Some(n), Some(ControlMode(mode))) if mode >= n => {
                Err(Error::argument("this ControlNet has no mode of this number")
                    .found(mode)
                    .expected(format!("0 to {}", n - 1)))
            }
            (Some(_), Some(_)) => Ok(()),
        }
    }
}

impl From<&ControlConfig> for ControlNetInputs {
    fn from(config: &ControlConfig) -> Self {
        let mask = config.condition == Condition::MaskedLatents;
        ControlNetInputs { modes: config.modes, mask }
    }
}
