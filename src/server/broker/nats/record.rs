//! A job as it is stored in the bucket of jobs: one key, one JSON object, one revision per change.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::server::broker::NewJob;
use crate::server::broker::fair::Waiting;
use crate::server::clock::SECOND;
use crate::server::fault::Fault;
use crate::server::job::{Job, JobSpec, Lane, Outcome, Output, State};
use crate::server::limits::Charge;

/// How often a job is given to a worker. The third time that its worker dies, the job has failed.
pub const MAX_ATTEMPTS: u32 = 3;

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub owner: String,
    pub state: State,
    #[serde(default)]
    pub spec: Option<JobSpec>,
    pub model: String,
    pub lane: Lane,
    pub cost: f64,
    /// When it was accepted, in nanoseconds since 1970.
    pub instant: i64,
    /// What counts in the limits of its owner.
    pub charge: Charge,
    #[serde(default)]
    pub started: Option<f64>,
    #[serde(default)]
    pub finished: Option<f64>,
    #[serde(default)]
    pub attempts: u32,
    #[serde(default)]
    pub outputs: Vec<Output>,
    #[serde(default)]
    pub settings: Option<Value>,
    #[serde(default)]
    pub fault: Option<Fault>,
    /// The same for jobs with the same images.
    #[serde(default)]
    pub alike: String,
    /// A hash of what the client sent with an idempotency key.
    #[serde(default)]
    pub sent: Option<String>,
    /// An address must still be called once it is over.
    #[serde(default)]
    pub owes_call: bool,
    /// The worker that has it.
    #[serde(default)]
    pub worker: Option<String>,
    /// Its limits exist: they are told when it fails.
    #[serde(default)]
    pub limited: bool,
}

impl Record {
    /// A job that is accepted at `now`, in nanoseconds.
    pub fn new(new: &NewJob, now: i64) -> Self {
        Record {
            id: new.id.clone(),
            owner: new.owner.clone(),
            state: State::Queued,
            spec: Some(new.spec.clone()),
            model: new.spec.model.clone(),
            lane: new.lane,
            cost: new.cost,
            instant: now,
            charge: new.charge,
            started: None,
            finished: None,
            attempts: 0,
            outputs: Vec::new(),
            settings: None,
            fault: None,
            alike: new.alike.clone(),
            sent: new.idempotency.as_ref().map(|(_, sent)| sent.clone()),
            owes_call: new.spec.webhook.is_some(),
            worker: None,
            limited: new.plan.is_some(),
        }
    }

    /// The job for everything above the broker.
    pub fn job(&self) -> Job {
        Job {
            id: self.id.clone(),
            owner: self.owner.clone(),
            spec: self.spec.clone(),
            state: self.state,
            created: self.instant as f64 / SECOND as f64,
            started: self.started,
            finished: self.finished,
            attempts: self.attempts,
            outputs: self.outputs.clone(),
            settings: self.settings.clone(),
            fault: self.fault.clone(),
        }
    }

    /// Whether it was made of another request than `new`, which has the same id.
    pub fn differs_from(&self, new: &NewJob) -> bool {
        let sent = new.idempotency.as_ref().map(|(_, sent)| sent);
        self.sent.is_some() && sent.is_some() && self.sent.as_ref() != sent
    }

    /// The job in the queue.
    pub fn waiting(&self) -> Waiting {
        let (id, owner, model) = (self.id.clone(), self.owner.clone(), self.model.clone());
        Waiting { id, owner, lane: self.lane, model, cost: self.cost }
    }

    /// The names of the LoRAs that it needs.
    pub fn loras(&self) -> Vec<String> {
        self.spec.as_ref().map(JobSpec::loras).unwrap_or_default()
    }

    /// Whether a worker has it.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running | State::Canceling)
    }

    /// It is given to `worker` at `now`, in seconds; `None` if it does not wait any more.
    pub fn taken(&self, worker: &str, now: f64) -> Option<Record> {
        (self.state == State::Queued).then(|| Record {
            state: State::Running,
            started: Some(now),
            attempts: self.attempts + 1,
            worker: Some(worker.into()),
            ..self.clone()
        })
    }

    /// It is taken from `worker`; `counts` says whether the attempt counts. `None` if that worker
    /// does not have it.
    pub fn given_back(&self, worker: &str, counts: bool, now: f64) -> Option<Record> {
        if !self.is_running() || self.worker.as_deref() != Some(worker) {
            return None;
        }
        let attempts = self.attempts.saturating_sub(u32::from(!counts));
        if self.state == State::Canceling {
            return self.ended(&Outcome::Canceled, now);
        }
        if attempts >= MAX_ATTEMPTS {
            return self.ended(&Outcome::Failed(worker_died()), now);
        }
        let state = State::Queued;
        Some(Record { state, started: None, attempts, worker: None, ..self.clone() })
    }

    /// It ends at `now`, in seconds; `None` if it is over already.
    pub fn ended(&self, outcome: &Outcome, now: f64) -> Option<Record> {
        if self.state.is_final() {
            return None;
        }
        let mut record = Record { state: outcome.state(), finished: Some(now), ..self.clone() };
        match outcome {
            Outcome::Succeeded { outputs, settings } => {
                record.outputs.clone_from(outputs);
                record.settings = Some(settings.clone());
            }
            Outcome::Failed(fault) => record.fault = Some(fault.clone()),
            Outcome::Canceled => {}
        }
        Some(record)
    }

    /// The record after `worker` reports `outcome`. Images always count, because every worker draws
    /// the same ones: the seed is fixed. Any other outcome counts only if the worker still has the
    /// job.
    pub fn ended_by(&self, worker: &str, outcome: &Outcome, now: f64) -> Option<Record> {
        let is_its = self.is_running() && self.worker.as_deref() == Some(worker);
        match outcome {
            Outcome::Succeeded { .. } => self.ended(outcome, now),
            _ if is_its => self.ended(outcome, now),
            _ => None,
        }
    }

    /// Without its data, which has expired.
    pub fn expired(&self) -> Option<Record> {
        if !self.state.is_final() || self.spec.is_none() || self.owes_call {
            return None;
        }
        let state = if self.state == State::Succeeded { State::Expired } else { self.state };
        Some(Record { state, spec: None, settings: None, outputs: Vec::new(), ..self.clone() })
    }
}

/// The fault of a job whose workers died.
pub fn worker_died() -> Fault {
    let message = format!("the workers that drew this job died, {MAX_ATTEMPTS} times");
    Fault::new(500, "worker_died", message)
        .hint("see the logs of the workers; a smaller image needs less memory")
}
