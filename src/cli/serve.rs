//! `serve`, and the hidden command that it starts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use super::args::{DrawingArgs, How, LogFormat, ServeArgs};
use super::config::Config;
use super::words::Typed;
use super::{server_config, signals};
use crate::error::{Error, Result};
use crate::host;
use crate::library::given::read_given;
use crate::server::{self, ServerKey, ServerOptions};

/// The name of the hidden command.
const WORKER: &str = "draw-jobs";

/// The most files and connections that are open at a time.
#[cfg(unix)]
const OPEN_FILES: u64 = 8192;

/// Serves until a signal arrives.
pub fn serve(args: ServeArgs, how: How, config: &Config) -> Result<()> {
    let config = server_config::read(config)?;
    let mut keys = args.keys;
    if let Some(path) = &args.key_file {
        keys.extend(read_keys(path)?);
    }
    if keys.iter().any(|key| key.trim().is_empty() || key.trim() != key) {
        return Err(Error::argument("a key is empty, or begins or ends with a space").at("--key"));
    }
    let mut keys: Vec<ServerKey> = keys.iter().map(|key| ServerKey::new(key)).collect();
    keys.extend(config.keys);
    if !args.listen.ip().is_loopback() && keys.is_empty() {
        return Err(Error::argument("a server that other machines can reach needs a key")
            .at("--listen")
            .found(args.listen)
            .expected("127.0.0.1 or another address of this machine only")
            .try_("--key with a long random word, or --key-file".to_string()));
    }
    let data = args.data.unwrap_or_else(|| host::data_folder().join("server"));
    let mut options = start(&args.drawing, data, how)?;
    #[cfg(feature = "nats")]
    {
        options.cluster = super::worker::cluster(&args.drawing.cluster, config.broker)?;
    }
    // The server refuses it, and says which feature is missing.
    #[cfg(not(feature = "nats"))]
    {
        options.cluster = config.broker.map(server::ClusterOptions::new);
    }
    options.listen = args.listen;
    options.keys = keys;
    options.default_plan = config.default_plan;
    options.aliases = args.aliases;
    options.aliases.extend(config.aliases);
    options.models = config.models;
    options.public_url = args.public_url;
    options.origins = args.cors_origins;
    options.webhooks = args.webhook_origins;
    options.max_queued = args.max_queue;
    server::serve(options).map_err(|e| listen_error(e, args.listen))
}

/// Prepares this process for `serve` and `worker` (signals, open files, the log), and returns their
/// common options.
pub(super) fn start(args: &DrawingArgs, data: PathBuf, how: How) -> Result<ServerOptions> {
    let program = std::env::current_exe()
        .map_err(|e| Error::device(format!("the program's own file cannot be found: {e}")))?;
    signals::listen();
    raise_open_files();
    start_log(how, args.log_format);
    let mut options = ServerOptions::new(
        args.engine.options(),
        data,
        (program, vec![WORKER.into()]),
        Arc::new(|| signals::received().is_some()),
    );
    options.keep_alive = args.keep_alive.0;
    options.hang_after = Duration::from_secs(args.hang_after);
    Ok(options)
}

/// Sends the log to stderr: with --quiet only warnings, and where the server listens.
fn start_log(how: How, format: LogFormat) {
    let level = if how.quiet { LevelFilter::WARN } else { LevelFilter::INFO };
    let shown = Targets::new()
        .with_target("flux_fast", level)
        .with_target(server::LISTENING, LevelFilter::INFO);
    // A full disk behind stderr must not end the server.
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = lines.log_internal_errors(false);
    let layer = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // Only this command sets one, so there is none yet.
    tracing_subscriber::registry().with(layer.with_filter(shown)).try_init().ok();
}

/// Lets this process open more files than the usual 1,024, if the system allows it: every
/// connection is one.
fn raise_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let most = limit.maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
        if limit.current.is_some_and(|now| now < most) {
            let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit });
        }
    }
}

/// An error about the address, with its option.
fn listen_error(error: Error, listen: SocketAddr) -> Error {
    match error.found_value() == Some(&listen.to_string()) {
        true => error.at("--listen"),
        false => error,
    }
}

/// One key per line. Empty lines and lines that begin with `#` are no keys.
fn read_keys(path: &Path) -> Result<Vec<String>> {
    let text = read_given(path)
        .map_err(|e| Error::missing(format!("the keys cannot be read: {e}")).at_path(path))?;
    let text = String::from_utf8(text)
        .map_err(|_| Error::argument("the file of keys is not UTF-8").at_path(path))?;
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_string).collect();
    match keys.is_empty() {
        true => Err(Error::argument("the file contains no key").at_path(path)),
        false => Ok(keys),
    }
}

/// Draws what the server that started this process orders.
pub fn draw_jobs() -> Result<()> {
    // A signal for the whole process group is the server's affair, which ends the worker.
    signals::ignore();
    // If memory runs out, this process is ended and not the server.
    let badness: PathBuf = "/proc/self/oom_score_adj".into();
    std::fs::write(badness, "500").ok();
    server::worker(std::io::stdin(), std::io::stdout(), &Typed, || std::process::exit(0))
}
