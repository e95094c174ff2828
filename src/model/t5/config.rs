//! The sizes of the T5 encoder, from its tensors and `text_encoder_2/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{Shapes, count, epsilon, geometry, missing, uint};

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
            return Err(geometry("the T5 position buckets are out of range")
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
