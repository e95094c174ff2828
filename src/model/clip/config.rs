//! The sizes of CLIP's text model, from its tensors and `text_encoder/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{
    TensorShapes, agree, blocks, epsilon, geometry, known_blocks, shape, uint,
};

/// The sizes of CLIP's text model.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Number of tokens.
    pub vocab: usize,
    /// Width of the hidden states.
    pub width: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the feed-forward layers.
    pub ff: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of tokens of a prompt.
    pub positions: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// `quick_gelu` (OpenAI's weights), or the tanh form of GELU if false.
    pub quick_gelu: bool,
}

impl ClipConfig {
    /// Reads the sizes of the canonical (Hugging Face) tensors. Heads have a width of 64, unless
    /// `config` has another number of heads.
    ///
    /// # Errors
    /// For a tensor that is missing, and for sizes that differ from those of `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shape(shapes, "CLIP", name);
        let (vocab, width) = get("text_model.embeddings.token_embedding.weight")?;
        let (positions, _) = get("text_model.embeddings.position_embedding.weight")?;
        let (ff, _) = get("text_model.encoder.layers.0.mlp.fc1.weight")?;
        let layers = blocks(shapes, "text_model.encoder.layers.", config, "num_hidden_layers")?;
        let large = ClipConfig::large();
        if width == large.width {
            let start = "text_model.encoder.layers.";
            known_blocks(config, "num_hidden_layers", start, layers, &[large.layers])?;
        }
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
        for (key, found) in [
            ("vocab_size", vocab),
            ("hidden_size", width),
            ("intermediate_size", ff),
            ("max_position_embeddings", positions),
        ] {
            agree(config, key, found)?;
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

    /// The sizes of the text model of CLIP ViT-L/14, FLUX.1's pooled encoder.
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

    /// The content of `text_encoder/config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "architectures": ["CLIPTextModel"],
            "hidden_size": self.width,
            "intermediate_size": self.ff,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.positions,
            "hidden_act": if self.quick_gelu { "quick_gelu" } else { "gelu_new" },
            "layer_norm_eps": 1e-5,
        })
    }
}
