//! Model files: mapped, checked, and read under one set of names whatever tool wrote them.
//!
//! Each component is read as `ComponentWeights`: canonical names, zero-copy parts. See `dialect::names` for what is canonical.

pub mod container;
pub mod dialect;
pub mod lora;
pub mod synth;

pub use container::map::exit_on_lost_pages;
pub use dialect::component::ComponentWeights;

use std::fmt;

/// The four models that make up FLUX.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// The transformer, in BFL's names: `double_blocks.0.img_attn.qkv.weight`.
    Flux,
    /// The T5 encoder, in Hugging Face's names: `encoder.block.0.layer.0.SelfAttention.q.weight`.
    T5,
    /// CLIP's text model, in Hugging Face's names: `text_model.encoder.layers.0.self_attn.q_proj.weight`.
    Clip,
    /// The autoencoder, in BFL's names: `decoder.up.3.block.0.conv1.weight`.
    Vae,
}

impl Component {
    /// All of them.
    pub const ALL: [Component; 4] =
        [Component::Flux, Component::T5, Component::Clip, Component::Vae];

    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Component::Flux => "flux",
            Component::T5 => "t5",
            Component::Clip => "clip",
            Component::Vae => "vae",
        }
    }

    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            Component::Flux => "FLUX transformer",
            Component::T5 => "T5 text encoder",
            Component::Clip => "CLIP text encoder",
            Component::Vae => "autoencoder (VAE)",
        }
    }

    /// Its folder in a diffusers model, which is also its key in the metadata's `config`.
    pub fn folder(self) -> &'static str {
        match self {
            Component::Flux => "transformer",
            Component::T5 => "text_encoder_2",
            Component::Clip => "text_encoder",
            Component::Vae => "vae",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
