//! The small model inside the program (feature `embedded`).

use crate::error::Result;

/// An all-in-one checkpoint with ComfyUI's tensor names and linear weights in FP8.
#[cfg(feature = "embedded")]
pub fn model() -> Result<&'static [u8]> {
    static BYTES: &[u8] = include_bytes!("../../assets/tiny/flux-tiny.safetensors");
    Ok(BYTES)
}

/// That this build is without the model.
#[cfg(not(feature = "embedded"))]
pub fn model() -> Result<&'static [u8]> {
    Err(crate::error::Error::argument("this build has no embedded model")
        .at_parameter("model")
        .expected("the name or path of a model, or a build with the feature `embedded`"))
}
