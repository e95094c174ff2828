//! FLUX.1's four networks, recorded as `Program`s. The words are those of the reference code (`black-forest-labs/flux`, `transformers`).
//! Nothing here names a device, a file or a budget; every width comes from a config.

pub mod clip;
pub mod config;
pub mod flux1;
pub mod t5;
pub mod vae;

pub use config::{ClipConfig, FluxConfig, Shapes, T5Config, VaeConfig};

/// The name and shape of a tensor as files store it.
pub type TensorSpec = (String, Vec<usize>);
