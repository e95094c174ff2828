//! What all requests share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};

use super::ServerOptions;
use super::access::Access;
use super::broker::{Broker, Cancelled, LocalBroker};
use super::data::{DataFolder, DataLock};
use super::events::{Events, progress_json};
use super::fault::Fault;
use super::http::BodyRoom;
use super::job::{Job, State, now, random_hex};
use super::links::Links;
use super::models::Models;
use crate::error::{Error, Result};

/// How long rows of jobs are kept: the history of a month.
const ROWS_KEPT: f64 = 31.0 * 24.0 * 3600.0;

/// What is known of the worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerStatus {
    /// It can draw.
    pub ready: bool,
    /// The settings of a request that sets nothing, once a worker was ready.
    pub defaults: Option<Value>,
}

/// One server.
pub struct Server {
    /// How it was started.
    pub options: ServerOptions,
    /// Where it listens.
    pub address: SocketAddr,
    /// Who may use it.
    pub access: Access,
    /// The models and LoRAs.
    pub models: Models,
    /// The queue.
    pub broker: Box<dyn Broker>,
    /// What happens to jobs.
    pub events: Events,
    /// Its files.
    pub data: DataFolder,
    /// Links to results.
    pub links: Links,
    /// Set when there is a new job.
    pub wake: Notify,
    /// Becomes true when connections are to end.
    pub closing: watch::Sender<bool>,
    cancels: UnboundedSender<String>,
    worker: Mutex<WorkerStatus>,
    draining: AtomicBool,
    /// Jobs that ended: succeeded, failed, canceled.
    pub ended: [AtomicU64; 3],
    /// Workers that were started.
    pub workers_started: AtomicU64,
    /// The default model of owners who chose one.
    preferences: Mutex<HashMap<String, String>>,
    /// Room for the bodies of requests.
    pub bodies: BodyRoom,
    _lock: DataLock,
}

impl Server {
    /// Opens the data folder. Ids of jobs that are to be cancelled arrive at the receiver.
    pub fn open(
        options: ServerOptions,
        address: SocketAddr,
    ) -> Result<(Arc<Self>, UnboundedReceiver<String>)> {
        let (data, lock) = DataFolder::create(&options.data)?;
        let broker = LocalBroker::open(&data.jobs(), options.max_queued)
            .map_err(|fault| Error::output(fault.message).at_path(&data.jobs()))?;
        let public_host = options.public_url.as_deref().and_then(host_of);
        let access =
            Access::new(&options.keys, options.listen, public_host, options.origins.clone());
        let (cancels, receiver) = unbounded_channel();
        let server = Server {
            address,
            access,
            models: Models::new(&options.engine, options.aliases.clone()),
            broker: Box::new(broker),
            events: Events::new(random_hex(4)?),
            data,
            links: Links::new(random_hex(32)?),
            wake: Notify::new(),
            closing: watch::Sender::new(false),
            cancels,
            worker: Mutex::default(),
            draining: AtomicBool::new(false),
            ended: Default::default(),
            workers_started: AtomicU64::new(0),
            preferences: Mutex::default(),
            bodies: BodyRoom::default(),
            options,
            _lock: lock,
        };
        Ok((Arc::new(server), receiver))
    }

    /// Writes a line to the log.
    pub fn log(&self, line: &str) {
        (self.options.log)(line);
    }

    /// What is known of the worker.
    pub fn worker(&self) -> WorkerStatus {
        self.lock_worker().clone()
    }

    /// Changes what is known of the worker.
    pub fn lock_worker(&self) -> MutexGuard<'_, WorkerStatus> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model that `owner` has chosen as its default.
    pub fn preferred(&self, owner: &str) -> Option<String> {
        self.preferences.lock().unwrap_or_else(PoisonError::into_inner).get(owner).cloned()
    }

    /// Makes `model` the default of `owner`. There are no more owners than keys.
    pub fn prefer(&self, owner: &str, model: String) {
        let mut preferences = self.preferences.lock().unwrap_or_else(PoisonError::into_inner);
        preferences.insert(owner.to_string(), model);
    }

    /// Whether the server takes no more jobs.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes no more jobs.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends all connections.
    pub fn close(&self) {
        self.drain();
        self.closing.send_replace(true);
    }

    /// The job of `owner` with this id.
    ///
    /// # Errors
    /// 404.
    pub fn job(&self, id: &str, owner: &str) -> std::result::Result<Job, Fault> {
        blocking(|| self.broker.job(id, owner))?
            .ok_or_else(|| Fault::not_found("there is no job of this id"))
    }

    /// Cancels the job of `owner` with this id; one that is over stays as it is.
    ///
    /// # Errors
    /// 404.
    pub fn cancel(&self, id: &str, owner: &str) -> std::result::Result<Job, Fault> {
        let cancelled = blocking(|| self.broker.cancel(id, owner))?
            .ok_or_else(|| Fault::not_found("there is no job of this id"))?;
        Ok(match cancelled {
            Cancelled::Queued(job) => {
                self.publish_end(&job);
                job
            }
            Cancelled::Running(job) => {
                self.publish_status(&job);
                self.cancels.send(job.id.clone()).ok();
                job
            }
            Cancelled::Over(job) => job,
        })
    }

    /// Tells those who watch `job` what state it is in.
    pub fn publish_status(&self, job: &Job) {
        self.events.publish(&job.id, "status", status_json(job));
    }

    /// Tells those who watch `job` that it is over.
    pub fn publish_end(&self, job: &Job) {
        let ended = match job.state {
            State::Succeeded | State::Expired => 0,
            State::Canceled => 2,
            _ => 1,
        };
        self.ended[ended].fetch_add(1, Ordering::Relaxed);
        self.events.reset(&job.id, true);
        self.publish_status(job);
    }

    /// How far a job is, and its place in the queue, as JSON.
    pub fn progress(&self, job: &Job) -> (Value, Option<usize>) {
        match job.state {
            State::Queued => (json!(null), blocking(|| self.broker.position(&job.id))),
            State::Running | State::Canceling => {
                (progress_json(&self.events.channel(&job.id).progress()), None)
            }
            _ => (json!(null), None),
        }
    }
}

/// The state of a job as an event.
fn status_json(job: &Job) -> Value {
    json!({"id": job.id, "status": job.state, "error": job.fault})
}

/// Runs something that waits for the disk.
pub fn blocking<T>(f: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(f)
}

/// The host name of an address such as `https://draw.example:8443/x`.
fn host_of(url: &str) -> Option<String> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next()?;
    let name = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
    (!name.is_empty()).then(|| name.to_string())
}

/// Deletes what has expired, for ever.
pub async fn sweep(server: Arc<Server>) {
    loop {
        let ttl = server.options.result_ttl.as_secs_f64();
        match blocking(|| server.broker.expire(now() - ttl, now() - ROWS_KEPT)) {
            Ok(ids) => blocking(|| ids.iter().for_each(|id| server.data.delete(id))),
            Err(fault) => server.log(&format!("expired results stay: {}", fault.message)),
        }
        server.events.sweep();
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}
