//! Whether the weights of a network are whole and of a kind that can be drawn with. The choice
//! among the files of a folder and the opening of a model ask the same questions here.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::{ControlConfig, Flux2Config, FluxConfig, TensorShapes, TensorSpec};
use crate::model::{flux1 as flux1_model, flux2 as flux2_model};
use crate::spec;
use crate::spec::foreign;
use crate::weights::ComponentWeights;

impl TensorShapes for ComponentWeights {
    fn shape(&self, name: &str) -> Option<(usize, usize)> {
        ComponentWeights::shape(self, name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(ComponentWeights::names(self))
    }

    fn stored_name(&self, name: &str) -> String {
        ComponentWeights::stored_name(self, name)
    }
}

/// Reads the geometry of a network off its tensors and checks all of them. Returns notes for the
/// user, too.
///
/// # Errors
/// [`Kind::Model`](crate::error::Kind::Model) for a tensor that is missing or has another shape.
pub fn network<C>(
    weights: &ComponentWeights,
    read: fn(&dyn TensorShapes, Option<&Value>) -> Result<C>,
    tensors: fn(&C) -> Vec<TensorSpec>,
) -> Result<(C, Vec<String>)> {
    let config = read(weights, weights.config()).map_err(|e| {
        // How they are stored says which file this is.
        let e = match e.found_value() {
            None => e.found(weights.dialect()),
            Some(_) => e,
        };
        e.at(weights.place())
    })?;
    let notes = weights.check(&tensors(&config))?;
    Ok((config, notes))
}

/// Checks a transformer of a family that this program can draw with.
///
/// # Errors
/// Those of [`flux1`] and [`flux2`].
pub fn check_transformer(weights: &ComponentWeights) -> Result<()> {
    let component = weights.component();
    if component == spec::flux1::TRANSFORMER {
        flux1(weights)?;
    } else if component == spec::flux2::TRANSFORMER {
        flux2(weights)?;
    }
    Ok(())
}

/// The same for FLUX.1's transformer, whose input must be the noise, or that of Fill, Canny or
/// Depth.
pub fn flux1(weights: &ComponentWeights) -> Result<(FluxConfig, Vec<String>)> {
    // First of all: a tensor that is missing from another model is of no interest.
    check_inputs(weights)?;
    network(weights, FluxConfig::read, flux1_model::tensors)
}

/// The same for FLUX.2's transformer, which must be one that reads Qwen3.
pub fn flux2(weights: &ComponentWeights) -> Result<(Flux2Config, Vec<String>)> {
    /// Three hidden states of Mistral Small 3.2 next to one another.
    const MISTRAL: usize = 3 * 5120;
    let guided = weights.names().any(|name| name.starts_with("guidance_in."));
    let context = weights.shape("txt_in.weight").map(|(_, columns)| columns);
    if guided && context == Some(MISTRAL) {
        return Err(Error::model(
            "this is FLUX.2 [dev], whose text encoder (Mistral Small 3.2, 24 billion values) is \
             not supported",
        )
        .at(weights.stored_name("txt_in.weight"))
        .at(weights.place())
        .found(format!("text {MISTRAL} wide"))
        .expected("7680 (FLUX.2 [klein] 4B) or 12288 (9B)")
        .try_("use FLUX.2 [klein] 4B or 9B, or ComfyUI for this model"));
    }
    network(weights, Flux2Config::read, flux2_model::tensors)
}

/// The same for a ControlNet for FLUX.1.
pub fn controlnet(weights: &ComponentWeights) -> Result<(ControlConfig, Vec<String>)> {
    network(weights, ControlConfig::read, flux1_model::control::control_tensors)
}

/// How many pixels a latent pixel is wide for a transformer that reads the latents of an image and
/// the pixels of a mask besides the noise (FLUX.1 Fill); `None` for other inputs.
pub fn mask_factor(inputs: usize, outputs: usize) -> Option<usize> {
    let mask = inputs.checked_sub(2 * outputs)?;
    (0..6).map(|i| 1 << i).find(|factor| 4 * factor * factor == mask)
}

/// Refuses a transformer whose input has more than the noise and is not one that is known, by the
/// widths of its input and output.
fn check_inputs(weights: &ComponentWeights) -> Result<()> {
    let outputs = weights
        .shape("final_layer.linear.weight")
        .map(|(rows, _)| rows)
        .or(weights.shape("final_layer.linear.bias").map(|(_, columns)| columns));
    let inputs = weights.shape("img_in.weight").map(|(_, columns)| columns);
    // Without one of them the file is damaged, which the check of its tensors reports.
    let Some((inputs, outputs)) = inputs.zip(outputs).filter(|(i, o)| i != o) else {
        return Ok(());
    };
    if inputs == 2 * outputs || mask_factor(inputs, outputs).is_some() {
        return Ok(());
    }
    let known = foreign::INPUTS.iter().find(|(n, ..)| n * outputs == 64 * inputs);
    let (what, advice) = match known {
        Some((_, what, advice)) => (format!("this is {what}"), *advice),
        None => (
            "the input of this transformer is not that of a model that is known".to_string(),
            "use FLUX.1 [dev], [schnell], Fill, Canny or Depth, FLUX.2 [klein], or one of their \
             fine-tunes",
        ),
    };
    Err(Error::model(what)
        .at(weights.stored_name("img_in.weight"))
        .at(weights.place())
        .found(format!("{inputs} inputs"))
        .expected(format!("{outputs}, {} or {} inputs", 2 * outputs, 6 * outputs))
        .try_(advice))
}
