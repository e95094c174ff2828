//! A model and a device made ready, serving one request after another.

use std::ops::ControlFlow;

use super::model::Model;
use super::phases::{Phases, Refused};
use super::report::PlanReport;
use super::request::{ModelFiles, Request, RunOptions, Settings};
use super::schedule::Schedule;
use super::synthetic::Synthetic;
use super::tokenizers::Tokenizers;
use crate::backend::Backend;
use crate::backend::cpu::{Compute, CpuBackend, CpuOptions};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::plan::gigabytes;
use crate::stream::Holdings;
use crate::weights::{self, Files};

/// The model inside the binary: an all-in-one checkpoint in ComfyUI's names, FP8 linear weights.
static EMBEDDED: &[u8] = include_bytes!("../../assets/tiny/flux-tiny.safetensors");

/// What the process holds beside plan and weights: code, stacks, tokenizers' working memory, image encoding.
const PROCESS_BYTES: u64 = 96 << 20;

/// Loads a model once and generates pictures from it.
pub struct Pipeline {
    pub(super) model: Model,
    pub(super) tokenizers: Tokenizers,
    pub(super) backend: Box<dyn Backend>,
    pub(super) holdings: Holdings,
    /// Names the arithmetic (version, device, forced choices): what results depend on beside the request and the weights.
    pub(super) arithmetic: String,
    pub(super) text_cache: bool,
    budget: Budget,
    /// Resident set of the process when the model was open and nothing had run.
    base_bytes: u64,
}

/// The bound on the device's memory (host memory, on the CPU).
#[derive(Debug, Clone)]
struct Budget {
    bytes: u64,
    source: String,
}

impl Pipeline {
    /// Opens the model, checks it whole, and prepares the device. Lines for the user arrive as events.
    pub fn open(
        files: &ModelFiles,
        options: &RunOptions,
        on: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Pipeline> {
        let mut tell = |event| match on(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled("stopped while the model was opened")),
        };
        let backend = open_device(options, &mut tell)?;
        let embedded = matches!(files.model.as_deref(), None | Some("embedded"));
        let checkpoint = if embedded {
            if let Some((flag, path)) = [("--clip", &files.clip), ("--t5", &files.t5), ("--vae", &files.vae)]
                .into_iter()
                .find_map(|(f, p)| Some((f, p.as_ref()?)))
            {
                return Err(Error::argument("the embedded model takes no other components")
                    .at(flag)
                    .found(path.display())
                    .try_("--model with the transformer that they belong to"));
            }
            tell(Event::Note(
                "drawing with the small embedded model (animals, plants and food, 128x128); for FLUX.1 itself give --model, see README.md".into(),
            ))?;
            weights::open_bytes(EMBEDDED, "flux-tiny")?
        } else {
            let named = files.model.clone().unwrap_or_default();
            let model = match named.strip_prefix("synthetic:") {
                Some(synthetic) => {
                    let synthetic = Synthetic::parse(synthetic)?;
                    let path = synthetic.path();
                    synthetic.make(&path, &mut tell)?;
                    path
                }
                None => named.into(),
            };
            weights::open(&Files { model, clip: files.clip.clone(), t5: files.t5.clone(), vae: files.vae.clone() })?
        };
        let (clip, t5) = (checkpoint.clip_tokenizer.clone(), checkpoint.t5_tokenizer.clone());
        let mut notes = Vec::new();
        let model = Model::new(checkpoint, &mut notes)?;
        notes.into_iter().try_for_each(|n| tell(Event::Note(n)))?;
        let tokenizers = Tokenizers::load(clip.as_deref(), t5.as_deref())?;
        let budget = budget(options, backend.as_ref())?;
        let caps = backend.caps();
        let arithmetic = format!(
            "{} {} {} {} {:?}",
            env!("CARGO_PKG_VERSION"),
            caps.name,
            caps.description,
            options.compute,
            options.kernels
        );
        let base_bytes = resident_bytes();
        Ok(Pipeline {
            model,
            tokenizers,
            backend,
            holdings: Holdings::default(),
            arithmetic,
            text_cache: !options.no_cache,
            budget,
            base_bytes,
        })
    }

    /// Whether text embeddings are kept on disk and taken from there (they are, unless `RunOptions::no_cache`).
    pub fn use_text_cache(&mut self, on: bool) {
        self.text_cache = on;
    }

    /// Bounds memory to `bytes` from the next request on, as `RunOptions::ram_bytes` does from the start.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.budget = Budget { bytes, source: "the limit set".into() };
    }

    /// `request` with the model's defaults filled in, checked against the model.
    pub fn settle(&self, request: &Request) -> Result<Settings> {
        request.check()?;
        let d = &self.model.defaults;
        let token = self.model.token_pixels();
        let (width, height) = (request.width.unwrap_or(d.width), request.height.unwrap_or(d.height));
        for (flag, pixels) in [("width", width), ("height", height)] {
            if pixels == 0 || pixels % token != 0 {
                let nearest = ((pixels + token / 2) / token).max(1) * token;
                return Err(Error::argument(format!("the {flag} does not suit this model"))
                    .found(pixels)
                    .expected(format!("a multiple of {token} pixels"))
                    .try_(format!("--{flag} {nearest}")));
            }
        }
        // The model's own defaults come from a file: they are held to the same limits.
        let filled = Request {
            steps: Some(request.steps.unwrap_or(d.steps)),
            width: Some(width),
            height: Some(height),
            guidance: request.guidance.or(d.guidance),
            init: None,
            ..request.clone()
        };
        filled.check()?;
        let init = request.init.as_ref();
        if init.is_some() && !self.model.vae.config.encoder {
            return Err(Error::model("image-to-image needs the autoencoder's encoder, which this file lacks")
                .try_("--vae ae.safetensors"));
        }
        Ok(Settings {
            prompt: request.prompt.clone(),
            negative: request.negative.clone(),
            count: request.count.unwrap_or(1),
            steps: request.steps.unwrap_or(d.steps),
            seed: request.seed.unwrap_or_else(random_seed),
            width,
            height,
            guidance: d.guidance.map(|g| request.guidance.unwrap_or(g)),
            cfg_scale: request.cfg_scale.unwrap_or(1.0),
            strength: init.map(|i| i.strength),
            model: self.model.name.clone(),
            model_hash: self.model.hash.clone(),
        })
    }

    /// The noise levels of `settings` and the index of the first that is used.
    pub(super) fn schedule(&self, settings: &Settings) -> (Schedule, usize) {
        let token = self.model.token_pixels();
        let tokens = (settings.width / token) * (settings.height / token);
        let schedule = Schedule::new(&self.model.schedule, settings.steps, tokens);
        let first = settings.strength.map_or(0, |s| schedule.from_strength(s));
        (schedule, first)
    }

    /// Plans every phase of `settings`; fails with `Kind::Memory` where the budget cannot hold it.
    pub(super) fn phases(&self, settings: &Settings) -> Result<Phases> {
        let (schedule, first) = self.schedule(settings);
        let host = self.host_bytes(settings);
        // On a device with memory of its own the host's share is no part of the budget.
        let shared = if self.backend.caps().in_place_weights { host } else { 0 };
        let budget = self.budget.bytes.saturating_sub(shared);
        Phases::new(&self.model, settings, schedule.steps() - first, self.backend.as_ref(), budget).map_err(|refused| {
            match refused {
                Refused::Failed(e) => e,
                Refused::TooSmall(least) => {
                    // Rounded up, with room for what the process may hold more when it is started again.
                    let enough = (shared + least).div_ceil(1_000_000) + 8;
                    Error::memory("the request does not fit in the memory budget")
                        .found(format!("{} ({})", gigabytes(self.budget.bytes), self.budget.source))
                        .expected(format!("at least {enough} MB, {} of them for the program itself", gigabytes(host)))
                        .try_(format!("--ram {enough}M, or a smaller picture"))
                }
            }
        })
    }

    /// Host memory beside the plan, in bytes: the process as it stands, embeddings, modulation of all steps, latents, pixels.
    fn host_bytes(&self, s: &Settings) -> u64 {
        let m = &self.model;
        let prompts = if s.cfg_scale != 1.0 { 2 } else { 1 };
        let pixels = s.width * s.height;
        let floats = prompts * s.count * m.t5_length * m.t5.config.width * 2
            + s.steps * prompts * m.flux.config.modulation_cols()
            + s.count * pixels / 4
            + (s.width + s.height) * 1024
            + pixels * 8;
        self.base_bytes + PROCESS_BYTES + 4 * floats as u64 + (s.count * pixels * 3) as u64
    }

    /// What a generation would use, without running it.
    pub fn plan(&self, request: &Request) -> Result<PlanReport> {
        let settings = self.settle(request)?;
        let phases = self.phases(&settings)?;
        let host_bytes = self.host_bytes(&settings);
        Ok(PlanReport {
            model: settings.model.clone(),
            device: self.backend.caps().description.clone(),
            width: settings.width,
            height: settings.height,
            count: settings.count,
            steps: settings.steps,
            budget_bytes: self.budget.bytes,
            budget_source: self.budget.source.clone(),
            host_bytes,
            keeps_weights: phases.keep,
            phases: phases.all().map(|r| r.report()).collect(),
            peak_bytes: host_bytes + phases.peak_bytes(),
        })
    }
}

/// `auto` takes the best device there is; today that is the CPU.
fn open_device(options: &RunOptions, tell: &mut dyn FnMut(Event) -> Result<()>) -> Result<Box<dyn Backend>> {
    let name = options.device.split(':').next().unwrap_or_default();
    if !matches!(name, "" | "auto" | "cpu") {
        return Err(Error::device(format!("no such device: {}", options.device))
            .expected("cpu or auto")
            .try_("--device cpu; this version runs on the CPU only (see `flux-fast doctor`)"));
    }
    let compute = match options.compute.as_str() {
        "" | "auto" => Compute::Auto,
        "f32" => Compute::F32,
        "bf16" => Compute::Bf16,
        other => {
            return Err(Error::argument("unknown --compute")
                .found(other)
                .expected("auto, f32 or bf16")
                .try_("--compute auto"));
        }
    };
    let kernels = options
        .kernels
        .iter()
        .map(|k| {
            let (op, variant) = k
                .split_once('=')
                .ok_or_else(|| Error::argument("--kernel wants OP=NAME").found(k).try_("linear=linear_f32_avx2"))?;
            Ok((op.to_string(), variant.to_string()))
        })
        .collect::<Result<Vec<_>>>()?;
    let backend = CpuBackend::new(CpuOptions { threads: options.threads, compute, kernels, isa: None })?;
    if options.vram_bytes.is_some() {
        tell(Event::Note("--vram has no effect on the CPU; --ram bounds its memory".into()))?;
    }
    Ok(Box::new(backend))
}

fn budget(options: &RunOptions, backend: &dyn Backend) -> Result<Budget> {
    let total = backend.caps().memory_bytes;
    if let Some(bytes) = options.ram_bytes {
        return Ok(Budget { bytes, source: "--ram".into() });
    }
    let Ok(mut system) = sysinfo::System::new() else {
        return Ok(Budget { bytes: total / 2, source: format!("half of {}", gigabytes(total)) });
    };
    system.refresh_memory();
    // Within a container: what its limit leaves, not what the machine has.
    let contained = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    let available = match system.available_memory() {
        0 => total / 2,
        n => n.min(total).min(contained),
    };
    // A tenth is left to the rest of the machine. What this process holds already is not in `available`.
    let bytes = available / 10 * 9 + resident_bytes();
    Ok(Budget { bytes, source: format!("nine tenths of the {} that are free", gigabytes(available)) })
}

/// Resident set of this process in bytes; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};
    let Ok(pid) = sysinfo::get_current_pid() else { return 0 };
    let Ok(mut system) = System::new() else { return 0 };
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&[pid]),
        false,
        ProcessRefreshKind::nothing().with_memory(),
    );
    system.process(pid).map_or(0, |p| p.memory())
}

/// 32 bits, since torch's generator uses no more of a seed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() & 0xffff_ffff
}
