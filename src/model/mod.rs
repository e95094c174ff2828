//! The networks, recorded as [`Program`](crate::op::Program)s in the terms of the reference code
//! (`black-forest-labs/flux` and `flux2`, `transformers`). Nothing here depends on a device, a file
//! or a budget; every width comes from a configuration.

pub mod clip;
pub mod config;
pub mod flux1;
pub mod flux2;
mod joint;
pub mod qwen3;
pub mod redux;
pub mod siglip;
pub mod t5;
mod tower;
pub mod vae;

pub use clip::ClipConfig;
pub use config::{TensorShapes, TensorSpec};
pub use flux1::{ControlConfig, FluxConfig};
pub use flux2::Flux2Config;
pub use joint::SequenceShape;
pub use qwen3::Qwen3Config;
pub use redux::ReduxConfig;
pub use siglip::SiglipConfig;
pub use t5::T5Config;
pub use vae::VaeConfig;
