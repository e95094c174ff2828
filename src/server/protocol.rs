//! Messages between the front and a worker: JSON objects, one per line, on the worker's stdin
//! and stdout. Images pass as files in the data folder.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fault::Fault;
use super::job::{JobSpec, Output};
use super::questions::PlanQuery;
use crate::backend::{Compute, Device, KernelChoice};
use crate::pipeline::ModelInputs;
use crate::pipeline::request::Options;
use crate::units::ByteSize;

/// [`Options`] as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineOptions {
    pub model: Option<String>,
    pub components: BTreeMap<String, PathBuf>,
    pub device: Device,
    pub vram: Option<u64>,
    pub ram: Option<u64>,
    pub compute: Compute,
    pub kernels: Vec<KernelChoice>,
    pub threads: Option<usize>,
    pub no_cache: bool,
}

impl From<&Options> for EngineOptions {
    fn from(options: &Options) -> Self {
        EngineOptions {
            model: options.files.model.clone(),
            components: options.files.components.clone(),
            device: options.device,
            vram: options.vram.map(|size| size.0),
            ram: options.ram.map(|size| size.0),
            compute: options.compute,
            kernels: options.kernels.clone(),
            threads: options.threads,
            no_cache: options.no_cache,
        }
    }
}

impl From<EngineOptions> for Options {
    fn from(given: EngineOptions) -> Options {
        let mut options = Options::default().device(given.device).compute(given.compute);
        options.files.model = given.model;
        options.files.components = given.components;
        options.vram = given.vram.map(ByteSize);
        options.ram = given.ram.map(ByteSize);
        options.kernels = given.kernels;
        options.threads = given.threads;
        options.no_cache(given.no_cache)
    }
}

/// From the front to a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order")]
pub enum Order {
    /// The first line: what to open.
    Open {
        /// The default model and the device.
        options: EngineOptions,
        /// The data folder.
        data: PathBuf,
    },
    /// Draw.
    Job {
        /// The job.
        id: String,
        /// What to draw.
        spec: Box<JobSpec>,
        /// The model to open: a path, or `None` for the default model.
        model: Option<String>,
    },
    /// Say what a request would cost.
    Plan {
        /// The request.
        query: Box<PlanQuery>,
    },
    /// Stop the job with this id.
    Cancel {
        /// The job.
        id: String,
    },
    /// Close the model. The next job opens it again.
    Unload,
}

/// From a worker to the front.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Report {
    /// The default model is open.
    Ready {
        /// The settings of a request that sets nothing.
        defaults: Value,
        /// The seconds that the plan expects for it.
        seconds: Option<f64>,
        /// What the model reads besides the prompt.
        #[serde(default)]
        inputs: ModelInputs,
    },
    /// The default model or the device cannot be opened. The worker ends.
    Unusable {
        /// The message, in the words of the command line.
        message: String,
        /// The hint.
        hint: Option<String>,
        /// The exit code of the program.
        exit_code: u8,
    },
    /// It still runs.
    Alive,
    /// A note or a warning.
    Log {
        /// `note` or `warning`.
        level: String,
        /// For the client: without folders.
        text: String,
    },
    /// A phase begins.
    Phase {
        /// Its name.
        phase: String,
        /// Its steps.
        steps: usize,
    },
    /// A phase ended.
    PhaseEnd {
        /// Its name.
        phase: String,
        /// The time that it took.
        seconds: f64,
        /// The most bytes that its plan uses at a time.
        planned: u64,
    },
    /// The resident memory of the worker.
    Memory {
        /// In bytes.
        resident: u64,
    },
    /// A denoising step is done.
    Step {
        /// The steps that are done.
        done: usize,
        /// All steps.
        steps: usize,
    },
    /// A preview of the first image.
    Preview {
        /// A JPEG in base64.
        jpeg: String,
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// Memory and time of the request of a plan order, or why it cannot be drawn.
    Planned {
        /// The plan.
        plan: Option<Value>,
        /// Why there is none.
        fault: Option<Fault>,
    },
    /// The images are in the folder of results.
    Finished {
        /// The job.
        id: String,
        /// The images, in order.
        outputs: Vec<Output>,
        /// The settings that made them.
        settings: Value,
    },
    /// The job has failed.
    Failed {
        /// The job.
        id: String,
        /// Why.
        fault: Fault,
        /// It was stopped by a cancel order.
        cancelled: bool,
        /// The worker ends, because its device is of no more use: another may succeed.
        ends: bool,
    },
}
