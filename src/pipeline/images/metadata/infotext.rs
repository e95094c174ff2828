//! Reads the text that AUTOMATIC1111, Forge, stable-diffusion.cpp and this program write: the
//! prompts, then one line of fields.

use std::borrow::Cow;

use super::fields::{fields, fields_and_rest};
use super::reading::{Reading, Writer};
use super::sampler::is_euler;
use crate::error::Result;
use crate::pipeline::request::{Settings, bad};

/// The start of the line of the negative prompt.
pub const NEGATIVE: &str = "Negative prompt:";

/// Under which names the programs write the guidance of a guidance-distilled model.
const GUIDANCE: [&str; 5] =
    ["Distilled CFG Scale", "Guidance", "Flux guidance", "Distilled guidance", "Embedded guidance"];

/// Under which names programs write the model, besides `Model`.
const MODEL: [&str; 3] = ["Unet", "Diffusion model", "Base model"];

/// The fields of a line, and which of them were used.
struct Fields<'a> {
    all: Vec<(&'a str, Cow<'a, str>)>,
    used: Vec<bool>,
    /// The text between the fields.
    rest: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    fn of(line: &'a str) -> Self {
        let (all, rest) = fields_and_rest(line);
        Fields { used: vec![false; all.len()], all, rest }
    }

    /// The value of the first field called `key`, in any case. All fields of that name count as
    /// used.
    fn take(&mut self, key: &str) -> Option<String> {
        let mut value = None;
        for ((name, text), used) in self.all.iter().zip(&mut self.used) {
            if name.eq_ignore_ascii_case(key) {
                *used = true;
                value = value.or_else(|| Some(text.to_string()));
            }
        }
        value
    }

    fn get(&self, key: &str) -> Option<&str> {
        let field = self.all.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
        field.map(|(_, text)| text.as_ref())
    }

    /// Whether there is a field whose name begins with `start`.
    fn any_begins(&self, start: &str) -> bool {
        self.all.iter().any(|(name, _)| name.to_ascii_lowercase().starts_with(start))
    }

    /// The fields that were not used, and have a value; and what stands between the fields.
    fn unused(&self) -> impl Iterator<Item = (String, String)> {
        let all = self.all.iter().zip(&self.used);
        let rest = self.rest.iter().map(|text| ("text".to_string(), text.to_string()));
        all.filter(|((_, value), used)| !**used && !value.is_empty())
            .map(|((name, value), _)| (name.to_string(), value.to_string()))
            .chain(rest)
    }
}

/// Reads the settings from `text`, which is in the format of A1111's `parameters`.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if it has no line of fields, or a field of this
/// program's own is bad.
pub fn read(text: &str) -> Result<Reading> {
    let (body, line, below) = parts(text);
    let mut fields = Fields::of(line);
    let writer = writer(&fields);
    let mut reading = Reading::new(writer);
    fields.take("Version");
    let (prompt, negative) = split_prompts(body);
    // The leading `=` distinguishes our exact prompt from a key of the same name that another tool
    // might write.
    let exact = |text: Option<&str>| text.and_then(|v| v.strip_prefix('=').map(str::to_string));
    (reading.prompt, reading.negative) = match exact(fields.get("Prompt")) {
        Some(prompt) if writer == Writer::Own => {
            fields.take("Prompt");
            let negative = fields.take("Negative");
            (Some(prompt), exact(negative.as_deref()))
        }
        _ => (Some(prompt), negative),
    };
    if let Some(size) = fields.take("Size") {
        match size.split_once(['x', 'X', '\u{d7}', '*']) {
            Some((width, height)) => {
                reading.set("Width", width.trim());
                reading.set("Height", height.trim());
            }
            None if writer == Writer::Own => return Err(bad("Size", &size)),
            // The image has a size, too.
            None => reading.unused.push(("Size".into(), size)),
        }
    }
    for label in ["Steps", "Seed"] {
        if let Some(value) = fields.take(label) {
            reading.set(label, value);
        }
    }
    reading.model = fields.take("Model").unwrap_or_default();
    if writer == Writer::Own {
        own(&mut reading, &mut fields)?;
    } else {
        foreign(&mut reading, &mut fields);
    }
    reading.unused.extend(fields.unused());
    // Extensions write lines of their own below.
    let more = below.lines().map(str::trim).filter(|line| !line.is_empty());
    reading.unused.extend(more.map(|line| match line.split_once(':') {
        Some((key, value)) => (key.trim().to_string(), value.trim().to_string()),
        None => ("line".to_string(), line.to_string()),
    }));
    Ok(reading)
}

/// The fields that this program writes.
fn own(reading: &mut Reading, fields: &mut Fields) -> Result<()> {
    // The negative prompt is a line of its own, and the number in the batch is not a setting.
    let labels =
        Settings::LABELS.iter().filter(|label| !matches!(**label, "Negative" | "Batch pos"));
    for label in labels {
        if let Some(value) = fields.take(label) {
            reading.set(label, value);
        }
    }
    if let Some(index) = fields.take("Batch pos") {
        reading.index = Some(index.parse().map_err(|_| bad("Batch pos", &index))?);
    }
    reading.model_hash = fields.take("Model hash").unwrap_or_default();
    if let Some(hashes) = fields.take("Lora file hashes") {
        reading.lora_hashes = hashes.split(' ').map(str::to_string).collect();
    }
    if let Some(hashes) = fields.take("ControlNet file hashes") {
        reading.controlnet_hashes = hashes.split(' ').map(str::to_string).collect();
    }
    // Always the same.
    fields.take("Sampler");
    fields.take("Schedule type");
    Ok(())
}

/// The fields of other programs.
fn foreign(reading: &mut Reading, fields: &mut Fields) {
    for name in MODEL {
        if reading.model.is_empty() {
            reading.model = fields.take(name).unwrap_or_default();
        }
    }
    let distilled = GUIDANCE.into_iter().find_map(|name| fields.take(name));
    let cfg = fields.take("CFG scale");
    match (distilled, cfg) {
        (Some(guidance), cfg) => {
            reading.set("Distilled CFG Scale", guidance);
            cfg.into_iter().for_each(|cfg| reading.set("CFG scale", cfg));
        }
        (None, Some(cfg)) if reading.writer.cfg_is_distilled() => {
            reading.note(format!(
                "CFG scale {cfg} is taken for the distilled guidance: {} has one scale for both",
                reading.writer.name()
            ));
            reading.set("Distilled CFG Scale", cfg);
        }
        (None, cfg) => cfg.into_iter().for_each(|cfg| reading.set("CFG scale", cfg)),
    }
    if fields.any_begins("hires") {
        // The strength is that of the second pass.
        let strength = fields.take("Denoising strength");
        let at = strength.map_or(String::new(), |s| format!(" (denoising strength {s})"));
        reading.note(format!(
            "the second pass at a higher resolution{at} is not made: the image will have the size \
             of the first pass"
        ));
    } else if let Some(strength) = fields.take("Denoising strength") {
        reading.set("Denoising strength", strength);
    }
    sampler(reading, fields);
    if let Some(rng) = fields.take("RNG") {
        if !rng.eq_ignore_ascii_case("cpu") {
            reading.other_noise(&format!("RNG: {rng}"));
        }
    } else if reading.writer.noise_is_from_the_gpu() {
        reading.other_noise("noise of its own generator");
    }
    if let Some(skip) = fields.take("Clip skip") {
        reading
            .note(format!("CLIP skip {skip} is not applied: FLUX.1 reads the last layer of CLIP"));
    }
    // With a number in the batch, the seed is that of this one image.
    let count = fields.take("Batch size");
    if fields.take("Batch pos").is_none() {
        count.into_iter().for_each(|count| reading.set("Batch size", count));
    }
    // A hash of the whole file, which is not computed here.
    if let Some(hash) = fields.take("Model hash").filter(|hash| !hash.is_empty()) {
        reading.unused.push(("Model hash".into(), hash));
    }
}

fn sampler(reading: &mut Reading, fields: &mut Fields) {
    let sampler = fields.take("Sampler").unwrap_or_default();
    let schedule = fields.take("Schedule type").or_else(|| fields.take("Scheduler"));
    let schedule = schedule.unwrap_or_default();
    if !is_euler(&sampler, &schedule) {
        reading.other_sampler(&format!("{sampler} {schedule}"));
    }
}

/// The program that wrote these fields.
fn writer(fields: &Fields) -> Writer {
    let version = fields.get("Version").unwrap_or_default();
    let starts = |start: &str| version.to_ascii_lowercase().starts_with(start);
    let numbered = |letter: char| {
        let rest = version.strip_prefix(letter);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let has = |key: &str| fields.get(key).is_some();
    if starts("flux-fast") {
        Writer::Own
    } else if starts("stable-diffusion.cpp") {
        Writer::StableDiffusionCpp
    } else if starts("comfyui") {
        Writer::ComfyUi
    } else if fields.get("App").is_some_and(|app| app.to_ascii_lowercase().starts_with("sd.next")) {
        Writer::SdNext
    } else if has("Civitai resources") || has("Civitai metadata") {
        Writer::Civitai
    } else if numbered('f') || starts("neo") || starts("forge") {
        Writer::Forge
    } else if numbered('v') {
        Writer::Automatic1111
    } else {
        Writer::Unknown
    }
}

/// The prompts, the line of fields, and the lines below it. The line is the last one if it says
/// `Steps`, else the last one that begins with it, since some extensions write more lines below.
fn parts(text: &str) -> (&str, &str, &str) {
    let text = text.trim_end();
    let (body, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let has_steps = |line: &str| fields(line).iter().any(|(key, _)| *key == "Steps");
    if has_steps(last) {
        return (body, last, "");
    }
    let start = match text.rfind("\nSteps:") {
        Some(newline) => newline + 1,
        None if text.starts_with("Steps:") => 0,
        None => return (body, last, ""),
    };
    let (line, below) = text[start..].split_once('\n').unwrap_or((&text[start..], ""));
    (&text[..start.saturating_sub(1)], line, below)
}

/// Prompt and negative prompt of the lines above the fields. As other tools read them: space is
/// trimmed only at the two ends of a prompt, and everything from the first `Negative prompt:` line
/// on is negative.
fn split_prompts(body: &str) -> (String, Option<String>) {
    let body = body.trim_start_matches('\u{feff}');
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

/// Whether `text` has the form that this module reads.
pub fn is_infotext(text: &str) -> bool {
    let (_, line, _) = parts(text);
    fields(line).iter().any(|(key, _)| key.eq_ignore_ascii_case("steps"))
}
