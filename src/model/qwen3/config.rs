//! The sizes of the encoder, from its tensors and `text_encoder/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{
    TensorShapes, agree, blocks, boolean, epsilon, float, geometry, known_blocks, shape,
};

/// The hidden states that FLUX.2 reads: after this many layers.
const TAPS: [usize; 3] = [9, 18, 27];

/// Widths of published models, with their numbers of layers: 0.6B, 1.7B, 4B, 8B, 14B.
const KNOWN: [(usize, usize); 5] = [(1024, 28), (2048, 28), (2560, 36), (4096, 36), (5120, 40)];

/// The sizes of a Qwen3 language model whose hidden states are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Qwen3Config {
    /// Number of tokens.
    pub vocab: usize,
    /// Width of the hidden states.
    pub width: usize,
    /// Number of heads of queries.
    pub heads: usize,
    /// Number of heads of keys and values.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward layers.
    pub ff: usize,
    /// Number of layers of the whole model. Those after the last tap are not needed.
    pub layers: usize,
    /// The hidden states that are returned: after this many layers, in ascending order.
    pub taps: Vec<usize>,
    /// Whether the file contains the norm behind all layers.
    pub norm: bool,
    /// Epsilon of the norms.
    pub eps: f32,
    /// The base of the rotary frequencies.
    pub theta: f64,
}

impl Qwen3Config {
    /// Reads the sizes of the canonical (Hugging Face) tensors.
    ///
    /// # Errors
    /// For a tensor that is missing, a language model of another kind, and sizes that differ from
    /// those of `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shape(shapes, "Qwen3", name);
        let (vocab, width) = get("model.embed_tokens.weight")?;
        let layer = |name: &str| get(&format!("model.layers.0.{name}.weight"));
        let head_dim = layer("self_attn.q_norm")?.1;
        let (q, kv) = (layer("self_attn.q_proj")?.0, layer("self_attn.k_proj")?.0);
        let (ff, _) = layer("mlp.gate_proj")?;
        refuse_other_kinds(config)?;
        let layers = blocks(shapes, "model.layers.", config, "num_hidden_layers")?;
        if let Some((_, known)) = KNOWN.iter().find(|k| k.0 == width) {
            // Files for image models may end with the last layer that is read.
            let last = TAPS[TAPS.len() - 1];
            known_blocks(config, "num_hidden_layers", "model.layers.", layers, &[*known, last])?;
        }
        if head_dim == 0 || head_dim % 2 != 0 || q % head_dim != 0 || kv % head_dim != 0 {
            return Err(geometry("the Qwen3 attention is not a whole number of heads")
                .found(format!("{q} and {kv} columns, heads of {head_dim}")));
        }
        let (heads, kv_heads) = (q / head_dim, kv / head_dim);
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(geometry("the Qwen3 query heads cannot be divided among the key heads")
                .found(format!("{heads} and {kv_heads}")));
        }
        let last = TAPS[TAPS.len() - 1];
        if layers < last {
            return Err(geometry("this Qwen3 has too few layers for FLUX.2")
                .found(layers)
                .expected(format!("at least {last}")));
        }
        for (key, found) in [
            ("vocab_size", vocab),
            ("hidden_size", width),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", head_dim),
            ("intermediate_size", ff),
        ] {
            agree(config, key, found)?;
        }
        Ok(Qwen3Config {
            vocab,
            width,
            heads,
            kv_heads,
            head_dim,
            ff,
            layers,
            taps: TAPS.to_vec(),
            norm: shapes.shape("model.norm.weight").is_some(),
            eps: epsilon(config, "rms_norm_eps", 1e-6)?,
            theta: theta(config)?,
        })
    }

    /// The sizes of Qwen3-4B, the encoder of FLUX.2 \[klein\] 4B.
    pub fn qwen3_4b() -> Self {
        Qwen3Config {
            vocab: 151_936,
            width: 2560,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            ff: 9728,
            layers: 36,
            taps: TAPS.to_vec(),
            norm: true,
            eps: 1e-6,
            theta: 1e6,
        }
    }

    /// Layers that are computed.
    pub fn depth(&self) -> usize {
        self.taps.last().copied().unwrap_or(0)
    }

    /// Width of what is returned for each token: the hidden states next to one another.
    pub fn context(&self) -> usize {
        self.taps.len() * self.width
    }

    /// Whether the last hidden state passes the norm behind all layers. `transformers` returns it
    /// in place of the last layer's result.
    pub fn final_norm(&self) -> bool {
        self.depth() == self.layers && !KNOWN.iter().any(|k| k.0 == self.width)
    }

    /// The content of `text_encoder/config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": false,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "intermediate_size": self.ff,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": self.theta,
            "tie_word_embeddings": true,
            "vocab_size": self.vocab,
        })
    }
}

/// Refuses a language model that has Qwen3's tensors and computes in another way.
fn refuse_other_kinds(config: Option<&Value>) -> Result<()> {
    let text = |key: &str| config.and_then(|c| c.get(key)).and_then(Value::as_str);
    if let Some(kind) = text("model_type").filter(|kind| *kind != "qwen3") {
        return Err(geometry(format!("this is a language model of the kind {kind}"))
            .expected("qwen3, which FLUX.2 [klein] reads"));
    }
    if let Some(act) = text("hidden_act").filter(|act| *act != "silu") {
        return Err(geometry("unsupported Qwen3 activation").found(act).expected("silu"));
    }
    for key in ["attention_bias", "use_sliding_window"] {
        if boolean(config, key) == Some(true) {
            return Err(geometry(format!("the Qwen3 config has {key} true")).expected(false));
        }
    }
    let scaled = config.and_then(|c| c.get("rope_scaling")).filter(|v| !v.is_null());
    let kind = scaled.and_then(|s| s.get("rope_type").or(s.get("type"))).and_then(Value::as_str);
    match scaled {
        Some(scaling) if kind != Some("default") => {
            Err(geometry("the Qwen3 config has scaled rotations").found(scaling))
        }
        _ => Ok(()),
    }
}

/// The base of the rotary frequencies, which newer versions of `transformers` keep in a table.
fn theta(config: Option<&Value>) -> Result<f64> {
    let table = config.and_then(|c| c.get("rope_parameters"));
    let theta = float(config, "rope_theta").or_else(|| float(table, "rope_theta")).unwrap_or(1e6);
    if theta.is_finite() && theta >= 1.0 {
        return Ok(theta);
    }
    Err(geometry("rope_theta is out of range").found(theta).expected("a number of at least 1"))
}
