//! Model families as data.
//!
//! A [`Family`] lists its components: the transformer, the text encoders and the autoencoder. A
//! [`ComponentSpec`] describes one component: how its files are recognised, how the dialects name
//! its tensors, where users keep it, which tensors may be quantised and which layers a LoRA may
//! change. `weights` and `library` interpret these tables and contain no knowledge of a single
//! family, so a new family is a new module here and one more entry in [`FAMILIES`].

pub mod family;
pub mod flux1;
pub mod flux2;
pub mod foreign;
pub mod lora;
pub mod names;

pub use family::{
    Component, ComponentSpec, Diffusers, Fact, Families, Family, FileNames, Fit, KeepsReferences,
    Lookalike, Role, Tokenizer, Variant,
};

/// Every family that this program knows, in the order in which recognition prefers them when two
/// are equally specific.
pub const FAMILIES: Families = Families(&[&flux1::FLUX1, &flux2::FLUX2]);
