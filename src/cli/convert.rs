//! `convert`: writes a model's weights in another type to a new file.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use super::args::{ConvertArgs, How};
use super::progress::Progress;
use super::{cancelled, output, signals};
use crate::error::{Error, Kind, Result};
use crate::pipeline::convert::{self, Target};
use crate::pipeline::models::{ModelPlaces, Role};
use crate::units;

/// Converts and prints what was written.
pub fn convert(args: &ConvertArgs, how: How) -> Result<()> {
    let target = Target::NAMED.iter().find(|(name, _)| *name == args.to).map(|(_, target)| *target);
    let target = target.ok_or_else(|| {
        let names: Vec<&str> = Target::NAMED.iter().map(|(name, _)| *name).collect();
        Error::argument("this type is not one that can be written")
            .at("--to")
            .found(&args.to)
            .expected(format!("one of {}", names.join(", ")))
    })?;
    signals::listen();
    let mut progress = Progress::new(how);
    let path = ModelPlaces::of_process().resolve(&args.model, Role::Any)?;
    let checkpoint = convert::open_only(&path)?;
    let name = || PathBuf::from(format!("{}-{}.{}", checkpoint.name, args.to, target.extension()));
    let out = match &args.output {
        None => name(),
        Some(folder) if folder.is_dir() => folder.join(name()),
        Some(file) => file.clone(),
    };
    if out.extension().is_none_or(|e| !e.eq_ignore_ascii_case(target.extension())) {
        return Err(Error::argument("the extension of the output does not match the type")
            .at("--output")
            .found(out.display())
            .expected(format!(".{}", target.extension())));
    }
    if out.exists() {
        // This also keeps the input from being overwritten.
        return Err(Error::argument("the file exists already, and is not replaced")
            .at("--output")
            .found(out.display())
            .try_("give another name with -o, or remove the file first"));
    }
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
        let flags: Vec<String> =
            report.left_out.iter().map(|c| format!("--{c} {}", path.display())).collect();
        progress.warning(&format!(
            "a GGUF file contains one component; use the others from the input: {}",
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
        args.to,
        units::bytes(report.bytes),
        units::bytes(report.from_bytes),
    ))
}
