//! The configuration file: defaults for options, under the options' own names.
//!
//! Every long option of `generate` and `bench` that describes the image, the model, the device or
//! the output can stand in the file. Its values become the defaults of the command line's own
//! definition, so that they are checked like typed ones and give way to what is typed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgAction, Command};
use serde::Serialize;
use toml::Value;

use super::args::IMAGE_HEADING;
use super::components;
use super::help::definition;
use crate::error::{Error, Result};
use crate::host;

/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Options that are about one call and have no default in a file.
const NOT_DEFAULTS: [&str; 14] = [
    "prompt",
    "prompt-file",
    "json",
    "json-events",
    "config",
    "no-config",
    "help",
    "version",
    "init-img",
    "mask",
    "control",
    "controlnet",
    "outpaint",
    "runs",
];

/// Keys of the file that only `serve` and the commands of clusters read: see `server_config`.
pub const SERVER_KEYS: [&str; 6] = ["aliases", "broker", "default-plan", "keys", "models", "plans"];

/// Option name (without dashes) and its values, in the file's order.
type Defaults = Vec<(String, Vec<String>)>;

/// The file that was looked for, and what it holds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Config {
    /// Where it is or would be; absent with --no-config or where no folder is known.
    pub path: Option<PathBuf>,
    /// Whether it is there.
    pub exists: bool,
    /// Option name (without dashes) and its values, in the file's order.
    pub values: Defaults,
    /// The values of [`SERVER_KEYS`].
    #[serde(skip)]
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "only `serve` reads it"))]
    pub server: toml::Table,
}

/// Finds the file: `--config FILE`, else `FLUX_FAST_CONFIG` (empty: none), else the user's folder.
pub fn read(arguments: &[OsString]) -> Result<Config> {
    if flag(arguments, "--no-config") {
        return Ok(Config::default());
    }
    let given = option(arguments, "--config");
    let asked = given.is_some();
    let environment = host::process_environment("FLUX_FAST_CONFIG");
    let path = match (given, environment) {
        (Some(path), _) => Some(PathBuf::from(path)),
        (None, Some(path)) if path.is_empty() => None,
        (None, Some(path)) => Some(PathBuf::from(path)),
        (None, None) => default_path(),
    };
    let Some(path) = path else { return Ok(Config::default()) };
    // Opening a FIFO may wait for ever. The null device is the usual name of an empty file.
    let text = match path == Path::new("/dev/null") {
        true => Ok(String::new()),
        false => host::read_regular_text(&path, MAX_BYTES),
    };
    let text = match text {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !asked => {
            return Ok(Config { path: Some(path), ..Config::default() });
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::missing("there is no such configuration file").at_path(&path));
        }
        Err(e) => {
            let e = Error::argument(format!("the configuration file cannot be read: {e}"));
            return Err(e.at_path(&path).try_("give a text file, or --no-config"));
        }
    };
    let (values, server) = parse(&text).map_err(|e| e.at_path(&path))?;
    Ok(Config { path: Some(path), exists: true, values, server })
}

/// `config.toml` in the user's configuration folder.
fn default_path() -> Option<PathBuf> {
    Some(host::config_folder()?.join("config.toml"))
}

fn flag(arguments: &[OsString], name: &str) -> bool {
    arguments.iter().skip(1).take_while(|a| *a != "--").any(|a| a == name)
}

/// The value of `--name VALUE` or `--name=VALUE`, found by hand since it decides how the rest is
/// read.
fn option(arguments: &[OsString], name: &str) -> Option<OsString> {
    let mut given = None;
    let mut rest = arguments.iter().skip(1).take_while(|a| *a != "--");
    while let Some(argument) = rest.next() {
        if argument == name {
            given = rest.next().cloned();
        } else if let Some(text) = argument.to_str()
            && let Some(value) = text.strip_prefix(name).and_then(|v| v.strip_prefix('='))
        {
            given = Some(value.into());
        }
    }
    given
}

/// The options that may stand in the file, by name.
fn options() -> Vec<clap::Arg> {
    let command = definition();
    let options = command
        .get_arguments()
        .filter(|a| a.get_long().is_some_and(|name| !NOT_DEFAULTS.contains(&name)));
    options.cloned().collect()
}

/// The values of a file's text, each checked as if it had been typed, and what is for the server.
fn parse(text: &str) -> Result<(Defaults, toml::Table)> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |s| text[..s.start].matches('\n').count() + 1);
        Error::argument(format!("the configuration file is not TOML: {}", e.message()))
            .at(format!("line {line}"))
    })?;
    let options = options();
    let mut values = Vec::new();
    let mut server = toml::Table::new();
    for (key, value) in table {
        if SERVER_KEYS.contains(&key.as_str()) {
            server.insert(key, value);
            continue;
        }
        let Some(option) = options.iter().find(|a| a.get_long() == Some(key.as_str())) else {
            let mut names: Vec<_> = options.iter().filter_map(|a| a.get_long()).collect();
            names.extend(SERVER_KEYS);
            names.sort_unstable();
            return Err(Error::argument("this key is not an option that can have a default")
                .at(key)
                .expected(names.join(", ")));
        };
        let list = value_list(&value).ok_or_else(|| {
            Error::argument("this value is not text, a number, true or false, or a list of those")
                .at(&key)
        })?;
        check(option, &key, &list)?;
        values.push((key, list));
    }
    Ok((values, server))
}

fn value_list(value: &Value) -> Option<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(n) => Some(n.to_string()),
        Value::Float(x) => Some(x.to_string()),
        Value::Boolean(b) => Some(b.to_string()),
        _ => None,
    };
    match value {
        Value::Array(items) => items.iter().map(one).collect(),
        value => one(value).map(|v| vec![v]),
    }
}

/// Checks the values with the definition of the command line.
fn check(option: &clap::Arg, key: &str, values: &[String]) -> Result<()> {
    if matches!(option.get_action(), ArgAction::SetTrue) {
        return match values {
            [value] if value == "true" || value == "false" => Ok(()),
            _ => Err(Error::argument("this value is neither true nor false")
                .at(key)
                .found(values.join(", "))),
        };
    }
    if values.len() != 1 && !matches!(option.get_action(), ArgAction::Append) {
        return Err(Error::argument("this option takes one value").at(key).found(values.len()));
    }
    let typed = values.iter().map(|v| format!("--{key}={v}"));
    let all = ["flux-fast".to_string()].into_iter().chain(typed);
    match definition().try_get_matches_from(all) {
        // Which other options an option needs is judged on the command line.
        Err(e) if e.kind() != ErrorKind::MissingRequiredArgument => {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default();
            Err(Error::argument(first.strip_prefix("error: ").unwrap_or(first)).at(key))
        }
        _ => Ok(()),
    }
}

/// Whether an option describes the image itself or the model, which an image file says.
fn is_recorded(option: &clap::Arg) -> bool {
    let is_model = option
        .get_long()
        .is_some_and(|name| name == "model" || components::options().contains_key(name));
    is_model || option.get_help_heading() == Some(IMAGE_HEADING)
}

impl Config {
    /// Whether the file has defaults for `subcommand` (`None`: an image without naming `generate`).
    pub fn applies_to(&self, subcommand: Option<&str>) -> bool {
        let draws = ["generate", "plan", "bench", "again", "serve", "worker"];
        !self.values.is_empty() && subcommand.is_none_or(|name| draws.contains(&name))
    }

    /// `command` with the file's values as defaults where `subcommand` finds its options. A rerun
    /// (`again`) keeps the image's own settings and its model, so only the other options apply
    /// there.
    pub fn apply(&self, command: Command, subcommand: Option<&str>) -> Command {
        let Some(name) = subcommand else { return self.set_defaults(command, |_| true) };
        let image = name != "again";
        self.set_defaults(command, |option| option.is_global_set()).mut_subcommand(name, |sub| {
            self.set_defaults(sub, |option| image || !is_recorded(option))
        })
    }

    fn set_defaults(&self, mut command: Command, which: impl Fn(&clap::Arg) -> bool) -> Command {
        for (key, values) in &self.values {
            let option = command.get_arguments().find(|a| a.get_long() == Some(key.as_str()));
            if let Some(option) = option.filter(|a| which(a)) {
                let id = option.get_id().clone();
                command = command.mut_arg(id, |arg| arg.default_values(values.clone()));
            }
        }
        command
    }

    /// For `doctor`.
    pub fn text(&self) -> String {
        let Some(path) = &self.path else { return "configuration: none\n".to_string() };
        let path: &Path = path;
        if !self.exists {
            return format!("configuration: none ({} is not there)\n", path.display());
        }
        let mut text = format!("configuration: {}\n", path.display());
        for (key, values) in &self.values {
            text += &format!("    {key} = {}\n", values.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_checked_like_typed_options() {
        let good = "steps = 8\nsize = \"512x768\"\nguidance = 2.5\nlora = [\"a:0.5\", \"b\"]\n\
                    vram = \"8G\"\nno-cache = true\nquiet = false\n";
        let (values, server) = parse(&format!("{good}plans.x = 1\n")).unwrap();
        assert_eq!(server.len(), 1);
        assert_eq!(values.len(), 7);
        assert!(values.contains(&("lora".into(), vec!["a:0.5".into(), "b".into()])));
        for (bad, expected) in [
            ("steps = 0", "1 to 1000"),
            ("stpes = 8", "stpes"),
            ("prompt = \"a\"", "prompt"),
            ("steps = [1, 2]", "one value"),
            ("no-cache = 3", "true nor false"),
            ("steps = { a = 1 }", "steps"),
            ("device = \"gpu\"", "cuda:N"),
            ("\n\nsteps = ", "line 3"),
        ] {
            let message = parse(bad).unwrap_err().to_string();
            assert!(message.contains(expected), "{bad}: {message}");
        }
    }

    #[test]
    fn typed_values_win_and_again_keeps_the_settings_of_the_image() {
        let config = Config {
            values: parse("steps = 8\nquality = 50\nlora = [\"a:0.5\"]\nwidth = 64").unwrap().0,
            ..Config::default()
        };
        let read = |arguments: &[&str]| {
            let subcommand = Some(arguments[0]).filter(|a| *a == "again");
            let command = config.apply(definition(), subcommand);
            let all = ["flux-fast"].iter().chain(arguments).copied();
            let matches = command.try_get_matches_from(all).unwrap_or_else(|e| panic!("{e}"));
            <super::super::args::Cli as clap::FromArgMatches>::from_arg_matches(&matches).unwrap()
        };
        let cli = read(&["a fox", "--quality", "60", "--size", "32x32"]);
        assert_eq!((cli.generate.request.steps, cli.generate.output.quality), (Some(8), 60));
        assert_eq!(cli.generate.request.loras.len(), 1);
        let Some(super::super::args::Command::Again(again)) = read(&["again", "x.png"]).command
        else {
            panic!("not read as `again`");
        };
        assert_eq!((again.request.steps, again.output.quality), (None, 50));
    }
}
