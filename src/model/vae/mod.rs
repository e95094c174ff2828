//! The autoencoder, after `flux/modules/autoencoder.py`. Pixels are rows, channels last.
//!
//! Each half of the network is a list of [stages](Stage), from one image of activations (a
//! [`Plane`]) to the next. [`Network::whole`] records a half as one program. [`Network::band`]
//! records a single stage for some rows of an image, so that a device needs memory for a band only:
//! planes then rest elsewhere between stages. Both give bitwise the same results, because the norms
//! see the statistics of the whole image ([`GroupStatistics`](crate::op::GroupStatistics)), the
//! attention sees all keys, and no other operation looks further than a row beyond a band.

mod bands;
mod config;
mod network;
mod record;

pub use bands::Window;
pub use config::VaeConfig;
pub use network::{Conv, Kernel, Network, Norm, Plane, PlaneId, Stage, Work};

use crate::dtype::DType;
use crate::model::config::{TensorSpec, push_affine};
use crate::op::Program;

/// The tensors with the mean and the variance of each column of packed tokens; see
/// [`VaeConfig::batch_norm`].
pub const BATCH_NORM: [&str; 2] = ["bn.running_mean", "bn.running_var"];

/// Decodes `height x width` latent pixels in one piece.
///
/// Input: `latents`, packed tokens ((h/2) * (w/2) x 4 * latent, f32, as the transformer returns
/// them). Output: `pixels` ((h*f) * (w*f) x 3, f32, usually between -1 and 1), where f is
/// `factor()`.
pub fn decode(c: &VaeConfig, height: usize, width: usize, act: DType) -> Program {
    Network::decoder(c, height, width, act).whole()
}

/// Encodes pixels to the mean of the latents, in one piece.
///
/// Input: `pixels` (height * width x 3, f32, from -1 to 1); height and width are multiples of twice
/// `factor()`. Output: `latents`, packed tokens of the mean, not yet shifted and scaled.
pub fn encode(c: &VaeConfig, height: usize, width: usize, act: DType) -> Program {
    Network::encoder(c, height, width, act).whole()
}

/// Every tensor of the autoencoder, without the encoder if `c.encoder` is false. The programs do
/// not use those of [`BATCH_NORM`].
pub fn tensors(c: &VaeConfig) -> Vec<TensorSpec> {
    let mut out = Vec::new();
    let block = |out: &mut Vec<TensorSpec>, name: String, from: usize, to: usize| {
        push_affine(out, format!("{name}.norm1"), vec![from]);
        push_affine(out, format!("{name}.conv1"), vec![to, from, 3, 3]);
        push_affine(out, format!("{name}.norm2"), vec![to]);
        push_affine(out, format!("{name}.conv2"), vec![to, to, 3, 3]);
        if from != to {
            push_affine(out, format!("{name}.nin_shortcut"), vec![to, from, 1, 1]);
        }
    };
    for half in ["encoder", "decoder"] {
        if half == "encoder" && !c.encoder {
            continue;
        }
        let channels = if half == "encoder" { c.encoder_channels() } else { &c.channels };
        let (top, levels) = (*channels.last().expect("a level"), channels.len());
        let (input, first, last, output) = if half == "encoder" {
            (3, channels[0], top, 2 * c.latent)
        } else {
            (c.latent, top, channels[0], 3)
        };
        if c.quant {
            let (name, n) = match half {
                "encoder" => ("encoder.quant_conv", 2 * c.latent),
                _ => ("decoder.post_quant_conv", c.latent),
            };
            push_affine(&mut out, name, vec![n, n, 1, 1]);
        }
        push_affine(&mut out, format!("{half}.conv_in"), vec![first, input, 3, 3]);
        for i in [1, 2] {
            block(&mut out, format!("{half}.mid.block_{i}"), top, top);
        }
        push_affine(&mut out, format!("{half}.mid.attn_1.norm"), vec![top]);
        for name in ["q", "k", "v", "proj_out"] {
            push_affine(&mut out, format!("{half}.mid.attn_1.{name}"), vec![top, top, 1, 1]);
        }
        let mut from = first;
        let order: Vec<usize> =
            if half == "encoder" { (0..levels).collect() } else { (0..levels).rev().collect() };
        for level in order {
            let to = channels[level];
            let (way, blocks) =
                if half == "encoder" { ("down", c.blocks) } else { ("up", c.blocks + 1) };
            for b in 0..blocks {
                block(&mut out, format!("{half}.{way}.{level}.block.{b}"), from, to);
                from = to;
            }
            if half == "encoder" && level + 1 < levels {
                push_affine(
                    &mut out,
                    format!("{half}.down.{level}.downsample.conv"),
                    vec![to, to, 3, 3],
                );
            }
            if half == "decoder" && level > 0 {
                push_affine(
                    &mut out,
                    format!("{half}.up.{level}.upsample.conv"),
                    vec![to, to, 3, 3],
                );
            }
        }
        push_affine(&mut out, format!("{half}.norm_out"), vec![last]);
        push_affine(&mut out, format!("{half}.conv_out"), vec![output, last, 3, 3]);
    }
    if c.batch_norm.is_some() {
        out.extend(BATCH_NORM.map(|name| (name.to_string(), vec![4 * c.latent])));
    }
    out
}
