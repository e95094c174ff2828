//! Simulated workers at a real broker: how far a cluster scales.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::front::FrontBroker;
use super::hub::lock;
use super::record::Record;
use super::worker::WorkerBroker;
use crate::error::Result;
use crate::pipeline::request::Request;
use crate::server::broker::{Broker, NewJob, WorkerFacts};
use crate::server::data::DataFolder;
use crate::server::job::{JobSpec, Lane, Outcome, random_hex};
use crate::server::limits::Charge;
use crate::server::models::Listed;
use crate::server::options::ClusterOptions;

/// A cluster, and what it has to do.
#[derive(Debug, Clone)]
pub struct Simulation {
    /// Workers. Each has all models, and none in memory at first.
    pub workers: usize,
    /// Models. The first one is asked for as often as all others together.
    pub models: usize,
    /// Keys of clients.
    pub keys: usize,
    /// Seconds that a job takes.
    pub job: f64,
    /// Seconds that a model takes to open.
    pub load: f64,
    /// The part of the workers' time that the jobs need, without opening models.
    pub demand: f64,
    /// The seconds in which jobs are submitted.
    pub duration: f64,
}

/// What was seen. The first quarter of the jobs does not count: models are opened then.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Jobs that were submitted.
    pub jobs: usize,
    /// Jobs per second that ended while others were submitted.
    pub throughput: f64,
    /// The wait of jobs for a worker, in seconds: the median, and what 99 % do not exceed.
    pub wait: (f64, f64),
    /// The part of the jobs for which a model was opened.
    pub cold: f64,
    /// The same waits if one queue with the same arrivals served workers that have all models in
    /// memory and lose no time: the bound.
    pub bound: (f64, f64),
    /// The time of an accepted request, in seconds: the median, and what 99 % do not exceed.
    pub submit: (f64, f64),
}

/// What all simulated workers share.
struct Counted {
    cold: std::sync::atomic::AtomicUsize,
}

/// Runs `simulation` with the cluster of `options`, which must be new.
///
/// # Errors
/// Those of the broker.
pub async fn simulate(options: &ClusterOptions, simulation: &Simulation) -> Result<Measured> {
    let folder = tempfile::tempdir()
        .map_err(|e| crate::error::Error::output(format!("there is no folder: {e}")))?;
    let data = DataFolder::at(folder.path().to_path_buf());
    let front = Arc::new(FrontBroker::open(options, data.clone(), usize::MAX).await?);
    let models: Vec<String> = (0..simulation.models).map(|n| format!("model-{n}")).collect();
    let counted = Arc::new(Counted { cold: Default::default() });
    let mut workers = Vec::new();
    for number in 0..simulation.workers {
        let broker = WorkerBroker::open(options, data.clone(), Arc::new(|| false)).await?;
        let (models, counted) = (models.clone(), counted.clone());
        let (job, load) = (simulation.job, simulation.load);
        workers.push(tokio::spawn(work(broker, models, number, (job, load), counted)));
    }
    let patience = Instant::now();
    while front.hub.live().len() < simulation.workers && patience.elapsed().as_secs() < 60 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rate = simulation.demand * simulation.workers as f64 / simulation.job;
    let count = ((rate * simulation.duration) as usize).max(8);
    let mut random = 7_u64;
    let mut next = move |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize % below
    };
    let begun = Instant::now();
    let mut submits = Vec::new();
    for number in 0..count {
        let model = match next(2) {
            0 => 0,
            _ => next(simulation.models),
        };
        let new = new_job(&models[model], next(simulation.keys), simulation.job)?;
        let due = Duration::from_secs_f64(number as f64 / rate);
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        let front = front.clone();
        submits.push(tokio::spawn(async move {
            let since = Instant::now();
            let accepted = tokio::task::block_in_place(|| front.submit(new)).is_ok();
            accepted.then(|| since.elapsed().as_secs_f64())
        }));
    }
    let in_time = ended(&front).len();
    let seconds = begun.elapsed().as_secs_f64();
    let mut times = Vec::new();
    for submit in submits {
        times.extend(submit.await.ok().flatten());
    }
    while ended(&front).len() < times.len() && begun.elapsed().as_secs_f64() < 6.0 * seconds + 60.0
    {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    workers.iter().for_each(tokio::task::JoinHandle::abort);
    let mut records = ended(&front);
    front.leave();
    records.sort_by_key(|record| record.instant);
    let arrivals: Vec<f64> = records.iter().map(|r| r.instant as f64 / 1e9).collect();
    let bound = single_queue(&arrivals, simulation.workers, simulation.job);
    let waits = records.iter().map(|r| r.started.unwrap_or(0.0) - r.instant as f64 / 1e9);
    let warm = |waits: Vec<f64>| waits[waits.len() / 4..].to_vec();
    Ok(Measured {
        jobs: count,
        throughput: in_time as f64 / seconds,
        wait: quantiles(warm(waits.collect())),
        cold: counted.cold.load(std::sync::atomic::Ordering::Relaxed) as f64 / count as f64,
        bound: quantiles(warm(bound)),
        submit: quantiles(times),
    })
}

fn ended(front: &FrontBroker) -> Vec<Arc<Record>> {
    let mirror = lock(&front.hub.mirror);
    let all = (0..).map_while(|key| {
        let mut jobs = mirror.of_owner(&format!("key-{key}")).peekable();
        jobs.peek()?;
        Some(jobs.filter(|record| record.state.is_final()).cloned().collect::<Vec<_>>())
    });
    all.flatten().collect()
}

fn new_job(model: &str, key: usize, seconds: f64) -> Result<NewJob> {
    let spec = JobSpec {
        request: Request::new("a fox in the snow, at dawn, with a lantern").seed(1),
        model: model.into(),
        format: "png".into(),
        quality: 90,
        has_input: false,
        references: 0,
        dialect: "native".into(),
        echo: serde_json::Value::Null,
        webhook: None,
    };
    let id = random_hex(16)?;
    Ok(NewJob {
        alike: id.clone(),
        id,
        owner: format!("key-{key}"),
        spec,
        lane: Lane::Normal,
        cost: seconds,
        plan: None,
        charge: Charge { images: 1, pixels: 1 << 20 },
        idempotency: None,
    })
}

/// A worker that draws by waiting.
async fn work(
    broker: WorkerBroker,
    models: Vec<String>,
    number: usize,
    (job, load): (f64, f64),
    counted: Arc<Counted>,
) {
    let broker = Arc::new(broker);
    let facts = |held: Option<String>| WorkerFacts {
        host: format!("machine-{number}"),
        ready: true,
        default: models[0].clone(),
        models: models.iter().map(|name| Listed::named(name)).collect(),
        held,
        ..WorkerFacts::default()
    };
    let mut held: Option<String> = None;
    let (mut said, mut woken) = (Instant::now(), broker.news());
    broker.describe(facts(None));
    loop {
        if said.elapsed() > Duration::from_secs(1) {
            said = Instant::now();
            broker.describe(facts(held.clone()));
        }
        let Some(record) = broker.take_if_due(held.as_deref()).await else {
            let news = async {
                match &mut woken {
                    Some(news) => drop(news.recv().await),
                    None => std::future::pending().await,
                }
            };
            tokio::time::timeout(Duration::from_millis(200), news).await.ok();
            continue;
        };
        let cold = held.as_deref() != Some(&record.model);
        if cold {
            counted.cold.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            held = Some(record.model.clone());
        }
        broker.describe(facts(held.clone()));
        let mut left = job + if cold { load } else { 0.0 };
        while left > 0.0 {
            let step = left.min(1.0);
            tokio::time::sleep(Duration::from_secs_f64(step)).await;
            left -= step;
            broker.describe(facts(held.clone()));
        }
        let outcome = Outcome::Succeeded { outputs: Vec::new(), settings: serde_json::Value::Null };
        broker.conclude_here(&record.id, &outcome).await;
    }
}

/// The waits of jobs that arrive at `arrivals`, in order, if one queue serves `workers` workers who
/// need `seconds` for each.
fn single_queue(arrivals: &[f64], workers: usize, seconds: f64) -> Vec<f64> {
    // With equal jobs the workers are free in the order in which they began.
    let mut free = std::collections::VecDeque::from(vec![f64::NEG_INFINITY; workers]);
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

    /// By hand: `FLUX_FAST_TEST_BROKER=nats://host:4222/NAME`, with a name that is new, and what to
    /// run as `WORKERS,MODELS,JOB,LOAD,DEMAND,DURATION` in `FLUX_FAST_TEST_SIMULATION`.
    #[test]
    #[ignore = "needs a broker"]
    fn load_simulated_workers() {
        let read = |name: &str| std::env::var(name).unwrap();
        let text = read("FLUX_FAST_TEST_SIMULATION");
        let numbers: Vec<f64> = text.split(',').map(|n| n.parse().unwrap()).collect();
        let [workers, models, job, load, demand, duration] = numbers[..] else { panic!("{text}") };
        let (workers, models) = (workers as usize, models as usize);
        let simulation = Simulation { workers, models, keys: 8, job, load, demand, duration };
        let options = ClusterOptions::new(read("FLUX_FAST_TEST_BROKER"));
        let measured = crate::server::simulate(&options, &simulation).unwrap();
        println!("{simulation:?}\n{measured:?}");
    }
}
