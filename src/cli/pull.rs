//! `pull`: downloads files of a repository into the Hugging Face cache, and prints how to use them.

use std::ops::ControlFlow;
use std::time::Instant;

use serde_json::json;

use super::args::{How, PullArgs};
use super::progress::Progress;
use super::{cancelled, output, signals};
use crate::error::{Error, Kind, Result};
use crate::host::process_environment;
use crate::library::file_names::is_first_of_weights;
use crate::pipeline::hub::{self, PullOptions, PullProgress, Pulled, Selection};
use crate::pipeline::models::{ModelKind, describe};
use crate::spec::{FAMILIES, Role};
use crate::units;

/// Downloads, then prints the folder and a command that uses the files.
pub fn pull(args: &PullArgs, how: How) -> Result<()> {
    let options = options(args)?;
    signals::listen();
    let mut progress = Progress::new(how);
    let begin = Instant::now();
    let outcome = hub::pull(&options, &mut |event| {
        match event {
            PullProgress::Planned { files, bytes, cached } => {
                let (of, all) = (&options.repo, units::bytes(bytes));
                let cached = if cached > 0 {
                    format!(", {} already in the cache", units::bytes(cached))
                } else {
                    String::new()
                };
                progress.note(&format!("{of}: {files} file{}, {all}{cached}", plural(files)));
            }
            PullProgress::Bytes { file, done, bytes, .. } => progress.bytes(file, done, bytes),
            PullProgress::Note(text) => progress.note(text),
            PullProgress::Tick => {}
        }
        if cancelled().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    progress.finish();
    let pulled = outcome.map_err(|e| match e.kind() {
        Kind::Cancelled => {
            Error::cancelled("stopped; what was downloaded is kept, run it again to resume")
                .try_(again(args))
        }
        _ => e,
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    progress.note(&format!(
        "{} received in {}",
        units::bytes(pulled.received),
        units::seconds(seconds)
    ));
    let usage = Usage::of(&options, &pulled);
    if how.json {
        return output::json(&json!({
            "repo": options.repo,
            "revision": options.revision,
            "commit": pulled.commit,
            "snapshot": pulled.snapshot,
            "files": pulled.files,
            "bytes": pulled.bytes,
            "received_bytes": pulled.received,
            "seconds": seconds,
            "model": usage.model,
            "command": usage.command,
        }));
    }
    output::text(&format!(
        "{} is in {}; {}\n",
        options.repo,
        pulled.snapshot.display(),
        usage.words
    ))
}

/// The same command again.
fn again(args: &PullArgs) -> String {
    let revision = args.revision.iter().flat_map(|r| ["--revision".to_string(), quoted(r)]);
    let words = [quoted(&args.repo)]
        .into_iter()
        .chain(args.files.iter().map(|f| quoted(f)))
        .chain(revision);
    format!("flux-fast pull {}", words.collect::<Vec<_>>().join(" "))
}

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// The options that were given, completed by environment variables.
fn options(args: &PullArgs) -> Result<PullOptions> {
    let mut options = PullOptions::from_env(&args.repo, &process_environment)?;
    if let Some(revision) = &args.revision {
        if options.revision != "main" && options.revision != *revision {
            return Err(Error::argument("two revisions are given")
                .at("--revision")
                .found(revision)
                .expected(&options.revision)
                .try_("leave out one of the two"));
        }
        options.revision = revision.clone();
    }
    if !args.files.is_empty() {
        let mut files = match options.selection {
            Selection::Named(files) => files,
            Selection::Needed => Vec::new(),
        };
        files.extend(args.files.iter().cloned());
        options.selection = Selection::Named(files);
    }
    Ok(options)
}

/// How to use the downloaded files.
struct Usage {
    /// The value for --model, if a model was downloaded.
    model: Option<String>,
    command: Option<String>,
    words: String,
}

impl Usage {
    fn of(options: &PullOptions, pulled: &Pulled) -> Self {
        let id = match options.revision.as_str() {
            "main" => options.repo.clone(),
            revision => format!("{}@{revision}", options.repo),
        };
        let mut found = Vec::new();
        if pulled.files.iter().any(|f| f == "model_index.json") {
            found.push((id, describe(&pulled.snapshot, FAMILIES)));
        } else {
            for file in pulled.files.iter().filter(|f| is_first_of_weights(f)) {
                found.push((
                    format!("{id}/{file}"),
                    describe(&pulled.snapshot.join(file), FAMILIES),
                ));
            }
        }
        let named =
            |kind| found.iter().find(|(_, (k, _))| *k == kind).map(|(name, _)| name.clone());
        let model = named(ModelKind::Model);
        let optional = |kind: &ModelKind| match kind {
            ModelKind::Part(component) => component.role.is_optional(),
            _ => false,
        };
        let is_style = !found.is_empty() && found.iter().all(|(_, (kind, _))| optional(kind));
        let mut parts: Vec<(String, String)> = vec![];
        for (name, (kind, _)) in &found {
            let ModelKind::Part(component) = kind else { continue };
            if component.role == Role::Control {
                continue;
            }
            let flag = format!("--{}", component.option.unwrap_or("model"));
            if parts.iter().all(|(known, _)| *known != flag) {
                parts.push((flag, name.clone()));
            }
        }
        parts.sort();
        let command = match (&model, parts.as_slice()) {
            // Its other components are found next to it.
            (Some(model), _) => Some(format!("flux-fast \"a fox\" --model {}", quoted(model))),
            (None, []) => None,
            // They are found in the cache.
            (None, _) if is_style => {
                Some("flux-fast \"a fox\" --model MODEL --style IMAGE".to_string())
            }
            (None, parts) => {
                let flags: Vec<String> =
                    parts.iter().map(|(flag, name)| format!("{flag} {}", quoted(name))).collect();
                Some(format!("flux-fast \"a fox\" --model MODEL {}", flags.join(" ")))
            }
        };
        let words = match (&command, found.as_slice()) {
            (Some(command), _) => format!("use it with: {command}"),
            (None, [(name, (kind, what)), ..]) => match kind {
                ModelKind::Lora => {
                    format!("{name} is a {what}: use it with --lora {}", quoted(name))
                }
                ModelKind::Part(part) if part.role == Role::Control => {
                    let typed = quoted(&format!("{name}:IMAGE"));
                    format!("{name} is a {what}: use it with --controlnet {typed}")
                }
                _ => format!("{name} cannot be used: {what}"),
            },
            (None, []) => "it contains no weights".to_string(),
        };
        Usage { model, command, words }
    }
}

/// A name, in quotes if a shell needs them.
fn quoted(name: &str) -> String {
    if name.contains([' ', '(', ')', '&', ';', '\'', '$', '!']) {
        format!("'{name}'")
    } else {
        name.to_string()
    }
}
