//! The small model inside the program (feature `embedded`).

use super::request::Settings;
use crate::error::Result;
use crate::message::Message;

/// The name of the model, and of its file where it is written to one.
pub const EMBEDDED: &str = "flux-tiny";

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

/// The size that the model was trained for, in pixels.
const SIDE: usize = 128;

/// Every word of the captions that the model was trained with. Case matters to T5.
const WORDS: &str = include_str!("../../assets/tiny/words.txt");

/// Words that carry no picture, and are not worth a warning.
const FILLERS: [&str; 12] =
    ["an", "the", "of", "with", "and", "at", "by", "to", "is", "it", "its", "from"];

/// The most words that a warning lists.
const LISTED: usize = 8;

/// Warnings about settings that the model was not trained for.
pub fn warnings(settings: &Settings) -> Vec<Message> {
    let mut warnings = Vec::new();
    let unknown = unknown_words(settings.prompt.text());
    if !unknown.is_empty() {
        let more = match unknown.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        warnings.push(Message::with(
            "the embedded model does not know these words, which have no effect: {}{}; it draws \
             animals, plants and food, for other subjects give {model}",
            [unknown[..unknown.len().min(LISTED)].join(", ").into(), more.into()],
        ));
    }
    if (settings.width, settings.height) != (SIDE, SIDE) {
        let size = |width, height| Message::plain(format!("{width}x{height}"));
        warnings.push(Message::with(
            "the embedded model was trained at {} only, at {} its images are distorted",
            [size(SIDE, SIDE), size(settings.width, settings.height)],
        ));
    }
    warnings
}

/// The words of `prompt` that did not occur in training, each once, in their order. A word that is
/// known in another case is followed by that one.
fn unknown_words(prompt: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '-' || c == '\'';
    let words = prompt.split(|c| !is_part(c)).map(|w| w.trim_matches(['-', '\'']));
    let mut unknown: Vec<String> = Vec::new();
    for word in words.filter(|w| !w.is_empty()) {
        let same = |known: &&str| known.to_lowercase() == word.to_lowercase();
        if WORDS.lines().any(|known| known == word)
            || FILLERS.contains(&word.to_lowercase().as_str())
            || word == "A"
        {
            continue;
        }
        let shown = match WORDS.lines().find(same) {
            Some(known) => format!("{word} (write {known})"),
            None => word.to_string(),
        };
        if !unknown.contains(&shown) {
            unknown.push(shown);
        }
    }
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_were_not_in_training_are_listed_once() {
        for known in [
            "a fox, 3D style, on a blue background",
            "banana in flat style on a red background",
            "A penguin on the white background",
            "two-hump camel; t-rex!",
            "",
        ] {
            assert_eq!(unknown_words(known), [] as [&str; 0], "{known}");
        }
        assert_eq!(
            unknown_words("A castle and a Fox, 3d style, near a castle"),
            ["castle", "Fox (write fox)", "3d (write 3D)", "near"]
        );
    }

    #[test]
    fn unknown_words_and_other_sizes_are_warned_about() {
        let settings = |prompt: &str, width| Settings {
            prompt: prompt.into(),
            width,
            height: 128,
            ..Settings::default()
        };
        assert_eq!(warnings(&settings("a fox <lora:pixel:1>", 128)), []);
        let both = warnings(&settings("a castle", 256));
        assert!(both[0].contains("castle;") && both[1].contains("256x128"), "{both:?}");
        let many = warnings(&settings("q w e r t y u i o p {ram}", 128));
        assert!(many[0].contains("u, i and 2 more"), "{many:?}");
    }
}
