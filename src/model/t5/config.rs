//! The sizes of the T5 encoder, from its tensors and `text_encoder_2/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{
    TensorShapes, agree, blocks, epsilon, geometry, known_blocks, shape, uint,
};

/// The sizes of the T5 v1.1 encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Number of tokens.
    pub vocab: usize,
    /// Width of the hidden states.
    pub width: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward layers.
    pub ff: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of buckets of relative positions.
    pub buckets: usize,
    /// Distance from which on all positions share a bucket.
    pub max_distance: usize,
    /// Epsilon of the norms.
    pub eps: f32,
}

impl T5Config {
    /// Reads the sizes of the canonical (Hugging Face) tensors.
    ///
    /// # Errors
    /// For a tensor that is missing, a T5 of another kind, and sizes that differ from those of
    /// `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shape(shapes, "T5", name);
        let (vocab, width) = get("shared.weight")?;
        let (inner, _) = get("encoder.block.0.layer.0.SelfAttention.q.weight")?;
        let (buckets, heads) =
            get("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")?;
        let (ff, _) = get("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")?;
        let layers = blocks(shapes, "encoder.block.", config, "num_layers")?;
        let xxl = T5Config::xxl();
        if width == xxl.width {
            known_blocks(config, "num_layers", "encoder.block.", layers, &[xxl.layers])?;
        }
        refuse_other_kinds(vocab, config)?;
        let max_distance = uint(config, "relative_attention_max_distance").unwrap_or(128);
        if max_distance <= buckets / 4 || max_distance > 1 << 20 || buckets % 4 != 0 {
            return Err(geometry("the T5 position buckets are out of range")
                .found(format!("{buckets} buckets up to distance {max_distance}")));
        }
        if heads == 0 || inner % heads != 0 || buckets < 4 {
            return Err(geometry("the T5 attention width is not a whole number of heads")
                .found(format!("{inner} and {heads} heads")));
        }
        for (key, found) in [
            ("vocab_size", vocab),
            ("d_model", width),
            ("num_heads", heads),
            ("d_kv", inner / heads),
            ("d_ff", ff),
            ("relative_attention_num_buckets", buckets),
        ] {
            agree(config, key, found)?;
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

    /// The sizes of T5 v1.1 XXL, FLUX.1's encoder.
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

    /// The content of `text_encoder_2/config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "architectures": ["T5EncoderModel"],
            "d_model": self.width,
            "d_kv": self.head_dim,
            "d_ff": self.ff,
            "num_heads": self.heads,
            "num_layers": self.layers,
            "vocab_size": self.vocab,
            "relative_attention_num_buckets": self.buckets,
            "relative_attention_max_distance": self.max_distance,
            "feed_forward_proj": "gated-gelu",
            "layer_norm_epsilon": 1e-6,
        })
    }
}

/// Refuses a T5 that has the tensors of T5 v1.1 and reads or computes in another way.
fn refuse_other_kinds(vocab: usize, config: Option<&Value>) -> Result<()> {
    /// T5's vocabulary has 32,100 pieces and is padded to 32,128.
    const MOST_PIECES: usize = 33_000;
    let text = |key: &str| config.and_then(|c| c.get(key)).and_then(Value::as_str);
    let other = |what: String| {
        Err(geometry(format!("this is {what}, not the T5 v1.1 that FLUX.1 reads"))
            .at("shared.weight")
            .found(format!("{vocab} pieces"))
            .expected("32128 pieces of T5's own vocabulary"))
    };
    match (text("model_type"), text("feed_forward_proj")) {
        (Some("umt5"), _) => other("UMT5".into()),
        (Some("mt5"), _) => other("mT5".into()),
        (Some(kind), _) if kind != "t5" => other(format!("a text encoder of the kind {kind}")),
        (_, Some(act)) if act != "gated-gelu" => {
            Err(geometry("unsupported T5 activation").found(act).expected("gated-gelu"))
        }
        _ if vocab > MOST_PIECES => other("a T5 with another vocabulary (mT5 or UMT5)".into()),
        _ => Ok(()),
    }
}
