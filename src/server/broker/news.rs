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
    /// A job ended, and this process must call its webhook.
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
    /// How many names it has that do not fit into the message: nobody can ask for them.
    #[serde(default)]
    pub left_out: usize,
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

/// Shortens the `lists` in `value`, so that it has at most `most` bytes as JSON: without the
/// descriptions of files, and then without the last names. Returns how many names are left out.
fn shorten<T: Serialize>(
    value: &mut T,
    lists: fn(&mut T) -> [&mut Vec<Listed>; 3],
    most: usize,
) -> usize {
    let length = |value: &T| serde_json::to_vec(value).map_or(0, |bytes| bytes.len());
    if length(value) <= most {
        return 0;
    }
    lists(value).into_iter().flatten().for_each(|listed| listed.what.clear());
    let mut left_out = 0;
    loop {
        let length = length(value);
        let longest = lists(value).into_iter().max_by_key(|list| list.len());
        let Some(longest) = longest.filter(|list| length > most && list.len() > 1) else {
            return left_out;
        };
        let kept = (longest.len() * most / length).clamp(1, longest.len() - 1);
        left_out += longest.len() - kept;
        longest.truncate(kept);
    }
}

impl WorkerFacts {
    /// Leaves names out that do not fit into a message of `most` bytes.
    pub fn shorten(&mut self, most: usize) {
        fn lists(facts: &mut WorkerFacts) -> [&mut Vec<Listed>; 3] {
            [&mut facts.models, &mut facts.loras, &mut facts.controlnets]
        }
        self.left_out = shorten(self, lists, most);
    }

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
    /// Leaves names out that do not fit into a value of `most` bytes.
    pub fn shorten(&mut self, most: usize) {
        fn lists(catalog: &mut Catalog) -> [&mut Vec<Listed>; 3] {
            [&mut catalog.models, &mut catalog.loras, &mut catalog.controlnets]
        }
        shorten(self, lists, most);
    }

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
                if !merged.iter().any(|known| known.name == item.name) {
                    merged.push(item.clone());
                }
            }
            merged.sort_by(|a, b| a.name.cmp(&b.name));
            merged
        };
        let mut models = merged(|worker| &worker.models);
        models.sort_by_key(|model| model.name != first.default);
        // A model reads styles if one ready worker can.
        for model in &mut models {
            let known = ready().map(|worker| worker.inputs_of(&model.name));
            model.inputs = known.fold(model.inputs, with_styles_of);
        }
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
    fn long_lists_are_cut_to_the_length_of_a_message() {
        let long = |count: usize| -> Vec<Listed> {
            let names = (0..count).map(|n| format!("{}{n}.safetensors", "name".repeat(20)));
            let mut all: Vec<_> = names.map(|name| Listed::named(&name)).collect();
            all.iter_mut().for_each(|listed| listed.what = "x".repeat(50));
            all
        };
        let facts = WorkerFacts {
            models: long(20),
            loras: long(10_000),
            controlnets: long(5),
            ..WorkerFacts::default()
        };
        let length = |facts: &WorkerFacts| serde_json::to_vec(facts).unwrap().len();
        let mut short = facts.clone();
        short.shorten(length(&facts));
        assert_eq!(short, facts, "it fits");
        short.shorten(1_000_000);
        assert!((900_000..=1_000_000).contains(&length(&short)), "{}", length(&short));
        assert_eq!(short.left_out, facts.loras.len() - short.loras.len());
        assert_eq!((short.models.len(), short.controlnets.len()), (20, 5));
        assert_eq!(short.models[0].name, facts.models[0].name);
        // The default model is the first one, and stays.
        short.shorten(10);
        assert_eq!((short.models.len(), short.loras.len()), (1, 1));
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
