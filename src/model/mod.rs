//! FLUX.1's four networks, recorded as `Program`s. The words are those of the reference code (`black-forest-labs/flux`, `transformers`).
//! Nothing here names a device, a file or a budget; every width comes from a config.

pub mod clip;
pub mod config;
pub mod flux1;
pub mod t5;
pub mod vae;

pub use clip::ClipConfig;
pub use config::{Shapes, TensorSpec};
pub use flux1::FluxConfig;
pub use t5::T5Config;
pub use vae::VaeConfig;
