//! The sizes of the transformer, from its tensors and `transformer/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{
    TensorShapes, agree, blocks, boolean, float, geometry, known_blocks, shape,
};

/// Widths of the published models, with their double and single blocks: klein 4B, klein 9B, dev.
const KNOWN: [(usize, usize, usize); 3] = [(3072, 5, 20), (4096, 8, 24), (6144, 8, 48)];

/// The sizes of the FLUX.2 transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct Flux2Config {
    /// Channels of a latent token (4 x latent channels).
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward layers behind SwiGLU.
    pub mlp_hidden: usize,
    /// Number of double blocks.
    pub depth_double: usize,
    /// Number of single blocks.
    pub depth_single: usize,
    /// Width of the text embeddings.
    pub context: usize,
    /// Width of the sinusoidal timestep embedding.
    pub time_dim: usize,
    /// Whether there is a guidance embedding (dev).
    pub guidance: bool,
    /// How the head width is divided among the four id axes.
    pub axes: Vec<usize>,
    /// The base of the rotary frequencies.
    pub theta: f64,
    /// Whether keys and values of references are computed once, for all steps (\[klein\] 9B-kv).
    /// No tensor shows it.
    pub keeps_references: bool,
}

impl Flux2Config {
    /// Reads the sizes of the canonical (BFL) tensors. `config` (diffusers' keys) has the RoPE
    /// axes and base, and the numbers of blocks where it names them. `keeps_references` is false.
    ///
    /// # Errors
    /// For a tensor that is missing, and for sizes that differ from those of `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shape(shapes, "transformer", name);
        let (hidden, in_channels) = get("img_in.weight")?;
        let (_, context) = get("txt_in.weight")?;
        let (_, time_dim) = get("time_in.in_layer.weight")?;
        let (out_channels, _) = get("final_layer.linear.weight")?;
        let depth_double = blocks(shapes, "double_blocks.", config, "num_layers")?;
        let depth_single = blocks(shapes, "single_blocks.", config, "num_single_layers")?;
        if let Some((_, double, single)) = KNOWN.iter().find(|k| k.0 == hidden) {
            known_blocks(config, "num_layers", "double_blocks.", depth_double, &[*double])?;
            known_blocks(config, "num_single_layers", "single_blocks.", depth_single, &[*single])?;
        }
        if time_dim % 2 != 0 || depth_double + depth_single == 0 {
            return Err(geometry("not a FLUX.2 transformer").found(format!(
                "{depth_double} double and {depth_single} single blocks, timesteps {time_dim} wide"
            )));
        }
        let (head_dim, mlp_hidden) = if depth_double > 0 {
            (
                get("double_blocks.0.img_attn.norm.query_norm.scale")?.1,
                get("double_blocks.0.img_mlp.2.weight")?.1,
            )
        } else {
            let columns = get("single_blocks.0.linear2.weight")?.1;
            let mlp = columns
                .checked_sub(hidden)
                .ok_or_else(|| geometry("linear2 is narrower than the attention"))?;
            (get("single_blocks.0.norm.query_norm.scale")?.1, mlp)
        };
        if head_dim == 0 || head_dim % 2 != 0 || hidden % head_dim != 0 {
            return Err(geometry("the hidden width is not a whole number of heads")
                .found(format!("width {hidden}, head {head_dim}")));
        }
        for (key, found) in [
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("attention_head_dim", head_dim),
            ("num_attention_heads", hidden / head_dim),
            ("joint_attention_dim", context),
            ("timestep_guidance_channels", time_dim),
        ] {
            agree(config, key, found)?;
        }
        Ok(Flux2Config {
            in_channels,
            out_channels,
            hidden,
            heads: hidden / head_dim,
            head_dim,
            mlp_hidden,
            depth_double,
            depth_single,
            context,
            time_dim,
            guidance: has_guidance(shapes, config)?,
            axes: axes(config, head_dim)?,
            theta: theta(config)?,
            keeps_references: false,
        })
    }

    /// The sizes of FLUX.2 \[klein\] 4B.
    pub fn klein_4b() -> Self {
        Flux2Config {
            in_channels: 128,
            out_channels: 128,
            hidden: 3072,
            heads: 24,
            head_dim: 128,
            mlp_hidden: 9216,
            depth_double: 5,
            depth_single: 20,
            context: 7680,
            time_dim: 256,
            guidance: false,
            axes: vec![32; 4],
            theta: 2000.0,
            keeps_references: false,
        }
    }

    /// Double and single blocks.
    pub fn blocks(&self) -> usize {
        self.depth_double + self.depth_single
    }

    /// Columns of the modulation matrix: 12 vectors for the double blocks, 3 for the single blocks,
    /// 2 for the final layer.
    pub fn modulation_cols(&self) -> usize {
        17 * self.hidden
    }

    /// The content of diffusers' `transformer/config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "_class_name": "Flux2Transformer2DModel",
            "attention_head_dim": self.head_dim,
            "axes_dims_rope": self.axes,
            "guidance_embeds": self.guidance,
            "in_channels": self.in_channels,
            "joint_attention_dim": self.context,
            "mlp_ratio": self.mlp_hidden as f64 / self.hidden as f64,
            "num_attention_heads": self.heads,
            "num_layers": self.depth_double,
            "num_single_layers": self.depth_single,
            "patch_size": 1,
            "rope_theta": self.theta,
            "timestep_guidance_channels": self.time_dim,
        })
    }
}

/// Whether there is a guidance embedding. One tensor of it, or the configuration, is enough: those
/// that are missing then are reported.
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

/// The id axes of the rotation.
fn axes(config: Option<&Value>, head_dim: usize) -> Result<Vec<usize>> {
    let axes = match config.and_then(|c| c.get("axes_dims_rope")).and_then(Value::as_array) {
        Some(list) => {
            list.iter().map(|v| (v.as_u64().unwrap_or(0) as usize).min(head_dim + 1)).collect()
        }
        // The released models: 128 = 4 x 32.
        None => vec![head_dim / 4; 4],
    };
    let fits = axes.len() == 4 && axes.iter().sum::<usize>() == head_dim;
    if !fits || axes.iter().any(|a| a % 2 != 0) {
        return Err(geometry("axes_dims_rope does not fit the head dimension")
            .found(format!("{axes:?}"))
            .expected(format!("four even numbers that sum to {head_dim}")));
    }
    Ok(axes)
}

/// The base of the rotary frequencies.
fn theta(config: Option<&Value>) -> Result<f64> {
    let theta = float(config, "rope_theta").unwrap_or(2000.0);
    if theta.is_finite() && theta >= 1.0 {
        return Ok(theta);
    }
    Err(geometry("rope_theta is out of range").found(theta).expected("a number of at least 1"))
}
