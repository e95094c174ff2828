//! The limits of the parameters of a request.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::error::{Error, Result};

/// The most images of one request.
pub const MAX_COUNT: usize = 64;
/// The most steps.
pub const MAX_STEPS: usize = 1000;
/// The shortest side, in pixels. Sides are also multiples of the model's token (16 pixels with
/// FLUX.1), which the engine checks.
pub const MIN_SIDE: usize = 16;
/// The longest side, in pixels. FLUX.1 was trained with up to 2048 x 2048 pixels; larger images
/// work and tend to repeat themselves.
pub const MAX_SIDE: usize = 4096;
/// The strongest blur of a mask, in pixels.
pub const MAX_MASK_BLUR: f32 = 256.0;
/// The most ControlNets of one request.
pub const MAX_CONTROLNETS: usize = crate::model::flux1::control::MAX_CONTROLS;
/// The largest strength of a style image, as in ComfyUI.
pub const MAX_STYLE_STRENGTH: f32 = 10.0;
/// The most LoRAs of one request.
pub const MAX_LORAS: usize = 64;
/// The largest strength of a LoRA in either direction; images are noise far below that.
pub const MAX_LORA_STRENGTH: f32 = 100.0;
/// The most bytes of a prompt. T5 reads 512 tokens, some 2,500 bytes, and cuts what is longer; this
/// many bytes still fit twice into the metadata of a JPEG.
pub const MAX_PROMPT_BYTES: usize = 10_000;
/// The smallest shift of the noise levels.
pub const MIN_SHIFT: f32 = 0.01;
/// The largest shift of the noise levels.
pub const MAX_SHIFT: f32 = 100.0;
/// The largest guidance and CFG scale.
pub const MAX_SCALE: f32 = 100.0;

/// Refuses a value outside of `range`. NaN is in no range.
pub(super) fn check_range<T: PartialOrd + Display>(
    name: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
) -> Result<()> {
    match value {
        Some(value) if !range.contains(&value) => Err(Error::argument("out of range")
            .at_parameter(name)
            .found(value)
            .expected(format!("{} to {}", range.start(), range.end()))
            .try_("use a number in that range")),
        _ => Ok(()),
    }
}
