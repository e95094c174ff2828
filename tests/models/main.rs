//! Models against values from other implementations: the networks, the tokenizers, noise, LoRAs,
//! and what the embedded model draws.

mod accuracy;
#[path = "../common/mod.rs"]
mod common;
mod embedded;
mod goldens;
mod loras;
mod noise;
mod tokenizers;
