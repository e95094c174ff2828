//! The phases of a FLUX.1 generation.

use super::GenerationPhase;
use super::control_hint::ControlHint;
use super::control_modulate::ControlModulate;
use super::decode::Decode;
use super::denoise::Denoise;
use super::image_encode::{ImageEncode, ImageUse};
use super::modulate::Modulate;
use super::reference_encode::ReferenceEncode;
use super::style_encode::StyleEncode;
use super::text_encode::TextEncode;
use super::transformer::Transformer;
use crate::model::SequenceShape;
use crate::model::flux1::DenoiseShape;
use crate::model::flux1::control::{Condition, MAX_CONTROLS};
use crate::pipeline::controlnets::Controlling;
use crate::pipeline::flux1_kind::Flux1Kind;
use crate::pipeline::loaded::InputImages;
use crate::pipeline::model::{Flux1Networks, Model};
use crate::pipeline::request::Settings;
use crate::pipeline::styles::StyleNetworks;

/// The images of a request, and what reads them.
pub struct Flux1Inputs<'a, 'r> {
    /// Their sizes.
    pub images: &'r InputImages,
    /// The networks that read style images.
    pub styles: Option<&'a StyleNetworks>,
    /// The ControlNets that act.
    pub controls: &'a [Controlling],
    /// Columns of the transformer's input that LoRAs add for a control image.
    pub added_inputs: usize,
}

/// Text encoders, encoders of style images, image encoders (for images that the request has),
/// modulation, denoising and decoding for `settings`, of whose noise levels `sigmas` are used.
/// `inputs` are the images of the request, and what reads them. `text_key` names what the text
/// embeddings depend on besides prompts and networks: arithmetic and LoRAs; `None` if they are
/// neither read from the cache nor written to it.
pub fn flux1<'a>(
    model: &'a Model,
    networks: &'a Flux1Networks,
    settings: &Settings,
    sigmas: &[f32],
    text_key: Option<String>,
    inputs: Flux1Inputs<'a, '_>,
) -> Vec<Box<dyn GenerationPhase + 'a>> {
    let Flux1Inputs { images, styles, controls, added_inputs } = inputs;
    let token = model.token_pixels();
    let style_tokens =
        styles.map_or(0, |n| settings.style_strengths.len() * n.siglip.config.tokens());
    let shape = DenoiseShape {
        images: settings.images(),
        cfg: settings.cfg_scale != 1.0,
        text_tokens: networks.t5_length + style_tokens,
        height: settings.height / token,
        width: settings.width / token,
    };
    let mut prompts = vec![settings.prompt.text().to_string()];
    if shape.cfg {
        prompts.push(settings.negative.clone().unwrap_or_default());
    }
    let sigmas = sigmas.to_vec();
    let flux = Transformer::Flux1 {
        network: &networks.flux,
        shape: SequenceShape { image: shape, references: images.references.clone(), added_inputs },
        controls,
    };
    let start = ImageUse::Start { sigma: sigmas[0], is_reference: false };
    // Fill sees the image as its condition, and starts from noise alone.
    let is_ignored = networks.kind == Flux1Kind::Fill && sigmas[0] == 1.0;
    let start = settings.strength.filter(|_| !is_ignored).map(|_| start);
    let encode = |work| ImageEncode { vae: &model.vae, latents: &model.latents, shape, work };
    let mut phases: Vec<Box<dyn GenerationPhase + 'a>> = vec![
        Box::new(TextEncode {
            networks,
            tokenizers: &networks.tokenizers,
            prompts,
            images: shape.images,
            key: text_key.clone(),
        }),
        Box::new(StyleEncode {
            networks: styles,
            others: &networks.t5.weights,
            strengths: settings.style_strengths.clone(),
            prompts: shape.prompts(),
            images: shape.images,
            key: text_key,
        }),
        Box::new(encode(start)),
    ];
    match networks.kind {
        // In the list without it, too, so that later programs keep their numbers.
        Flux1Kind::TextToImage => {
            let condition = (added_inputs > 0).then_some(ImageUse::Condition);
            phases.push(Box::new(encode(condition)));
        }
        Flux1Kind::Kontext => phases.push(Box::new(ReferenceEncode {
            vae: &model.vae,
            latents: &model.latents,
            grids: images.references.clone(),
        })),
        Flux1Kind::Fill | Flux1Kind::Canny | Flux1Kind::Depth | Flux1Kind::Control => {
            phases.push(Box::new(encode(Some(ImageUse::Condition))));
        }
    }
    for number in 0..MAX_CONTROLS {
        let control = controls.get(number);
        let reads_latents =
            |c: &&Controlling| !matches!(c.net.network.config.condition, Condition::Pixels { .. });
        let work = control.filter(reads_latents).map(|_| ImageUse::Control(number));
        phases.push(Box::new(encode(work)));
        let size = (settings.height, settings.width);
        phases.push(Box::new(ControlHint { model, number, control, size }));
        phases.push(Box::new(ControlModulate {
            model,
            number,
            control,
            guidance: settings.guidance,
            sigmas: sigmas.clone(),
        }));
    }
    let rest: [Box<dyn GenerationPhase + 'a>; 3] = [
        Box::new(Modulate {
            flux: flux.clone(),
            guidance: settings.guidance,
            sigmas: sigmas.clone(),
        }),
        Box::new(Denoise { flux, sigmas, cfg_scale: settings.cfg_scale }),
        Box::new(Decode { vae: &model.vae, latents: &model.latents, shape }),
    ];
    phases.extend(rest);
    phases
}
