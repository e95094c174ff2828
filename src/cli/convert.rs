//! `convert`: a model's weights in another type, in a file of their own.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use super::args::{ConvertArgs, How};
use super::progress::Progress;
use super::{cancelled, output, signals};
use crate::error::{Error, Kind, Result};
use crate::pipeline::convert::{self, Target};
use crate::pipeline::models::{Places, Role};
use crate::units;

/// Converts, and says what was written.
pub fn convert(args: &ConvertArgs, how: How) -> Result<()> {
    let target = Target::NAMED.iter().find(|(name, _)| *name == args.to).map(|(_, target)| *target);
    let target = target.ok_or_else(|| {
        let names: Vec<&str> = Target::NAMED.iter().map(|(name, _)| *name).collect();
        Error::argument("no such type to convert to")
            .at("--to")
            .found(&args.to)
            .expected(format!("one of {}", names.join(", ")))
    })?;
    signals::listen();
    let mut progress = Progress::new(how);
    let path = Places::of_process().resolve(&args.model, Role::Any)?;
    let checkpoint = convert::open_only(&path)?;
    let name = || PathBuf::from(format!("{}-{}.{}", checkpoint.name, args.to, target.extension()));
    let out = match &args.output {
        None => name(),
        Some(folder) if folder.is_dir() => folder.join(name()),
        Some(file) => file.clone(),
    };
    if out.extension().is_none_or(|e| !e.eq_ignore_ascii_case(target.extension())) {
        return Err(Error::argument("the output's ending does not suit the type")
            .at("--output")
            .found(out.display())
            .expected(format!(".{}", target.extension())));
    }
    if out.exists() {
        // Also what is read must not be what is written.
        return Err(Error::argument("there is such a file already, and nothing is replaced")
            .at("--output")
            .found(out.display())
            .try_("another name with -o, or remove that file first"));
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
            "a GGUF file holds one component; for the others: {}",
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
