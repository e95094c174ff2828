//! What processes of a cluster tell each other, whatever carries it.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::pipeline::ModelInputs;
use crate::server::fault::Fault;
use crate::server::job::{Job, State};
use crate::server::models::{Listed, is_listed};
use crate::server::questions::PlanQuery;

/// What a broker hears from the other processes of its cluster.
pub enum News {
    /// A job is in another state than before; `before` is `None` for a new one.
    Changed {
        /// The job as it is now.
        job: Box<Job>,
        /// Its state before.
        before: Option<State>,
    },
    /// The worker of another process has something to say about a job: see
    /// [`Broker::tell`](super::Broker::tell).
    Told {
        /// The job.
        job: String,
        /// The name of the event.
        name: String,
        /// Its data.
        data: Value,
    },
    /// The worker of this process is to stop this job.
    Cancel(String),
    /// There may be a job for the worker of this process.
    Wake,
    /// What is known of the workers has changed.
    Workers,
    /// The job is over, and this process is to call its address.
    Owed(Box<Job>),
    /// The worker of this process is asked what a request would cost.
    Question {
        /// The request. Its model is a name.
        query: Box<PlanQuery>,
        /// Receives the plan, as JSON.
        answer: oneshot::Sender<Result<Value, Fault>>,
    },
}

/// What a worker says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerFacts {
    /// Differs from one process to the next.
    pub id: String,
    /// The name of its machine.
    pub host: String,
    /// It can draw.
    pub ready: bool,
    /// The name of its default model.
    pub default: String,
    /// The settings of a request that sets nothing.
    pub defaults: Value,
    /// The seconds that such a request is expected to take.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// What its default model reads besides the prompt.
    #[serde(default)]
    pub inputs: Option<ModelInputs>,
    /// What it can open, the default model first.
    pub models: Vec<Listed>,
    /// The LoRAs that it has.
    pub loras: Vec<Listed>,
    /// The ControlNets that it has.
    #[serde(default)]
    pub controlnets: Vec<Listed>,
    /// The model in its memory.
    pub held: Option<String>,
    /// The LoRAs of its last job.
    #[serde(default)]
    pub held_loras: Vec<String>,
    /// The limit of its device's memory, in bytes.
    pub vram: Option<u64>,
    /// The jobs that it has.
    pub jobs: Vec<String>,
    /// The seconds until it has no job, as far as they can be predicted.
    #[serde(default)]
    pub busy_for: f64,
    /// The jobs that it has ended.
    #[serde(default)]
    pub drawn: u64,
}

impl WorkerFacts {
    /// Whether it can open the model that the catalog calls `name`.
    pub fn has_model(&self, name: &str) -> bool {
        self.models.iter().any(|model| model.name == name)
    }

    /// Whether it has the LoRA that a client calls `name`.
    pub fn has_lora(&self, name: &str) -> bool {
        is_listed(&self.loras, name)
    }

    /// Whether it has the ControlNet that a client calls `name`.
    pub fn has_controlnet(&self, name: &str) -> bool {
        is_listed(&self.controlnets, name)
    }
}

impl WorkerFacts {
    /// What the model that it calls `name` reads besides the prompt, as far as it knows.
    pub fn inputs_of(&self, name: &str) -> Option<ModelInputs> {
        if name == self.default {
            return self.inputs;
        }
        self.models.iter().find(|model| model.name == name)?.inputs
    }
}

/// The workers of a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Workers {
    /// Those that live.
    pub live: Vec<Arc<WorkerFacts>>,
    /// What the cluster can draw: of the workers that live, or of the last ones that did. The
    /// jobs that wait bring new workers where a scaler has ended all of them.
    pub catalog: Catalog,
    /// Each model that jobs wait for: its name, how many, and the seconds that they will take.
    pub queued: Vec<(String, usize, f64)>,
}

/// What a cluster can draw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// The default model of most workers.
    pub default: String,
    /// The settings of a request to it that sets nothing.
    pub defaults: Value,
    /// What it reads besides the prompt.
    #[serde(default)]
    pub inputs: Option<ModelInputs>,
    /// The models of all workers, the default model first.
    pub models: Vec<Listed>,
    /// The LoRAs of all workers.
    pub loras: Vec<Listed>,
    /// The ControlNets of all workers.
    #[serde(default)]
    pub controlnets: Vec<Listed>,
}

impl Catalog {
    /// What `workers` can draw together; `None` if none of them is ready.
    pub fn of(workers: &[Arc<WorkerFacts>]) -> Option<Catalog> {
        let ready = || workers.iter().filter(|worker| worker.ready);
        let mut counts: HashMap<&str, usize> = HashMap::new();
        ready().for_each(|worker| *counts.entry(&worker.default).or_default() += 1);
        let count = |name: &str| counts.get(name).copied().unwrap_or(0);
        let first = ready().max_by(|a, b| {
            let key = |worker: &Arc<WorkerFacts>| count(&worker.default);
            key(a).cmp(&key(b)).then_with(|| b.default.cmp(&a.default))
        })?;
        let merged = |list: fn(&WorkerFacts) -> &Vec<Listed>| {
            let mut merged: Vec<Listed> = Vec::new();
            for item in ready().flat_map(|worker| list(worker)) {
                match merged.iter_mut().find(|known| known.name == item.name) {
                    Some(known) => known.inputs = with_styles_of(known.inputs, item.inputs),
                    None => merged.push(item.clone()),
                }
            }
            merged.sort_by(|a, b| a.name.cmp(&b.name));
            merged
        };
        let mut models = merged(|worker| &worker.models);
        models.sort_by_key(|model| model.name != first.default);
        Some(Catalog {
            default: first.default.clone(),
            defaults: first.defaults.clone(),
            inputs: ready()
                .filter(|worker| worker.default == first.default)
                .fold(first.inputs, |inputs, worker| with_styles_of(inputs, worker.inputs)),
            models,
            loras: merged(|worker| &worker.loras),
            controlnets: merged(|worker| &worker.controlnets),
        })
    }
}

/// `inputs` of a model that another worker has, too, with those `other`: the networks for styles
/// need not be everywhere.
fn with_styles_of(inputs: Option<ModelInputs>, other: Option<ModelInputs>) -> Option<ModelInputs> {
    let mut inputs = inputs.or(other)?;
    inputs.styles |= other.is_some_and(|other| other.styles);
    Some(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: &str, default: &str, others: &[&str]) -> Arc<WorkerFacts> {
        let listed = |name: &&str| Listed::named(name);
        let models = [default].iter().chain(others).map(listed).collect();
        let (id, default) = (id.to_string(), default.to_string());
        Arc::new(WorkerFacts { id, default, ready: true, models, ..WorkerFacts::default() })
    }

    #[test]
    fn a_cluster_reads_styles_if_one_worker_has_the_networks() {
        let [one, two] = ["1", "2"].map(|id| (*worker(id, "a", &["b"])).clone());
        let inputs = |styles| Some(ModelInputs { styles, ..ModelInputs::default() });
        let with = |mut worker: WorkerFacts, styles: bool| {
            worker.inputs = inputs(styles);
            worker.models[1].inputs = inputs(styles);
            Arc::new(worker)
        };
        let (plain, styled) = (with(one, false), with(two, true));
        for name in ["a", "b"] {
            assert_eq!(plain.inputs_of(name), inputs(false), "{name}");
            assert_eq!(styled.inputs_of(name), inputs(true), "{name}");
        }
        let catalog = Catalog::of(&[plain, styled]).unwrap();
        assert_eq!((catalog.inputs, catalog.models[1].inputs), (inputs(true), inputs(true)));
    }

    #[test]
    fn a_cluster_can_draw_what_one_of_its_workers_can() {
        let workers = [worker("1", "b", &["a"]), worker("2", "c", &[]), worker("3", "c", &["a"])];
        let catalog = Catalog::of(&workers).unwrap();
        let names: Vec<&str> = catalog.models.iter().map(|m| m.name.as_str()).collect();
        assert_eq!((catalog.default.as_str(), &names[..]), ("c", &["c", "a", "b"][..]));
        // The same for every order of the workers, and without those that cannot draw.
        assert_eq!(Catalog::of(&workers[..2]).unwrap().default, "b");
        let broken = WorkerFacts { ready: false, ..(*workers[2]).clone() };
        assert_eq!(Catalog::of(&[Arc::new(broken)]), None);
    }
}
