//! `flux-fast serve`: one queue of jobs behind several HTTP APIs.
//!
//! There are two processes. The front ([`serve`]) has the APIs, the queue and the files; it never
//! opens a device or a model. The worker ([`worker()`]) owns both and draws one job after another.
//! A crash, a lost device, a hang or a kill takes the worker only: the front starts another, and
//! the job runs once more. Its seed was drawn when it was accepted, so it gives the same pixels.
//!
//! The log goes to [`tracing`]: the front end of the program decides what becomes of it.
//!
//! Every dialect under `api/` is a thin adapter: it turns its own requests into a `Draft` and jobs
//! into its own answers.

mod access;
mod api;
mod broker;
mod clock;
mod data;
mod estimate;
mod events;
mod fault;
mod fields;
mod http;
mod job;
mod limits;
mod links;
mod metrics;
mod middleware;
mod models;
mod page;
mod plans;
mod protocol;
mod state;
mod store;
mod submit;
mod supervisor;
mod webhook;
mod worker;

pub use access::ServerKey;
pub use limits::{Limit, Plan, Unit, presets};
pub use models::parse_alias;
pub use supervisor::LISTENING;
pub use worker::worker;

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::error::{Error, Result};
use crate::pipeline::request::Options;
use state::Server;

/// What [`serve`] needs to know.
#[non_exhaustive]
pub struct ServerOptions {
    /// The default model and the device.
    pub engine: Options,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Keys, one of which every request must carry. Without any, everybody may use the server.
    pub keys: Vec<ServerKey>,
    /// The limits of keys without a plan, and of everybody on a server without keys.
    pub default_plan: Option<Plan>,
    /// How long a model stays in memory after its last job; `None` for as long as the server runs.
    pub keep_alive: Option<Duration>,
    /// What differs for single models, by name.
    pub models: HashMap<String, ModelOptions>,
    /// The folder for the list of jobs and for results. One server at a time uses it.
    pub data: PathBuf,
    /// Other names of models: name, or start of a name and `*`; and model.
    pub aliases: Vec<(String, String)>,
    /// The address under which clients reach the server, for links.
    pub public_url: Option<String>,
    /// Origins of web pages that may use the server.
    pub origins: Vec<String>,
    /// Origins of addresses that may be called when a job is over, such as `https://hooks.example`.
    pub webhooks: Vec<String>,
    /// The most jobs that may wait.
    pub max_queued: usize,
    /// How long results are kept.
    pub result_ttl: Duration,
    /// After how long without a sign of life a worker is killed.
    pub hang_after: Duration,
    /// How long the running job may take after `stop` before it is put back into the queue.
    pub grace: Duration,
    /// The program, and the arguments with which it runs [`worker()`].
    pub worker: (PathBuf, Vec<OsString>),
    /// Whether the server is to end.
    pub stop: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What differs for one model.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// How long it stays in memory after its last job, in place of [`ServerOptions::keep_alive`].
    pub keep_alive: Option<Option<Duration>>,
    /// The most steps of requests through APIs whose clients send the same steps to every model.
    pub max_steps: Option<usize>,
}

impl ServerOptions {
    /// The defaults for a server of `engine` that runs `worker`, keeps its files in `data`, and
    /// ends when `stop` says so.
    pub fn new(
        engine: Options,
        data: PathBuf,
        worker: (PathBuf, Vec<OsString>),
        stop: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        ServerOptions {
            engine,
            listen: ([127, 0, 0, 1], 8188).into(),
            keys: Vec::new(),
            default_plan: None,
            keep_alive: None,
            models: HashMap::new(),
            data,
            aliases: Vec::new(),
            public_url: None,
            origins: Vec::new(),
            webhooks: Vec::new(),
            max_queued: 256,
            result_ttl: Duration::from_secs(3600),
            hang_after: Duration::from_secs(300),
            grace: Duration::from_secs(8),
            worker,
            stop,
        }
    }
}

/// Serves until `stop`: accepts no more jobs then, waits for the running one, and keeps the others
/// in the data folder for the next start.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if the server would be open to the network
/// without a key, or cannot listen there; [`Kind::Output`](crate::error::Kind::Output) for the data
/// folder; and what the worker's engine returns for the model and the device.
pub fn serve(options: ServerOptions) -> Result<()> {
    if !options.listen.ip().is_loopback() && options.keys.is_empty() {
        return Err(Error::argument("a server that others can reach needs a key")
            .found(options.listen)
            .expected("an address of this machine only, such as 127.0.0.1, or a key"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::device(format!("threads cannot be started: {e}")))?;
    let outcome = runtime.block_on(run(options));
    // Whatever still waits for a slow client is given up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(options: ServerOptions) -> Result<()> {
    let listen = options.listen;
    let listener = TcpListener::bind(listen).await.map_err(|e| {
        Error::argument(format!("the server cannot listen: {e}"))
            .found(listen)
            .try_("another address, if another program listens here")
    })?;
    let address = listener.local_addr().unwrap_or(listen);
    let (server, commands) = Server::open(options, address)?;
    let serving = tokio::spawn(http::accept(listener, server.clone()));
    let sweeping = tokio::spawn(state::sweep(server.clone()));
    api::resume(&server);
    let outcome = supervisor::supervise(server.clone(), commands).await;
    sweeping.abort();
    server.close();
    serving.await.ok();
    outcome
}

#[cfg(all(test, unix))]
mod tests;
