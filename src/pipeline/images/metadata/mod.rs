//! The text in an image file that says how to make the image again, in the form that AUTOMATIC1111
//! writes and most tools read.
//!
//! ```text
//! the prompt, which may have several lines
//! Negative prompt: also
//! Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 1, Size: 1024x1024, ...
//! ```
//!
//! The labels and their order come from the list of parameters in
//! [`Settings`]; only what this form spells in its own way is handled here: the prompts, the size,
//! and the constants. A value with a comma, a colon, a quote or a line break is written in JSON
//! quotes. The form cannot carry every prompt (one that ends in a space, or that has a line
//! `Negative prompt:`), so a prompt that would be read back differently is written a second time,
//! quoted, as `Prompt` or `Negative`.

//!
//! What other programs write is read as far as it has a meaning here: the same form from
//! AUTOMATIC1111, Forge, stable-diffusion.cpp and others, and the JSON of ComfyUI, InvokeAI and
//! SwarmUI. Values that are not used are listed in [`Provenance::notes`].

mod comfyui;
mod fields;
mod infotext;
mod json;
mod reading;
mod sampler;
mod workflow;

use std::borrow::Cow;

use serde_json::Value;

use self::infotext::NEGATIVE;
use self::reading::{Reading, Writer};
use super::image_text::ImageText;
use crate::error::{Error, Result};
use crate::pipeline::request::Settings;

/// The most bytes of a text with fields. Programs write a few kilobytes.
const MAX_FIELDS_BYTES: usize = 64 << 10;
/// The most bytes of JSON: graphs have many nodes.
const MAX_JSON_BYTES: usize = 4 << 20;

/// The code of the error for an image without settings.
pub const NO_SETTINGS: &str = "no_settings";

/// What an image file says about how the image was made.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Provenance {
    /// The settings, in this program's terms.
    pub settings: Settings,
    /// The number of the image in its batch, from 0, if the file says so.
    pub index: Option<usize>,
    /// Lines for the user: what the file says and this program does not use, and why the image
    /// will differ.
    pub notes: Vec<String>,
    writer: Writer,
}

impl Provenance {
    /// Whether this program wrote the file.
    pub fn is_own(&self) -> bool {
        self.writer == Writer::Own
    }

    /// The program that wrote the settings.
    pub fn program(&self) -> &'static str {
        self.writer.name()
    }
}

/// The text of image number `index` (from 0) of `settings.count`. If the settings say which image
/// of the batch it is, that is its number.
pub fn write(settings: &Settings, index: usize) -> String {
    let index = settings.only.unwrap_or(index);
    let line = line(settings, index);
    let (prompt, negative) = (settings.prompt.as_str(), settings.negative.as_deref());
    let text = |exact: &[(&str, String)]| {
        let mut text = prompt.to_string();
        if let Some(negative) = negative {
            text = format!("{text}\n{NEGATIVE} {negative}");
        }
        let fields: Vec<String> =
            line.iter().chain(exact).map(|(k, v)| format!("{k}: {}", quoted(v))).collect();
        format!("{}\n{}", text, fields.join(", "))
    };
    let plain = text(&[]);
    let same =
        read(&plain).is_ok_and(|s| s.prompt == settings.prompt && s.negative == settings.negative);
    if same {
        return plain;
    }
    let mut exact = vec![("Prompt", format!("={prompt}"))];
    exact.extend(negative.map(|n| ("Negative", format!("={n}"))));
    text(&exact)
}

/// Labels and values of the last line.
fn line(settings: &Settings, index: usize) -> Vec<(&'static str, String)> {
    let mut line = Vec::new();
    for (label, value) in settings.labelled() {
        match label {
            // The prompts have lines of their own.
            "Negative" => {}
            "Steps" => {
                line.push((label, value));
                line.push(("Sampler", "Euler".to_string()));
                line.push(("Schedule type", "Simple".to_string()));
            }
            "Width" => line.push(("Size", format!("{}x{}", settings.width, settings.height))),
            "Height" => {
                if !settings.model_hash.is_empty() {
                    line.push(("Model hash", settings.model_hash.clone()));
                }
                line.push(("Model", settings.model.clone()));
            }
            "Batch size" if settings.count == 1 => {}
            "Batch pos" => {}
            "Batch size" => {
                line.push((label, value));
                line.push(("Batch pos", index.to_string()));
            }
            _ => line.push((label, value)),
        }
    }
    if settings.lora_hashes.iter().any(|hash| !hash.is_empty()) {
        line.push(("Lora file hashes", settings.lora_hashes.join(" ")));
    }
    if settings.controlnet_hashes.iter().any(|hash| !hash.is_empty()) {
        line.push(("ControlNet file hashes", settings.controlnet_hashes.join(" ")));
    }
    line.push(("Version", concat!("flux-fast ", env!("CARGO_PKG_VERSION")).to_string()));
    line
}

/// The settings in a text that [`write()`] or another program wrote. A parameter that such a text
/// does not mention gets the value that has no effect; `Steps`, `Seed` and `Size` are required.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if one of them is missing or a value is bad.
pub fn read(text: &str) -> Result<Settings> {
    let text = ImageText { key: super::PNG_KEY.into(), text: Some(text.to_string()) };
    provenance(&[text], None).map(|found| found.settings)
}

/// What the texts of an image say. The first that can be read is taken. `size` is that of the
/// image.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if none can be read: why the first cannot.
pub fn provenance(texts: &[ImageText], size: Option<(usize, usize)>) -> Result<Provenance> {
    let mut texts: Vec<&ImageText> = texts.iter().collect();
    texts.sort_by_key(|text| rank(&text.key));
    let mut first = None;
    for text in texts {
        match reading(text).and_then(|reading| reading.finish(size)) {
            Ok(found) => return Ok(found),
            // A text that says nothing of settings is no reason.
            Err(e) if e.code() == NO_SETTINGS => {}
            Err(e) => first = first.or(Some(e)),
        }
    }
    Err(first.unwrap_or_else(no_settings))
}

/// The error for an image without settings.
pub fn no_settings() -> Error {
    Error::argument("the image contains no settings")
        .with_code(NO_SETTINGS)
        .try_("give a PNG, JPEG, WebP or TIFF that was written with them")
}

/// How much a text of this name is to be preferred; 0 is best. Nodes of ComfyUI may write
/// `parameters` next to the graph, which says the same with less.
fn rank(key: &str) -> usize {
    let keys = ["parameters", "invokeai_metadata", "prompt", "workflow"];
    keys.iter().position(|k| *k == key).unwrap_or(keys.len())
}

fn too_long() -> Error {
    let (fields, json) = (MAX_FIELDS_BYTES >> 10, MAX_JSON_BYTES >> 10);
    Error::argument("the text with the settings is too long to be read")
        .expected(format!("at most {fields} KB, or {json} KB of JSON"))
}

fn reading(text: &ImageText) -> Result<Reading> {
    let Some(content) = text.text.as_deref().map(|t| t.trim_start_matches('\u{feff}')) else {
        return Err(too_long()
            .at(&text.key)
            .found(format!("more than {} KB, or damaged data", super::MAX_TEXT_BYTES >> 10)));
    };
    let is_json = content.trim_start().starts_with('{');
    let most = if is_json { MAX_JSON_BYTES } else { MAX_FIELDS_BYTES };
    if content.len() > most {
        return Err(too_long().at(&text.key).found(format!("{} KB", content.len() >> 10)));
    }
    if is_json {
        // Python writes numbers that JSON does not have; ComfyUI's graphs contain them.
        let value = serde_json::from_str(content)
            .or_else(|e| serde_json::from_str(&json::with_null_for_nan(content)).map_err(|_| e));
        return match value {
            Ok(Value::Object(object)) => json::read(&object),
            Ok(_) => Err(no_settings()),
            Err(_) if infotext::is_infotext(content) => infotext::read(content),
            Err(e) => Err(Error::argument(format!("the settings are not JSON: {e}")).at(&text.key)),
        };
    }
    match infotext::is_infotext(content) {
        true => infotext::read(content),
        false => Err(no_settings()),
    }
}

fn quoted(value: &str) -> Cow<'_, str> {
    let plain = !value.is_empty()
        && value.trim() == value
        && !value.starts_with(['[', '{'])
        && !value.contains([',', ':', '"', '\\', '\n', '\r']);
    if plain {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(serde_json::Value::from(value).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::request::LoraChoice;
    use crate::pipeline::schedule::ScheduleConfig;

    fn settings(prompt: &str, negative: Option<&str>) -> Settings {
        Settings {
            prompt: prompt.into(),
            negative: negative.map(str::to_string),
            steps: 20,
            seed: u64::MAX,
            width: 1024,
            height: 768,
            guidance: Some(3.5),
            model: "flux1-dev".to_string(),
            model_hash: "0123456789".to_string(),
            ..Settings::default()
        }
    }

    #[test]
    fn loras_come_back_as_they_were_typed() {
        let mut s = settings("a fox <lora:pixel:0.5>", None);
        s.loras = vec![
            LoraChoice::new("/models/a, \"b\": c.safetensors", 0.8),
            LoraChoice::new("name", -1.0),
        ];
        let text = write(&s, 0);
        assert_eq!(read(&text).unwrap(), s, "{text}");
        let broken = text.replace("0.8", "much");
        assert!(read(&broken).unwrap_err().to_string().contains("Loras"), "{broken}");
    }

    #[test]
    fn what_was_drawn_from_images_says_so() {
        let mut s = settings("a fox", None);
        (s.mask_blur, s.mask_padding, s.reference_count) = (Some(2.5), Some(32), Some(2));
        s.outpaint = Some("1,2,3,4".parse().unwrap());
        s.strength = Some(0.5);
        assert_eq!(read(&write(&s, 0)).unwrap(), s);
    }

    #[test]
    fn a_simple_prompt_is_written_as_other_tools_write_it() {
        assert_eq!(
            write(&settings("a fox, red", Some("blur")), 0),
            "a fox, red\nNegative prompt: blur\nSteps: 20, Sampler: Euler, Schedule type: Simple, \
             CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 18446744073709551615, Size: 1024x768, \
             Model hash: 0123456789, Model: flux1-dev, Version: flux-fast 0.1.0"
        );
    }

    #[test]
    fn every_prompt_comes_back_exactly() {
        let prompts = [
            "",
            " ",
            "a fox",
            "two\nlines",
            "\n\n",
            "ends in a line break\n",
            "  spaces  ",
            "windows\r\nlines\r",
            "Negative prompt: not really",
            "first\nNegative prompt: second\nNegative prompt: third",
            "Steps: 3, Seed: 9, Size: 1x1",
            "a\nSteps: 3, Seed: 9, Size: 1x1, Model: other",
            "quotes \" and \\ and \\\" and ', too",
            "Prompt: =x, Prompt: \"=y\"",
            "emoji 🦊👩‍👩‍👧 and 狐 and שלום and e\u{301}",
            "<lora:x:0.8>, (red:1.2)",
            "tab\tand null-like \\0",
        ];
        for prompt in prompts {
            for negative in prompts.iter().map(|n| Some(*n)).chain([None]) {
                let mut settings = settings(prompt, negative);
                assert_eq!(read(&write(&settings, 0)).unwrap(), settings);
                settings.count = 3;
                settings.guidance = None;
                settings.strength = Some(0.1 + 0.2);
                settings.shift = Some(3.158);
                settings.scheduler = Some(ScheduleConfig::dev());
                settings.cfg_scale = 1.0 / 3.0;
                settings.model = "my, \"model\": a\\b".to_string();
                settings.model_hash = String::new();
                assert_eq!(read(&write(&settings, 2)).unwrap(), settings);
            }
        }
    }

    #[test]
    fn the_text_of_another_tool_is_read_as_far_as_it_goes() {
        let text = "a (cat:1.2), <lora:toy:0.7>\nwith a hat\nNegative prompt: dog,\nbird\n\
                    Steps: 28, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 42, Size: 512x640, \
                    Model hash: abc, Model: sd, Lora hashes: \"toy: 1, b: 2\", Version: v1.9";
        let settings = read(text).unwrap();
        assert_eq!(settings.prompt.as_str(), "a (cat:1.2), <lora:toy:0.7>\nwith a hat");
        assert_eq!(settings.negative.as_deref(), Some("dog,\nbird"));
        assert_eq!(
            (settings.steps, settings.seed, settings.width, settings.height),
            (28, 42, 512, 640)
        );
        assert_eq!(
            (settings.cfg_scale, settings.guidance, settings.model.as_str()),
            (7.5, None, "sd")
        );
    }

    #[test]
    fn text_without_settings_is_refused() {
        for text in [
            "",
            "a fox",
            "Steps: 3",
            "x\nSteps: three, Seed: 1, Size: 8x8",
            "x\nSteps: 3, Seed: 1, Size: 8",
            "\"\"\":,:,",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
