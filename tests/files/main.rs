//! Files: weights and LoRAs of every dialect, damaged and hostile files, downloads, images.

#[path = "../common/mod.rs"]
mod common;
mod family;
mod hub;
mod images;
mod lora;
mod photos;
mod provenance;
mod readers;
mod texts;
mod weights;
