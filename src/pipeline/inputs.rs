//! What models read besides the prompt.

use serde::{Deserialize, Serialize};

/// What a model reads besides the prompt. Every model reads an image to start from, and a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ModelInputs {
    /// It reads [`Request::references`](super::request::Request::references).
    pub references: bool,
    /// It reads them in one of the sizes of FLUX.1 Kontext, and draws in that size.
    pub kontext_sizes: bool,
    /// It draws nothing without [`Request::control`](super::request::Request::control).
    pub needs_control: bool,
    /// It only repaints a part of an image.
    pub needs_mask: bool,
}
