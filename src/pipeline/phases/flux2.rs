//! The phases of a FLUX.2 generation.

use super::GenerationPhase;
use super::decode::Decode;
use super::denoise::Denoise;
use super::hidden_states::HiddenStates;
use super::image_encode::{ImageEncode, ImageUse};
use super::modulate::Modulate;
use super::reference_encode::ReferenceEncode;
use super::reference_keys::ReferenceKeys;
use super::transformer::Transformer;
use crate::error::Result;
use crate::model::SequenceShape;
use crate::model::flux1::DenoiseShape;
use crate::pipeline::loaded::InputImages;
use crate::pipeline::model::{Flux2Networks, Model};
use crate::pipeline::request::Settings;

/// Tokens of a prompt, with its chat template and padding.
pub const TEXT_TOKENS: usize = 512;

/// Text encoder, image encoders (image-to-image and references only), modulation, the keys of
/// references (if the model keeps them), denoising and decoding for `settings`, of whose noise
/// levels `sigmas` are used. `text_key` is that of [`super::flux1()`]; `images` are the images of
/// the request.
///
/// # Errors
/// Those of the tokenizer: the program of the text encoder depends on the number of tokens.
pub fn flux2<'a>(
    model: &'a Model,
    networks: &'a Flux2Networks,
    settings: &Settings,
    sigmas: &[f32],
    text_key: Option<String>,
    images: &InputImages,
) -> Result<Vec<Box<dyn GenerationPhase + 'a>>> {
    let token = model.token_pixels();
    let shape = DenoiseShape {
        images: settings.images(),
        cfg: settings.cfg_scale != 1.0,
        text_tokens: TEXT_TOKENS,
        height: settings.height / token,
        width: settings.width / token,
    };
    let mut prompts = vec![settings.prompt.text()];
    if shape.cfg {
        prompts.push(settings.negative.as_deref().unwrap_or_default());
    }
    let prompts = prompts.into_iter().map(|text| networks.tokenizer.ids(text, TEXT_TOKENS));
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    let sigmas = sigmas.to_vec();
    // With a mask, the model looks at the whole image, and repaints a part of it
    // (`Flux2KleinInpaintPipeline` of diffusers).
    let photo = images.is_masked.then_some((shape.height, shape.width));
    let references = photo.into_iter().chain(images.references.iter().copied()).collect();
    let flux = Transformer::Flux2 {
        network: &networks.flux,
        shape: SequenceShape { image: shape, references, added_inputs: 0 },
    };
    Ok(vec![
        Box::new(HiddenStates {
            qwen3: &networks.qwen3,
            prompts,
            images: shape.images,
            key: text_key,
        }),
        Box::new(ImageEncode {
            vae: &model.vae,
            latents: &model.latents,
            shape,
            work: settings
                .strength
                .map(|_| ImageUse::Start { sigma: sigmas[0], is_reference: images.is_masked }),
        }),
        Box::new(ReferenceEncode {
            vae: &model.vae,
            latents: &model.latents,
            grids: images.references.clone(),
        }),
        Box::new(Modulate {
            flux: flux.clone(),
            guidance: settings.guidance,
            sigmas: sigmas.clone(),
        }),
        Box::new(ReferenceKeys { flux: flux.clone(), is_needed: sigmas.len() > 1 }),
        Box::new(Denoise { flux, sigmas, cfg_scale: settings.cfg_scale }),
        Box::new(Decode { vae: &model.vae, latents: &model.latents, shape }),
    ])
}
