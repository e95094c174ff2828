//! Weight files: mapped, checked, and read under one set of names, whichever tool wrote them.
//!
//! - [`container`] parses safetensors and GGUF files: named tensors and their byte ranges.
//! - [`dialect`] recognises the components of a file and reads each as [`ComponentWeights`]: its
//!   tensors under canonical names, pointing into the file. The names come from [`crate::spec`].
//! - [`lora`] reads LoRA files and combines them.
//! - [`synth`] makes seeded weights for tests and measurements.

pub mod container;
pub mod dialect;
pub mod lora;
pub mod synth;

pub use container::map::{exit_on_abort, exit_on_lost_pages};
pub use dialect::component::ComponentWeights;
