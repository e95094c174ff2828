//! The state of the server, which all requests share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use super::accepting::Accepting;
use super::access::Access;
use super::broker::{Broker, Cancelled};
use super::data::{DataFolder, DataLock};
use super::estimate::Rates;
use super::events::{Events, progress_json};
use super::fault::Fault;
use super::job::{Job, State, random_hex};
use super::links::Links;
use super::metrics::Metrics;
use super::models::Models;
use super::options::ServerOptions;
use super::questions::Questions;
use super::store::Store;
use super::uploads::Uploads;
use super::wait::expired;
use crate::error::Result;
use crate::pipeline::ModelInputs;
use crate::text::one_line;

/// The bodies that are read at the same time, in KiB.
const MAX_BODIES: usize = 256 << 10;
/// How many changes of the list of jobs wait for the disk at a time; the others wait for a turn.
const MAX_TURNS: usize = 4;

/// How long rows of jobs are kept: the history of a month.
const ROWS_KEPT: f64 = 31.0 * 24.0 * 3600.0;

/// What is known of the worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerStatus {
    /// It can draw.
    pub ready: bool,
    /// The settings of a request that sets nothing, once a worker was ready.
    pub defaults: Option<Value>,
    /// The model in memory.
    pub held: Option<String>,
    /// The job that runs, and the seconds that it is expected to take.
    pub current: Option<(String, f64)>,
    /// What the default model reads besides the prompt; `None` until a worker has been ready.
    pub inputs: Option<ModelInputs>,
    /// The LoRAs of the last job.
    pub loras: Vec<String>,
    /// How many workers there are, if they are on other machines.
    pub others: usize,
}

/// A command for the supervisor of the worker.
#[derive(Debug)]
pub enum Command {
    /// Stop the job with this id.
    Cancel(String),
    /// Free the memory of the model.
    Unload,
}

/// The receiving ends of the channels of a server's tasks.
pub struct Inbox {
    /// Commands for the supervisor.
    pub commands: UnboundedReceiver<Command>,
    /// Jobs that are over and have an address to be called.
    pub ended: UnboundedReceiver<Job>,
}

/// One server.
pub struct Server {
    /// How it was started.
    pub options: ServerOptions,
    /// Where it listens; `None` if it only draws for others.
    pub address: Option<SocketAddr>,
    /// Who may use it.
    pub access: Access,
    /// The models and LoRAs.
    pub models: Models,
    /// The queue.
    pub broker: Arc<dyn Broker>,
    /// The events of jobs.
    pub events: Events,
    /// Its files.
    pub data: DataFolder,
    /// Files that clients uploaded.
    pub store: Store,
    /// Links to results.
    pub links: Links,
    /// Set when there is a new job.
    pub wake: Notify,
    /// Set when the worker of this process can draw or has another model.
    pub became_ready: Notify,
    /// Becomes true when connections are to end.
    pub closing: watch::Sender<bool>,
    commands: UnboundedSender<Command>,
    worker: Mutex<WorkerStatus>,
    draining: AtomicBool,
    /// Counters for `/metrics`.
    pub metrics: Metrics,
    /// How long jobs take.
    pub rates: Rates,
    /// The default model of owners who chose one.
    preferences: Mutex<HashMap<String, String>>,
    /// Questions to the worker: the memory and time of a request that was not sent yet.
    pub questions: Questions,
    /// Room for the bodies of all requests, in KiB.
    pub body_room: Arc<Semaphore>,
    /// How many may change the list of jobs at a time: see [`Server::turn`].
    turns: Semaphore,
    /// The ids of jobs that are being accepted.
    pub accepting: Accepting,
    /// Jobs that are over and have an address to be called.
    ended: UnboundedSender<Job>,
    _lock: DataLock,
}

impl Server {
    /// A server with the queue of `broker` and its files in `data`.
    pub fn new(
        options: ServerOptions,
        address: Option<SocketAddr>,
        (data, lock): (DataFolder, DataLock),
        broker: Arc<dyn Broker>,
    ) -> Result<(Arc<Self>, Inbox)> {
        let public_host = options.public_url.as_deref().and_then(host_of);
        let access = Access::new(
            &options.keys,
            options.default_plan.clone(),
            options.listen,
            public_host,
            options.origins.clone(),
        );
        let (commands, commands_receiver) = unbounded_channel();
        let (ended, ended_receiver) = unbounded_channel();
        let inbox = Inbox { commands: commands_receiver, ended: ended_receiver };
        let server = Server {
            address,
            access,
            models: match broker.workers() {
                None => Models::new(&options.engine, options.aliases.clone()),
                Some(_) => Models::of_cluster(&options.engine, options.aliases.clone()),
            },
            events: Events::new(random_hex(4)?),
            store: Store::at(data.kept()),
            data,
            links: Links::new(broker.secret().map_or_else(|| random_hex(32), Ok)?),
            broker,
            wake: Notify::new(),
            became_ready: Notify::new(),
            closing: watch::Sender::new(false),
            commands,
            worker: Mutex::default(),
            draining: AtomicBool::new(false),
            metrics: Metrics::default(),
            rates: Rates::default(),
            preferences: Mutex::default(),
            questions: Questions::default(),
            body_room: Arc::new(Semaphore::new(MAX_BODIES)),
            turns: Semaphore::new(MAX_TURNS),
            accepting: Accepting::default(),
            ended,
            options,
            _lock: lock,
        };
        let broker = server.broker.clone();
        server.events.listen(move |job, name, data| broker.tell(job, name, data));
        Ok((Arc::new(server), inbox))
    }

    /// Writes a line to the log.
    pub fn log(&self, line: &str) {
        tracing::info!("{}", one_line(line));
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
        if let Some(model) = self.broker.preferred(owner) {
            return Some(model);
        }
        self.preferences.lock().unwrap_or_else(PoisonError::into_inner).get(owner).cloned()
    }

    /// Makes `model` the default of `owner`. There are no more owners than keys.
    ///
    /// # Errors
    /// 503 if other processes must know it and cannot be told.
    pub fn prefer(&self, owner: &str, model: String) -> std::result::Result<(), Fault> {
        blocking(|| self.broker.prefer(owner, &model))?;
        let mut preferences = self.preferences.lock().unwrap_or_else(PoisonError::into_inner);
        preferences.insert(owner.to_string(), model);
        Ok(())
    }

    /// Whether the server takes no more jobs.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Why no job that is sent now would be drawn; `None` if one would be.
    pub fn why_not_ready(&self) -> Option<&'static str> {
        if self.is_draining() {
            Some("the server is about to end")
        } else if !self.broker.is_reachable() {
            Some("the broker is out of reach")
        } else if !self.worker().ready {
            Some("no worker can draw")
        } else {
            None
        }
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

    /// Waits for a turn to change the list of jobs. A thread is blocked for each change, so that
    /// without turns a thousand clients that hang up would leave none for other requests.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
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
    pub async fn cancel(&self, id: &str, owner: &str) -> std::result::Result<Job, Fault> {
        let _turn = self.turn().await;
        let cancelled = blocking(|| self.broker.cancel(id, owner))?
            .ok_or_else(|| Fault::not_found("there is no job of this id"))?;
        Ok(match cancelled {
            Cancelled::Queued(job) => {
                self.publish_outcome(&job);
                job
            }
            Cancelled::Running(job) => {
                self.publish_status(&job);
                self.commands.send(Command::Cancel(job.id.clone())).ok();
                job
            }
            Cancelled::Over(job) => job,
        })
    }

    /// Tells those who watch `job` what state it is in.
    pub fn publish_status(&self, job: &Job) {
        self.events.publish(&job.id, "status", status_json(job));
    }

    /// Tells those who watch `job` that it was accepted, unless it runs already.
    pub fn publish_accepted(&self, job: &Job) {
        self.events.publish_first(&job.id, "status", status_json(job));
    }

    /// Tells those who watch `job`, which is over, of its images and its end.
    pub fn publish_outcome(&self, job: &Job) {
        if self.events.is_over(&job.id) {
            return;
        }
        for (number, output) in job.outputs.iter().enumerate() {
            let (width, height) = (output.width, output.height);
            let output = json!({"number": number, "width": width, "height": height});
            self.events.publish(&job.id, "output", output);
        }
        self.publish_end(job);
    }

    /// Tells those who watch `job` that it is over, once.
    fn publish_end(&self, job: &Job) {
        if !self.events.end(&job.id) {
            return;
        }
        self.metrics.job_ended(job.state.name());
        self.events.reset(&job.id, true);
        self.publish_status(job);
        let has_webhook = job.spec.as_ref().is_some_and(|spec| spec.webhook.is_some());
        if has_webhook && self.broker.calls_here() {
            self.ended.send(job.clone()).ok();
        }
    }

    /// Frees the memory of the model, once its job is over. The next job opens it again. Workers of
    /// other machines keep theirs: one client does not know who else draws with it.
    pub fn unload(&self) {
        if self.broker.workers().is_some() {
            self.log(
                "a client asked for memory to be freed: workers of a cluster keep their models",
            );
        }
        self.commands.send(Command::Unload).ok();
    }

    /// Stops the job with this id, if the worker of this process draws it.
    pub fn stop_job(&self, id: String) {
        self.commands.send(Command::Cancel(id)).ok();
    }

    /// Has the address of `job` called, which is over.
    pub fn call(&self, job: Job) {
        self.ended.send(job).ok();
    }

    /// The bytes of the result called `name`.
    ///
    /// # Errors
    /// 410 if it was deleted, 503 if the machine that has it is out of reach.
    pub fn result(&self, name: &str) -> std::result::Result<Vec<u8>, Fault> {
        let path = self.data.result(name);
        blocking(|| match std::fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(_) => {
                self.broker.fetch(name, &path)?;
                std::fs::read(&path).map_err(|_| expired())
            }
        })
    }

    /// The images that clients left for later requests.
    pub fn uploads(&self) -> &dyn Uploads {
        self.broker.uploads().unwrap_or(&self.store)
    }

    /// How far a job is, and its place in the queue, as JSON.
    pub fn progress(&self, job: &Job) -> (Value, Option<usize>) {
        match job.state {
            State::Queued => {
                (json!(null), blocking(|| self.broker.place(&job.id)).map(|place| place.position))
            }
            State::Running | State::Canceling => {
                (progress_json(&self.events.channel(&job.id).progress()), None)
            }
            _ => (json!(null), None),
        }
    }

    /// Now, in seconds since 1970.
    pub fn now(&self) -> f64 {
        self.broker.clock().seconds()
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
        let now = server.now();
        match blocking(|| server.broker.expire(now - ttl, now - ROWS_KEPT)) {
            Ok(ids) => blocking(|| ids.iter().for_each(|id| server.data.delete(id))),
            Err(fault) => server.log(&format!("expired results stay: {}", fault.message)),
        }
        server.events.sweep();
        blocking(|| server.store.sweep());
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}
