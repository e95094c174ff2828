//! Containers: files of named tensors, mapped and checked. Nothing here knows what a tensor is for.

pub mod file;
pub mod gguf;
pub mod header;
pub mod map;
pub mod safetensors;
pub mod slice;
