//! Which job a worker gets, and which worker is woken for a job: a function of what waits, of the
//! workers, and of the time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::mirror::Mirror;
use crate::server::broker::WorkerFacts;
use crate::server::broker::fair::Waiting;
use crate::server::broker::queue::Passing;
use crate::server::clock::SECOND;

/// How long a job waits for a worker that has its model in memory and is busy, in seconds, before
/// another one opens the model for it.
const PATIENCE: f64 = 10.0;

/// What whoever gives jobs out remembers of workers.
#[derive(Debug, Default)]
pub struct Schedule {
    passing: HashMap<String, Passing>,
    /// The workers that asked and got nothing, with the model that they hold.
    idle: HashMap<String, Option<String>>,
}

/// A worker that asks, among the others.
struct View<'a> {
    worker: &'a WorkerFacts,
    held: Option<&'a str>,
    live: &'a [Arc<WorkerFacts>],
    /// How many wait for each model, and the seconds that they take.
    backlog: &'a HashMap<String, (usize, f64)>,
    now: i64,
}

impl View<'_> {
    /// Whether the worker may draw a job: it has all that it needs, and the job does not wait for
    /// another worker with the model in its memory, which is soon free.
    fn suits(&self, job: &Waiting, loras: &[String], since: i64) -> bool {
        if !self.worker.has_model(&job.model) || !loras.iter().all(|l| self.worker.has_lora(l)) {
            return false;
        }
        if self.held == Some(job.model.as_str()) {
            return true;
        }
        let holders = self.live.iter().filter(|other| {
            other.id != self.worker.id && other.ready && other.held.as_deref() == Some(&job.model)
        });
        let holders = holders.count() as f64;
        let waited = (self.now - since) as f64 / SECOND as f64;
        let seconds = self.backlog.get(&job.model).map_or(0.0, |(_, seconds)| *seconds);
        holders == 0.0 || waited >= PATIENCE || seconds / holders >= PATIENCE
    }
}

impl Schedule {
    /// Takes the next job for the live worker called `id`, which holds `held`, at `now` (in
    /// nanoseconds), out of the queue. Without one the worker is idle.
    pub fn choose(
        &mut self,
        mirror: &mut Mirror,
        live: &[Arc<WorkerFacts>],
        id: &str,
        held: Option<&str>,
        now: i64,
    ) -> Option<Waiting> {
        self.passing.retain(|id, _| live.iter().any(|worker| worker.id == *id));
        self.idle.retain(|id, _| live.iter().any(|worker| worker.id == *id));
        // One that was not heard yet says what it has a moment later.
        let worker = live.iter().find(|worker| worker.id == id)?;
        let view = View { worker, held, live, backlog: &mirror.queued_per_model(), now };
        let passing = self.passing.entry(id.to_string()).or_default();
        let job = mirror.pop_for(held, passing, now, |job, record| {
            view.suits(job, &record.loras(), record.instant)
        });
        match job {
            Some(_) => self.idle.remove(id),
            None => self.idle.insert(id.to_string(), held.map(str::to_string)),
        };
        job
    }

    /// The idle workers to be woken at `now`: at most one per job, those first that hold its model.
    /// They are not idle any more.
    pub fn wake(&mut self, mirror: &Mirror, live: &[Arc<WorkerFacts>], now: i64) -> Vec<String> {
        if self.idle.is_empty() || mirror.queue.len() == 0 {
            return Vec::new();
        }
        let backlog = mirror.queued_per_model();
        let mut left: HashMap<&str, usize> =
            backlog.iter().map(|(model, (count, _))| (model.as_str(), *count)).collect();
        let mut woken = HashSet::new();
        for (id, held) in &self.idle {
            if let Some(count) = held.as_deref().and_then(|model| left.get_mut(model))
                && *count > 0
            {
                *count -= 1;
                woken.insert(id.clone());
            }
        }
        let others = self.idle.iter().filter(|(id, _)| !woken.contains(*id)).collect::<Vec<_>>();
        for (id, held) in others {
            let Some(worker) = live.iter().find(|worker| worker.id == *id) else { continue };
            let view = View { worker, held: held.as_deref(), live, backlog: &backlog, now };
            let suits = |job: &Waiting| {
                let record = mirror.get(&job.id).map(|(record, _)| record);
                record.is_some_and(|record| view.suits(job, &record.loras(), record.instant))
                    && left.get(job.model.as_str()).is_some_and(|count| *count > 0)
            };
            if let Some(model) = mirror.queue.find(suits).map(|job| job.model.clone()) {
                woken.insert(id.clone());
                if let Some(count) = left.get_mut(model.as_str()) {
                    *count -= 1;
                }
            }
        }
        self.idle.retain(|id, _| !woken.contains(id));
        woken.into_iter().collect()
    }
}
