//! All jobs in the memory of a front: what the bucket of jobs contains, and the queue that follows
//! from it. Every front has the same, a moment later than the broker.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::record::Record;
use crate::server::broker::Counts;
use crate::server::broker::fair::Waiting;
use crate::server::broker::queue::{JobQueue, Passing};
use crate::server::job::State;

/// The most jobs without data that are remembered.
const MAX_ROWS: usize = 100_000;

/// A change of a job that is new to this front.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub record: Arc<Record>,
    /// Its state before; `None` if it was not known.
    pub before: Option<State>,
}

/// The jobs.
#[derive(Default)]
pub struct Mirror {
    /// Each with its revision.
    jobs: HashMap<String, (Arc<Record>, u64)>,
    /// The jobs of each owner, by the instant at which they were accepted.
    owners: HashMap<String, BTreeSet<(i64, String)>>,
    /// The jobs that wait.
    pub queue: JobQueue,
    running: HashSet<String>,
    /// The jobs that are over and whose address must still be called.
    owed: HashSet<String>,
    /// The default model of owners who chose one.
    pub preferred: HashMap<String, String>,
    /// The queue is not built before all jobs are there: they come in the order of their changes.
    loaded: bool,
}

impl Mirror {
    /// The job called `id`, with its revision.
    pub fn get(&self, id: &str) -> Option<&(Arc<Record>, u64)> {
        self.jobs.get(id)
    }

    /// Takes note of `record`, which is `revision` of its job. Returns it if it is news.
    pub fn apply(&mut self, record: Record, revision: u64) -> Option<Seen> {
        let known = self.jobs.get(&record.id);
        if known.is_some_and(|(_, known)| *known >= revision) {
            return None;
        }
        let before = known.map(|(known, _)| known.state);
        let record = Arc::new(record);
        let id = record.id.clone();
        let owned = self.owners.entry(record.owner.clone()).or_default();
        owned.insert((record.instant, id.clone()));
        if record.is_running() {
            self.running.insert(id.clone());
        } else {
            self.running.remove(&id);
        }
        if record.state.is_final() && record.owes_call {
            self.owed.insert(id.clone());
        } else {
            self.owed.remove(&id);
        }
        if self.loaded {
            self.enqueue(&record, before);
        }
        self.jobs.insert(id, (record.clone(), revision));
        Some(Seen { record, before })
    }

    /// Puts a job into the queue or takes it out.
    fn enqueue(&mut self, record: &Record, before: Option<State>) {
        let is_queued = record.state == State::Queued;
        match before {
            None if is_queued => self.queue.push(record.waiting()),
            Some(State::Running | State::Canceling) if is_queued => {
                self.queue.push_front(record.waiting());
            }
            // The leader has taken it already.
            Some(State::Queued) if record.is_running() => drop(self.queue.pop_known(&record.id)),
            Some(State::Queued) if !is_queued => drop(self.queue.remove(&record.id)),
            _ => {}
        }
    }

    /// All jobs are there: builds the queue.
    pub fn loaded(&mut self) {
        if std::mem::replace(&mut self.loaded, true) {
            return;
        }
        let queued = self.jobs.values().filter(|(record, _)| record.state == State::Queued);
        let mut queued: Vec<&Arc<Record>> = queued.map(|(record, _)| record).collect();
        queued.sort_by_key(|record| (record.instant, &record.id));
        queued.iter().for_each(|record| self.queue.push(record.waiting()));
    }

    /// Whether all jobs are there.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// The job called `id` is not in the bucket any more.
    pub fn remove(&mut self, id: &str) {
        let Some((record, _)) = self.jobs.remove(id) else { return };
        self.queue.remove(id);
        self.running.remove(id);
        self.owed.remove(id);
        if let Some(owned) = self.owners.get_mut(&record.owner) {
            owned.remove(&(record.instant, id.to_string()));
            if owned.is_empty() {
                self.owners.remove(&record.owner);
            }
        }
    }

    /// Takes the next job for a worker that holds the model `held` out of the queue, among those
    /// that are `suitable`: see [`JobQueue::pop_for`].
    pub fn pop_for(
        &mut self,
        held: Option<&str>,
        passing: &mut Passing,
        now: i64,
        suitable: impl Fn(&Waiting, &Record) -> bool,
    ) -> Option<Waiting> {
        let Mirror { jobs, queue, .. } = self;
        queue.pop_for(held, passing, now, |job| {
            jobs.get(&job.id).is_some_and(|(record, _)| suitable(job, record))
        })
    }

    /// The jobs of `owner`, the oldest first.
    pub fn of_owner(&self, owner: &str) -> impl DoubleEndedIterator<Item = &Arc<Record>> {
        let owned = self.owners.get(owner).into_iter().flatten();
        owned.filter_map(|(_, id)| self.jobs.get(id).map(|(record, _)| record))
    }

    /// The jobs that workers have.
    pub fn running(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.running.iter().filter_map(|id| self.jobs.get(id).map(|(record, _)| record))
    }

    /// The jobs that are over and whose address must still be called, the oldest first.
    pub fn owed(&self) -> Vec<Arc<Record>> {
        let jobs = self.owed.iter().filter_map(|id| self.jobs.get(id));
        let mut jobs: Vec<_> = jobs.map(|(record, _)| record.clone()).collect();
        jobs.sort_by_key(|record| record.instant);
        jobs
    }

    /// A queued job with the same images as the job `id`: the oldest.
    pub fn alike(&self, id: &str) -> Option<Arc<Record>> {
        let (job, _) = self.jobs.get(id)?;
        let mut first: Option<&Arc<Record>> = None;
        self.queue.for_each(|waiting| {
            if let Some((record, _)) = self.jobs.get(&waiting.id)
                && record.alike == job.alike
                && first.is_none_or(|first| record.instant < first.instant)
            {
                first = Some(record);
            }
        });
        first.cloned()
    }

    /// The jobs that ended before `data_before` and have data, and those that ended before
    /// `rows_before`, in seconds since 1970. The oldest of the latter are listed whatever their
    /// age, if there are more than `MAX_ROWS`.
    pub fn old(&self, data_before: f64, rows_before: f64) -> (Vec<Arc<Record>>, Vec<String>) {
        let ended = |record: &Record, before| record.finished.is_some_and(|at| at < before);
        let all = || self.jobs.values().map(|(record, _)| record);
        let data = all().filter(|r| r.spec.is_some() && !r.owes_call && ended(r, data_before));
        let mut rows: Vec<_> =
            all().filter(|r| r.spec.is_none() && !r.owes_call && r.state.is_final()).collect();
        rows.sort_by_key(|record| record.instant);
        let too_many = rows.len().saturating_sub(MAX_ROWS);
        let rows = rows.iter().enumerate().filter(|(n, r)| *n < too_many || ended(r, rows_before));
        (data.cloned().collect(), rows.map(|(_, record)| record.id.clone()).collect())
    }

    /// How many jobs there are.
    pub fn counts(&self) -> Counts {
        Counts { queued: self.queue.len(), running: self.running.len() }
    }

    /// How many jobs wait for each model, and the seconds that they will take.
    pub fn queued_per_model(&self) -> HashMap<String, (usize, f64)> {
        let mut models: HashMap<String, (usize, f64)> = HashMap::new();
        self.queue.for_each(|job| {
            let entry = models.entry(job.model.clone()).or_default();
            *entry = (entry.0 + 1, entry.1 + job.cost);
        });
        models
    }

    /// The newest instant at which a job was accepted.
    pub fn newest(&self) -> i64 {
        self.jobs.values().map(|(record, _)| record.instant).max().unwrap_or(0)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::pipeline::request::Request;
    use crate::server::broker::NewJob;
    use crate::server::job::{JobSpec, Outcome};

    pub fn record(id: &str, instant: i64) -> Record {
        let spec = JobSpec::new(Request::new("a fox").seed(u64::MAX), "m");
        let new = NewJob { alike: "same".into(), ..NewJob::new(id, "x", spec) };
        Record::new(&new, instant)
    }

    #[test]
    fn the_queue_follows_from_the_jobs_in_whatever_order_they_come() {
        let mut mirror = Mirror::default();
        // The older job was changed last, so that it comes last.
        mirror.apply(record("b", 2), 5);
        mirror.apply(record("a", 1), 9);
        mirror.loaded();
        assert_eq!(mirror.queue.place("a").unwrap().position, 0);
        let running = record("a", 1).taken("w", 3.0).unwrap();
        let seen = mirror.apply(running.clone(), 10).unwrap();
        assert_eq!((seen.before, mirror.counts().queued), (Some(State::Queued), 1));
        // The same again, and what was before it, are no news.
        assert_eq!(mirror.apply(running.clone(), 10), None);
        assert_eq!(mirror.apply(record("a", 1), 9), None);
        assert_eq!(mirror.running().count(), 1);
        assert_eq!(mirror.alike("a").map(|r| r.id.clone()).as_deref(), Some("b"));
        // Back in front.
        mirror.apply(running.given_back("w", true, 4.0).unwrap(), 11);
        assert_eq!(mirror.queue.place("a").unwrap().position, 0);
        assert_eq!(mirror.counts(), Counts { queued: 2, running: 0 });
        mirror.apply(record("a", 1).ended(&Outcome::Canceled, 5.0).unwrap(), 12);
        assert_eq!(mirror.of_owner("x").count(), 2);
        mirror.remove("a");
        mirror.remove("b");
        assert_eq!((mirror.of_owner("x").count(), mirror.counts().queued), (0, 0));
    }

    #[test]
    fn a_job_fails_at_the_third_death_of_a_worker_and_only_its_worker_fails_it() {
        let mut job = record("a", 1);
        for attempt in 1..=3 {
            job = job.taken("w", 1.0).unwrap();
            assert_eq!(job.attempts, attempt);
            assert_eq!(job.taken("v", 1.0), None, "it does not wait");
            assert_eq!(job.given_back("v", true, 1.0), None, "it is with another");
            // A worker that ends in good order is not the job's fault.
            let back = job.given_back("w", false, 1.0).unwrap();
            assert_eq!((back.state, back.attempts), (State::Queued, attempt - 1));
            job = job.given_back("w", true, 1.0).unwrap();
        }
        assert_eq!(job.state, State::Failed);
        assert_eq!(job.fault.clone().unwrap().code, "worker_died");

        let job = record("a", 1).taken("w", 1.0).unwrap();
        let again = job.given_back("w", true, 1.0).unwrap().taken("v", 2.0).unwrap();
        let failed = Outcome::Failed(worker_fault());
        assert_eq!(again.ended_by("w", &failed, 3.0), None, "it lost the job");
        let images = Outcome::Succeeded { outputs: Vec::new(), settings: serde_json::json!({}) };
        let done = again.ended_by("w", &images, 3.0).unwrap();
        assert_eq!(done.state, State::Succeeded);
        assert_eq!(done.ended_by("v", &images, 4.0), None, "once is enough");
        let canceling = Record { state: State::Canceling, ..again };
        assert_eq!(canceling.given_back("v", true, 3.0).unwrap().state, State::Canceled);
    }

    fn worker_fault() -> crate::server::fault::Fault {
        crate::server::fault::Fault::internal("x")
    }
}
