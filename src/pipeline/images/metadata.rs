//! The text that goes into a picture's file, so that the picture can be made again: the lines that AUTOMATIC1111 writes and
//! most tools read.
//!
//! ```text
//! the prompt, which may have several lines
//! Negative prompt: also
//! Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 1, Size: 1024x1024, Model hash: ..., Model: ...
//! ```
//!
//! A value that holds a comma, a colon, a quote or a line break stands in JSON quotes. That form cannot carry every prompt
//! (one that ends in a space, one that holds a line `Negative prompt:`), so a prompt that would be read back differently is
//! given once more, quoted, as `Prompt` or `Negative`.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::pipeline::request::{LoraChoice, Settings};

const NEGATIVE: &str = "Negative prompt:";

/// The text of picture number `index` (from 0) of `settings.count`.
pub fn write(settings: &Settings, index: usize) -> String {
    let Settings {
        prompt,
        negative,
        count,
        steps,
        seed,
        width,
        height,
        guidance,
        cfg_scale,
        strength,
        ..
    } = settings;
    let mut line = vec![
        ("Steps", steps.to_string()),
        ("Sampler", "Euler".to_string()),
        ("Schedule type", "Simple".to_string()),
        ("CFG scale", cfg_scale.to_string()),
    ];
    line.extend(guidance.map(|g| ("Distilled CFG Scale", g.to_string())));
    line.push(("Seed", seed.to_string()));
    line.push(("Size", format!("{width}x{height}")));
    line.extend(
        (!settings.model_hash.is_empty()).then(|| ("Model hash", settings.model_hash.clone())),
    );
    line.push(("Model", settings.model.clone()));
    line.extend(strength.map(|s| ("Denoising strength", s.to_string())));
    if !settings.loras.is_empty() {
        let loras: Vec<_> = settings.loras.iter().map(|l| (&l.name, l.plain_weight())).collect();
        line.push(("Loras", serde_json::json!(loras).to_string()));
    }
    if *count != 1 {
        line.extend([("Batch size", count.to_string()), ("Batch pos", index.to_string())]);
    }
    line.push(("Version", concat!("flux-fast ", env!("CARGO_PKG_VERSION")).to_string()));

    let plain = |exact: &[(&str, String)]| {
        let mut text = prompt.clone();
        if let Some(negative) = negative {
            text = format!("{text}\n{NEGATIVE} {negative}");
        }
        let fields: Vec<String> =
            line.iter().chain(exact).map(|(k, v)| format!("{k}: {}", quoted(v))).collect();
        format!("{}\n{}", text, fields.join(", "))
    };
    let text = plain(&[]);
    let back = read(&text);
    let same = back.as_ref().is_ok_and(|s| s.prompt == *prompt && s.negative == *negative);
    if same {
        return text;
    }
    let mut exact = vec![("Prompt", format!("={prompt}"))];
    exact.extend(negative.as_ref().map(|n| ("Negative", format!("={n}"))));
    plain(&exact)
}

/// What `write` wrote, or what AUTOMATIC1111 and its kin wrote as far as it goes; what they do not know of gets the value
/// that changes nothing. Needs `Steps`, `Seed` and `Size`.
pub fn read(text: &str) -> Result<Settings> {
    let (body, last) = match text.trim_end().rsplit_once('\n') {
        Some((body, last)) => (body, last),
        None => ("", text.trim_end()),
    };
    let fields = fields(last);
    let find = |key: &str| fields.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_ref());
    let (prompt, negative) = split_prompts(body);
    // The leading `=` tells our exact prompt from a key that another tool might call by the same name.
    let exact = |key: &str| find(key).and_then(|v| v.strip_prefix('=')).map(str::to_string);
    let (prompt, negative) = match exact("Prompt") {
        Some(prompt) => (prompt, exact("Negative")),
        None => (prompt, negative),
    };
    let (width, height) = need("Size", find("Size"), |v| {
        let (w, h) = v.split_once('x')?;
        Some((w.parse().ok()?, h.parse().ok()?))
    })?;
    Ok(Settings {
        prompt,
        negative,
        count: optional("Batch size", find("Batch size"))?.unwrap_or(1),
        steps: need("Steps", find("Steps"), |v| v.parse().ok())?,
        seed: need("Seed", find("Seed"), |v| v.parse().ok())?,
        width,
        height,
        guidance: optional("Distilled CFG Scale", find("Distilled CFG Scale"))?,
        cfg_scale: optional("CFG scale", find("CFG scale"))?.unwrap_or(1.0),
        strength: optional("Denoising strength", find("Denoising strength"))?,
        loras: find("Loras").map_or(Ok(vec![]), |v| need("Loras", Some(v), loras))?,
        model: find("Model").unwrap_or_default().to_string(),
        model_hash: find("Model hash").unwrap_or_default().to_string(),
    })
}

/// `[["a.safetensors", 0.8], ...]`
fn loras(text: &str) -> Option<Vec<LoraChoice>> {
    let pairs: Vec<(String, f32)> = serde_json::from_str(text).ok()?;
    // A picture may come from anyone: the name of another machine's folder would be asked for there at once.
    let remote = |name: &str| name.starts_with("\\\\") || name.starts_with("//");
    if pairs.iter().any(|(name, _)| remote(name)) {
        return None;
    }
    Some(pairs.into_iter().map(|(name, weight)| LoraChoice { name, weight, tag: false }).collect())
}

fn need<T>(key: &str, value: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
    let value = value.ok_or_else(|| {
        Error::argument(format!("the picture's metadata has no {key}"))
            .try_("give a picture that flux-fast or AUTOMATIC1111 wrote")
    })?;
    parse(value).ok_or_else(|| {
        Error::argument(format!("the picture's metadata has a bad {key}")).found(value)
    })
}

fn optional<T: std::str::FromStr>(key: &str, value: Option<&str>) -> Result<Option<T>> {
    value.map(|v| need(key, Some(v), |v| v.parse().ok())).transpose()
}

/// Prompt and negative prompt of the lines above the last. As the field reads them: each line trimmed at its ends only where
/// the whole begins or ends, and everything from the first `Negative prompt:` line on is negative.
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

/// The fields of the last line, by the rule `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)`, found one after another.
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

    fn settings(prompt: &str, negative: Option<&str>) -> Settings {
        Settings {
            prompt: prompt.to_string(),
            negative: negative.map(str::to_string),
            count: 1,
            steps: 20,
            seed: u64::MAX,
            width: 1024,
            height: 768,
            guidance: Some(3.5),
            cfg_scale: 1.0,
            strength: None,
            loras: vec![],
            model: "flux1-dev".to_string(),
            model_hash: "0123456789".to_string(),
        }
    }

    #[test]
    fn loras_come_back_as_they_were_typed() {
        let lora = |name: &str, weight| LoraChoice { name: name.into(), weight, tag: false };
        let mut s = settings("a fox <lora:pixel:0.5>", None);
        s.loras = vec![lora("/models/a, \"b\": c.safetensors", 0.8), lora("name", -1.0)];
        let text = write(&s, 0);
        assert_eq!(read(&text).unwrap(), s, "{text}");
        let broken = text.replace("0.8", "much");
        assert!(read(&broken).unwrap_err().to_string().contains("Loras"), "{broken}");
    }

    #[test]
    fn a_simple_prompt_is_written_as_the_field_writes_it() {
        assert_eq!(
            write(&settings("a fox, red", Some("blur")), 0),
            "a fox, red\nNegative prompt: blur\nSteps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 1, \
             Distilled CFG Scale: 3.5, Seed: 18446744073709551615, Size: 1024x768, Model hash: 0123456789, \
             Model: flux1-dev, Version: flux-fast 0.1.0"
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
        let text = "a (cat:1.2), <lora:toy:0.7>\nwith a hat\nNegative prompt: dog,\nbird\nSteps: 28, Sampler: DPM++ 2M, \
                    CFG scale: 7.5, Seed: 42, Size: 512x640, Model hash: abc, Model: sd, Lora hashes: \"toy: 1, b: 2\", Version: v1.9";
        let settings = read(text).unwrap();
        assert_eq!(settings.prompt, "a (cat:1.2), <lora:toy:0.7>\nwith a hat");
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
    fn what_is_no_metadata_is_refused_with_a_reason() {
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
