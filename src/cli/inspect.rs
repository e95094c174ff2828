//! `inspect`: what an image or a model file contains.

use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::path::Path;

use serde_json::{Value, json};

use super::args::How;
use super::generate::settings_as_json;
use super::output;
use crate::error::{Error, Kind, Result};
use crate::host;
use crate::pipeline::images::metadata::NO_SETTINGS;
use crate::pipeline::images::{Provenance, provenance_of, read_provenance, read_stream};
use crate::pipeline::inspect_weights;
use crate::pipeline::request::{ControlNetChoice, LoraChoice};

/// Prints the settings in an image, or what a model file or folder contains.
pub fn inspect(path: &Path, how: How) -> Result<()> {
    if path == Path::new("-") {
        return inspect_stdin(how);
    }
    if !is_picture(path)? {
        let found = inspect_weights(path)?;
        return if how.json { output::json(&found) } else { output::text(&format!("{found}\n")) };
    }
    let found = match read_provenance(path) {
        Ok(found) => found,
        // An image without settings is still an image.
        Err(e) if e.kind() == Kind::Argument => {
            let Ok(file) = std::fs::File::open(path) else { return Err(e) };
            return bare(BufReader::new(file), how, &e);
        }
        Err(e) => return Err(e),
    };
    print(&found, how)
}

/// Prints the settings in the image on stdin. Models are mapped, so they must be files.
fn inspect_stdin(how: How) -> Result<()> {
    let bytes = read_stream(std::io::stdin().lock(), "stdin")?;
    if image::guess_format(&bytes).is_err() {
        return Err(Error::argument("only images can be inspected on stdin")
            .at("stdin")
            .expected("PNG, JPEG, WebP, BMP or TIFF")
            .try_("give a model by its path"));
    }
    match provenance_of(&bytes) {
        Ok(found) => print(&found, how),
        Err(e) if e.kind() == Kind::Argument => bare(Cursor::new(&bytes), how, &e.at("stdin")),
        Err(e) => Err(e),
    }
}

fn print(found: &Provenance, how: How) -> Result<()> {
    if how.json {
        let mut json = settings_as_json(&found.settings);
        json["program"] = json!(found.program());
        json["index"] = json!(found.index);
        json["notes"] = json!(found.notes);
        output::json(&json)
    } else {
        output::text(&lines(found))
    }
}

/// Prints format and size of the image `file` without settings. Returns `why` if these cannot be
/// read either.
fn bare(file: impl BufRead + Seek, how: How, why: &Error) -> Result<()> {
    let reader = image::ImageReader::new(file).with_guessed_format().ok();
    let Some(reader) = reader else { return Err(why.clone()) };
    let format = reader.format().map_or("picture", |f| f.extensions_str()[0]);
    let Ok((width, height)) = reader.into_dimensions() else { return Err(why.clone()) };
    // Settings that are there and cannot be read are not the same as none.
    let reason = Some(why.to_string()).filter(|_| why.code() != NO_SETTINGS);
    if how.json {
        return output::json(&json!({
            "format": format, "width": width, "height": height, "settings": null, "notes": reason,
        }));
    }
    let reason = reason.map_or(String::new(), |reason| format!("note: {reason}\n"));
    output::text(&format!("{format}, {width}x{height}, no settings inside\n{reason}"))
}

/// Whether the file is an image, by its first bytes. A folder is not.
fn is_picture(path: &Path) -> Result<bool> {
    let cannot = |e: std::io::Error| {
        let kind =
            if e.kind() == std::io::ErrorKind::NotFound { Error::missing } else { Error::argument };
        kind(format!("the file cannot be read: {e}")).at_path(path).try_("check the path")
    };
    if std::fs::metadata(path).map_err(cannot)?.is_dir() {
        return Ok(false);
    }
    let mut start = Vec::new();
    let (file, _) = host::open_regular(path).map_err(cannot)?;
    file.take(16).read_to_end(&mut start).map_err(cannot)?;
    Ok(image::guess_format(&start).is_ok())
}

/// One line for each setting that has a value, then what else the file says.
fn lines(found: &Provenance) -> String {
    let settings = &found.settings;
    let Value::Object(all) = json!(settings) else { unreachable!("settings are an object") };
    let mut text = String::new();
    for (name, value) in &all {
        let name = name.replace('_', " ");
        text += &match (name.as_str(), value) {
            ("width", _) => format!("size: {}x{}\n", settings.width, settings.height),
            ("height" | "model hash" | "loras" | "lora hashes" | "only", _) => continue,
            ("controlnets" | "controlnet hashes", _) => continue,
            ("style strengths", _) if settings.style_strengths.is_empty() => continue,
            ("style strengths", _) => {
                let all: Vec<String> =
                    settings.style_strengths.iter().map(f32::to_string).collect();
                format!("{name}: {}\n", all.join(", "))
            }
            (_, Value::Null) => continue,
            ("model", _) => {
                let model = format!("model: {} {}", settings.model, settings.model_hash);
                format!("{}\n", model.trim_end())
            }
            (_, Value::String(value)) => format!("{name}: {value}\n"),
            _ => format!("{name}: {value}\n"),
        };
    }
    let lora = |l: &LoraChoice| format!("lora: {} at {}\n", l.name, l.plain_strengths());
    text += &settings.loras.iter().map(lora).collect::<String>();
    let net = |c: &ControlNetChoice| format!("controlnet: {} at {}\n", c.name, c.plain_strength());
    text += &settings.controlnets.iter().map(net).collect::<String>();
    if let Some(index) = found.index.filter(|_| settings.count > 1) {
        text += &format!("image: {} of {}\n", index + 1, settings.count);
    }
    if !found.is_own() {
        text += &format!("written by: {}\n", found.program());
    }
    text + &found.notes.iter().map(|note| format!("note: {note}\n")).collect::<String>()
}
