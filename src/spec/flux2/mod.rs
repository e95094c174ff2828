//! FLUX.2: klein 4B and 9B, distilled and base.
//!
//! Canonical are the names of Black Forest Labs (BFL) for the transformer and the autoencoder, and
//! Hugging Face's for Qwen3.

mod autoencoder;
mod lora;
mod qwen3;
mod transformer;

use super::family::{Component, Family, KeepsReferences};

/// The transformer: `double_blocks.0.img_attn.qkv.weight`.
pub const TRANSFORMER: Component = Component(&transformer::SPEC);
/// The Qwen3 language model, as a text encoder: `model.layers.0.self_attn.q_proj.weight`.
pub const QWEN3: Component = Component(&qwen3::SPEC);
/// The autoencoder: `decoder.up.3.block.0.conv1.weight`.
pub const VAE: Component = Component(&autoencoder::SPEC);

/// The family.
pub static FLUX2: Family = Family {
    name: "flux2",
    title: "FLUX.2 [klein]",
    pipeline_class: "Flux2KleinPipeline",
    undistilled: Some(&["klein", "base"]),
    keeps_references: Some(KeepsReferences {
        words: &["klein", "kv"],
        pipeline_class: "Flux2KleinKVPipeline",
    }),
    components: &[TRANSFORMER, QWEN3, VAE],
    add_ons: &[],
    lora: lora::SPEC,
};
