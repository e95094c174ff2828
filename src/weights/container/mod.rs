//! Containers: files of named tensors, mapped and checked. Nothing here knows the purpose of a
//! tensor.

pub mod file;
pub mod gguf;
pub mod header;
pub mod map;
pub mod safetensors;
pub mod slice;
pub mod write;
