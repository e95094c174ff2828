//! The command line: reads arguments, runs the command, prints the outcome. Progress and errors go
//! to stderr, results to stdout.

mod args;
mod bench;
mod completions;
mod components;
mod config;
mod convert;
mod doctor;
mod environment;
mod events;
mod generate;
mod help;
mod image_memory;
mod input_images;
mod inspect;
mod models;
mod output;
mod preview;
mod progress;
mod prompts;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "server")]
mod remote;
#[cfg(feature = "server")]
mod serve;
#[cfg(feature = "server")]
mod server_config;
mod sides;
mod signals;
mod target;
mod values;
mod words;
#[cfg(feature = "nats")]
mod worker;

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::FromArgMatches;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::pipeline::tokenizers;
use crate::text::{lines, one_line};
#[cfg(feature = "nats")]
use args::ClusterCommand;
use args::{Cli, Command, How, is_command, similar_command};
use help::definition;
use words::Typed;

/// Runs the command in `arguments` (the first is the program's name) and returns the exit code of
/// the process.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    environment::quiet_drivers();
    quiet_caught_panics();
    crate::pipeline::exit_on_lost_pages();
    crate::pipeline::exit_on_abort();
    signals::survive_limits();
    let mut arguments: Vec<OsString> = arguments.collect();
    command_first(&mut arguments);
    let given = |flag| arguments.iter().skip(1).take_while(|a| *a != "--").any(|a| a == flag);
    // Looked up by hand: clap may refuse an argument before it has read these flags.
    let how = How { json: given("--json"), quiet: false, json_events: given("--json-events") };
    let read = match definition().try_get_matches_from(&arguments) {
        Ok(typed) => config::read(&arguments).map(|config| (typed, config)),
        Err(error) => return refuse(&error, &arguments, how),
    };
    let (typed, config) = match read {
        Ok(read) => read,
        Err(error) => return report(Err(error), how),
    };
    let subcommand = typed.subcommand_name();
    let matches = match config.applies_to(subcommand) {
        false => Ok(typed),
        true => config.apply(definition(), subcommand).try_get_matches_from(&arguments),
    };
    let settled = |matches: clap::ArgMatches| -> Result<Cli, clap::Error> {
        let mut cli = Cli::from_arg_matches(&matches)?;
        sides::settle(&mut cli, &matches);
        Ok(cli)
    };
    match matches.and_then(settled) {
        Ok(cli) => report(run(cli, &config), how),
        Err(error) => refuse(&error, &arguments, how),
    }
}

/// Moves a command in front of the flags, so that `flux-fast --json doctor` means
/// `flux-fast doctor --json`. Otherwise `doctor` would be read as a prompt.
fn command_first(arguments: &mut [OsString]) {
    let flag =
        |a: &OsString| ["--json", "--json-events", "-q", "--quiet"].iter().any(|flag| a == flag);
    let flags = arguments.iter().skip(1).take_while(|a| flag(a)).count();
    if arguments.get(1 + flags).and_then(|a| a.to_str()).is_some_and(is_command) {
        arguments[1..2 + flags].rotate_right(1);
    }
}

fn run(cli: Cli, config: &config::Config) -> Result<()> {
    let how = cli.how;
    // The user stopped the run: the name of the last operation does not help.
    let drawing = |outcome: Result<()>| {
        outcome.map_err(|e| match e.kind() {
            Kind::Cancelled if e.written().is_empty() => {
                Error::cancelled("stopped, no image was written")
            }
            _ => e,
        })
    };
    match cli.command {
        #[cfg(feature = "hub")]
        Some(Command::Pull(args)) => pull::pull(&args, how),
        Some(Command::Convert(args)) => convert::convert(&args, how),
        #[cfg(feature = "server")]
        Some(Command::Serve(args)) => serve::serve(*args, how, config),
        #[cfg(feature = "server")]
        Some(Command::Remote(args)) => remote::remote(*args, how),
        #[cfg(feature = "server")]
        Some(Command::DrawJobs) => serve::draw_jobs(),
        #[cfg(feature = "nats")]
        Some(Command::Worker(args)) => worker::worker(*args, how, config),
        #[cfg(feature = "nats")]
        Some(Command::Cluster(args)) => match args.command {
            ClusterCommand::Status(args) => worker::status(*args, how, config),
        },
        Some(Command::Models) => models::models(how),
        Some(Command::Doctor(args)) => doctor::doctor(config, args.kernels, how),
        Some(Command::Inspect(args)) => inspect::inspect(&args.file, how),
        Some(Command::Completions(args)) => completions::completions(args.shell),
        Some(Command::Man(args)) => completions::man(&args),
        None => {
            refuse_similar(cli.generate.words.as_deref())?;
            drawing(generate::generate(cli.generate, how))
        }
        Some(Command::Generate(args)) => drawing(generate::generate(args, how)),
        Some(Command::Again(args)) => drawing(generate::again(args, how)),
        Some(Command::Plan(args)) => drawing(generate::plan(args, how)),
        Some(Command::Bench(args)) => drawing(bench::bench(args, how)),
    }
}

/// Refuses a prompt of a single word that is probably a misspelt command: drawing it takes minutes,
/// and is not what was meant.
fn refuse_similar(prompt: Option<&str>) -> Result<()> {
    let word = prompt.map(str::trim).filter(|p| !is_command(p));
    match word.and_then(|word| Some((word, meant_by(word)?))) {
        None => Ok(()),
        Some((word, question)) => Err(Error::argument("this is not a command")
            .at(word)
            .try_(format!("{question} to draw it, use -p {word}"))),
    }
}

/// What a single word that is probably a command is asked to be; `None` for any other text.
fn meant_by(word: &str) -> Option<String> {
    let command = Some(word).filter(|w| !w.contains(char::is_whitespace)).and_then(similar_command);
    Some(match command? {
        option if option.starts_with('-') => format!("did you mean flux-fast {option}?"),
        command => format!("did you mean the command {command}?"),
    })
}

/// Prints an error and returns the exit code of `outcome`.
fn report(outcome: Result<()>, how: How) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    if output::reader_is_gone(&error) {
        // `flux-fast models | head -1`: the reader has what it wanted.
        return ExitCode::SUCCESS;
    }
    let worded = error.in_words(&Typed);
    let mut text = format!("error: {}\n", one_line(&worded.to_string()));
    if let Some(hint) = worded.hint() {
        text += &format!("  try: {}\n", one_line(&hint));
    }
    if !how.json_events {
        tell(&text);
    }
    error_as_json(json!(worded), how);
    match (error.kind(), signals::received()) {
        (Kind::Cancelled, Some(signal)) => ExitCode::from(128 + signal),
        (kind, _) => ExitCode::from(kind.exit_code()),
    }
}

/// Prints help or version on stdout, or why an argument is refused, and returns the exit code.
fn refuse(error: &clap::Error, arguments: &[OsString], how: How) -> ExitCode {
    if !error.use_stderr() {
        return match error.print().and_then(|()| std::io::stdout().flush()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => report(Err(output::broken(e)), how),
        };
    }
    if error.kind() == ErrorKind::InvalidUtf8 {
        return report(Err(not_utf8(arguments)), how);
    }
    let unquoted = is_unquoted_prompt(error);
    // `flux-fast inspct light.png`.
    let first = arguments.get(1).and_then(|a| a.to_str());
    let meant = first.filter(|word| unquoted && !is_command(word)).and_then(meant_by);
    let hint = meant.unwrap_or_else(|| {
        let hint = if unquoted { "put the prompt in quotes" } else { "flux-fast --help" };
        hint.to_string()
    });
    if !how.json_events {
        // An argument may be the name of a file, which a shell has put in place of a `*`.
        let plain = error.to_string();
        match lines(&plain) {
            Cow::Borrowed(_) => drop(error.print()),
            Cow::Owned(escaped) => tell(&escaped),
        }
        if unquoted {
            tell(&format!("  try: {hint}\n"));
        }
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    error_as_json(json!(Error::argument(first).try_(hint)), how);
    ExitCode::from(Kind::Argument.exit_code())
}

/// The error for an argument that must be text and is not, with its name. Paths may be any bytes.
fn not_utf8(arguments: &[OsString]) -> Error {
    let paths = |flag: &str| {
        let command = definition();
        let name = flag.trim_start_matches('-');
        let is_named = |a: &&clap::Arg| {
            a.get_long() == Some(name) || a.get_short().is_some_and(|s| name == s.to_string())
        };
        let any = command.get_arguments().find(is_named);
        any.is_some_and(|a| {
            a.get_value_parser().type_id() == std::any::TypeId::of::<std::path::PathBuf>()
        })
    };
    let mut flag = "the prompt".to_string();
    for argument in arguments.iter().skip(1) {
        let shown = argument.to_string_lossy();
        let own = shown.split_once('=').filter(|(name, _)| name.starts_with("--"));
        let name = own.map_or(flag.clone(), |(name, _)| name.to_string());
        if argument.to_str().is_none() && !paths(&name) {
            return Error::argument("the argument is not UTF-8")
                .at(name)
                .found(own.map_or(shown.as_ref(), |(_, value)| value))
                .try_("rename the file, or type the text in UTF-8");
        }
        let is_flag = shown.len() > 1 && shown.starts_with('-') && own.is_none();
        flag = if is_flag { shown.into_owned() } else { "the prompt".to_string() };
    }
    Error::argument("an argument is not UTF-8").try_("flux-fast --help")
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

/// The error on stdout for --json, and on stderr for --json-events.
fn error_as_json(error: serde_json::Value, how: How) {
    if how.json {
        // If the reader has gone away, the exit code still says what happened.
        output::json(&json!({"error": error})).ok();
    }
    if how.json_events {
        let mut event = json!({"event": "error"});
        event.as_object_mut().into_iter().zip(error.as_object()).for_each(|(event, error)| {
            event.extend(error.clone());
        });
        events::print(&event);
    }
}

/// Writes to stderr, with escapes for characters that a terminal acts on.
fn tell(text: &str) {
    tell_raw(&lines(text));
}

/// Writes to stderr as it is. If it is closed there is nobody left to read.
fn tell_raw(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).ok();
}

/// Does not print panics that are caught and reported as errors.
fn quiet_caught_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !tokenizers::panic_is_caught() {
            default(panic);
        }
    }));
}

/// [`Kind::Cancelled`] after a signal was received.
fn cancelled() -> Result<()> {
    match signals::received() {
        None => Ok(()),
        Some(_) => Err(Error::cancelled("stopped by a signal")),
    }
}
