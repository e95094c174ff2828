//! ControlNets for FLUX.1, after diffusers' `FluxControlNetModel`: a small transformer that sees
//! the same noise, text and timestep, and a control image. The outputs of its blocks pass a layer
//! each and are added to the image rows of the large transformer, after its blocks.
//!
//! Its blocks are recorded between those of the large transformer, each just before the first block
//! whose result it changes. So only one of its outputs exists at a time, next to its own hidden
//! rows, and its weights pass through the ring of the large transformer in the order of their use.
//!
//! With true CFG it sees the prompt only, and its outputs are added for both prompts, as in
//! diffusers.

mod config;
mod hint;
mod record;

pub use config::{Condition, ControlConfig};
pub use hint::{TOKEN_PIXELS, hint};
pub(super) use record::{Controlled, Residual};

use super::modulate;
use crate::dtype::DType;
use crate::model::config::TensorSpec;
use crate::op::Program;

/// The most ControlNets of one program.
pub const MAX_CONTROLS: usize = 4;

/// A ControlNet of [`denoise_with`](super::denoise_with).
///
/// Inputs of number n, called `control{n}.NAME`: `condition` (images * image_tokens x
/// [`ControlConfig::condition_cols`], f32), `modulation` (1 x [`ControlConfig::modulation_cols`]),
/// `strength` (1 x hidden, f32: its outputs are multiplied with it) and, if it has modes, `mode` (1
/// x hidden, a row of [`MODES`]).
#[derive(Debug, Clone, Copy)]
pub struct Control<'a> {
    /// Its sizes.
    pub config: &'a ControlConfig,
}

/// The names of the inputs of a ControlNet.
#[derive(Debug, Clone, Copy)]
pub struct InputNames {
    /// The control image as packed tokens.
    pub condition: &'static str,
    /// The modulation of a step.
    pub modulation: &'static str,
    /// The factor of the outputs.
    pub strength: &'static str,
    /// The embedding of the mode.
    pub mode: &'static str,
}

/// Those of number `i`, below [`MAX_CONTROLS`].
pub fn input_names(i: usize) -> InputNames {
    macro_rules! names {
        ($($i:literal),+) => {
            [$(InputNames {
                condition: concat!("control", $i, ".condition"),
                modulation: concat!("control", $i, ".modulation"),
                strength: concat!("control", $i, ".strength"),
                mode: concat!("control", $i, ".mode"),
            }),+]
        };
    }
    const NAMES: [InputNames; MAX_CONTROLS] = names!(0, 1, 2, 3);
    NAMES[i]
}

/// The table with an embedding for each mode: the host reads the row that it needs.
pub const MODES: &str = "controlnet_mode_embedder.weight";

/// The modulation vectors of the blocks of a ControlNet for `rows` steps; see
/// [`modulate()`](super::modulate()).
pub fn modulate_control(c: &ControlConfig, rows: usize, act: DType) -> Program {
    modulate::record(&c.flux, rows, act, "modulate control", c.modulation_cols())
}

/// Every tensor of a ControlNet with the shape in which files store it, named as in BFL's files
/// where the large transformer has it, too.
pub fn control_tensors(c: &ControlConfig) -> Vec<TensorSpec> {
    let h = c.flux.hidden;
    let mut out = super::tensors(&c.flux);
    out.retain(|(name, _)| !name.starts_with("final_layer."));
    let mut lin = |name: String, n: usize, k: usize| {
        out.push((format!("{name}.weight"), vec![n, k]));
        out.push((format!("{name}.bias"), vec![n]));
    };
    lin("pos_embed_input".into(), h, c.condition_cols);
    (0..c.flux.depth_double).for_each(|i| lin(format!("controlnet_blocks.{i}"), h, h));
    (0..c.flux.depth_single).for_each(|i| lin(format!("controlnet_single_blocks.{i}"), h, h));
    if let Some(modes) = c.modes {
        out.push((MODES.into(), vec![modes, h]));
    }
    if let Condition::Pixels { .. } = c.condition {
        let convs = c.hint_convs();
        for (i, conv) in convs.iter().enumerate() {
            let name = hint::layer(i);
            out.push((format!("{name}.weight"), vec![conv.outputs, conv.inputs, 3, 3]));
            out.push((format!("{name}.bias"), vec![conv.outputs]));
        }
    }
    out
}
