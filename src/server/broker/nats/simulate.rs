//! Workers that only let time pass, in time that passes in numbers only: what the order of jobs
//! does to waits and to the models that have to be opened, for any number of workers. Queue and
//! schedule are the real ones. The broker is a number: the time that it needs for a change of a
//! job.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use super::mirror::Mirror;
use super::record::Record;
use super::schedule::Schedule;
use crate::pipeline::request::Request;
use crate::server::broker::{NewJob, WorkerFacts};
use crate::server::clock::SECOND;
use crate::server::job::{JobSpec, Outcome};
use crate::server::models::Listed;

/// A cluster, and what it has to do. Times are in seconds.
#[derive(Debug, Clone)]
pub struct Simulation {
    /// Workers. Each has all models, and none in memory at first.
    pub workers: usize,
    /// Models. Half of the jobs are for the first one, the others for any of them.
    pub models: usize,
    /// Keys of clients.
    pub keys: usize,
    /// What a job takes.
    pub job: f64,
    /// What opening a model takes.
    pub load: f64,
    /// The part of the workers' time that the jobs need, without opening models.
    pub demand: f64,
    /// How many jobs there are.
    pub jobs: usize,
    /// What the broker needs for one change of a job: they are made one after another.
    pub change: f64,
}

/// What was seen. The first quarter of the jobs does not count: models are opened then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Jobs per second, from the first that counts to its end.
    pub throughput: f64,
    /// The wait of jobs for a worker, in seconds: the median, and what 99 % do not exceed.
    pub wait: (f64, f64),
    /// The part of the jobs for which a model was opened.
    pub cold: f64,
    /// The same waits if one queue with the same arrivals served workers that have all models in
    /// memory and lose no time: the bound.
    pub bound: (f64, f64),
    /// The mean wait, and that of the bound: it is the same for every order of equal jobs.
    pub mean: (f64, f64),
}

/// How often the leader looks at who waits.
const TICK: f64 = 0.25;
/// The time of a message there and back.
const MESSAGE: f64 = 0.001;

/// What happens at an instant, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    Ask(usize),
    End(usize, String),
    Tick,
}

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, number: usize) -> usize {
        (self.next() * number as f64) as usize
    }
}

struct Running<'a> {
    simulation: &'a Simulation,
    events: BinaryHeap<Reverse<(i64, Event)>>,
    mirror: Mirror,
    schedule: Schedule,
    live: Vec<Arc<WorkerFacts>>,
    /// The workers by their ids.
    numbers: HashMap<String, usize>,
    revision: u64,
    /// When the broker has made all changes.
    broker: i64,
    waits: Vec<f64>,
    cold: usize,
    ended: Vec<f64>,
}

/// Runs `simulation`.
pub fn simulate(simulation: &Simulation) -> Measured {
    let rate = simulation.demand * simulation.workers as f64 / simulation.job;
    let mut random = Random(7);
    let mut at = 0.0;
    // Clients come at random: the pauses between them are exponential.
    let arrivals: Vec<f64> = std::iter::repeat_with(|| {
        at -= (1.0 - random.next()).ln() / rate;
        at
    })
    .take(simulation.jobs)
    .collect();
    let mut running = Running::new(simulation);
    for (number, arrival) in arrivals.iter().enumerate() {
        running.push(*arrival, Event::Arrival(number));
    }
    (0..simulation.workers).for_each(|worker| running.push(0.0, Event::Ask(worker)));
    running.push(0.0, Event::Tick);
    while running.ended.len() < simulation.jobs {
        let Some(Reverse((now, event))) = running.events.pop() else { break };
        running.step(now, event, &mut random);
    }
    let warm = |values: &[f64]| values[values.len() / 4..].to_vec();
    let bound = single_queue(&arrivals, simulation.workers, simulation.job);
    let counted = simulation.jobs - simulation.jobs / 4;
    let begin = arrivals[simulation.jobs / 4];
    running.ended.sort_by(f64::total_cmp);
    let end = running.ended.last().copied().unwrap_or(begin);
    Measured {
        throughput: counted as f64 / (end - begin),
        wait: quantiles(warm(&running.waits)),
        cold: running.cold as f64 / counted as f64,
        bound: quantiles(warm(&bound)),
        mean: (mean(&warm(&running.waits)), mean(&warm(&bound))),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

impl<'a> Running<'a> {
    fn new(simulation: &'a Simulation) -> Self {
        let models: Vec<Listed> =
            (0..simulation.models).map(|n| Listed::named(&format!("model-{n}"))).collect();
        let worker = |number: usize| {
            let id = format!("worker-{number}");
            let models = models.clone();
            Arc::new(WorkerFacts { id, models, ready: true, ..WorkerFacts::default() })
        };
        let live: Vec<Arc<WorkerFacts>> = (0..simulation.workers).map(worker).collect();
        let numbers = live.iter().enumerate().map(|(n, facts)| (facts.id.clone(), n)).collect();
        let mut mirror = Mirror::default();
        mirror.loaded();
        Running {
            simulation,
            events: BinaryHeap::new(),
            mirror,
            schedule: Schedule::default(),
            live,
            numbers,
            revision: 0,
            broker: 0,
            waits: vec![0.0; simulation.jobs],
            cold: 0,
            ended: Vec::new(),
        }
    }

    fn push(&mut self, at: f64, event: Event) {
        self.events.push(Reverse((nanoseconds(at), event)));
    }

    /// Stores a change of a job that is asked for at `now`. Returns when it is stored.
    fn change(&mut self, record: Record, now: i64) -> f64 {
        self.broker = self.broker.max(now) + nanoseconds(self.simulation.change);
        self.revision += 1;
        self.mirror.apply(record, self.revision);
        seconds(self.broker)
    }

    fn step(&mut self, now: i64, event: Event, random: &mut Random) {
        match event {
            Event::Arrival(number) => {
                let model = match random.below(2) {
                    0 => 0,
                    _ => random.below(self.simulation.models),
                };
                let key = random.below(self.simulation.keys);
                let record = record(number, model, key, self.simulation.job, now);
                let stored = self.change(record, now);
                self.wake(nanoseconds(stored));
            }
            Event::Ask(worker) => self.ask(worker, now),
            Event::End(worker, id) => {
                let outcome =
                    Outcome::Succeeded { outputs: Vec::new(), settings: serde_json::Value::Null };
                let known = self.mirror.get(&id).map(|(record, _)| record.clone());
                if let Some(record) = known.and_then(|r| r.ended(&outcome, seconds(now))) {
                    let stored = self.change(record, now);
                    self.mirror.remove(&id);
                    self.ended.push(seconds(now));
                    let facts = (*self.live[worker]).clone();
                    self.live[worker] = Arc::new(WorkerFacts { jobs: Vec::new(), ..facts });
                    self.push(stored + MESSAGE, Event::Ask(worker));
                }
            }
            Event::Tick => {
                self.wake(now);
                self.push(seconds(now) + TICK, Event::Tick);
            }
        }
    }

    fn wake(&mut self, now: i64) {
        for id in self.schedule.wake(&self.mirror, &self.live, now) {
            let worker = self.numbers[&id];
            self.push(seconds(now) + MESSAGE, Event::Ask(worker));
        }
    }

    fn ask(&mut self, worker: usize, now: i64) {
        let facts = self.live[worker].clone();
        // It was woken, and asks again as it would have without that.
        if !facts.jobs.is_empty() {
            return;
        }
        let held = facts.held.as_deref();
        let job = self.schedule.choose(&mut self.mirror, &self.live, &facts.id, held, now);
        let Some(job) = job else { return };
        let Some((record, _)) = self.mirror.get(&job.id) else { return };
        let (record, instant) = (record.taken(&facts.id, seconds(now)), record.instant);
        let Some(record) = record else { return };
        let begun = self.change(record, now) + MESSAGE;
        let number: usize = job.id.parse().unwrap_or_default();
        self.waits[number] = begun - seconds(instant);
        let is_cold = held != Some(job.model.as_str());
        self.cold += usize::from(is_cold && number >= self.simulation.jobs / 4);
        let load = if is_cold { self.simulation.load } else { 0.0 };
        self.live[worker] = Arc::new(WorkerFacts {
            held: Some(job.model),
            jobs: vec![job.id.clone()],
            ..(*facts).clone()
        });
        self.push(begun + load + self.simulation.job, Event::End(worker, job.id));
    }
}

fn nanoseconds(seconds: f64) -> i64 {
    (seconds * SECOND as f64) as i64
}

fn seconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / SECOND as f64
}

/// Job number `number` of a key.
fn record(number: usize, model: usize, key: usize, cost: f64, now: i64) -> Record {
    let spec = JobSpec::new(Request::default(), format!("model-{model}"));
    let owner = format!("key-{key}");
    let new = NewJob { cost, ..NewJob::new(number.to_string(), owner, spec) };
    Record::new(&new, now)
}

/// The waits of jobs that arrive at `arrivals`, in order, if one queue serves `workers` workers who
/// need `seconds` for each.
fn single_queue(arrivals: &[f64], workers: usize, seconds: f64) -> Vec<f64> {
    // With equal jobs the workers are free in the order in which they began.
    let mut free = VecDeque::from(vec![f64::NEG_INFINITY; workers]);
    let waits = arrivals.iter().map(|arrival| {
        let begin = free.pop_front().unwrap_or(*arrival).max(*arrival);
        free.push_back(begin + seconds);
        begin - arrival
    });
    waits.collect()
}

/// The median, and what 99 % of `values` do not exceed.
fn quantiles(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values.get((part * values.len() as f64) as usize).copied();
    (at(0.5).unwrap_or(0.0), at(0.99).or(values.last().copied()).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_that_of_one_queue() {
        assert_eq!(single_queue(&[0.0, 0.0, 1.0, 5.0], 1, 2.0), [0.0, 2.0, 3.0, 1.0]);
        assert_eq!(single_queue(&[0.0, 0.0, 1.0, 5.0], 2, 2.0), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(quantiles((0..100).map(f64::from).collect()), (50.0, 99.0));
    }

    fn simulation(workers: usize, models: usize, demand: f64) -> Simulation {
        let (job, load, change) = (10.0, 8.0, 0.002);
        Simulation { workers, models, keys: 4, job, load, demand, jobs: 400, change }
    }

    #[test]
    fn with_one_model_waits_are_those_of_one_queue_and_nothing_is_opened_twice() {
        let seen = simulate(&simulation(1, 1, 0.7));
        assert_eq!(seen.cold, 0.0, "{seen:?}");
        // Changes and messages.
        let (mean, bound) = seen.mean;
        assert!(mean >= bound && mean < bound + 1.0, "{seen:?}");
    }

    #[test]
    fn with_several_models_workers_keep_theirs() {
        let seen = simulate(&simulation(16, 4, 0.6));
        // Without a preference it would be more than half.
        assert!(seen.cold < 0.4, "{seen:?}");
        assert!(seen.throughput > 0.8 * 0.6 * 16.0 / 10.0, "{seen:?}");
    }
}
