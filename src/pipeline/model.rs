//! A checkpoint that is ready to run: its geometry is known and every tensor is checked.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::request::{MAX_PIXELS, MAX_SCALE, MAX_SIDE, MAX_STEPS, MIN_SIDE};
use super::schedule::ScheduleConfig;
use crate::error::{Error, Result};
use crate::library::Checkpoint;
use crate::model::{
    ClipConfig, FluxConfig, Shapes, T5Config, TensorSpec, VaeConfig, clip, flux1, t5, vae,
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
        if defaults.width * defaults.height > MAX_PIXELS {
            return Err(Error::model("the model's own default has too many pixels")
                .at("generation config")
                .found(format!("{}x{}", defaults.width, defaults.height))
                .expected(format!("at most {MAX_PIXELS} pixels (2048x2048)")));
        }
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
    pub fn new(mut checkpoint: Checkpoint, notes: &mut Vec<String>) -> Result<Self> {
        for component in checkpoint.family.components {
            checkpoint.need(*component)?; // the error says where it was searched
        }
        notes.append(&mut checkpoint.found);
        let mut part = |component| checkpoint.take(component);
        let flux = network(part(TRANSFORMER)?, FluxConfig::read, flux1::tensors, notes)?;
        let t5 = network(part(T5)?, T5Config::read, t5::tensors, notes)?;
        let clip = network(part(CLIP)?, ClipConfig::read, clip::tensors, notes)?;
        let vae = network(part(VAE)?, VaeConfig::read, vae::tensors, notes)?;
        let t5_max_length = checkpoint.max_length(T5);
        let shapes_only = checkpoint.shapes_only;
        let Checkpoint { name, family, scheduler, generation, generation_file, hash, .. } =
            checkpoint;
        let c = &flux.config;
        fit("T5 width", t5.config.width, "txt_in", c.context)?;
        fit("CLIP width", clip.config.width, "vector_in", c.pooled)?;
        let latent = 4 * vae.config.latent;
        fit("4 x the autoencoder's latent channels", latent, "img_in", c.in_channels)?;
        fit("transformer's output", c.out_channels, "img_in", c.in_channels)?;

        let guidance = c.guidance;
        let schedule = match scheduler {
            Some(config) => read_schedule(config, notes)?,
            None if guidance => ScheduleConfig::dev(),
            None => ScheduleConfig::schnell(),
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

/// The scheduler config of a model folder. Its numbers must be usable, and it must not ask for a
/// schedule that this program does not implement.
fn read_schedule(config: Value, notes: &mut Vec<String>) -> Result<ScheduleConfig> {
    let unusable = |why: String| {
        Error::model("the scheduler config cannot be used")
            .found(why)
            .try_("compare it with diffusers' scheduler_config.json")
    };
    let flags = [
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "stochastic_sampling",
        "invert_sigmas",
    ];
    if let Some(flag) =
        flags.iter().find(|f| config.get(**f).and_then(Value::as_bool) == Some(true))
    {
        return Err(unusable(format!("{flag}, which this version does not support")));
    }
    let linear =
        config.get("time_shift_type").and_then(Value::as_str).is_some_and(|t| t != "exponential");
    if linear || config.get("shift_terminal").is_some_and(|v| !v.is_null()) {
        notes.push(
            "time_shift_type and shift_terminal of the scheduler config are not supported: those \
             of FLUX.1 are used"
                .into(),
        );
    }
    let schedule: ScheduleConfig =
        serde_json::from_value(config).map_err(|e| unusable(e.to_string()))?;
    schedule.check().map_err(unusable)?;
    Ok(schedule)
}

/// Reads the geometry of a network off its tensors and checks all of them.
fn network<C>(
    weights: ComponentWeights,
    read: fn(Shapes, Option<&Value>) -> Result<C>,
    tensors: fn(&C) -> Vec<TensorSpec>,
    notes: &mut Vec<String>,
) -> Result<Network<C>> {
    let config = read(&|name| weights.shape(name), weights.config())?;
    notes.extend(weights.check(&tensors(&config))?);
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
