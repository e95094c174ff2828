//! The queue of jobs, behind one trait: front doors and workers know only this.

mod fair;
mod local;
mod queue;

use std::sync::Arc;

pub use local::LocalBroker;

use super::clock::Clock;
use super::fault::Fault;
use super::job::{Job, JobSpec, Lane, Outcome};
use super::limits::{Charge, Limit, Plan, Standing};

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
        /// The names of those limits.
        violated: Vec<String>,
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
}
