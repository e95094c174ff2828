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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::broker::nats::mirror::tests::record;
    use crate::server::broker::nats::record::Record;
    use crate::server::models::Listed;

    fn worker(id: &str, held: Option<&str>, models: &[&str]) -> Arc<WorkerFacts> {
        Arc::new(WorkerFacts {
            id: id.into(),
            ready: true,
            models: models.iter().map(|name| Listed::named(name)).collect(),
            held: held.map(str::to_string),
            ..WorkerFacts::default()
        })
    }

    fn mirror(jobs: &[(&str, &str)]) -> Mirror {
        let mut mirror = Mirror::default();
        mirror.loaded();
        for (at, (id, model)) in jobs.iter().enumerate() {
            let model = model.to_string();
            mirror.apply(Record { model, ..record(id, at as i64) }, at as u64 + 1);
        }
        mirror
    }

    #[test]
    fn a_job_waits_for_the_worker_that_holds_its_model_but_not_for_long() {
        let live = [worker("a", Some("m"), &["m", "n"]), worker("b", Some("n"), &["m", "n"])];
        let mut queue = mirror(&[("1", "m"), ("2", "m"), ("3", "n")]);
        let mut schedule = Schedule::default();
        let mut ask = |queue: &mut Mirror, id: &str, held: &str, seconds: i64| {
            let job = schedule.choose(queue, &live, id, Some(held), seconds * SECOND);
            job.map(|job| job.id)
        };
        // The other worker gets what it holds, although it is the turn of another job.
        assert_eq!(ask(&mut queue, "b", "n", 1).as_deref(), Some("3"));
        assert_eq!(ask(&mut queue, "b", "n", 2), None, "a will draw them");
        assert_eq!(ask(&mut queue, "a", "m", 3).as_deref(), Some("1"));
        // Nobody waits for more than ten seconds for a busy worker.
        assert_eq!(ask(&mut queue, "b", "n", 11).as_deref(), Some("2"));
        assert_eq!(ask(&mut queue, "unknown", "n", 12), None);

        // Nor if too much waits for it: ten jobs of a second.
        let names: Vec<String> = (0..11).map(|n| n.to_string()).collect();
        let jobs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "m")).collect();
        let mut queue = mirror(&jobs);
        assert_eq!(ask(&mut queue, "b", "n", 1).as_deref(), Some("0"));
        assert_eq!(ask(&mut queue, "b", "n", 1).as_deref(), Some("1"));
        assert_eq!(ask(&mut queue, "b", "n", 1), None);
    }

    #[test]
    fn a_worker_gets_only_what_it_has_and_those_that_hold_a_model_are_woken_first() {
        let live = [
            worker("a", Some("m"), &["m"]),
            worker("b", Some("n"), &["m", "n"]),
            worker("c", None, &["x"]),
        ];
        let mut queue = mirror(&[]);
        let mut schedule = Schedule::default();
        for (id, held) in [("a", Some("m")), ("b", Some("n")), ("c", None)] {
            assert_eq!(schedule.choose(&mut queue, &live, id, held, 0), None);
        }
        assert!(schedule.wake(&queue, &live, 0).is_empty());
        let mut queue = mirror(&[("1", "m")]);
        assert_eq!(schedule.choose(&mut queue, &live, "c", None, 0), None);
        assert_eq!(schedule.wake(&queue, &live, 0), ["a"]);
        assert!(schedule.wake(&queue, &live, 0).is_empty(), "it is awake");
        // One that does not hold the model is woken once the job has waited.
        assert_eq!(schedule.wake(&queue, &live, 11 * SECOND), ["b"]);
    }
}
