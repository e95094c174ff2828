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
mod body;
mod broker;
mod calls;
mod clock;
mod data;
mod draft;
mod estimate;
mod events;
mod fault;
mod fields;
mod forecast;
mod http;
mod job;
mod limits;
mod links;
mod masks;
mod metrics;
mod middleware;
mod model_names;
mod models;
mod options;
mod page;
mod plans;
mod protocol;
mod questions;
mod state;
mod store;
mod submit;
mod supervisor;
mod wait;
mod webhook;
mod worker;

pub use access::ServerKey;
pub use limits::{Limit, Plan, Unit, presets};
pub use models::parse_alias;
pub use options::{ModelOptions, ServerOptions};
pub use supervisor::LISTENING;
pub use worker::worker;

use std::time::Duration;

use axum::middleware as layers;
use tokio::net::TcpListener;

use crate::error::{Error, Result};
use state::{Inbox, Server};

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
    let (server, Inbox { commands, ended }) = Server::open(options, address)?;
    let router = api::routes()
        .layer(layers::from_fn_with_state(server.clone(), middleware::guard))
        .with_state(server.clone());
    let serving = tokio::spawn(http::accept(listener, server.clone(), router));
    let sweeping = tokio::spawn(state::sweep(server.clone()));
    let calling = tokio::spawn(calls::call_all(server.clone(), ended));
    api::resume(&server);
    let outcome = supervisor::supervise(server.clone(), commands).await;
    sweeping.abort();
    calling.abort();
    server.close();
    serving.await.ok();
    outcome
}

#[cfg(all(test, unix))]
mod tests;
