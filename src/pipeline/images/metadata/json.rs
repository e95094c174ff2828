//! Settings in JSON: InvokeAI's, SwarmUI's, and flat objects with the usual names, such as those of
//! mflux and Draw Things.

use serde_json::{Map, Value};

use super::reading::{Reading, Writer, scalar};
use super::sampler::is_euler;
use super::{comfyui, no_settings, workflow};
use crate::error::Result;

/// Names of a parameter in JSON, in lower case and without underscores; the first that is there is
/// taken.
struct Names {
    label: &'static str,
    names: &'static [&'static str],
}

const NUMBERS: [Names; 6] = [
    Names { label: "Steps", names: &["steps", "numinferencesteps", "samplingsteps", "numsteps"] },
    Names { label: "Seed", names: &["seed", "noiseseed"] },
    Names { label: "Width", names: &["width"] },
    Names { label: "Height", names: &["height"] },
    Names {
        label: "Distilled CFG Scale",
        names: &[
            "fluxguidancescale",
            "distilledcfgscale",
            "distilledguidance",
            "distilledguidancescale",
            "guidance",
            "guidancescale",
        ],
    },
    Names { label: "CFG scale", names: &["truecfgscale", "cfgscale", "cfg"] },
];
const PROMPT: [&str; 4] = ["positiveprompt", "prompt", "positive", "c"];
const NEGATIVE: [&str; 3] = ["negativeprompt", "negative", "uc"];
const MODEL: [&str; 6] =
    ["model", "modelname", "basemodel", "checkpoint", "unet", "usestablediffusionmodel"];
const SAMPLER: [&str; 3] = ["sampler", "comfyuisampler", "samplername"];
const SCHEDULE: [&str; 3] = ["scheduler", "comfyuischeduler", "schedulername"];
const STRENGTH: [&str; 4] = ["strength", "denoisingstrength", "initimagecreativity", "denoise"];
/// Values that change nothing, or repeat what the others say.
const EMPTY: [&str; 10] = [
    "generationmode",
    "swarmversion",
    "appversion",
    "mfluxversion",
    "images",
    "batchsize",
    "batchcount",
    "aspectratio",
    "sidelength",
    "profile",
];

/// What a JSON object says.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if it has no settings, or ComfyUI's graph is
/// not understood.
pub fn read(object: &Map<String, Value>) -> Result<Reading> {
    if comfyui::is_graph(object) {
        return comfyui::read(object);
    }
    if workflow::is_workflow(object) {
        return comfyui::read(&workflow::to_graph(object));
    }
    if let Some(Value::Object(prompt)) = object.get("prompt")
        && comfyui::is_graph(prompt)
    {
        return comfyui::read(prompt);
    }
    let has = |key: &str| object.contains_key(key);
    if let Some(Value::Object(parameters)) = object.get("sui_image_params") {
        let mut reading = flat(parameters, Writer::SwarmUi)?;
        if let Some(Value::Object(extra)) = object.get("sui_extra_data") {
            // The prompt as the user typed it, where wildcards and the like were filled in, and
            // how long it took.
            reading.unused.extend(leftovers(extra, &[]));
        }
        return Ok(reading);
    }
    let writer = if has("app_version") || has("positive_prompt") || has("generation_mode") {
        Writer::InvokeAi
    } else if has("mflux_version") {
        Writer::Mflux
    } else if has("c") && has("uc") {
        Writer::DrawThings
    } else {
        Writer::Unknown
    };
    flat(object, writer)
}

/// The members of an object, and which of them were understood.
struct Members<'a> {
    object: &'a Map<String, Value>,
    used: Vec<&'a str>,
}

impl<'a> Members<'a> {
    /// The value that `understand` returns for the first member in `names` for which it returns
    /// one. The other members stay in the list of those that are not used.
    fn take<T>(
        &mut self,
        names: &[&str],
        understand: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let object = self.object;
        let called = names.iter().flat_map(|name| object.iter().filter(|m| plain(m.0) == *name));
        let mut understood = called
            .filter(|(key, value)| !is_empty(value) && !self.used.contains(&key.as_str()))
            .filter_map(|(key, value)| Some((key, understand(value)?)));
        let (key, value) = understood.next()?;
        self.used.push(key);
        Some(value)
    }
}

/// An object whose members are the settings.
fn flat(object: &Map<String, Value>, writer: Writer) -> Result<Reading> {
    let mut reading = Reading::new(writer);
    let mut members = Members { object, used: vec!["rand_device"] };
    reading.prompt = members.take(&PROMPT, text);
    if reading.prompt.is_none() {
        return Err(no_settings().found("JSON without a prompt"));
    }
    reading.negative = members.take(&NEGATIVE, text);
    for Names { label, names } in NUMBERS {
        if let Some(value) = members.take(names, scalar) {
            reading.set(label, value);
        }
    }
    // Next to the distilled guidance it is true CFG.
    if reading.get("Distilled CFG Scale").is_some()
        && let Some(scale) = members.take(&["guidancescale"], scalar)
    {
        reading.set("CFG scale", scale);
    }
    if let Some((width, height)) = members.take(&["size", "resolution"], size) {
        reading.set("Width", width);
        reading.set("Height", height);
    }
    // In other programs it is true CFG, for models without distilled guidance.
    if writer == Writer::DrawThings
        && let Some(scale) = members.take(&["scale"], scalar)
    {
        reading.set("Distilled CFG Scale", scale);
    }
    reading.model = members.take(&MODEL, name_of).unwrap_or_default();
    let mut word = |names: &[&str]| members.take(names, scalar).unwrap_or_default();
    let (sampler, schedule) = (word(&SAMPLER), word(&SCHEDULE));
    if !is_euler(&sampler, &schedule) {
        reading.other_sampler(&format!("{sampler} {schedule}"));
    }
    if let Some(strength) = members.take(&STRENGTH, scalar) {
        // Some programs write a strength of 1 without an image.
        let from_image = object.keys().any(|key| plain(key).contains("initimage"))
            || object.get("generation_mode").and_then(Value::as_str).is_some_and(|mode| {
                mode.contains("img2img") || mode.contains("inpaint") || mode.contains("outpaint")
            });
        if from_image {
            reading.set("Denoising strength", strength);
        } else if strength.parse() != Ok(1.0f32) {
            reading.unused.push(("strength".into(), strength));
        }
    }
    read_loras(&mut members, &mut reading);
    if object.get("rand_device").is_some_and(|device| device != "cpu") {
        reading.other_noise("rand_device");
    } else if writer.noise_is_from_the_gpu() {
        reading.other_noise("noise of its own generator");
    } else if writer == Writer::InvokeAi {
        reading.other_noise("numbers rounded to 16 bits");
    }
    reading.unused.extend(leftovers(object, &members.used));
    Ok(reading)
}

/// `text` with `null` in place of NaN and infinite numbers outside of strings.
pub fn with_null_for_nan(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"].iter().find(|word| rest.starts_with(**word));
        if let (false, Some(word)) = (quoted, word) {
            out += "null";
            rest = &rest[word.len()..];
            continue;
        }
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// A name without underscores and capitals: `negative_prompt` and `negativePrompt` are one.
fn plain(key: &str) -> String {
    key.chars().filter(|c| *c != '_' && *c != ' ').flat_map(char::to_lowercase).collect()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        // Old versions of InvokeAI wrote parts of a prompt with weights.
        Value::Array(items) => {
            let parts: Vec<&str> = items
                .iter()
                .filter_map(|item| item.get("prompt").unwrap_or(item).as_str())
                .collect();
            (!parts.is_empty()).then(|| parts.join(" "))
        }
        _ => None,
    }
}

/// `1024x768`, `(1024, 768)` or a list of two numbers.
fn size(value: &Value) -> Option<(String, String)> {
    if let Value::Array(sides) = value
        && let [width, height] = sides.as_slice()
    {
        return Some((scalar(width)?, scalar(height)?));
    }
    let text = value.as_str()?.trim_matches(['(', ')', '[', ']']);
    let (width, height) = text.split_once(['x', 'X', '\u{d7}', ','])?;
    Some((width.trim().to_string(), height.trim().to_string()))
}

/// The name of a model: a text, or an object with its name.
fn name_of(value: &Value) -> Option<String> {
    let names = ["name", "model_name", "path", "file", "model", "lora"];
    match value {
        Value::String(name) => Some(name.clone()),
        Value::Object(members) => names.iter().find_map(|name| name_of(members.get(*name)?)),
        _ => None,
    }
}

/// A number, or a text that is one.
fn number(value: &Value) -> Option<f32> {
    scalar(value)?.parse().ok()
}

/// A list, or one value in place of a list of one: a text of `several` values has commas between
/// them.
fn list(value: &Value, several: bool) -> Vec<Value> {
    match value {
        Value::Array(items) => items.clone(),
        Value::String(text) if several => {
            text.split(',').map(|item| Value::from(item.trim())).collect()
        }
        one => vec![one.clone()],
    }
}

/// LoRAs and their strengths: a list of objects, or lists of names and of strengths.
fn read_loras(members: &mut Members, reading: &mut Reading) {
    // Older versions of SwarmUI wrote lists as one text.
    let several = reading.writer == Writer::SwarmUi;
    let understood = |value: &Value| {
        let items = list(value, several);
        items.iter().any(|item| lora(item).is_some()).then_some(items)
    };
    let names = ["loras", "lorapaths", "lora", "useloramodel"];
    let Some(items) = members.take(&names, understood) else { return };
    let numbers = |value: &Value| {
        let numbers: Option<Vec<f32>> = list(value, several).iter().map(number).collect();
        numbers.filter(|numbers| numbers.len() == items.len())
    };
    let names = ["loraweights", "lorascales", "lorastrengths", "loraalpha"];
    let strengths = members.take(&names, numbers);
    let text = members.take(&["loratencweights"], numbers);
    for (i, item) in items.iter().enumerate() {
        let Some((name, own)) = lora(item) else {
            reading.unused.push(("lora".into(), item.to_string()));
            continue;
        };
        let strength = strengths.as_ref().map(|numbers| numbers[i]).or(own);
        reading.lora(&name, strength.unwrap_or(1.0), text.as_ref().map(|numbers| numbers[i]));
    }
}

/// Name and strength of one LoRA: a name, `name:0.5`, an object, or a list of both as Fooocus
/// writes it. `None` if a strength is there and is not a number.
fn lora(item: &Value) -> Option<(String, Option<f32>)> {
    let (name, strength) = match item {
        Value::String(text) => {
            let parts = text.rsplit_once(':');
            // A larger number is that of a version.
            let strength = parts.and_then(|(_, s)| s.trim().parse().ok());
            match (parts, strength.filter(|s: &f32| s.abs() <= 10.0)) {
                (Some((name, _)), Some(strength)) => (name.to_string(), Some(strength)),
                _ => (text.clone(), None),
            }
        }
        Value::Array(parts) => {
            let [Value::String(name), strength @ Value::Number(_), ..] = parts.as_slice() else {
                return None;
            };
            (name.clone(), Some(number(strength)?))
        }
        _ => {
            let names = ["weight", "strength", "scale", "multiplier"];
            let strength = match names.iter().find_map(|name| item.get(name)) {
                Some(value) => Some(number(value)?),
                None => None,
            };
            (name_of(item)?, strength)
        }
    };
    (!name.trim().is_empty()).then_some((name, strength))
}

/// The members that were not used.
fn leftovers(object: &Map<String, Value>, used: &[&str]) -> Vec<(String, String)> {
    let rest = object.iter().filter(|(key, value)| {
        !used.contains(&key.as_str()) && !is_empty(value) && !EMPTY.contains(&plain(key).as_str())
    });
    rest.map(|(key, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        (key.clone(), text)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::read;

    #[test]
    fn swarmui_writes_its_own_names() {
        let text = r#"{"sui_image_params": {"prompt": "a fox", "negativeprompt": "blur",
            "model": "Flux/flux1-dev", "seed": 42, "steps": 24, "cfgscale": 1.0, "width": 832,
            "height": 1216, "fluxguidancescale": 2.5, "sampler": "euler", "scheduler": "simple",
            "loras": ["toys", "b"], "loraweights": ["0.8", "1"], "automaticvae": true,
            "swarm_version": "0.9.6"}, "sui_extra_data": {"date": "2026-01-01"}}"#;
        let settings = read(text).unwrap();
        assert_eq!(settings.prompt.as_str(), "a fox");
        assert_eq!((settings.steps, settings.seed), (24, 42));
        assert_eq!((settings.width, settings.height), (832, 1216));
        assert_eq!((settings.guidance, settings.cfg_scale), (Some(2.5), 1.0));
        assert_eq!((settings.strength, settings.model.as_str()), (None, "Flux/flux1-dev"));
        let loras: Vec<_> = settings.loras.iter().map(|l| (l.name.as_str(), l.strength)).collect();
        assert_eq!(loras, [("toys", 0.8), ("b", 1.0)]);
    }

    #[test]
    fn invokeai_separates_guidance_and_cfg() {
        let text = r#"{"generation_mode": "flux_txt2img", "positive_prompt": "a lake",
            "negative_prompt": "", "width": 1024, "height": 768, "seed": 3, "rand_device": "cpu",
            "cfg_scale": 1, "steps": 30, "scheduler": "euler", "guidance": 4,
            "model": {"key": "k", "hash": "blake3:x", "name": "FLUX Dev", "base": "flux"},
            "loras": [{"model": {"name": "realism"}, "weight": 0.75}], "app_version": "5.6.0"}"#;
        let settings = read(text).unwrap();
        assert_eq!((settings.prompt.as_str(), settings.model.as_str()), ("a lake", "FLUX Dev"));
        assert_eq!((settings.guidance, settings.cfg_scale), (Some(4.0), 1.0));
        assert_eq!(
            (settings.loras[0].name.as_str(), settings.loras[0].strength),
            ("realism", 0.75)
        );
        let from_image = text.replace("flux_txt2img", "flux_img2img");
        let from_image = from_image.replace("\"seed\": 3", "\"seed\": 3, \"strength\": 0.6");
        assert_eq!(read(&from_image).unwrap().strength, Some(0.6));
    }

    #[test]
    fn flat_objects_of_other_programs_are_read_and_others_are_refused() {
        let mflux = r#"{"mflux_version": "0.5", "model": "dev", "seed": 7, "steps": 20,
            "guidance": 3.5, "width": 512, "height": 512, "prompt": "a boat",
            "lora_paths": ["x.safetensors"], "lora_scales": [0.5]}"#;
        let settings = read(mflux).unwrap();
        assert_eq!((settings.guidance, settings.loras[0].strength), (Some(3.5), 0.5));
        let things = r#"{"c": "a boat", "uc": "", "model": "flux_1_dev_q8p.ckpt",
            "sampler": "Euler A Trailing", "scale": 3.5, "seed": 12, "size": "1024x512",
            "steps": 8, "strength": 1}"#;
        let settings = read(things).unwrap();
        assert_eq!((settings.width, settings.height, settings.strength), (1024, 512, None));
        for other in [r#"{"title": "holiday"}"#, "{}", r#"{"prompt": "x"}"#] {
            assert!(read(other).is_err(), "{other}");
        }
    }

    #[test]
    fn what_is_not_understood_is_listed() {
        use crate::pipeline::images::ImageText;
        let read = |member: &str| {
            let text = format!(
                r#"{{"prompt": "a boat", "seed": 1, "steps": 2, "width": 64,
                "height": 64, {member}}}"#
            );
            let text = ImageText { key: "parameters".into(), text: Some(text) };
            super::super::provenance(&[text], Some((64, 64))).unwrap()
        };
        for (member, name) in [
            (r#""loras": {"a": 0.8}"#, "loras"),
            (r#""loras": [{"foo": 1}]"#, "loras"),
            (r#""loras": [{"name": "x", "weight": {"v": 1}}]"#, "loras"),
            (r#""loras": [["x", "h"]]"#, "loras"),
            (r#""guidance": {"v": 3}"#, "guidance"),
            (r#""guidance": true"#, "guidance"),
            (r#""sampler": ["euler"]"#, "sampler"),
            (r#""model": 5"#, "model"),
            (r#""negative_prompt": 5"#, "negative_prompt"),
            (r#""size": [1, 2, 3]"#, "size"),
            (r#""lora": "x", "lora_weights": ["much"]"#, "lora_weights"),
            (r#""lora": "x", "lora_weights": [1, 2]"#, "lora_weights"),
            (r#""loras": ["x", {"foo": 1}]"#, "lora"),
        ] {
            let notes = read(member).notes;
            let start = format!("not used: {name} ");
            assert!(notes.iter().any(|n| n.starts_with(&start)), "{member}: {notes:?}");
        }
        for (member, name, strength) in [
            (r#""loras": [["x", 0.5, "h"]]"#, "x", 0.5),
            (r#""loras": "x:0.5""#, "x", 0.5),
            (r#""lora": "x", "lora_scale": 0, "lora_scales": [0.25]"#, "x", 0.25),
            (r#""loras": [{"foo": 1}], "lora": "y""#, "y", 1.0),
        ] {
            let loras = read(member).settings.loras;
            assert_eq!(loras.len(), 1, "{member}");
            assert_eq!((loras[0].name.as_str(), loras[0].strength), (name, strength), "{member}");
        }
    }
}
