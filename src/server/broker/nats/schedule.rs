//! Which job a worker gets, and which worker is woken for a job: a function of what waits, of the
//! workers, and of the time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::mirror::Mirror;
use super::record::Record;
use crate::server::broker::WorkerFacts;
use crate::server::broker::fair::Waiting;
use crate::server::broker::queue::Passing;
use crate::server::clock::SECOND;

/// How long a job waits for a worker that has its model in memory and is busy, in seconds, before
/// another one opens the model for it.
const PATIENCE: f64 = 10.0;

/// What the leader remembers about workers.
#[derive(Debug, Default)]
pub struct Schedule {
    passing: HashMap<String, Passing>,
    /// The workers that asked and got nothing, with the model that they hold.
    idle: HashMap<String, Option<String>>,
}

/// The workers that live, by what is asked of them.
struct Fleet<'a> {
    workers: HashMap<&'a str, &'a WorkerFacts>,
    /// How many of them hold each model.
    holders: HashMap<&'a str, usize>,
}

impl<'a> Fleet<'a> {
    fn of(live: &'a [Arc<WorkerFacts>]) -> Self {
        let mut holders: HashMap<&str, usize> = HashMap::new();
        for model in live.iter().filter(|w| w.ready).filter_map(|w| w.held.as_deref()) {
            *holders.entry(model).or_default() += 1;
        }
        let workers = live.iter().map(|worker| (worker.id.as_str(), &**worker)).collect();
        Fleet { workers, holders }
    }
}

/// A worker that asks, among the others.
struct View<'a> {
    worker: &'a WorkerFacts,
    held: Option<&'a str>,
    fleet: &'a Fleet<'a>,
    /// How many wait for each model, and the seconds that they take.
    backlog: &'a HashMap<String, (usize, f64)>,
    now: i64,
}

impl View<'_> {
    /// Whether the worker may draw a job: it has all that it needs, and the job does not wait for
    /// another worker with the model in its memory, which is soon free.
    fn suits(&self, job: &Waiting, record: &Record) -> bool {
        if !self.worker.has_model(&job.model) {
            return false;
        }
        let loras = record.loras();
        let mut controlnets = record.spec.iter().flat_map(|spec| spec.controlnets());
        if !loras.iter().all(|lora| self.worker.has_lora(lora))
            || !controlnets.all(|net| self.worker.has_controlnet(net))
        {
            return false;
        }
        let has_styles = record.spec.as_ref().is_some_and(|spec| spec.styles > 0);
        let reads_styles = || self.worker.inputs_of(&job.model).is_none_or(|inputs| inputs.styles);
        if has_styles && !reads_styles() {
            return false;
        }
        if self.held == Some(job.model.as_str()) {
            return true;
        }
        let all = self.fleet.holders.get(job.model.as_str()).copied().unwrap_or(0);
        // What it has said of itself may be older than what it asks with.
        let is_one = self.worker.ready && self.worker.held.as_deref() == Some(&job.model);
        let holders = all.saturating_sub(usize::from(is_one)) as f64;
        let waited = (self.now - record.instant) as f64 / SECOND as f64;
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
        // One that was not heard yet says what it has a moment later.
        let worker = live.iter().find(|worker| worker.id == id)?;
        let mut job = None;
        if mirror.queue.len() > 0 {
            let (fleet, backlog) = (Fleet::of(live), mirror.queued_per_model());
            let view = View { worker, held, fleet: &fleet, backlog: &backlog, now };
            let passing = self.passing.entry(id.to_string()).or_default();
            let suits = |job: &Waiting, record: &Record| view.suits(job, record);
            job = mirror.pop_for(held, passing, now, suits);
        }
        match job {
            Some(_) => self.idle.remove(id),
            None => self.idle.insert(id.to_string(), held.map(str::to_string)),
        };
        job
    }

    /// Forgets the workers that do not live any more.
    pub fn forget(&mut self, live: &[Arc<WorkerFacts>]) {
        let live: HashSet<&str> = live.iter().map(|worker| worker.id.as_str()).collect();
        self.passing.retain(|id, _| live.contains(id.as_str()));
        self.idle.retain(|id, _| live.contains(id.as_str()));
    }

    /// The idle workers to be woken at `now`: at most one per job, those first that hold its model,
    /// and of these the ones whose last job had its LoRAs. They are not idle any more.
    pub fn wake(&mut self, mirror: &Mirror, live: &[Arc<WorkerFacts>], now: i64) -> Vec<String> {
        if self.idle.is_empty() || mirror.queue.len() == 0 {
            return Vec::new();
        }
        let (fleet, backlog) = (Fleet::of(live), mirror.queued_per_model());
        let mut left: HashMap<&str, usize> =
            backlog.iter().map(|(model, (count, _))| (model.as_str(), *count)).collect();
        let mut wanted: HashSet<(String, Vec<String>)> = HashSet::new();
        mirror.queue.for_each(|job| {
            let loras = mirror.get(&job.id).map(|(record, _)| record.loras());
            wanted.insert((job.model.clone(), loras.unwrap_or_default()));
        });
        let has_loras = |id: &str, held: Option<&String>| {
            let worker = fleet.workers.get(id);
            let last = held.cloned().zip(worker.map(|worker| worker.held_loras.clone()));
            last.is_some_and(|last| wanted.contains(&last))
        };
        let mut idle: Vec<(&String, Option<&String>)> =
            self.idle.iter().map(|(id, held)| (id, held.as_ref())).collect();
        idle.sort_by_cached_key(|&(id, held)| (!has_loras(id, held), id.clone()));
        let mut woken = HashSet::new();
        for (id, held) in &idle {
            if let Some(count) = held.and_then(|model| left.get_mut(model.as_str()))
                && *count > 0
            {
                *count -= 1;
                woken.insert(id.to_string());
            }
        }
        for (id, held) in idle {
            let Some(worker) = fleet.workers.get(id.as_str()) else { continue };
            if woken.contains(id) || left.values().all(|count| *count == 0) {
                continue;
            }
            let held = held.map(String::as_str);
            let view = View { worker, held, fleet: &fleet, backlog: &backlog, now };
            let suits = |job: &Waiting| {
                let record = mirror.get(&job.id).map(|(record, _)| record);
                left.get(job.model.as_str()).is_some_and(|count| *count > 0)
                    && record.is_some_and(|record| view.suits(job, record))
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
    use crate::pipeline::request::{ControlNetChoice, Request};
    use crate::server::broker::nats::mirror::tests::record;
    use crate::server::job::JobSpec;
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

        // Only one that has the ControlNet.
        let with_net = WorkerFacts {
            id: "d".into(),
            controlnets: vec![Listed::named("union")],
            ..(*live[0]).clone()
        };
        let live = [live[0].clone(), Arc::new(with_net)];
        let mut queue = Mirror::default();
        queue.loaded();
        let mut job = Record { model: "m".into(), ..record("1", 0) };
        let net = ControlNetChoice::new("union", 1.0);
        let request = Request::new("x").controlnets(vec![net]);
        job.spec = Some(JobSpec::new(request, "m"));
        queue.apply(job, 1);
        for id in ["a", "d"] {
            let got = schedule.choose(&mut queue, &live, id, Some("m"), 0);
            assert_eq!(got.is_some(), id == "d", "{id}");
        }
        // Clients leave the endings of names out, and write them in any case.
        let facts = WorkerFacts {
            loras: vec![Listed::named("Style.safetensors")],
            controlnets: vec![Listed::named("sub/Union.safetensors")],
            ..WorkerFacts::default()
        };
        assert!(facts.has_lora("style") && facts.has_controlnet("union"));
        assert!(!facts.has_lora("styles") && !facts.has_controlnet("other/Union"));

        // If two hold it, the one that has drawn with the same LoRAs is chosen, here with none.
        let with_lora = WorkerFacts { held_loras: vec!["l".into()], ..(*live[0]).clone() };
        let other = WorkerFacts { id: "d".into(), ..(*live[0]).clone() };
        let live = [Arc::new(with_lora), Arc::new(other)];
        let mut queue = mirror(&[]);
        for id in ["a", "d"] {
            assert_eq!(schedule.choose(&mut queue, &live, id, Some("m"), 0), None);
        }
        assert_eq!(schedule.wake(&mirror(&[("1", "m")]), &live, 0), ["d"]);
    }
}
