//! The sizes of a ControlNet, from its tensors.

use serde_json::Value;

use super::MODES;
use super::hint::{self, HintConv};
use crate::error::Result;
use crate::model::config::{TensorShapes, agree, geometry, numbered, shape, uint};
use crate::model::flux1::FluxConfig;

/// What the control image is when the ControlNet reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Its latents (InstantX and all that follow it).
    Latents,
    /// The latents of an image with a black hole, and for each latent pixel whether it is kept
    /// (alimama's inpainting).
    MaskedLatents,
    /// Its pixels, which convolutions make smaller (XLabs).
    Pixels {
        /// Channels of these convolutions.
        channels: usize,
    },
}

/// The sizes of a ControlNet.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlConfig {
    /// Those that it has in common with a transformer, of as many blocks.
    pub flux: FluxConfig,
    /// What it reads of the control image.
    pub condition: Condition,
    /// Columns of the tokens of the control image.
    pub condition_cols: usize,
    /// How many modes it has, if it is for several kinds of control images.
    pub modes: Option<usize>,
}

impl ControlConfig {
    /// Reads the sizes of the canonical tensors.
    ///
    /// # Errors
    /// For a tensor that is missing, and for sizes that differ from those of `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shape(shapes, "ControlNet", name);
        let (_, in_channels) = get("img_in.weight")?;
        let (_, condition_cols) = get("pos_embed_input.weight")?;
        // As many blocks as outputs of them: another number is a file of which a part is missing.
        let count = |blocks: &str, outputs: &str| {
            numbered(shapes, blocks, "").max(numbered(shapes, outputs, ""))
        };
        let depth_double = count("double_blocks.", "controlnet_blocks.");
        let depth_single = count("single_blocks.", "controlnet_single_blocks.");
        let flux = FluxConfig::read_sizes(
            shapes,
            config,
            (in_channels, in_channels),
            (depth_double, depth_single),
        )?;
        // Where the configuration has modes, a file without their tensor is incomplete.
        let has_modes = shapes.shape(MODES).is_some() || uint(config, "num_mode") > Some(0);
        let modes = if has_modes { Some(get(MODES)?.0) } else { None };
        agree(config, "num_layers", depth_double)?;
        agree(config, "num_single_layers", depth_single)?;
        if let Some(modes) = modes {
            agree(config, "num_mode", modes)?;
        }
        // Any convolution shows that it reads pixels, so that the error names the first one if that
        // is missing.
        let condition = if numbered(shapes, "input_hint_block.", "") > 0 {
            Condition::Pixels { channels: get(&format!("{}.weight", hint::layer(0)))?.0 }
        } else if condition_cols == in_channels {
            Condition::Latents
        } else if condition_cols == in_channels + 4 {
            // One channel more for each of the four latent pixels of a token.
            Condition::MaskedLatents
        } else {
            return Err(geometry("the input of this ControlNet is not one that is known")
                .at(shapes.stored_name("pos_embed_input.weight"))
                .found(format!("{condition_cols} columns for a control image"))
                .expected(format!("{in_channels}, or {} with a mask", in_channels + 4)));
        };
        Ok(ControlConfig { flux, condition, condition_cols, modes })
    }

    /// Columns of the modulation matrix: 12 vectors per double block, 3 per single block.
    pub fn modulation_cols(&self) -> usize {
        (12 * self.flux.depth_double + 3 * self.flux.depth_single) * self.flux.hidden
    }

    /// The convolutions that make the pixels of the control image smaller; none if it reads
    /// latents.
    pub(super) fn hint_convs(&self) -> Vec<HintConv> {
        match self.condition {
            Condition::Pixels { channels } => hint::convs(channels, self.condition_cols / 4),
            Condition::Latents | Condition::MaskedLatents => Vec::new(),
        }
    }

    /// Which of its `outputs` is added after block `block` of `blocks`; `None` if it has none.
    pub(super) fn output_for(&self, block: usize, blocks: usize, outputs: usize) -> Option<usize> {
        if outputs == 0 {
            return None;
        }
        Some(match self.condition {
            Condition::Pixels { .. } => block % outputs,
            Condition::Latents | Condition::MaskedLatents => block / blocks.div_ceil(outputs),
        })
    }
}
