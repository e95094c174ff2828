//! The sizes of the autoencoder, from its tensors and `vae/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{TensorShapes, agree, boolean, float, geometry, numbered, shape, uint};

/// The sizes of the autoencoder.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of each level, the highest resolution first.
    pub channels: Vec<usize>,
    /// Residual blocks per level in the encoder; the decoder has one more.
    pub blocks: usize,
    /// Channels of a latent pixel.
    pub latent: usize,
    /// Groups of the norms.
    pub groups: usize,
    /// Factor of the latents: the network has `(latent - shift) * scaling`.
    pub scaling: f32,
    /// Shift of the latents.
    pub shift: f32,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Whether the file contains the encoder, too.
    pub encoder: bool,
}

impl VaeConfig {
    /// Reads the sizes of the canonical (BFL) tensors. `config` has the groups of the norms and the
    /// scaling of the latents; the defaults are those of FLUX.1.
    ///
    /// # Errors
    /// For a tensor that is missing, an autoencoder of another kind, and sizes that differ from
    /// those of `config`.
    pub fn read(shapes: &dyn TensorShapes, config: Option<&Value>) -> Result<Self> {
        let get = |name: &str| shape(shapes, "autoencoder", name);
        refuse_other_kinds(config)?;
        let (_, cols) = get("decoder.conv_in.weight")?;
        let listed = config.and_then(|c| c.get("block_out_channels")).and_then(Value::as_array);
        let (up, down) =
            (numbered(shapes, "decoder.up.", ""), numbered(shapes, "encoder.down.", ""));
        let levels = listed.map_or(up.max(down), Vec::len);
        let blocks = uint(config, "layers_per_block").unwrap_or_else(|| {
            let up = numbered(shapes, "decoder.up.", "block.");
            up.saturating_sub(1).max(numbered(shapes, "encoder.down.", "block."))
        });
        if !(1..=8).contains(&levels) || !(1..=64).contains(&blocks) || cols % 9 != 0 {
            return Err(geometry("not a FLUX autoencoder")
                .found(format!("{levels} levels, {blocks} blocks each")));
        }
        let channels = (0..levels)
            .map(|i| Ok(get(&format!("decoder.up.{i}.block.0.conv1.weight"))?.0))
            .collect::<Result<Vec<_>>>()?;
        let number = |v: &Value| v.as_u64().unwrap_or(0) as usize;
        let expected: Option<Vec<usize>> = listed.map(|list| list.iter().map(number).collect());
        if let Some(expected) = expected.filter(|expected| *expected != channels) {
            return Err(geometry("the tensors do not have the block_out_channels of the config")
                .at("config.json")
                .found(format!("{channels:?}"))
                .expected(format!("{expected:?}")));
        }
        agree(config, "latent_channels", cols / 9)?;
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
        // One tensor of the encoder is enough: those that are missing then are reported.
        let encoder = shapes.names().any(|name| name.starts_with("encoder."));
        Ok(VaeConfig {
            channels,
            blocks,
            latent: cols / 9,
            groups,
            scaling,
            shift,
            eps: 1e-6,
            encoder,
        })
    }

    /// The sizes of FLUX.1's autoencoder.
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

    /// Pixels along the edge of one latent pixel: 8 with four levels.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// The content of `vae/config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "_class_name": "AutoencoderKL",
            "block_out_channels": self.channels,
            "layers_per_block": self.blocks,
            "latent_channels": self.latent,
            "norm_num_groups": self.groups,
            "in_channels": 3,
            "out_channels": 3,
            "scaling_factor": self.scaling,
            "shift_factor": self.shift,
            "use_quant_conv": false,
            "use_post_quant_conv": false,
        })
    }
}

/// Refuses what a configuration says of layers that FLUX.1's autoencoder does not have.
fn refuse_other_kinds(config: Option<&Value>) -> Result<()> {
    for (key, expected) in [
        ("use_quant_conv", false),
        ("use_post_quant_conv", false),
        ("mid_block_add_attention", true),
    ] {
        if boolean(config, key) == Some(!expected) {
            return Err(geometry(format!("the autoencoder's config has {key} {}", !expected))
                .expected(expected));
        }
    }
    for (key, expected) in [("in_channels", 3), ("out_channels", 3)] {
        agree(config, key, expected)?;
    }
    Ok(())
}
