//! From a request to settings: the defaults of the model are filled in, and everything is checked
//! against the model.

use std::borrow::Cow;

use super::images::{check_reference, reference_size};
use super::model::{Model, Networks};
use super::request::{DEFAULT_STRENGTH, MAX_REFERENCES, Request, Settings, plain_number};
use super::schedule::{Schedule, ScheduleConfig, empirical_mu};
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
    let d = &model.defaults;
    check_references(model, request)?;
    let unit = model.token_pixels();
    let own = match request.references.first() {
        Some(image) => reference_size(image.width, image.height, unit),
        None => (d.width, d.height),
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
        strength: request.init.as_ref().map(|_| DEFAULT_STRENGTH),
        reference_count: Some(request.references.len()).filter(|&count| count > 0),
        model: model.name.clone(),
        model_hash: model.hash.clone(),
        ..Settings::default()
    };
    let mut settings = request.fill(defaults);
    if d.guidance.is_none() {
        settings.guidance = None;
    }
    // The model's defaults come from a file, so they must be checked too.
    Request::from(settings.clone()).check_values()?;
    let reads_images = request.init.is_some() || !request.references.is_empty();
    if reads_images && !model.vae.config.encoder {
        return Err(Error::model(
            "reading an image needs the autoencoder's encoder, which this file lacks",
        )
        .try_("{vae=ae.safetensors}"));
    }
    Ok(settings)
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
    if let Networks::Flux1(_) = model.networks {
        return Err(Error::argument("this model does not read reference images")
            .at_parameter("reference")
            .try_("use FLUX.2 [klein], or {init} to start from an image"));
    }
    if count > MAX_REFERENCES {
        return Err(Error::argument("too many reference images")
            .at_parameter("reference")
            .found(count)
            .expected(format!("at most {MAX_REFERENCES}")));
    }
    request.references.iter().try_for_each(check_reference)
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
