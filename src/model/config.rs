//! The sizes of the four networks: read off the tensors' shapes, with a `config.json` for what shapes cannot tell.

use serde_json::Value;

use crate::error::{Error, Result};

/// Looks up a canonical tensor: (rows, columns); vectors are 1 x n, convolutions out x (in * kh * kw).
pub type Shapes<'a> = &'a dyn Fn(&str) -> Option<(usize, usize)>;

/// The transformer (MMDiT).
#[derive(Debug, Clone, PartialEq)]
pub struct FluxConfig {
    /// Channels of a packed latent token (4 x latent channels).
    pub in_channels: usize,
    pub out_channels: usize,
    pub hidden: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Width of the feed-forward layers.
    pub mlp_hidden: usize,
    pub depth_double: usize,
    pub depth_single: usize,
    /// Width of the T5 embeddings.
    pub context: usize,
    /// Width of the pooled CLIP embedding.
    pub pooled: usize,
    /// Width of the sinusoidal timestep embedding.
    pub time_dim: usize,
    /// Whether there is a guidance embedding (dev) or not (schnell).
    pub guidance: bool,
    /// How the head dimension is shared among the id axes.
    pub axes: Vec<usize>,
    pub theta: f64,
}

fn missing(component: &str, name: &str) -> Error {
    Error::model(format!("the {component} weights lack a tensor that tells their geometry"))
        .at(name)
        .try_("check with `flux-fast inspect` that the file holds a whole FLUX.1 model")
}

fn geometry(what: impl Into<String>) -> Error {
    Error::model(what).try_("the file may be of another architecture; see `flux-fast inspect FILE`")
}

/// How many of `prefix{i}suffix` there are, from i = 0.
fn count(shapes: Shapes, prefix: &str, suffix: &str) -> usize {
    (0..).take_while(|i| shapes(&format!("{prefix}{i}{suffix}")).is_some()).count()
}

fn uint(config: Option<&Value>, key: &str) -> Option<usize> {
    config?.get(key)?.as_u64().map(|v| v as usize)
}

fn float(config: Option<&Value>, key: &str) -> Option<f64> {
    config?.get(key)?.as_f64()
}

/// A normalisation's epsilon.
fn epsilon(config: Option<&Value>, key: &str, default: f64) -> Result<f32> {
    let eps = float(config, key).unwrap_or(default);
    if eps > 0.0 && eps < 1.0 {
        Ok(eps as f32)
    } else {
        Err(geometry(format!("{key} makes no sense")).found(eps).expected("between 0 and 1"))
    }
}

impl FluxConfig {
    /// From the canonical (BFL) tensors; `config` (diffusers' keys) supplies the RoPE axes.
    pub fn read(shapes: Shapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shapes(name).ok_or_else(|| missing("transformer", name));
        let (hidden, in_channels) = get("img_in.weight")?;
        let (_, context) = get("txt_in.weight")?;
        let (_, pooled) = get("vector_in.in_layer.weight")?;
        let (_, time_dim) = get("time_in.in_layer.weight")?;
        let (out_channels, _) = get("final_layer.linear.weight")?;
        let depth_double = count(shapes, "double_blocks.", ".img_attn.qkv.weight");
        let depth_single = count(shapes, "single_blocks.", ".linear1.weight");
        let (head_dim, mlp_hidden) = if depth_double > 0 {
            (
                get("double_blocks.0.img_attn.norm.query_norm.scale")?.1,
                get("double_blocks.0.img_mlp.0.weight")?.0,
            )
        } else {
            let rows = get("single_blocks.0.linear1.weight")?.0;
            let mlp = rows
                .checked_sub(3 * hidden)
                .ok_or_else(|| geometry("linear1 is narrower than q, k and v"))?;
            (get("single_blocks.0.norm.query_norm.scale")?.1, mlp)
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
            // The released models give an eighth to the first axis and share the rest: 128 = 16 + 56 + 56.
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
        let guidance = shapes("guidance_in.in_layer.weight").is_some();
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

    /// FLUX.1-dev's geometry.
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

    /// FLUX.1-schnell's geometry.
    pub fn schnell() -> Self {
        FluxConfig { guidance: false, ..Self::dev() }
    }

    /// Columns of the modulation matrix: 12 vectors a double block, 3 a single one, 2 of the final layer.
    pub fn modulation_cols(&self) -> usize {
        (12 * self.depth_double + 3 * self.depth_single + 2) * self.hidden
    }

    /// As diffusers' `transformer/config.json` has it.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "_class_name": "FluxTransformer2DModel", "attention_head_dim": self.head_dim, "axes_dims_rope": self.axes,
            "guidance_embeds": self.guidance, "in_channels": self.in_channels, "joint_attention_dim": self.context,
            "num_attention_heads": self.heads, "num_layers": self.depth_double, "num_single_layers": self.depth_single,
            "patch_size": 1, "pooled_projection_dim": self.pooled,
        })
    }
}

/// The T5 v1.1 encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    pub vocab: usize,
    pub width: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub ff: usize,
    pub layers: usize,
    pub buckets: usize,
    pub max_distance: usize,
    pub eps: f32,
}

impl T5Config {
    /// From the canonical (Hugging Face) tensors.
    pub fn read(shapes: Shapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shapes(name).ok_or_else(|| missing("T5", name));
        let (vocab, width) = get("shared.weight")?;
        let (inner, _) = get("encoder.block.0.layer.0.SelfAttention.q.weight")?;
        let (buckets, heads) =
            get("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")?;
        let (ff, _) = get("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")?;
        let layers = count(shapes, "encoder.block.", ".layer.0.SelfAttention.q.weight");
        let max_distance = uint(config, "relative_attention_max_distance").unwrap_or(128);
        if max_distance <= buckets / 4 || max_distance > 1 << 20 || buckets % 4 != 0 {
            return Err(geometry("the T5 position buckets make no sense")
                .found(format!("{buckets} buckets up to distance {max_distance}")));
        }
        if heads == 0 || inner % heads != 0 || buckets < 4 {
            return Err(geometry("the T5 attention width is not a whole number of heads")
                .found(format!("{inner} and {heads} heads")));
        }
        Ok(T5Config {
            vocab,
            width,
            heads,
            head_dim: inner / heads,
            ff,
            layers,
            buckets,
            max_distance,
            eps: epsilon(config, "layer_norm_epsilon", 1e-6)?,
        })
    }

    /// T5 v1.1 XXL, FLUX.1's encoder.
    pub fn xxl() -> Self {
        T5Config {
            vocab: 32128,
            width: 4096,
            heads: 64,
            head_dim: 64,
            ff: 10240,
            layers: 24,
            buckets: 32,
            max_distance: 128,
            eps: 1e-6,
        }
    }

    /// As `text_encoder_2/config.json` has it.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "architectures": ["T5EncoderModel"], "d_model": self.width, "d_kv": self.head_dim, "d_ff": self.ff, "num_heads": self.heads,
            "num_layers": self.layers, "vocab_size": self.vocab, "relative_attention_num_buckets": self.buckets,
            "relative_attention_max_distance": self.max_distance, "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6,
        })
    }
}

/// CLIP's text model.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    pub vocab: usize,
    pub width: usize,
    pub heads: usize,
    pub ff: usize,
    pub layers: usize,
    pub positions: usize,
    pub eps: f32,
    /// `quick_gelu` (OpenAI's weights) or the tanh form of GELU.
    pub quick_gelu: bool,
}

impl ClipConfig {
    /// From the canonical (Hugging Face) tensors; heads are 64 wide unless `config` says otherwise.
    pub fn read(shapes: Shapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shapes(name).ok_or_else(|| missing("CLIP", name));
        let (vocab, width) = get("text_model.embeddings.token_embedding.weight")?;
        let (positions, _) = get("text_model.embeddings.position_embedding.weight")?;
        let (ff, _) = get("text_model.encoder.layers.0.mlp.fc1.weight")?;
        let layers = count(shapes, "text_model.encoder.layers.", ".mlp.fc1.weight");
        if positions != 77 {
            return Err(geometry("this CLIP does not read 77 tokens, as FLUX's does")
                .found(format!("{positions} positions")));
        }
        let heads = uint(config, "num_attention_heads").unwrap_or((width / 64).max(1));
        if heads == 0 || width % heads != 0 {
            return Err(geometry("the CLIP width is not a whole number of heads")
                .found(format!("{width} and {heads} heads")));
        }
        let act = config
            .and_then(|c| c.get("hidden_act"))
            .and_then(Value::as_str)
            .unwrap_or("quick_gelu");
        if !matches!(act, "quick_gelu" | "gelu_new" | "gelu_pytorch_tanh") {
            return Err(geometry("unsupported CLIP activation").found(act).expected("quick_gelu"));
        }
        Ok(ClipConfig {
            vocab,
            width,
            heads,
            ff,
            layers,
            positions,
            eps: epsilon(config, "layer_norm_eps", 1e-5)?,
            quick_gelu: act == "quick_gelu",
        })
    }

    /// CLIP ViT-L/14's text model, FLUX.1's pooled encoder.
    pub fn large() -> Self {
        ClipConfig {
            vocab: 49408,
            width: 768,
            heads: 12,
            ff: 3072,
            layers: 12,
            positions: 77,
            eps: 1e-5,
            quick_gelu: true,
        }
    }

    /// As `text_encoder/config.json` has it.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "architectures": ["CLIPTextModel"], "hidden_size": self.width, "intermediate_size": self.ff, "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers, "vocab_size": self.vocab, "max_position_embeddings": self.positions,
            "hidden_act": if self.quick_gelu { "quick_gelu" } else { "gelu_new" }, "layer_norm_eps": 1e-5,
        })
    }
}

/// The autoencoder.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of each level, finest first.
    pub channels: Vec<usize>,
    /// Residual blocks a level in the encoder; the decoder has one more.
    pub blocks: usize,
    pub latent: usize,
    pub groups: usize,
    pub scaling: f32,
    pub shift: f32,
    pub eps: f32,
    /// Whether the file holds the encoder too.
    pub encoder: bool,
}

impl VaeConfig {
    /// From the canonical (BFL) tensors; `config` gives norm groups and latent scaling, else FLUX.1's.
    pub fn read(shapes: Shapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shapes(name).ok_or_else(|| missing("autoencoder", name));
        let (_, cols) = get("decoder.conv_in.weight")?;
        let levels = count(shapes, "decoder.up.", ".block.0.conv1.weight");
        let channels = (0..levels)
            .map(|i| Ok(get(&format!("decoder.up.{i}.block.0.conv1.weight"))?.0))
            .collect::<Result<Vec<_>>>()?;
        let blocks = count(shapes, "decoder.up.0.block.", ".conv1.weight");
        if levels == 0 || levels > 8 || blocks < 2 || cols % 9 != 0 {
            return Err(geometry("not a FLUX autoencoder")
                .found(format!("{levels} levels, {blocks} blocks each")));
        }
        let groups = uint(config, "norm_num_groups").unwrap_or(32);
        if groups == 0 || channels.iter().any(|c| c % groups != 0) {
            return Err(geometry("the autoencoder's channels do not divide into norm groups")
                .found(format!("{channels:?} and {groups}")));
        }
        let scaling = float(config, "scaling_factor").unwrap_or(0.3611) as f32;
        let shift = float(config, "shift_factor").unwrap_or(0.1159) as f32;
        if !(scaling.is_finite() && scaling > 0.0 && shift.is_finite()) {
            return Err(geometry("the autoencoder's latent scaling is not a positive number")
                .found(format!("{scaling}, {shift}")));
        }
        let encoder = shapes("encoder.conv_in.weight").is_some();
        Ok(VaeConfig {
            channels,
            blocks: blocks - 1,
            latent: cols / 9,
            groups,
            scaling,
            shift,
            eps: 1e-6,
            encoder,
        })
    }

    /// FLUX.1's autoencoder.
    pub fn flux() -> Self {
        VaeConfig {
            channels: vec![128, 256, 512, 512],
            blocks: 2,
            latent: 16,
            groups: 32,
            scaling: 0.3611,
            shift: 0.1159,
            eps: 1e-6,
            encoder: true,
        }
    }

    /// Pixels along an edge of one latent pixel: 8 with four levels.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// As `vae/config.json` has it.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "_class_name": "AutoencoderKL", "block_out_channels": self.channels, "layers_per_block": self.blocks,
            "latent_channels": self.latent, "norm_num_groups": self.groups, "in_channels": 3, "out_channels": 3,
            "scaling_factor": self.scaling, "shift_factor": self.shift, "use_quant_conv": false, "use_post_quant_conv": false,
        })
    }
}
