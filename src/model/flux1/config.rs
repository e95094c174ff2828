//! The sizes of the transformer, from its tensors and `transformer/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{TensorShapes, agree, blocks, boolean, geometry, known_blocks, shape};

/// The width of FLUX.1, and of the smaller models that were made from it.
const WIDTH: usize = 3072;

/// Their double and single blocks: FLUX.1; Flux.1-lite and Flex, which have fewer double blocks;
/// FLUX-Mini.
const DEPTHS: [(usize, usize); 3] = [(19, 38), (8, 38), (5, 10)];

/// The sizes of the transformer (MMDiT).
#[derive(Debug, Clone, PartialEq)]
pub struct FluxConfig {
    /// Channels of a packed latent token (4 x latent channels).
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward layers.
    pub mlp_hidden: usize,
    /// Number of double blocks.
    pub depth_double: usize,
    /// Number of single blocks.
    pub depth_single: usize,
    /// Width of the T5 embeddings.
    pub context: usize,
    /// Width of the pooled CLIP embedding.
    pub pooled: usize,
    /// Width of the sinusoidal timestep embedding.
    pub time_dim: usize,
    /// Whether there is a guidance embedding (dev) or not (schnell).
    pub guidance: bool,
    /// How the head width is divided among the id axes.
    pub axes: Vec<usize>,
    /// The base of the rotary frequencies.
    pub theta: f64,
}

impl FluxConfig {
    /// Reads the sizes of the canonical (BFL) tensors. `config` (diffusers' keys) has the RoPE
    /// axes, and the numbers of blocks where it names them.
    ///
    /// # Errors
    /// For a tensor that is missing, and for sizes that differ from those of `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shape(shapes, "transformer", name);
        let (hidden, in_channels) = get("img_in.weight")?;
        let (out_channels, _) = get("final_layer.linear.weight")?;
        let depth_double = blocks(shapes, "double_blocks.", config, "num_layers")?;
        let depth_single = blocks(shapes, "single_blocks.", config, "num_single_layers")?;
        if hidden == WIDTH {
            // A model of which both numbers are published has them together.
            let pair = |p: &&(usize, usize)| p.1 == depth_single;
            let of_single: Vec<usize> = DEPTHS.iter().filter(pair).map(|p| p.0).collect();
            let single = DEPTHS.map(|p| p.1);
            known_blocks(config, "num_single_layers", "single_blocks.", depth_single, &single)?;
            if !of_single.is_empty() {
                known_blocks(config, "num_layers", "double_blocks.", depth_double, &of_single)?;
            }
        }
        Self::read_sizes(shapes, config, (in_channels, out_channels), (depth_double, depth_single))
    }

    /// The same for a network of as many channels in and out and as many double and single blocks:
    /// a transformer, or a ControlNet, which has no final layer.
    pub(super) fn read_sizes(
        shapes: &dyn TensorShapes,
        config: Option<&Value>,
        (in_channels, out_channels): (usize, usize),
        (depth_double, depth_single): (usize, usize),
    ) -> Result<Self> {
        let get = |name: &str| shape(shapes, "transformer", name);
        let (hidden, _) = get("img_in.weight")?;
        let (_, context) = get("txt_in.weight")?;
        let (_, pooled) = get("vector_in.in_layer.weight")?;
        let (_, time_dim) = get("time_in.in_layer.weight")?;
        let (head_dim, mlp_hidden) = if depth_double > 0 {
            (
                get("double_blocks.0.img_attn.norm.query_norm.scale")?.1,
                get("double_blocks.0.img_mlp.0.weight")?.0,
            )
        } else if depth_single > 0 {
            let rows = get("single_blocks.0.linear1.weight")?.0;
            let mlp = rows
                .checked_sub(3 * hidden)
                .ok_or_else(|| geometry("linear1 is narrower than q, k and v"))?;
            (get("single_blocks.0.norm.query_norm.scale")?.1, mlp)
        } else {
            (0, 0)
        };
        if time_dim % 2 != 0 || depth_double + depth_single == 0 {
            return Err(geometry("not a FLUX transformer").found(format!(
                "{depth_double} double and {depth_single} single blocks, timesteps {time_dim} wide"
            )));
        }
        if head_dim == 0 || head_dim % 2 != 0 || hidden % head_dim != 0 {
            return Err(geometry("the hidden width is not a whole number of heads")
                .found(format!("width {hidden}, head {head_dim}")));
        }
        let axes = match config.and_then(|c| c.get("axes_dims_rope")).and_then(Value::as_array) {
            Some(list) => {
                list.iter().map(|v| (v.as_u64().unwrap_or(0) as usize).min(head_dim + 1)).collect()
            }
            // The released models: an eighth for the first axis, half of the rest for each of the
            // others. 128 = 16 + 56 + 56.
            None => {
                let first = (head_dim / 8) & !1;
                let rest = (head_dim - first) / 2;
                vec![first, rest, rest]
            }
        };
        if axes.len() != 3
            || axes.iter().sum::<usize>() != head_dim
            || axes.iter().any(|a| a % 2 != 0)
        {
            return Err(geometry("axes_dims_rope does not fit the head dimension")
                .found(format!("{axes:?}"))
                .expected(format!("three even numbers that sum to {head_dim}")));
        }
        let guidance = Self::has_guidance(shapes, config)?;
        for (key, found) in [
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("attention_head_dim", head_dim),
            ("num_attention_heads", hidden / head_dim),
            ("joint_attention_dim", context),
            ("pooled_projection_dim", pooled),
        ] {
            agree(config, key, found)?;
        }
        Ok(FluxConfig {
            in_channels,
            out_channels,
            hidden,
            heads: hidden / head_dim,
            head_dim,
            mlp_hidden,
            depth_double,
            depth_single,
            context,
            pooled,
            time_dim,
            guidance,
            axes,
            theta: 10_000.0,
        })
    }

    /// Whether there is a guidance embedding. One tensor of it, or the configuration, is enough:
    /// those that are missing then are reported, where a model without the embedding would be
    /// drawn with another schedule.
    fn has_guidance(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<bool> {
        let first = shapes.names().find(|name| name.starts_with("guidance_in."));
        match (first, boolean(config, "guidance_embeds")) {
            (Some(name), Some(false)) => Err(geometry(
                "the config says that there is no guidance embedding, and the file has one",
            )
            .at(shapes.stored_name(name))
            .found("guidance_embeds false")),
            (first, says) => Ok(first.is_some() || says == Some(true)),
        }
    }

    /// The sizes of FLUX.1-dev.
    pub fn dev() -> Self {
        FluxConfig {
            in_channels: 64,
            out_channels: 64,
            hidden: 3072,
            heads: 24,
            head_dim: 128,
            mlp_hidden: 12288,
            depth_double: 19,
            depth_single: 38,
            context: 4096,
            pooled: 768,
            time_dim: 256,
            guidance: true,
            axes: vec![16, 56, 56],
            theta: 10_000.0,
        }
    }

    /// The sizes of FLUX.1-schnell.
    pub fn schnell() -> Self {
        FluxConfig { guidance: false, ..Self::dev() }
    }

    /// Columns of the modulation matrix: 12 vectors per double block, 3 per single block, 2 for the
    /// final layer.
    pub fn modulation_cols(&self) -> usize {
        (12 * self.depth_double + 3 * self.depth_single + 2) * self.hidden
    }

    /// The content of diffusers' `transformer/config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "_class_name": "FluxTransformer2DModel",
            "attention_head_dim": self.head_dim,
            "axes_dims_rope": self.axes,
            "guidance_embeds": self.guidance,
            "in_channels": self.in_channels,
            "joint_attention_dim": self.context,
            "num_attention_heads": self.heads,
            "num_layers": self.depth_double,
            "num_single_layers": self.depth_single,
            "patch_size": 1,
            "pooled_projection_dim": self.pooled,
        })
    }
}
