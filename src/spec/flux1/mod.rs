//! FLUX.1: dev, schnell and their fine-tunes.
//!
//! Canonical are the names of Black Forest Labs (BFL) for the transformer and the autoencoder, and
//! Hugging Face's for T5 and CLIP.

pub(in crate::spec) mod autoencoder;
pub(in crate::spec) mod blocks;
mod clip;
mod controlnet;
mod lora;
mod redux;
mod siglip;
mod t5;
mod transformer;

use super::family::{Component, Family};

/// A layer with weight and bias.
macro_rules! affine {
    ($layer:literal) => {
        concat!($layer, ".{weight|bias}")
    };
}
pub(in crate::spec) use affine;

/// The transformer (MMDiT): `double_blocks.0.img_attn.qkv.weight`.
pub const TRANSFORMER: Component = Component(&transformer::SPEC);
/// The T5 v1.1 XXL encoder: `encoder.block.0.layer.0.SelfAttention.q.weight`.
pub const T5: Component = Component(&t5::SPEC);
/// The text model of CLIP ViT-L/14: `text_model.encoder.layers.0.self_attn.q_proj.weight`.
pub const CLIP: Component = Component(&clip::SPEC);
/// The autoencoder: `decoder.up.3.block.0.conv1.weight`.
pub const VAE: Component = Component(&autoencoder::SPEC);
/// The vision tower of SigLIP so400m, which only Redux needs:
/// `vision_model.encoder.layers.0.self_attn.q_proj.weight`.
pub const SIGLIP: Component = Component(&siglip::SPEC);
/// The adapter of FLUX.1 Redux: `redux_up.weight`.
pub const REDUX: Component = Component(&redux::SPEC);

/// Its ControlNets: `controlnet_blocks.0.weight`.
pub const CONTROLNET: Component = Component(&controlnet::SPEC);

/// The family.
pub static FLUX1: Family = Family {
    name: "flux1",
    title: "FLUX.1",
    pipeline_class: "FluxPipeline",
    undistilled: None,
    keeps_references: None,
    components: &[TRANSFORMER, T5, CLIP, VAE, SIGLIP, REDUX],
    add_ons: &[CONTROLNET],
    lora: lora::SPEC,
};

/// Columns of the input of transformers that read an image besides the noise, where their output
/// has 64, and what these models are called.
pub const IMAGE_INPUTS: &[(usize, &str)] = &[(384, "Fill"), (128, "Canny or Depth")];
