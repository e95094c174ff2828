//! What a caller asks for, and what it gets. Plain data: front ends fill it in, and
//! [`Engine::generate`](crate::Engine::generate) checks it against the model.

mod aspect;
mod check;
mod controlnet;
mod limits;
mod margins;
mod options;
mod parameter;
mod prompt;
mod settings;
mod syntax;

pub use aspect::AspectRatio;
pub use controlnet::{
    ControlImage, ControlMode, ControlNetChoice, MAX_CONTROL_STRENGTH, MAX_THRESHOLD,
};
pub use limits::*;
pub use margins::Margins;
pub use options::Options;
pub(crate) use parameter::{Parameter, plain_number};
pub use prompt::{LoraChoice, Prompt};
pub(crate) use settings::bad;
pub use settings::{DEFAULT_STRENGTH, MAX_REFERENCES, MAX_STYLES, Request, Settings};
pub(crate) use syntax::foreign_syntax;

/// RGB pixels, 8 bit, row-major, top row first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub rgb: Vec<u8>,
}

/// Which pixels of an image are repainted, row-major, top row first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` bytes: 0 keeps a pixel, 255 repaints it, and values between change it in
    /// the later steps only.
    pub values: Vec<u8>,
}

/// The result of one generation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generated {
    /// The images: as many as the request's count, or the only one of the batch.
    pub images: Vec<Image>,
    /// What was decoded: the final latents as packed tokens, image after image.
    pub latents: Vec<f32>,
    /// The settings that made the images.
    pub settings: Settings,
}
