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

mod accepting;
mod access;
mod api;
mod body;
mod broker;
mod calls;
mod clock;
mod cluster;
mod controlnets;
mod data;
mod draft;
mod draft_files;
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
mod uploads;
mod wait;
mod webhook;
mod worker;

pub use access::ServerKey;
#[cfg(feature = "nats")]
#[doc(hidden)]
pub use broker::{Measured, Simulation, simulate};
pub use limits::{Limit, Plan, Unit, presets};
pub use models::parse_alias;
pub use options::{ClusterOptions, ModelOptions, ServerOptions};
pub use supervisor::LISTENING;
pub use worker::worker;

use std::sync::Arc;
use std::time::Duration;

use axum::middleware as layers;
use tokio::net::TcpListener;

use crate::error::{Error, Result};
use broker::{Broker, LocalBroker};
#[cfg(feature = "nats")]
use broker::{FrontBroker, WorkerBroker};
use data::DataFolder;
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
    in_threads(run(options))
}

/// Draws the jobs of the cluster that `options` name until `stop`, for which the running job may
/// end and is given back otherwise. It does not listen.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) without a cluster, and for an address that is
/// none; [`Kind::Device`](crate::error::Kind::Device) if the broker is out of reach; and what the
/// engine returns for the model and the device.
pub fn draw_for_cluster(options: ServerOptions) -> Result<()> {
    if options.cluster.is_none() {
        return Err(Error::argument("a worker needs the address of a broker"));
    }
    in_threads(draw(options))
}

/// The workers of a cluster, with what they hold and draw, and the queue of each model, as JSON.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for an address that is none,
/// [`Kind::Device`](crate::error::Kind::Device) if the broker is out of reach.
pub fn cluster_status(options: &ClusterOptions) -> Result<serde_json::Value> {
    #[cfg(feature = "nats")]
    return in_threads(broker::cluster_status(options));
    #[cfg(not(feature = "nats"))]
    return Err(no_clusters(options));
}

fn in_threads<T>(task: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::device(format!("threads cannot be started: {e}")))?;
    let outcome = runtime.block_on(task);
    // Whatever still waits for a slow client is given up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

#[cfg(not(feature = "nats"))]
fn no_clusters(options: &ClusterOptions) -> Error {
    Error::argument("this build of the program has no brokers for clusters")
        .found(options.shown_broker())
        .try_("build it with the feature nats")
}

/// The queue that `options` name, for a process that draws or does not.
async fn open_broker(
    options: &ServerOptions,
    data: &DataFolder,
    draws: bool,
) -> Result<Arc<dyn Broker>> {
    match &options.cluster {
        #[cfg(feature = "nats")]
        Some(cluster) if draws => {
            let (data, stop) = (data.clone(), options.stop.clone());
            Ok(Arc::new(WorkerBroker::open(cluster, data, stop).await?))
        }
        #[cfg(feature = "nats")]
        Some(cluster) => {
            Ok(Arc::new(FrontBroker::open(cluster, data.clone(), options.max_queued).await?))
        }
        #[cfg(not(feature = "nats"))]
        Some(cluster) => Err(no_clusters(cluster)),
        None => {
            let _ = draws;
            let broker = LocalBroker::open(&data.jobs(), options.max_queued)
                .map_err(|fault| Error::output(fault.message).at_path(&data.jobs()))?;
            Ok(Arc::new(broker))
        }
    }
}

async fn draw(options: ServerOptions) -> Result<()> {
    let (data, lock) = DataFolder::create(&options.data)?;
    let broker = open_broker(&options, &data, true).await?;
    let (server, Inbox { commands, .. }) = Server::new(options, None, (data, lock), broker)?;
    let news = server.broker.news();
    let hearing = news.map(|news| tokio::spawn(cluster::hear(server.clone(), news)));
    let describing = tokio::spawn(cluster::describe(server.clone()));
    let sweeping = tokio::spawn(state::sweep(server.clone()));
    let outcome = supervisor::supervise(server.clone(), commands).await;
    describing.abort();
    sweeping.abort();
    hearing.iter().for_each(tokio::task::JoinHandle::abort);
    state::blocking(|| server.broker.leave());
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
    let (data, lock) = DataFolder::create(&options.data)?;
    let broker = open_broker(&options, &data, false).await?;
    let (server, Inbox { commands, ended }) =
        Server::new(options, Some(address), (data, lock), broker)?;
    let router = api::routes()
        .layer(layers::from_fn_with_state(server.clone(), middleware::guard))
        .with_state(server.clone());
    let serving = tokio::spawn(http::accept(listener, server.clone(), router));
    let sweeping = tokio::spawn(state::sweep(server.clone()));
    let calling = tokio::spawn(calls::call_all(server.clone(), ended));
    let news = server.broker.news();
    let hearing = news.map(|news| tokio::spawn(cluster::hear(server.clone(), news)));
    cluster::note_workers(&server);
    api::resume(&server);
    let outcome = match server.broker.workers() {
        None => supervisor::supervise(server.clone(), commands).await,
        Some(_) => cluster::front(server.clone()).await,
    };
    hearing.iter().for_each(tokio::task::JoinHandle::abort);
    sweeping.abort();
    calling.abort();
    server.close();
    serving.await.ok();
    state::blocking(|| server.broker.leave());
    outcome
}

#[cfg(all(test, unix))]
mod tests;
