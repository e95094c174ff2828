//! The queue of jobs, behind one trait: front doors and workers know only this.

mod fair;
mod local;
#[cfg(feature = "nats")]
mod nats;
#[cfg_attr(not(feature = "nats"), allow(dead_code, reason = "nobody else speaks"))]
mod news;
mod queue;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

pub use local::LocalBroker;
#[cfg(feature = "nats")]
pub use nats::{FrontBroker, Measured, Simulation, WorkerBroker, cluster_status, simulate};
pub use news::{Catalog, News, WorkerFacts, Workers};

use super::clock::Clock;
use super::fault::Fault;
use super::job::{Job, JobSpec, Lane, Outcome};
use super::limits::{Charge, Limit, Plan, Standing};
use super::questions::PlanQuery;
use super::uploads::Uploads;

/// A job that is to be accepted.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id, from [`random_hex`](super::job::random_hex).
    pub id: String,
    /// Whose it is.
    pub owner: String,
    /// What to draw.
    pub spec: JobSpec,
    /// How urgent it is.
    pub lane: Lane,
    /// The seconds that it is expected to take: for the fair order, and to predict when jobs end.
    pub cost: f64,
    /// The limits of its owner; `None` for none.
    pub plan: Option<Arc<Plan>>,
    /// The amounts that count in those limits.
    pub charge: Charge,
    /// The client's idempotency key, and a hash of what it sent.
    pub idempotency: Option<(String, String)>,
    /// A hash that is the same for jobs with the same images.
    pub alike: String,
}

impl NewJob {
    /// For tests and simulations: a job of the normal lane that takes a second, without limits or
    /// an idempotency key.
    #[cfg(any(test, feature = "nats"))]
    pub fn new(id: impl Into<String>, owner: impl Into<String>, spec: JobSpec) -> NewJob {
        NewJob {
            id: id.into(),
            owner: owner.into(),
            spec,
            lane: Lane::Normal,
            cost: 1.0,
            plan: None,
            charge: Charge::default(),
            idempotency: None,
            alike: String::new(),
        }
    }
}

/// The result of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// A new job, and how the limits of its owner stand.
    New(Job, Vec<Standing>),
    /// The job that was submitted with the same idempotency key before.
    Same(Job),
    /// Nothing was accepted: it would exceed limits of its owner.
    Limited {
        /// Nanoseconds until the windows have room; `None` if only the end of a job makes room.
        wait: Option<i64>,
        /// Those limits.
        violated: Vec<Limit>,
        /// How all limits stand.
        standings: Vec<Standing>,
    },
    /// Nothing was accepted: it exceeds a limit by itself, by needing this amount.
    Never(Limit, u64),
}

/// Where a queued job is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// How many jobs will be taken before it, if none is added.
    pub position: usize,
    /// The seconds that those are expected to take.
    pub seconds_ahead: f64,
}

/// The result of a request to cancel.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// The job was queued and is over.
    Queued(Job),
    /// The job runs; its worker must be told.
    Running(Job),
    /// It was over already.
    Over(Job),
}

/// How many jobs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Waiting.
    pub queued: usize,
    /// With a worker.
    pub running: usize,
}

/// A durable queue. Every call may wait for the disk.
pub trait Broker: Send + Sync {
    /// Accepts a job. It is durable before this returns.
    ///
    /// # Errors
    /// 503 `queue_full`, 422 `idempotency_key_reuse`, 500 if it cannot be stored.
    fn submit(&self, job: NewJob) -> Result<Submitted, Fault>;

    /// The id of the job of `owner` with the idempotency key `key`, where several processes may
    /// accept it at the same time. `None` if one process accepts all jobs: any id will do.
    fn id_of(&self, _owner: &str, _key: &str) -> Option<String> {
        None
    }

    /// Takes the next job, which then runs: the next of the fair order, or one for the model
    /// `held`, which is in memory, for as long as that does not keep others waiting for long.
    fn next(&self, held: Option<&str>) -> Result<Option<Job>, Fault>;

    /// Takes a queued job whose images are those of the job `id`; the job runs then, even if it is
    /// another owner's turn, since nothing is left to draw.
    fn next_alike(&self, id: &str) -> Result<Option<Job>, Fault>;

    /// Puts a running job back in front of the queue. `counts` says whether the attempt counts.
    fn give_back(&self, id: &str, counts: bool) -> Result<(), Fault>;

    /// Ends a job. One that is over already stays as it is.
    fn finish(&self, id: &str, outcome: Outcome) -> Result<(), Fault>;

    /// Ends a queued job, or marks a running one; `None` if `owner` has no such job.
    fn cancel(&self, id: &str, owner: &str) -> Result<Option<Cancelled>, Fault>;

    /// The job of `owner` with this id.
    fn job(&self, id: &str, owner: &str) -> Result<Option<Job>, Fault>;

    /// The newest jobs of `owner`, at most `limit`.
    fn list(&self, owner: &str, limit: usize) -> Result<Vec<Job>, Fault>;

    /// The jobs of `owner` that wait or run, the oldest first.
    fn active(&self, owner: &str) -> Result<Vec<Job>, Fault>;

    /// The jobs that are over and whose [`Webhook`](super::webhook::Webhook) must still be called,
    /// the oldest first. Their data is kept until then.
    fn owed_calls(&self) -> Result<Vec<Job>, Fault>;

    /// Notes that the address of a job was called, or is given up.
    fn call_settled(&self, id: &str) -> Result<(), Fault>;

    /// Gives the images of a job back to the limits of its owner. Jobs that fail, and those that
    /// are cancelled while they are queued, are refunded without this.
    fn refund(&self, id: &str) -> Result<(), Fault>;

    /// The place of a queued job; `None` if it is not queued.
    fn place(&self, id: &str) -> Option<Place>;

    /// How many jobs wait and run.
    fn counts(&self) -> Counts;

    /// Takes the data of jobs that ended before `data_before` (seconds since 1970), and forgets
    /// those that ended before `rows_before`. Returns the ids whose files are to be deleted.
    fn expire(&self, data_before: f64, rows_before: f64) -> Result<Vec<String>, Fault>;

    /// Takes the data of a job of `owner` that is over, as if it had expired. Returns whether it
    /// had some: its files are to be deleted then.
    fn forget(&self, id: &str, owner: &str) -> Result<bool, Fault>;

    /// The clock of instants in jobs.
    fn clock(&self) -> &Clock;

    /// How often a job is given to a worker before it counts as the cause of its failures.
    fn max_attempts(&self) -> u32;

    /// What other processes say, for the caller that asks first. One machine hears nothing.
    fn news(&self) -> Option<UnboundedReceiver<News>> {
        None
    }

    /// Tells the other processes what happens to a job that is drawn in this one.
    fn tell(&self, _job: &str, _name: &str, _data: &Value) {}

    /// Tells the other processes what this one can draw, and that it lives.
    fn describe(&self, _facts: WorkerFacts) {}

    /// The workers of other processes; `None` if jobs are drawn by a worker of this one.
    fn workers(&self) -> Option<Workers> {
        None
    }

    /// Whether jobs can be accepted now, as far as that is known without asking anybody.
    fn is_reachable(&self) -> bool {
        true
    }

    /// Asks the worker of another process what a request would cost.
    ///
    /// # Errors
    /// 503 if none answers, and the worker's.
    fn ask(&self, _query: &PlanQuery) -> Result<Value, Fault> {
        Err(super::questions::busy())
    }

    /// Brings the result called `name` to `path`, if another machine has drawn it.
    ///
    /// # Errors
    /// 410 if it is nowhere, 503 if the other machine is out of reach.
    fn fetch(&self, _name: &str, _path: &Path) -> Result<(), Fault> {
        Err(super::wait::expired())
    }

    /// The images that clients left for later requests, if the broker stores them for all fronts.
    fn uploads(&self) -> Option<&dyn Uploads> {
        None
    }

    /// Whether this process calls the addresses of jobs that are over.
    fn calls_here(&self) -> bool {
        true
    }

    /// The secret by which all processes sign links; `None` if there is one process only.
    fn secret(&self) -> Option<String> {
        None
    }

    /// The model that `owner` has chosen as its default, if other processes must know it.
    fn preferred(&self, _owner: &str) -> Option<String> {
        None
    }

    /// Tells other processes the model that `owner` has chosen as its default.
    ///
    /// # Errors
    /// 503 if they are out of reach.
    fn prefer(&self, _owner: &str, _model: &str) -> Result<(), Fault> {
        Ok(())
    }

    /// The process ends: what it held is free for others.
    fn leave(&self) {}
}
