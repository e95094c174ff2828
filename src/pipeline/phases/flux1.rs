//! The phases of a FLUX.1 generation.

use super::GenerationPhase;
use super::decode::Decode;
use super::denoise::Denoise;
use super::image_encode::ImageEncode;
use super::modulate::Modulate;
use super::text_encode::TextEncode;
use super::transformer::Transformer;
use crate::model::flux1::DenoiseShape;
use crate::pipeline::model::{Flux1Networks, Model};
use crate::pipeline::request::Settings;

/// Text encoders, image encoder (image-to-image only), modulation, denoising and decoding for
/// `settings`, of whose noise levels `sigmas` are used. `text_key` names what the text embeddings
/// depend on besides prompts and networks: arithmetic and LoRAs; `None` if they are neither read
/// from the cache nor written to it.
pub fn flux1<'a>(
    model: &'a Model,
    networks: &'a Flux1Networks,
    settings: &Settings,
    sigmas: &[f32],
    text_key: Option<String>,
) -> Vec<Box<dyn GenerationPhase + 'a>> {
    let token = model.token_pixels();
    let shape = DenoiseShape {
        images: settings.images(),
        cfg: settings.cfg_scale != 1.0,
        text_tokens: networks.t5_length,
        height: settings.height / token,
        width: settings.width / token,
    };
    let mut prompts = vec![settings.prompt.text().to_string()];
    if shape.cfg {
        prompts.push(settings.negative.clone().unwrap_or_default());
    }
    let sigmas = sigmas.to_vec();
    let flux = Transformer::Flux1 { network: &networks.flux, shape };
    let (tokenizers, images) = (&networks.tokenizers, shape.images);
    vec![
        Box::new(TextEncode { networks, tokenizers, prompts, images, key: text_key }),
        Box::new(ImageEncode {
            vae: &model.vae,
            latents: &model.latents,
            shape,
            sigma: settings.strength.map(|_| sigmas[0]),
        }),
        Box::new(Modulate {
            flux: flux.clone(),
            guidance: settings.guidance,
            sigmas: sigmas.clone(),
        }),
        Box::new(Denoise { flux, sigmas, cfg_scale: settings.cfg_scale }),
        Box::new(Decode { vae: &model.vae, latents: &model.latents, shape }),
    ]
}
