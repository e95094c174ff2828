//! Models against values from other implementations: the networks, the tokenizers, noise, LoRAs,
//! and what the embedded model draws.

#[path = "../common/mod.rs"]
mod common;
mod embedded;
mod goldens;
mod loras;
mod noise;
mod tokenizers;
