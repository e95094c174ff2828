//! A checkpoint made ready: its geometry read off and every tensor checked before anything runs.

use serde_json::Value;

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
    /// The family that its components belong to.
    pub family: &'static Family,
    pub name: String,
    pub hash: String,
    pub flux: Network<FluxConfig>,
    pub t5: Network<T5Config>,
    pub clip: Network<ClipConfig>,
    pub vae: Network<VaeConfig>,
    pub schedule: ScheduleConfig,
    pub defaults: Defaults,
    /// Tokens of a T5 prompt.
    pub t5_length: usize,
}

/// A geometry and its weights.
pub struct Network<C> {
    pub config: C,
    pub weights: ComponentWeights,
}

/// What the model draws best with; a request overrides each.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    pub steps: usize,
    /// `None` without a guidance embedding.
    pub guidance: Option<f32>,
    pub width: usize,
    pub height: usize,
}

impl Model {
    /// Checks `checkpoint` whole: all four networks there, every tensor present in the right shape.
    /// Lines for the user go to `notes`.
    pub fn new(mut checkpoint: Checkpoint, notes: &mut Vec<String>) -> Result<Self> {
        for component in checkpoint.family.components {
            checkpoint.need(*component)?; // the error says where it was looked for
        }
        notes.append(&mut checkpoint.found);
        let mut part = |component| checkpoint.take(component);
        let flux = network(part(TRANSFORMER)?, FluxConfig::read, flux1::tensors, notes)?;
        let t5 = network(part(T5)?, T5Config::read, t5::tensors, notes)?;
        let clip = network(part(CLIP)?, ClipConfig::read, clip::tensors, notes)?;
        let vae = network(part(VAE)?, VaeConfig::read, vae::tensors, notes)?;
        let t5_max_length = checkpoint.max_length(T5);
        let Checkpoint { name, family, scheduler, generation, hash, .. } = checkpoint;
        fit("T5 width", t5.config.width, "txt_in", flux.config.context)?;
        fit("CLIP width", clip.config.width, "vector_in", flux.config.pooled)?;
        fit(
            "4 x the autoencoder's latent channels",
            4 * vae.config.latent,
            "img_in",
            flux.config.in_channels,
        )?;
        fit("transformer's output", flux.config.out_channels, "img_in", flux.config.in_channels)?;

        let guidance = flux.config.guidance;
        let schedule = match scheduler {
            Some(config) => read_schedule(config, notes)?,
            None if guidance => ScheduleConfig::dev(),
            None => ScheduleConfig::schnell(),
        };
        let number = |key: &str| generation.as_ref().and_then(|g: &Value| g.get(key));
        let whole = |key: &str, default: usize| {
            number(key).and_then(Value::as_u64).map_or(default, |v| v as usize)
        };
        let defaults = Defaults {
            steps: whole("num_inference_steps", if guidance { 28 } else { 4 }),
            guidance: guidance
                .then(|| number("guidance_scale").and_then(Value::as_f64).unwrap_or(3.5) as f32),
            width: whole("width", 1024),
            height: whole("height", 1024),
        };
        let t5_length = t5_max_length.unwrap_or(usize::MAX).min(if guidance { 512 } else { 256 });
        Ok(Model { family, name, hash, flux, t5, clip, vae, schedule, defaults, t5_length })
    }

    /// The weights of one of its networks.
    pub fn weights(&self, component: Component) -> Option<&ComponentWeights> {
        [&self.flux.weights, &self.t5.weights, &self.clip.weights, &self.vae.weights]
            .into_iter()
            .find(|w| w.component() == component)
    }

    /// Picture pixels along the edge of one token.
    pub fn token_pixels(&self) -> usize {
        2 * self.vae.config.factor()
    }
}

/// A folder's scheduler config: what is in it must be usable, and what is not done here must not be
/// asked for.
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
        return Err(unusable(format!("{flag}, which this version does not do")));
    }
    let linear =
        config.get("time_shift_type").and_then(Value::as_str).is_some_and(|t| t != "exponential");
    if linear || config.get("shift_terminal").is_some_and(|v| !v.is_null()) {
        notes.push(
            "time_shift_type and shift_terminal of the scheduler config are not supported: FLUX.1's own are used"
                .into(),
        );
    }
    let schedule: ScheduleConfig =
        serde_json::from_value(config).map_err(|e| unusable(e.to_string()))?;
    schedule.check().map_err(unusable)?;
    Ok(schedule)
}

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

fn fit(what: &str, found: usize, of: &str, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::model(format!("these files do not belong together: the {what} does not match {of}"))
        .found(found)
        .expected(expected)
        .try_("use the text encoders and the autoencoder that were made for this transformer"))
}
