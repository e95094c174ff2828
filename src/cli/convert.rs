//! `convert`: writes a model's weights in another type to a new file.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::args::{ConvertArgs, How};
use super::progress::Progress;
use super::{cancelled, output, signals};
use crate::error::{Error, Kind, Result};
use crate::library::open_bytes;
use crate::pipeline::convert::{self, Target};
use crate::pipeline::models::{ModelPlaces, Role};
use crate::pipeline::{EMBEDDED, embedded_model};
use crate::units;

/// Converts and prints what was written.
pub fn convert(args: &ConvertArgs, how: How) -> Result<()> {
    let embedded = args.model == "embedded";
    let Some(to) = &args.to else {
        if embedded {
            return write_embedded(args, how);
        }
        return Err(Error::argument("there is no type to convert to").at("--to").expected(named()));
    };
    let target = Target::NAMED.iter().find(|(name, _)| name == to).map(|(_, target)| *target);
    let target = target.ok_or_else(|| {
        Error::argument("this type is not one that can be written")
            .at("--to")
            .found(to)
            .expected(named())
    })?;
    signals::listen();
    let mut progress = Progress::new(how);
    let (checkpoint, path) = match embedded {
        true => (open_bytes(embedded_model()?, EMBEDDED)?, None),
        false => {
            let path = ModelPlaces::of_process().resolve(&args.model, Role::Any)?;
            (convert::open_only(&path)?, Some(path))
        }
    };
    let name = format!("{}-{to}.{}", checkpoint.name, target.extension());
    let out = output_path(args, &name, target.extension())?;
    let begin = Instant::now();
    let label = out.display().to_string();
    let outcome = convert::convert(&checkpoint, target, &out, &mut |done, all| {
        progress.bytes(&label, done, all);
        if cancelled().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    progress.finish();
    let report = outcome.map_err(|e| match e.kind() {
        Kind::Cancelled => Error::cancelled("stopped, nothing was written"),
        _ => e,
    })?;
    progress.note(&units::seconds(begin.elapsed().as_secs_f64()));
    if !report.left_out.is_empty() {
        let file = path.unwrap_or_else(|| format!("{EMBEDDED}.safetensors").into());
        let flags: Vec<String> =
            report.left_out.iter().map(|c| format!("--{c} {}", file.display())).collect();
        let from = match embedded {
            true => "`flux-fast convert embedded`, which writes the model as it is",
            false => "the input",
        };
        progress.warning(&format!(
            "a GGUF file contains one component; use the others from {from}: {}",
            flags.join(" ")
        ));
    }
    if how.json {
        return output::json(&report);
    }
    let words: Vec<&str> = report.components.iter().map(|c| c.title).collect();
    output::text(&format!(
        "{}: {}, {} of {} tensors in {}, {} (was {})\n",
        report.path.display(),
        words.join(", "),
        report.quantised,
        report.tensors,
        to,
        units::bytes(report.bytes),
        units::bytes(report.from_bytes),
    ))
}

/// The types that can be written, for messages.
fn named() -> String {
    let names: Vec<&str> = Target::NAMED.iter().map(|(name, _)| *name).collect();
    format!("one of {}", names.join(", "))
}

/// The file to write: the one that was given, or `name` in the folder that was given or here.
fn output_path(args: &ConvertArgs, name: &str, extension: &str) -> Result<PathBuf> {
    let out = match &args.output {
        None => PathBuf::from(name),
        Some(folder) if folder.is_dir() => folder.join(name),
        Some(file) => file.clone(),
    };
    if out.extension().is_none_or(|e| !e.eq_ignore_ascii_case(extension)) {
        return Err(Error::argument("the extension of the output does not match the type")
            .at("--output")
            .found(out.display())
            .expected(format!(".{extension}")));
    }
    if out.exists() {
        // This also keeps the input from being overwritten.
        return Err(Error::argument("the file exists already, and is not replaced")
            .at("--output")
            .found(out.display())
            .try_("give another name with -o, or remove the file first"));
    }
    Ok(out)
}

/// Writes the embedded model to a file as it is.
fn write_embedded(args: &ConvertArgs, how: How) -> Result<()> {
    let bytes = embedded_model()?;
    let out = output_path(args, &format!("{EMBEDDED}.safetensors"), "safetensors")?;
    convert::write_bytes(bytes, &out)?;
    match how.json {
        true => output::json(&json!({"path": out, "bytes": bytes.len()})),
        false => output::text(&format!(
            "{}: the embedded model, {}\n",
            out.display(),
            units::bytes(bytes.len() as u64)
        )),
    }
}
