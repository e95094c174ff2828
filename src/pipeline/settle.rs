//! From a request to settings: the defaults of the model are filled in, and everything is checked
//! against the model.

use std::borrow::Cow;

use super::flux1_kind::Flux1Kind;
use super::images::{Masking, check_reference, kontext_size, reference_size};
use super::model::{Model, Networks};
use super::request::{DEFAULT_STRENGTH, MAX_REFERENCES, Request, Settings, plain_number};
use super::schedule::{Schedule, ScheduleConfig, empirical_mu};
use super::styles;
use crate::error::{Error, Result};
use crate::message::Message;

/// `request` with the defaults of `model` filled in.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for a value that is out of range or does not
/// suit the model, [`Kind::Model`](crate::error::Kind::Model) for image-to-image without an image
/// encoder.
pub fn settings_for(model: &Model, request: &Request) -> Result<Settings> {
    request.check()?;
    check_references(model, request)?;
    check_condition(model, request)?;
    check_controlnets(model, request)?;
    if !request.styles.is_empty() && model.flux1_kind().is_none() {
        return Err(styles::unsupported());
    }
    filled(model, request)
}

/// The settings of a request that sets nothing, and has what the model needs besides the prompt.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for defaults in a file that are out of range.
pub fn default_settings(model: &Model) -> Result<Settings> {
    filled(model, &Request::default())
}

fn filled(model: &Model, request: &Request) -> Result<Settings> {
    let d = &model.defaults;
    let unit = model.token_pixels();
    let own = match (masked_size(model, request)?, request.references.first()) {
        (Some(size), _) => size,
        (None, Some(image)) if model.reads_kontext() => {
            kontext_size(image.width, image.height, unit)
        }
        (None, Some(image)) => reference_size(image.width, image.height, unit),
        (None, None) => (d.width, d.height),
    };
    let (width, height) = (request.width.unwrap_or(own.0), request.height.unwrap_or(own.1));
    check_side("width", width, model.token_pixels())?;
    check_side("height", height, model.token_pixels())?;
    let defaults = Settings {
        steps: d.steps,
        seed: random_seed(),
        width,
        height,
        guidance: d.guidance,
        cfg_scale: d.cfg_scale,
        strength: request.init.as_ref().map(|_| match request.outpaint {
            // Margins contain nothing to start from.
            Some(_) => 1.0,
            None if model.flux1_kind() == Some(Flux1Kind::Fill) => 1.0,
            None => DEFAULT_STRENGTH,
        }),
        mask_blur: request.mask.as_ref().map(|_| 0.0),
        reference_count: Some(request.references.len()).filter(|&count| count > 0),
        model: model.name.clone(),
        model_hash: model.hash.clone(),
        ..Settings::default()
    };
    let mut settings = request.fill(defaults);
    settings.style_strengths.resize(request.styles.len(), 1.0);
    if d.guidance.is_none() {
        settings.guidance = None;
    }
    // The model's defaults come from a file, so they must be checked too.
    Request::from(settings.clone()).check_values()?;
    let reads_images = request.init.is_some()
        || request.control.is_some()
        || !request.controlnets.is_empty()
        || !request.references.is_empty();
    if reads_images && !model.vae.config.encoder {
        return Err(Error::model(
            "reading an image needs the autoencoder's encoder, which this file lacks",
        )
        .try_("{vae=ae.safetensors}"));
    }
    Ok(settings)
}

/// The size in which `request` draws, if it has a mask.
fn masked_size(model: &Model, request: &Request) -> Result<Option<(usize, usize)>> {
    let d = &model.defaults;
    Masking::size(request, model.token_pixels(), d.width * d.height)
}

/// The part that `request` repaints, if it has a mask.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for a size that does not suit its image.
pub fn masking_for(model: &Model, request: &Request) -> Result<Option<Masking>> {
    let d = &model.defaults;
    Masking::of(request, model.token_pixels(), d.width * d.height)
}

/// Checks that the model reads reference images, and that it can read these.
fn check_references(model: &Model, request: &Request) -> Result<()> {
    let count = request.references.len();
    if let Some(expected) = request.reference_count.filter(|&expected| expected != count) {
        return Err(Error::argument(
            "the image was drawn from reference images, which its settings do not contain",
        )
        .at_parameter("reference")
        .found(format!("{count} reference images"))
        .expected(expected)
        .try_("give the same reference images, in the same order"));
    }
    if count == 0 {
        return Ok(());
    }
    match model.flux1_kind() {
        None => {}
        // Any ratio of sides is stretched to the nearest one of its training.
        Some(Flux1Kind::Kontext) => return check_count(count),
        Some(_) => {
            return Err(Error::argument("this model does not read reference images")
                .at_parameter("reference")
                .try_(
                    "use FLUX.2 [klein] or FLUX.1 Kontext (which is known by the word \"kontext\" \
                     in the name of its file or folder), or {init} to start from an image",
                ));
        }
    }
    check_count(count)?;
    request.references.iter().try_for_each(check_reference)
}

fn check_count(count: usize) -> Result<()> {
    if count > MAX_REFERENCES {
        return Err(Error::argument("too many reference images")
            .at_parameter("reference")
            .found(count)
            .expected(format!("at most {MAX_REFERENCES}")));
    }
    Ok(())
}

/// Checks that the request has the images that the model needs besides the prompt, and no others.
fn check_condition(model: &Model, request: &Request) -> Result<()> {
    let kind = model.flux1_kind();
    let is_control = kind.is_some_and(Flux1Kind::is_control);
    match &request.control {
        // Whether one of the LoRAs reads it is known when they are.
        Some(_) if kind == Some(Flux1Kind::TextToImage) && request.has_loras() => {}
        Some(_) if !is_control => return Err(no_control_image()),
        None if is_control => {
            return Err(Error::argument("this model needs a control image")
                .at_parameter("control")
                .try_(
                    "{control} with a photo or a drawing of edges (Canny), or an image of depths, \
                     in which near is bright (Depth)",
                ));
        }
        _ => {}
    }
    if kind == Some(Flux1Kind::Fill) && !request.is_masked() {
        return Err(Error::argument("FLUX.1 Fill repaints a part of an image")
            .at_parameter("mask")
            .found("no mask")
            .try_("{init} with the image, and {mask} or {outpaint}"));
    }
    Ok(())
}

/// Checks that the model can have ControlNets, and that each of them has its image.
fn check_controlnets(model: &Model, request: &Request) -> Result<()> {
    let (found, expected) = (request.control_images.len(), request.controlnets.len());
    if let (Networks::Flux2(_), Some(first)) = (&model.networks, request.controlnets.first()) {
        return Err(Error::argument("ControlNets are for FLUX.1, and this is a FLUX.2 model")
            .at_message(first.place())
            .found(&model.name)
            .try_("a FLUX.1 model; FLUX.2 takes images by {reference}"));
    }
    if found == expected {
        return Ok(());
    }
    Err(Error::argument("each ControlNet needs an image, which recorded settings do not contain")
        .at_parameter("controlnet")
        .found(format!("{found} images"))
        .expected(expected)
        .try_("{controlnet=FILE:IMAGE} for each of them"))
}

/// The error for a control image with a model that does not read any.
pub fn no_control_image() -> Error {
    Error::argument("this model does not read a control image").at_parameter("control").try_(
        "use FLUX.1 Canny or Depth, or {lora} with one of their LoRAs on [dev]; {init} starts from \
         an image",
    )
}

/// `pixels` must be a positive multiple of `token`, the pixels along the edge of one token.
pub fn check_side(name: &str, pixels: usize, token: usize) -> Result<()> {
    if pixels > 0 && pixels.is_multiple_of(token) {
        return Ok(());
    }
    let nearest = ((pixels + token / 2) / token).max(1) * token;
    Err(Error::argument(format!("the {name} does not suit this model"))
        .found(pixels)
        .expected(format!("a multiple of {token} pixels"))
        .try_(Message::parameter_with(name, nearest)))
}

/// The noise level before each step of `settings`, and the last one. Image-to-image begins at a
/// lower level than 1 and has fewer steps; strength 0 leaves a single level.
pub fn noise_levels(model: &Model, settings: &Settings) -> Vec<f32> {
    let token = model.token_pixels();
    let tokens = (settings.width / token) * (settings.height / token);
    let config = match settings.shift {
        Some(shift) => Cow::Owned(ScheduleConfig::fixed(plain_number(shift))),
        None => Cow::Borrowed(settings.scheduler.as_ref().unwrap_or(&model.schedule)),
    };
    let mu = match model.networks {
        Networks::Flux1(_) => config.mu(tokens),
        Networks::Flux2(_) => empirical_mu(tokens, settings.steps),
    };
    let mut schedule = Schedule::with_mu(&config, settings.steps, mu);
    let first = settings.strength.map_or(0, |s| schedule.from_strength(s));
    schedule.sigmas.split_off(first)
}

/// A seed for a request without one: 32 bits, since torch's generator uses only 32 bits of a seed.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() & 0xffff_ffff
}
