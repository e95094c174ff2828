//! The sizes of SigLIP's vision tower, from its tensors and `image_encoder/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{
    TensorShapes, agree, blocks, epsilon, geometry, known_blocks, shape, uint,
};

/// The sizes of SigLIP's vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipConfig {
    /// Pixels along the edge of the square image that it reads.
    pub image: usize,
    /// Pixels along the edge of a patch. Pixels behind the last whole patch are not read.
    pub patch: usize,
    /// Width of the hidden states.
    pub width: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the feed-forward layers.
    pub ff: usize,
    /// Number of layers.
    pub layers: usize,
    /// Epsilon of the norms.
    pub eps: f32,
}

impl SiglipConfig {
    /// Reads the sizes of the canonical (Hugging Face) tensors. The size of the image is that of
    /// `config`, else what the patches cover (384 pixels for the 27 x 27 patches of so400m, which
    /// cover 378). `config` may be that of a whole SigLIP model.
    ///
    /// # Errors
    /// For a tensor that is missing, and for sizes that differ from those of `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let config = config.map(|c| c.get("vision_config").unwrap_or(c));
        let get = |name: &str| shape(shapes, "SigLIP", name);
        let (width, values) = get("vision_model.embeddings.patch_embedding.weight")?;
        let (tokens, _) = get("vision_model.embeddings.position_embedding.weight")?;
        let (ff, _) = get("vision_model.encoder.layers.0.mlp.fc1.weight")?;
        let start = "vision_model.encoder.layers.";
        let layers = blocks(shapes, start, config, "num_hidden_layers")?;
        let known = SiglipConfig::so400m();
        if width == known.width {
            known_blocks(config, "num_hidden_layers", start, layers, &[known.layers])?;
        }
        let (patch, grid) = ((values / 3).isqrt(), tokens.isqrt());
        if 3 * patch * patch != values || grid * grid != tokens || patch * grid == 0 {
            return Err(geometry("SigLIP must read a square of square patches in RGB")
                .found(format!("{values} values in a patch, {tokens} patches")));
        }
        let image = uint(config, "image_size").unwrap_or(match (patch, grid) {
            (14, 27) => known.image,
            _ => patch * grid,
        });
        if image / patch != grid {
            return Err(geometry("the patches of this SigLIP do not cover its image")
                .found(format!("{grid} x {grid} patches of {patch} pixels, image_size {image}")));
        }
        let heads = uint(config, "num_attention_heads").unwrap_or((width / 72).max(1));
        if heads == 0 || width % heads != 0 {
            return Err(geometry("the SigLIP width is not a whole number of heads")
                .found(format!("{width} and {heads} heads"))
                .try_("put the config.json of the model next to its file"));
        }
        let act = config.and_then(|c| c.get("hidden_act")).and_then(Value::as_str);
        if let Some(act) = act.filter(|act| *act != "gelu_pytorch_tanh") {
            return Err(geometry("unsupported SigLIP activation")
                .found(act)
                .expected("gelu_pytorch_tanh"));
        }
        for (key, found) in
            [("hidden_size", width), ("intermediate_size", ff), ("patch_size", patch)]
        {
            agree(config, key, found)?;
        }
        let eps = epsilon(config, "layer_norm_eps", 1e-6)?;
        Ok(SiglipConfig { image, patch, width, heads, ff, layers, eps })
    }

    /// The sizes of SigLIP so400m-patch14-384, which FLUX.1 Redux reads.
    pub fn so400m() -> Self {
        SiglipConfig {
            image: 384,
            patch: 14,
            width: 1152,
            heads: 16,
            ff: 4304,
            layers: 27,
            eps: 1e-6,
        }
    }

    /// Patches along each edge of the image.
    pub fn grid(&self) -> usize {
        self.image / self.patch
    }

    /// Patches of an image, which are the tokens of the output.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Values of a patch in RGB.
    pub fn patch_values(&self) -> usize {
        3 * self.patch * self.patch
    }

    /// The content of `image_encoder/config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "architectures": ["SiglipVisionModel"],
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": self.width,
            "image_size": self.image,
            "intermediate_size": self.ff,
            "layer_norm_eps": 1e-6,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "patch_size": self.patch,
        })
    }
}
