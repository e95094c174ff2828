//! A checkpoint that is ready to run: its geometry is known and every tensor is checked.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::request::{MAX_SCALE, MAX_SIDE, MAX_STEPS, MIN_SIDE};
use super::schedule::ScheduleConfig;
use crate::error::{Error, Result};
use crate::library::{Checkpoint, networks};
use crate::message::Message;
use crate::model::{
    ClipConfig, FluxConfig, T5Config, TensorShapes, TensorSpec, VaeConfig, clip, t5, vae,
};
use crate::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};
use crate::spec::{Component, Family};
use crate::weights::ComponentWeights;

/// The four networks of one model.
pub struct Model {
    /// Some weights have shapes only: a run can be planned, not made.
    pub shapes_only: bool,
    /// The family that its components belong to.
    pub family: &'static Family,
    /// The name that users see, such as `flux1-dev`.
    pub name: String,
    /// The first digits of a hash of the weights' header; empty if unknown.
    pub hash: String,
    /// The transformer.
    pub flux: Network<FluxConfig>,
    /// The text encoder for [`Text::context`](super::text_cache::Text::context).
    pub t5: Network<T5Config>,
    /// The text encoder for [`Text::pooled`](super::text_cache::Text::pooled).
    pub clip: Network<ClipConfig>,
    /// The autoencoder.
    pub vae: Network<VaeConfig>,
    /// How noise levels are computed.
    pub schedule: ScheduleConfig,
    /// A note that `schedule` is a guess, for a request that does not give one itself.
    pub assumed: Option<Message>,
    /// What a request leaves out.
    pub defaults: Defaults,
    /// Tokens of a T5 prompt.
    pub t5_length: usize,
}

/// One network of a model.
pub struct Network<C> {
    /// Its geometry.
    pub config: C,
    /// Its weights.
    pub weights: ComponentWeights,
}

/// The values with which the model works best, for what a request leaves out.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Denoising steps.
    pub steps: usize,
    /// Distilled guidance; `None` for a model without a guidance embedding.
    pub guidance: Option<f32>,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

impl Defaults {
    /// The values in a checkpoint's `generation` config, else those of FLUX.1: of dev with a
    /// `guidance` embedding, of schnell without.
    ///
    /// # Errors
    /// [`Kind::Model`](crate::error::Kind::Model) for a value that no request may have.
    fn read(generation: Option<&Value>, guidance: bool) -> Result<Defaults> {
        let number = |key: &str, range: RangeInclusive<f64>, step: f64| {
            let value = generation.and_then(|g| g.get(key)).filter(|v| !v.is_null());
            let Some(value) = value else { return Ok(None) };
            let is_step = |v: &f64| step == 0.0 || v % step == 0.0;
            let number = value.as_f64().filter(|v| range.contains(v) && is_step(v));
            let number = number.ok_or_else(|| {
                let kind = match step {
                    0.0 => "a number".to_string(),
                    1.0 => "a whole number".to_string(),
                    step => format!("a multiple of {step}"),
                };
                Error::model("the model's own default cannot be used")
                    .at(format!("generation config, {key}"))
                    .found(value)
                    .expected(format!("{kind} from {} to {}", range.start(), range.end()))
                    .try_("correct or remove the value in this file")
            });
            number.map(Some)
        };
        let whole = |key, (least, most): (usize, usize), step: usize, default| -> Result<usize> {
            let found = number(key, least as f64..=most as f64, step as f64)?;
            Ok(found.map_or(default, |v| v as usize))
        };
        let side = |key| whole(key, (MIN_SIDE, MAX_SIDE), MIN_SIDE, 1024);
        let scale = number("guidance_scale", 0.0..=f64::from(MAX_SCALE), 0.0)?.unwrap_or(3.5);
        let steps = if guidance { 28 } else { 4 };
        let defaults = Defaults {
            steps: whole("num_inference_steps", (1, MAX_STEPS), 1, steps)?,
            guidance: guidance.then_some(scale as f32),
            width: side("width")?,
            height: side("height")?,
        };
        Ok(defaults)
    }
}

impl Model {
    /// Checks that `checkpoint` has all four networks, and that every tensor is there in the right
    /// shape. Notes for the user are added to `notes`.
    ///
    /// # Errors
    /// [`Kind::Missing`](crate::error::Kind::Missing) for a network,
    /// [`Kind::Model`](crate::error::Kind::Model) for a tensor or for networks that do not belong
    /// together.
    pub fn new(mut checkpoint: Checkpoint, notes: &mut Vec<Message>) -> Result<Self> {
        notes.extend(checkpoint.found.drain(..).map(Message::plain));
        // The transformer comes first: nobody should be asked for the text encoders of a model that
        // cannot be used.
        let weights = checkpoint.take(TRANSFORMER)?;
        let (config, more) = networks::transformer(&weights)?;
        notes.extend(more.into_iter().map(Message::plain));
        let flux = Network { config, weights };
        for component in checkpoint.family.components.iter().filter(|c| **c != TRANSFORMER) {
            checkpoint.need(*component)?; // the error says where it was searched
        }
        let mut part = |component| checkpoint.take(component);
        let t5 = network(part(T5)?, T5Config::read, t5::tensors, notes)?;
        let clip = network(part(CLIP)?, ClipConfig::read, clip::tensors, notes)?;
        let vae = network(part(VAE)?, VaeConfig::read, vae::tensors, notes)?;
        let t5_max_length = checkpoint.max_length(T5);
        let called = checkpoint.called();
        let shapes_only = checkpoint.shapes_only;
        let Checkpoint { name, family, scheduler, generation, generation_file, hash, .. } =
            checkpoint;
        let c = &flux.config;
        fit("T5 width", t5.config.width, "txt_in", c.context)?;
        fit("CLIP width", clip.config.width, "vector_in", c.pooled)?;
        let latent = 4 * vae.config.latent;
        fit("4 x the autoencoder's latent channels", latent, "img_in", c.in_channels)?;

        let guidance = c.guidance;
        notes.extend(editing_note(&called, &name));
        let mut assumed = None;
        let schedule = match scheduler {
            Some(config) => ScheduleConfig::read(config, notes)?,
            None if guidance => ScheduleConfig::dev(),
            None => {
                assumed = schnell_note(&called, &name);
                ScheduleConfig::schnell()
            }
        };
        let defaults = Defaults::read(generation.as_ref(), guidance);
        let defaults = defaults.map_err(|e| match &generation_file {
            Some(file) => e.at_path(file),
            None => e.at(&name),
        })?;
        let t5_length = t5_max_length.unwrap_or(usize::MAX).min(if guidance { 512 } else { 256 });
        Ok(Model {
            shapes_only,
            family,
            name,
            hash,
            flux,
            t5,
            clip,
            vae,
            schedule,
            assumed,
            defaults,
            t5_length,
        })
    }

    /// The weights of the network `component`; `None` if the model does not have it.
    pub fn weights(&self, component: Component) -> Option<&ComponentWeights> {
        [&self.flux.weights, &self.t5.weights, &self.clip.weights, &self.vae.weights]
            .into_iter()
            .find(|w| w.component() == component)
    }

    /// Image pixels along the edge of one token.
    pub fn token_pixels(&self) -> usize {
        2 * self.vae.config.factor()
    }
}

/// Says that a model that is called like one with an image as input is used as text to image.
fn editing_note(called: &[String], name: &str) -> Option<Message> {
    if called.iter().any(|c| c.contains("kontext")) {
        return Some(Message::with(
            "{} is FLUX.1 Kontext by its name, which edits an image; that is not supported yet, so \
             it draws from the prompt, or from the noisy image of {init} as any model does",
            [Message::plain(name)],
        ));
    }
    // The transformers of these have more inputs, and are refused; this one has not.
    let others = [("fill", "Fill"), ("canny", "Canny"), ("depth", "Depth")];
    let (_, other) = others.into_iter().find(|(word, _)| called.iter().any(|c| names(c, word)))?;
    Some(Message::with(
        "{} is FLUX.1 {} by its name, but its transformer has the inputs of a text-to-image model: \
         it draws from the prompt, without a mask or a control image",
        [Message::plain(name), Message::plain(other)],
    ))
}

/// Whether `called` names the FLUX model `word`: `flux1-fill-dev`, `FluxFillPipeline`.
fn names(called: &str, word: &str) -> bool {
    let mut words = called.split(|c: char| !c.is_ascii_alphanumeric());
    let is_pipeline = || called.starts_with(&format!("flux{word}"));
    called.contains("flux") && (words.any(|w| w == word) || is_pipeline())
}

/// Says that a model without a guidance embedding is taken for schnell, unless it is called so.
fn schnell_note(called: &[String], name: &str) -> Option<Message> {
    let is_schnell = called.iter().any(|c| c.contains("schnell"));
    (!is_schnell).then(|| {
        Message::with(
            "{} has no guidance embedding, so it gets the steps, prompt length and noise levels of \
             FLUX.1 [schnell]; a de-distilled [dev] needs {scheduler} with the \
             scheduler_config.json of [dev] (or {shift=3}), more {steps}, and {cfg_scale}",
            [Message::plain(name)],
        )
    })
}

/// Reads the geometry of a network off its tensors and checks all of them.
fn network<C>(
    weights: ComponentWeights,
    read: fn(&dyn TensorShapes, Option<&Value>) -> Result<C>,
    tensors: fn(&C) -> Vec<TensorSpec>,
    notes: &mut Vec<Message>,
) -> Result<Network<C>> {
    let (config, more) = networks::network(&weights, read, tensors)?;
    notes.extend(more.into_iter().map(Message::plain));
    Ok(Network { config, weights })
}

/// Checks that two networks have a width in common.
fn fit(what: &str, found: usize, of: &str, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::model(format!("these files do not belong together: the {what} does not match {of}"))
        .found(found)
        .expected(expected)
        .try_("use the text encoders and the autoencoder that were made for this transformer"))
}
