//! The sizes of the autoencoder, from its tensors and `vae/config.json`.

use serde_json::Value;

use crate::error::Result;
use crate::model::config::{
    TensorShapes, agree, boolean, epsilon, float, geometry, numbered, shape, uint,
};

/// The sizes of the autoencoder.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of each level of the decoder, the highest resolution first.
    pub channels: Vec<usize>,
    /// The same of the encoder, where it has others: FLUX.2's small decoder is used with the usual
    /// encoder.
    pub encoder_channels: Option<Vec<usize>>,
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
    /// 1x1 convolutions between the networks and the latents (FLUX.2).
    pub quant: bool,
    /// The packed tokens have `(token - mean) / sqrt(variance + eps)` with a mean and a variance of
    /// each column, which the file contains (FLUX.2): this `eps`. `scaling` and `shift` are 1 and 0
    /// then.
    pub batch_norm: Option<f32>,
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
        let quant = shapes.names().any(|name| name.ends_with("quant_conv.weight"));
        let batch_norm = shapes.names().any(|name| name.starts_with("bn.running"));
        refuse_other_kinds(config, quant)?;
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
        // One tensor of the encoder is enough: those that are missing then are reported.
        let encoder = shapes.names().any(|name| name.starts_with("encoder."));
        let encoder_channels = match encoder {
            true => (0..levels)
                .map(|i| Ok(get(&format!("encoder.down.{i}.block.0.conv1.weight"))?.0))
                .collect::<Result<Vec<_>>>()?,
            false => channels.clone(),
        };
        let own = ["decoder_block_out_channels", "block_out_channels"]
            .into_iter()
            .find(|key| config.and_then(|c| c.get(*key)).is_some_and(Value::is_array));
        check_channels(config, own, &channels)?;
        check_channels(config, encoder.then_some("block_out_channels"), &encoder_channels)?;
        agree(config, "latent_channels", cols / 9)?;
        let groups = uint(config, "norm_num_groups").unwrap_or(32);
        let mut widths = channels.iter().chain(&encoder_channels);
        if groups == 0 || widths.any(|c| c % groups != 0) {
            return Err(geometry("the autoencoder's channels do not divide into norm groups")
                .found(format!("{channels:?} and {groups}")));
        }
        let (scaling, shift) = match batch_norm {
            true => (1.0, 0.0),
            false => (
                float(config, "scaling_factor").unwrap_or(0.3611) as f32,
                float(config, "shift_factor").unwrap_or(0.1159) as f32,
            ),
        };
        let batch_norm = match batch_norm {
            true => Some(epsilon(config, "batch_norm_eps", 1e-4)?),
            false => None,
        };
        if !(scaling.is_finite() && scaling > 0.0 && shift.is_finite()) {
            return Err(geometry("the autoencoder's latent scaling is not a positive number")
                .found(format!("{scaling}, {shift}")));
        }
        Ok(VaeConfig {
            encoder_channels: (encoder_channels != channels).then_some(encoder_channels),
            channels,
            blocks,
            latent: cols / 9,
            groups,
            scaling,
            shift,
            eps: 1e-6,
            quant,
            batch_norm,
            encoder,
        })
    }

    /// The sizes of FLUX.1's autoencoder.
    pub fn flux() -> Self {
        VaeConfig {
            channels: vec![128, 256, 512, 512],
            encoder_channels: None,
            blocks: 2,
            latent: 16,
            groups: 32,
            scaling: 0.3611,
            shift: 0.1159,
            eps: 1e-6,
            quant: false,
            batch_norm: None,
            encoder: true,
        }
    }

    /// The sizes of FLUX.2's autoencoder.
    pub fn flux2() -> Self {
        VaeConfig {
            latent: 32,
            scaling: 1.0,
            shift: 0.0,
            quant: true,
            batch_norm: Some(1e-4),
            ..VaeConfig::flux()
        }
    }

    /// Channels of each level of the encoder, the highest resolution first.
    pub fn encoder_channels(&self) -> &[usize] {
        self.encoder_channels.as_ref().unwrap_or(&self.channels)
    }

    /// Pixels along the edge of one latent pixel: 8 with four levels.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// The content of `vae/config.json`.
    pub fn to_json(&self) -> Value {
        let class = if self.batch_norm.is_some() { "AutoencoderKLFlux2" } else { "AutoencoderKL" };
        let mut json = serde_json::json!({
            "_class_name": class,
            "block_out_channels": self.encoder_channels(),
            "layers_per_block": self.blocks,
            "latent_channels": self.latent,
            "norm_num_groups": self.groups,
            "in_channels": 3,
            "out_channels": 3,
            "use_quant_conv": self.quant,
            "use_post_quant_conv": self.quant,
        });
        match self.batch_norm {
            Some(_) => json["batch_norm_eps"] = 1e-4.into(),
            None => {
                json["scaling_factor"] = self.scaling.into();
                json["shift_factor"] = self.shift.into();
            }
        }
        if self.encoder_channels.is_some() {
            json["decoder_block_out_channels"] = self.channels.clone().into();
        }
        json
    }
}

/// Checks the channels of each level against the list `key` of the configuration, if it has it.
fn check_channels(config: Option<&Value>, key: Option<&str>, found: &[usize]) -> Result<()> {
    let listed = key.and_then(|key| config?.get(key)).and_then(Value::as_array);
    let number = |v: &Value| v.as_u64().unwrap_or(0) as usize;
    let expected: Option<Vec<usize>> = listed.map(|list| list.iter().map(number).collect());
    match expected.filter(|expected| expected != found) {
        None => Ok(()),
        Some(expected) => Err(geometry(format!(
            "the tensors do not have the {} of the config",
            key.unwrap_or_default()
        ))
        .at("config.json")
        .found(format!("{found:?}"))
        .expected(format!("{expected:?}"))),
    }
}

/// Refuses what a configuration says of layers that the tensors do not show.
fn refuse_other_kinds(config: Option<&Value>, quant: bool) -> Result<()> {
    for (key, expected) in [
        ("use_quant_conv", quant),
        ("use_post_quant_conv", quant),
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
