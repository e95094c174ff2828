//! A text in an image file.

/// The maximum size of a text after decompression, in bytes.
pub const MAX_TEXT_BYTES: usize = 4 << 20;
/// The keyword under which PNG files store their settings.
pub const PNG_KEY: &str = "parameters";

/// A text in an image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageText {
    /// The keyword of a PNG's text, or the name of the place in another format.
    pub key: String,
    /// The text; `None` if it is longer than [`MAX_TEXT_BYTES`] or cannot be unpacked.
    pub text: Option<String>,
}

impl ImageText {
    /// A text that was read.
    pub(super) fn new(key: &str, text: String) -> Self {
        ImageText { key: key.into(), text: Some(text) }
    }
}
