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

use std::borrow::Cow;

use crate::error::Result;
use crate::pipeline::request::{Settings, bad};

const NEGATIVE: &str = "Negative prompt:";

/// The text of image number `index` (from 0) of `settings.count`.
pub fn write(settings: &Settings, index: usize) -> String {
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
            "Batch size" => {
                line.push((label, value));
                line.push(("Batch pos", index.to_string()));
            }
            _ => line.push((label, value)),
        }
    }
    line.push(("Version", concat!("flux-fast ", env!("CARGO_PKG_VERSION")).to_string()));
    line
}

/// The settings in a text that [`write()`] wrote, or AUTOMATIC1111 and tools like it. A parameter
/// that such a text does not mention gets the value that has no effect; `Steps`, `Seed` and `Size`
/// are required.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if one of them is missing or a value is bad.
pub fn read(text: &str) -> Result<Settings> {
    let (body, last) = match text.trim_end().rsplit_once('\n') {
        Some((body, last)) => (body, last),
        None => ("", text.trim_end()),
    };
    let fields = fields(last);
    let find = |key: &str| fields.iter().find(|(k, _)| *k == key).map(|(_, v)| v.to_string());
    let (prompt, negative) = split_prompts(body);
    // The leading `=` distinguishes our exact prompt from a key of the same name that another tool
    // might write.
    let exact = |key: &str| find(key).and_then(|v| v.strip_prefix('=').map(str::to_string));
    let (prompt, negative) = match exact("Prompt") {
        Some(prompt) => (prompt, exact("Negative")),
        None => (prompt, negative),
    };
    let size = find("Size");
    let side = |side: fn((&str, &str)) -> String| match &size {
        None => Ok(None),
        Some(size) => size.split_once('x').map(|s| Some(side(s))).ok_or_else(|| bad("Size", size)),
    };
    let (width, height) = (side(|s| s.0.to_string())?, side(|s| s.1.to_string())?);
    let settings = Settings::from_labelled(|label| match label {
        "Negative" => negative.clone(),
        "Width" => width.clone(),
        "Height" => height.clone(),
        _ => find(label),
    })?;
    Ok(Settings {
        prompt: prompt.into(),
        model: find("Model").unwrap_or_default(),
        model_hash: find("Model hash").unwrap_or_default(),
        ..settings
    })
}

/// Prompt and negative prompt of the lines above the last. As other tools read them: space is
/// trimmed only at the two ends of a prompt, and everything from the first `Negative prompt:` line
/// on is negative.
fn split_prompts(body: &str) -> (String, Option<String>) {
    let at = if body.starts_with(NEGATIVE) {
        Some(0)
    } else {
        body.find(&format!("\n{NEGATIVE}")).map(|newline| newline + 1)
    };
    match at {
        None => (body.trim().to_string(), None),
        Some(at) => {
            (body[..at].trim().to_string(), Some(body[at + NEGATIVE.len()..].trim().to_string()))
        }
    }
}

fn quoted(value: &str) -> Cow<'_, str> {
    let plain = !value.is_empty()
        && value.trim() == value
        && !value.contains([',', ':', '"', '\\', '\n', '\r']);
    if plain {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(serde_json::Value::from(value).to_string())
    }
}

/// The fields of the last line, one after another. Each matches
/// `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`.
fn fields(line: &str) -> Vec<(&str, Cow<'_, str>)> {
    let mut found = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        match field(rest) {
            Some((key, value, after)) => {
                found.push((key, value));
                rest = after;
            }
            // Like a search for the pattern, try again one character on.
            None => rest = rest.chars().next().map_or("", |c| &rest[c.len_utf8()..]),
        }
    }
    found
}

fn field(text: &str) -> Option<(&str, Cow<'_, str>, &str)> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let text = text.trim_start();
    let (key, value) = text.split_once(':')?;
    let inner = |c: char| word(c) || matches!(c, ' ' | '-' | '/');
    if !(key.starts_with(word) && key.chars().nth(1).is_some() && key.chars().all(inner)) {
        return None;
    }
    let value = value.trim_start();
    if let Some(length) = string_length(value)
        && let Some(after) = after_value(&value[length..])
    {
        let literal = &value[..length];
        let value = serde_json::from_str(literal).map_or(Cow::Borrowed(literal), Cow::Owned);
        return Some((key, value, after));
    }
    let (value, after) = value.split_once(',').unwrap_or((value, ""));
    Some((key, Cow::Borrowed(value.trim_end()), after))
}

/// Length in bytes of the quoted string at the start of `text`, quotes included.
fn string_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in text.strip_prefix('"')?.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(i + 2),
            _ => {}
        }
    }
    None
}

fn after_value(text: &str) -> Option<&str> {
    if text.is_empty() { Some("") } else { text.strip_prefix(',') }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::request::LoraChoice;

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
