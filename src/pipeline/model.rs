//! A checkpoint that is ready to run: its geometry is known and every tensor is checked.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::flux1_kind::Flux1Kind;
use super::request::{MAX_SCALE, MAX_SIDE, MAX_STEPS, MIN_SIDE};
use super::schedule::ScheduleConfig;
use super::styles::Styles;
use super::tokenizers::{Qwen3Tokenizer, Tokenizers};
use crate::error::{Error, Result};
use crate::library::{Checkpoint, networks};
use crate::message::Message;
use crate::model::{
    ClipConfig, Flux2Config, FluxConfig, Qwen3Config, T5Config, TensorShapes, TensorSpec,
    VaeConfig, clip, qwen3, t5, vae,
};
use crate::spec::flux1::{CLIP, T5};
use crate::spec::flux2::{FLUX2, QWEN3};
use crate::spec::{Component, Family, Role};
use crate::weights::ComponentWeights;

/// The networks of one model.
pub struct Model {
    /// Some weights have shapes only: a run can be planned, not made.
    pub shapes_only: bool,
    /// The family that its components belong to.
    pub family: &'static Family,
    /// The name that users see, such as `flux1-dev`.
    pub name: String,
    /// The first digits of a hash of the weights' header; empty if unknown.
    pub hash: String,
    /// The transformer and the text encoders.
    pub networks: Networks,
    /// The autoencoder.
    pub vae: Network<VaeConfig>,
    /// How the autoencoder's latents become those of the transformer.
    pub latents: LatentScale,
    /// How noise levels are computed.
    pub schedule: ScheduleConfig,
    /// A note that `schedule` is a guess, for a request that does not give one itself.
    pub assumed: Option<Message>,
    /// The values of parameters that a request leaves out.
    pub defaults: Defaults,
    /// What only requests with styles need.
    pub styles: Styles,
}

/// The networks that families do not share.
pub enum Networks {
    /// FLUX.1's.
    Flux1(Box<Flux1Networks>),
    /// FLUX.2's.
    Flux2(Box<Flux2Networks>),
}

/// Transformer, text encoders and tokenizers of FLUX.1.
pub struct Flux1Networks {
    /// The transformer.
    pub flux: Network<FluxConfig>,
    /// The text encoder for [`Text::context`](super::text_cache::Text::context).
    pub t5: Network<T5Config>,
    /// The text encoder for [`Text::pooled`](super::text_cache::Text::pooled).
    pub clip: Network<ClipConfig>,
    /// Both tokenizers.
    pub tokenizers: Tokenizers,
    /// Tokens of a T5 prompt.
    pub t5_length: usize,
    /// What the transformer reads besides the prompt.
    pub kind: Flux1Kind,
}

/// Transformer, text encoder and tokenizer of FLUX.2.
pub struct Flux2Networks {
    /// The transformer.
    pub flux: Network<Flux2Config>,
    /// The text encoder.
    pub qwen3: Network<Qwen3Config>,
    /// Its tokenizer.
    pub tokenizer: Qwen3Tokenizer,
}

/// How the latents of the autoencoder become those of the transformer.
pub enum LatentScale {
    /// By one factor and one shift, which the decoder's program undoes.
    Whole,
    /// By mean and deviation of each column of packed tokens; see [`VaeConfig::batch_norm`].
    Columns {
        /// One for each column.
        mean: Vec<f32>,
        /// One for each column.
        deviation: Vec<f32>,
    },
}

impl LatentScale {
    /// Reads the statistics of the autoencoder, if it has them.
    ///
    /// # Errors
    /// [`Kind::Model`](crate::error::Kind::Model) if they are not finite numbers, or a variance is
    /// negative.
    fn read(vae: &Network<VaeConfig>) -> Result<LatentScale> {
        let Some(eps) = vae.config.batch_norm else { return Ok(LatentScale::Whole) };
        let columns = 4 * vae.config.latent;
        let [mean, variance] = vae::BATCH_NORM.map(|name| {
            let values = vae.weights.get(name, 0, 1, columns)?.to_f32();
            match values.iter().find(|v| !v.is_finite()) {
                None => Ok(values),
                Some(value) => Err(Error::model("a mean or variance of the latents is not finite")
                    .at(name)
                    .at(vae.weights.place())
                    .found(value)),
            }
        });
        let (mean, variance) = (mean?, variance?);
        if let Some(value) = variance.iter().find(|v| **v < 0.0) {
            return Err(Error::model("a variance of the latents is negative")
                .at(vae::BATCH_NORM[1])
                .at(vae.weights.place())
                .found(value));
        }
        let deviation = variance.into_iter().map(|v| (v + eps).sqrt()).collect();
        Ok(LatentScale::Columns { mean, deviation })
    }

    /// Turns packed tokens of the encoder into latents of the transformer.
    pub fn encoded(&self, vae: &VaeConfig, tokens: &mut [f32]) {
        match self {
            LatentScale::Whole => {
                tokens.iter_mut().for_each(|v| *v = (*v - vae.shift) * vae.scaling);
            }
            LatentScale::Columns { mean, deviation } => {
                for row in tokens.chunks_exact_mut(mean.len()) {
                    let columns = mean.iter().zip(deviation);
                    row.iter_mut().zip(columns).for_each(|(v, (m, d))| *v = (*v - m) / d);
                }
            }
        }
    }

    /// Latents of the transformer as packed tokens for the decoder's program.
    pub fn decoded<'a>(&self, tokens: &'a [f32]) -> Cow<'a, [f32]> {
        let LatentScale::Columns { mean, deviation } = self else { return Cow::Borrowed(tokens) };
        let columns = mean.iter().zip(deviation).cycle();
        tokens.iter().zip(columns).map(|(v, (m, d))| v * d + m).collect()
    }
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
    /// True classifier-free guidance; 1 is off.
    pub cfg_scale: f32,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

impl Defaults {
    /// Those of a FLUX.1 model with a `guidance` embedding, or \[schnell\]'s, without.
    fn flux1(guidance: bool, kind: Flux1Kind) -> Defaults {
        let (own, steps) = kind.defaults();
        let (steps, guidance) = if guidance { (steps, Some(own)) } else { (4, None) };
        Defaults { steps, guidance, cfg_scale: 1.0, width: 1024, height: 1024 }
    }

    /// FLUX.2 \[klein\]'s, `distilled` to few steps or not. A fine-tune with a `guidance` embedding
    /// gets the guidance of FLUX.2 \[dev\].
    fn klein(distilled: bool, guidance: bool) -> Defaults {
        let (steps, cfg_scale) = if distilled { (4, 1.0) } else { (50, 4.0) };
        let guidance = guidance.then_some(4.0);
        Defaults { steps, guidance, cfg_scale, width: 1024, height: 1024 }
    }

    /// The values in a checkpoint's `generation` config, else these.
    ///
    /// # Errors
    /// [`Kind::Model`](crate::error::Kind::Model) for a value that no request may have.
    fn read(self, generation: Option<&Value>) -> Result<Defaults> {
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
        let side = |key, default| whole(key, (MIN_SIDE, MAX_SIDE), MIN_SIDE, default);
        let scale = number("guidance_scale", 0.0..=f64::from(MAX_SCALE), 0.0)?;
        let defaults = Defaults {
            steps: whole("num_inference_steps", (1, MAX_STEPS), 1, self.steps)?,
            guidance: self.guidance.map(|own| scale.map_or(own, |scale| scale as f32)),
            cfg_scale: self.cfg_scale,
            width: side("width", self.width)?,
            height: side("height", self.height)?,
        };
        Ok(defaults)
    }
}

impl Model {
    /// Checks that `checkpoint` has all networks of its family, and that every tensor is there in
    /// the right shape. Notes for the user are added to `notes`.
    ///
    /// # Errors
    /// [`Kind::Missing`](crate::error::Kind::Missing) for a network,
    /// [`Kind::Model`](crate::error::Kind::Model) for a tensor or for networks that do not belong
    /// together.
    pub fn new(mut checkpoint: Checkpoint, notes: &mut Vec<Message>) -> Result<Self> {
        notes.extend(checkpoint.found.drain(..).map(Message::plain));
        // Opening the networks takes them out of the checkpoint, with the names of their files.
        let (called, distilled) = (checkpoint.called(), checkpoint.distilled());
        let keeps_references = checkpoint.keeps_references();
        let styles = Styles::new(checkpoint.split_optional());
        let mut assumed = None;
        let (networks, in_channels, schedule, defaults) = if *checkpoint.family == FLUX2 {
            let mut networks = Flux2Networks::open(&mut checkpoint, notes)?;
            let in_channels = networks.flux.config.in_channels;
            if keeps_references {
                networks.flux.config.keeps_references = true;
                notes.push(kv_note(&checkpoint.name));
            }
            let distilled = distilled.unwrap_or(true);
            let defaults = Defaults::klein(distilled, networks.flux.config.guidance);
            (Networks::Flux2(Box::new(networks)), in_channels, ScheduleConfig::dev(), defaults)
        } else {
            let networks = Flux1Networks::open(&mut checkpoint, &called, notes)?;
            let FluxConfig { out_channels, guidance, .. } = networks.flux.config;
            let kind = networks.kind;
            notes.extend(kind.note(&called, &checkpoint.name));
            let schedule = match guidance {
                true => ScheduleConfig::dev(),
                false => ScheduleConfig::schnell(),
            };
            if !guidance && checkpoint.scheduler.is_none() {
                assumed = schnell_note(&called, &checkpoint.name);
            }
            let defaults = Defaults::flux1(guidance, kind);
            (Networks::Flux1(Box::new(networks)), out_channels, schedule, defaults)
        };
        let vae = checkpoint.family.role(Role::Autoencoder).expect("every family has one");
        let vae = network(checkpoint.take(vae)?, VaeConfig::read, vae::tensors, notes)?;
        let latent = 4 * vae.config.latent;
        fit("4 x the autoencoder's latent channels", latent, "final_layer.linear", in_channels)?;
        check_condition(&networks, &vae.config)?;
        let shapes_only = checkpoint.shapes_only;
        let latents = if shapes_only { LatentScale::Whole } else { LatentScale::read(&vae)? };
        let Checkpoint { name, family, scheduler, generation, generation_file, hash, .. } =
            checkpoint;
        let schedule = match scheduler {
            Some(config) => ScheduleConfig::read(config, notes)?,
            None => schedule,
        };
        let defaults = defaults.read(generation.as_ref()).map_err(|e| match &generation_file {
            Some(file) => e.at_path(file),
            None => e.at(&name),
        })?;
        Ok(Model {
            shapes_only,
            family,
            name,
            hash,
            networks,
            vae,
            latents,
            schedule,
            assumed,
            defaults,
            styles,
        })
    }

    /// The weights of the network `component`; `None` if the model does not have it.
    pub fn weights(&self, component: Component) -> Option<&ComponentWeights> {
        let networks = match &self.networks {
            Networks::Flux1(n) => vec![&n.flux.weights, &n.t5.weights, &n.clip.weights],
            Networks::Flux2(n) => vec![&n.flux.weights, &n.qwen3.weights],
        };
        networks.into_iter().chain([&self.vae.weights]).find(|w| w.component() == component)
    }

    /// What the model reads besides the prompt, if it is FLUX.1.
    pub fn flux1_kind(&self) -> Option<Flux1Kind> {
        match &self.networks {
            Networks::Flux1(networks) => Some(networks.kind),
            Networks::Flux2(_) => None,
        }
    }

    /// Whether the model reads references as FLUX.1 Kontext does.
    pub fn reads_kontext(&self) -> bool {
        self.flux1_kind() == Some(Flux1Kind::Kontext)
    }

    /// Image pixels along the edge of one token.
    pub fn token_pixels(&self) -> usize {
        2 * self.vae.config.factor()
    }
}

/// Refuses a checkpoint in which a network other than the transformer is missing. The transformer
/// comes first: nobody should be asked for the text encoders of a model that cannot be used.
fn need_all(checkpoint: &Checkpoint) -> Result<()> {
    let others = checkpoint.family.components.iter().filter(|c| {
        let is_transformer = c.role == Role::Transformer;
        !is_transformer && !c.role.is_optional()
    });
    // The error says where it was searched.
    others.copied().try_for_each(|component| checkpoint.need(component).map(drop))
}

impl Flux1Networks {
    fn open(
        checkpoint: &mut Checkpoint,
        called: &[String],
        notes: &mut Vec<Message>,
    ) -> Result<Self> {
        let weights = checkpoint.take(checkpoint.family.transformer())?;
        let (config, more) = networks::flux1(&weights)?;
        let kind = Flux1Kind::of(&config, called);
        notes.extend(more.into_iter().map(Message::plain));
        let flux = Network { config, weights };
        need_all(checkpoint)?;
        let t5 = network(checkpoint.take(T5)?, T5Config::read, t5::tensors, notes)?;
        let clip = network(checkpoint.take(CLIP)?, ClipConfig::read, clip::tensors, notes)?;
        fit("T5 width", t5.config.width, "txt_in", flux.config.context)?;
        fit("CLIP width", clip.config.width, "vector_in", flux.config.pooled)?;
        let most = if flux.config.guidance { kind.text_tokens() } else { 256 };
        let t5_length = checkpoint.max_length(T5).unwrap_or(usize::MAX).min(most);
        let tokenizers = Tokenizers::load(checkpoint.tokenizer(CLIP), checkpoint.tokenizer(T5))?;
        Ok(Flux1Networks { flux, t5, clip, tokenizers, t5_length, kind })
    }
}

impl Flux2Networks {
    fn open(checkpoint: &mut Checkpoint, notes: &mut Vec<Message>) -> Result<Self> {
        let weights = checkpoint.take(checkpoint.family.transformer())?;
        let (config, more) = networks::flux2(&weights)?;
        notes.extend(more.into_iter().map(Message::plain));
        let flux = Network { config, weights };
        need_all(checkpoint)?;
        let qwen3 = network(checkpoint.take(QWEN3)?, Qwen3Config::read, qwen3::tensors, notes)?;
        let context = qwen3.config.context();
        fit("3 x the width of Qwen3", context, "txt_in", flux.config.context)?;
        let tokenizer = Qwen3Tokenizer::load(checkpoint.tokenizer(QWEN3))?;
        Ok(Flux2Networks { flux, qwen3, tokenizer })
    }
}

/// Checks that the transformer's inputs besides the noise are those of a model that is known.
fn check_condition(networks: &Networks, vae: &VaeConfig) -> Result<()> {
    let Networks::Flux1(networks) = networks else { return Ok(()) };
    let latent = 4 * vae.latent;
    let expected = match networks.kind {
        Flux1Kind::TextToImage | Flux1Kind::Kontext => 0,
        Flux1Kind::Canny | Flux1Kind::Depth | Flux1Kind::Control => latent,
        Flux1Kind::Fill => latent + 4 * vae.factor() * vae.factor(),
    };
    let config = &networks.flux.config;
    let (found, expected) = (config.in_channels, config.out_channels + expected);
    fit("width of the transformer's input", found, "this autoencoder", expected)
}

/// Says that a model is taken for the one that keeps references.
fn kv_note(name: &str) -> Message {
    Message::with(
        "{} is taken for FLUX.2 [klein] 9B-kv, by its name: it reads the images of {reference} \
         once, before the first step",
        [Message::plain(name)],
    )
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
