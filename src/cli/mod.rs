//! The command line: what the user typed, what it means, and how it is told. Progress goes to stderr, results to stdout.

mod args;
mod bench;
mod completions;
mod convert;
mod doctor;
mod generate;
mod inspect;
mod models;
mod output;
mod progress;
mod pull;
mod signals;
mod target;
mod values;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::pipeline::tokenizers;
use args::{Cli, Command, is_command};

/// Runs the command that `arguments` (the program's name first) ask for, and gives the process's exit code.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    quiet_caught_panics();
    crate::pipeline::exit_on_lost_pages();
    let mut arguments: Vec<OsString> = arguments.collect();
    command_first(&mut arguments);
    let json = arguments.iter().skip(1).take_while(|a| *a != "--").any(|a| a == "--json");
    match Cli::try_parse_from(arguments) {
        Ok(cli) => report(run(cli), json),
        Err(error) => refuse(&error, json),
    }
}

/// `flux-fast --json doctor` means `flux-fast doctor --json`: without this, what follows a flag would be a prompt.
fn command_first(arguments: &mut [OsString]) {
    let flag = |a: &OsString| a == "--json" || a == "-q" || a == "--quiet";
    let flags = arguments.iter().skip(1).take_while(|a| flag(a)).count();
    if arguments.get(1 + flags).and_then(|a| a.to_str()).is_some_and(is_command) {
        arguments[1..2 + flags].rotate_right(1);
    }
}

fn run(cli: Cli) -> Result<()> {
    let how = cli.how;
    if let (None, Some(word @ "serve")) = (&cli.command, cli.generate.words.as_deref()) {
        return Err(Error::argument(format!("`{word}` is not a command of this version"))
            .try_(format!("flux-fast --help; to draw the word, flux-fast -p {word}")));
    }
    // Which operation was the last is nothing to the user who stopped it.
    let drawing = |outcome: Result<()>| {
        outcome.map_err(|e| match e.kind() {
            Kind::Cancelled => Error::cancelled("stopped, no picture was written"),
            _ => e,
        })
    };
    match cli.command {
        Some(Command::Pull(args)) => pull::pull(&args, how),
        Some(Command::Convert(args)) => convert::convert(&args, how),
        Some(Command::Models) => models::models(how),
        Some(Command::Doctor) => doctor::doctor(how),
        Some(Command::Inspect(args)) => inspect::inspect(&args.file, how),
        Some(Command::Completions(args)) => completions::completions(args.shell),
        Some(Command::Man(args)) => completions::man(&args),
        None => drawing(generate::generate(cli.generate, how)),
        Some(Command::Generate(args)) => drawing(generate::generate(args, how)),
        Some(Command::Again(args)) => drawing(generate::again(args, how)),
        Some(Command::Plan(args)) => drawing(generate::plan(args, how)),
        Some(Command::Bench(args)) => drawing(bench::bench(args, how)),
    }
}

/// Tells the outcome and gives its exit code.
fn report(outcome: Result<()>, json: bool) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let mut text = format!("error: {error}\n");
    if let Some(hint) = error.hint() {
        text += &format!("  try: {hint}\n");
    }
    tell(&text);
    if json {
        told_as_json(error.kind(), &error.to_string(), error.hint());
    }
    match (error.kind(), signals::received()) {
        (Kind::Cancelled, Some(signal)) => ExitCode::from(128 + signal),
        (kind, _) => ExitCode::from(kind.exit_code()),
    }
}

/// What clap has to say: help and version on stdout, or why an argument is refused.
fn refuse(error: &clap::Error, json: bool) -> ExitCode {
    if !error.use_stderr() {
        return match error.print().and_then(|()| std::io::stdout().flush()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => report(Err(output::broken(e)), false),
        };
    }
    error.print().ok();
    let unquoted = is_unquoted_prompt(error);
    let hint = if unquoted { "put the prompt in quotes" } else { "flux-fast --help" };
    if unquoted {
        tell(&format!("  try: {hint}\n"));
    }
    if json {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        told_as_json(Kind::Argument, first.strip_prefix("error: ").unwrap_or(first), Some(hint));
    }
    ExitCode::from(Kind::Argument.exit_code())
}

/// Whether the arguments look like `flux-fast a fox`: the second word of the prompt was taken for
/// a command, or is one argument too many.
fn is_unquoted_prompt(error: &clap::Error) -> bool {
    let is_prompt = |kind| match error.get(kind) {
        Some(ContextValue::String(arg)) => arg == "[PROMPT]",
        Some(ContextValue::Strings(args)) => args.iter().any(|arg| arg == "[PROMPT]"),
        _ => false,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => matches!(
            error.get(ContextKind::InvalidArg),
            Some(ContextValue::String(arg)) if !arg.starts_with('-')
        ),
        ErrorKind::ArgumentConflict => {
            is_prompt(ContextKind::InvalidArg) || is_prompt(ContextKind::PriorArg)
        }
        _ => false,
    }
}

/// One line on stdout. That the reader may be gone is no second error.
fn told_as_json(kind: Kind, message: &str, hint: Option<&str>) {
    output::json(&json!({"error": {"code": kind.code(), "message": message, "hint": hint}})).ok();
}

/// A line for people. Where stderr is closed there is nobody to tell.
fn tell(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).ok();
}

/// A panic that is caught and told as an error shall not be told twice.
fn quiet_caught_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !tokenizers::panic_is_caught() {
            default(panic);
        }
    }));
}

/// `Kind::Cancelled`, once a signal has come.
fn cancelled() -> Result<()> {
    match signals::received() {
        None => Ok(()),
        Some(_) => Err(Error::cancelled("stopped by a signal")),
    }
}
