//! A model and a device made ready, serving one request after another.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::device::{self, Budget, HostLimit, Opened, PROCESS_BYTES, resident_bytes};
use super::loras::{LoraSet, Loras, split_tags};
use super::model::Model;
use super::phases::{Phases, Refused};
use super::report::PlanReport;
use super::request::{Request, RunOptions, Settings};
use super::schedule::Schedule;
use super::tokenizers::Tokenizers;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::{Backend, Caps, Compute, Device};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::library;
use crate::library::ModelFiles;
use crate::library::lookup;
use crate::library::places::Places;
use crate::stream::Holdings;
use crate::units;

/// The model inside the binary: an all-in-one checkpoint in ComfyUI's names, FP8 linear weights.
static EMBEDDED: &[u8] = include_bytes!("../../assets/tiny/flux-tiny.safetensors");

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
    host: HostLimit,
    options: RunOptions,
    /// Resident set of the process when the model was open and nothing had run.
    base_bytes: u64,
    loras: Loras,
}

impl Pipeline {
    /// Opens the model, checks it whole, and prepares the device. Lines for the user arrive as events. Names that are no paths, and components that are neither in
    /// the model nor beside it, are looked for in the places of this process.
    pub fn open(
        files: &ModelFiles,
        options: &RunOptions,
        on: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Pipeline> {
        Pipeline::open_among(&Places::of_process(), files, options, on)
    }

    /// The same with places of the caller's choice. `files` may hold any path: a front end that takes names from strangers asks `Places::named` first.
    pub fn open_among(
        places: &Places,
        files: &ModelFiles,
        options: &RunOptions,
        on: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Pipeline> {
        let mut tell = |event| match on(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::cancelled("stopped while the model was opened")),
        };
        let found = lookup::find(files, places, &mut tell)?;
        let Opened { backend, budget, host } = device::open(options, &mut tell)?;
        let checkpoint = match lookup::open(found, places, &mut tell)? {
            Some(checkpoint) => checkpoint,
            None => {
                tell(Event::Note(
                    "drawing with the small embedded model (animals, plants and food, 128x128); for FLUX.1 itself give --model, see README.md".into(),
                ))?;
                library::open_bytes(EMBEDDED, "flux-tiny")?
            }
        };
        let (clip, t5) = (checkpoint.clip_tokenizer.clone(), checkpoint.t5_tokenizer.clone());
        let mut notes = Vec::new();
        let model = Model::new(checkpoint, &mut notes)?;
        notes.into_iter().try_for_each(|n| tell(Event::Note(n)))?;
        let tokenizers = Tokenizers::load(clip.as_deref(), t5.as_deref())?;
        let arithmetic = arithmetic(backend.caps(), options);
        let base_bytes = resident_bytes();
        Ok(Pipeline {
            model,
            tokenizers,
            backend,
            holdings: Holdings::default(),
            arithmetic,
            text_cache: !options.no_cache,
            budget,
            host,
            options: options.clone(),
            base_bytes,
            loras: Loras::new(places),
        })
    }

    /// Opens the device anew after it was lost, or the CPU instead, under the bounds that hold now.
    pub(super) fn open_again(
        &mut self,
        on_cpu: bool,
        on: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<()> {
        let old = self.backend.caps().clone();
        // It goes before the new one comes: both would not fit, and what is free is measured then.
        self.holdings = Holdings::default();
        self.backend =
            Box::new(CpuBackend::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?);
        let device = if on_cpu { Device::Cpu } else { old.name.parse()? };
        let mut options = RunOptions { device, ..self.options.clone() };
        if on_cpu {
            // These were for the other device.
            options.kernels.clear();
            options.compute = Compute::Auto;
        }
        let mut tell = |event| match on(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                Err(Error::cancelled("stopped while the device was opened anew"))
            }
        };
        let Opened { backend, budget, host } = device::open(&options, &mut tell)?;
        if !on_cpu && backend.caps().description != old.description {
            return Err(Error::device("the GPU did not come back")
                .at(&old.name)
                .found(&backend.caps().description)
                .expected(&old.description)
                .try_("`flux-fast doctor` lists what there is now"));
        }
        self.backend = backend;
        // The same device has the bounds that it had.
        if on_cpu {
            (self.budget, self.host) = (budget, host);
        }
        self.arithmetic = arithmetic(self.backend.caps(), &options);
        Ok(())
    }

    /// Products in F16 overflowed: from now on they are made in F32. False if they were already.
    pub(super) fn leave_f16(&mut self) -> bool {
        let was = self.options.compute == Compute::F16;
        if was {
            self.options.compute = Compute::Auto;
        }
        was
    }

    /// Whether another device may take over: nobody asked for this one.
    pub(super) fn may_change_device(&self) -> bool {
        self.options.device == Device::Auto
    }

    /// Uses `backend` instead of the one that was opened: for tests of what follows a lost device.
    #[doc(hidden)]
    pub fn replace_backend(&mut self, backend: Box<dyn Backend>) {
        self.holdings = Holdings::default();
        self.backend = backend;
    }

    /// Whether text embeddings are kept on disk and taken from there (they are, unless `RunOptions::no_cache`).
    pub fn use_text_cache(&mut self, on: bool) {
        self.text_cache = on;
    }

    /// Bounds the device's memory (the host's, on the CPU) to `bytes` from the next request on, as `RunOptions` does from the start.
    pub fn limit_memory(&mut self, bytes: u64) -> Result<()> {
        let caps = self.backend.caps();
        let reach =
            if caps.in_place_weights { u64::MAX } else { caps.free_bytes + caps.overhead_bytes };
        self.budget = Budget { bytes: bytes.min(reach), source: "the limit set".into() };
        // What is set aside may be more than that.
        self.holdings.clear(self.backend.as_mut())
    }

    /// `request` with the model's defaults filled in, checked against the model.
    pub fn settle(&self, request: &Request) -> Result<Settings> {
        request.check()?;
        let d = &self.model.defaults;
        let token = self.model.token_pixels();
        let (width, height) =
            (request.width.unwrap_or(d.width), request.height.unwrap_or(d.height));
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
            return Err(Error::model(
                "image-to-image needs the autoencoder's encoder, which this file lacks",
            )
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
            loras: request.loras.clone(),
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

    /// The LoRAs of `settings` and of its prompt, read and checked.
    pub(super) fn lora_set(&self, settings: &Settings) -> Result<Arc<LoraSet>> {
        let mut choices = split_tags(&settings.prompt)?.1;
        choices.extend(settings.loras.iter().cloned());
        self.loras.set(&choices, &self.model)
    }

    /// Plans every phase of `settings`; fails with `Kind::Memory` where the budget cannot hold it.
    pub(super) fn phases(&self, settings: &Settings, loras: &LoraSet) -> Result<Phases> {
        let (schedule, first) = self.schedule(settings);
        let host = self.host_bytes(settings, loras);
        let caps = self.backend.caps();
        // Their matrices are put together while the plan is made: before, so much must be possible at all. They are BF16 at the least.
        if loras.bytes() / 2 > self.budget.bytes {
            return Err(Error::memory("the LoRAs alone do not fit in the memory budget")
                .found(format!("{} ({})", units::bytes(self.budget.bytes), self.budget.source))
                .expected(format!("some {}", units::bytes(loras.bytes())))
                .try_("fewer LoRAs, or such of a lower rank"));
        }
        let limit = self.host.bytes;
        if self.host.asked && host > limit {
            let enough = host.div_ceil(1_000_000) + 8;
            return Err(Error::memory(
                "the program itself does not fit in the bound on host memory",
            )
            .at("--ram")
            .found(units::bytes(limit))
            .expected(format!("at least {enough} MB"))
            .try_(format!("--ram {enough}M")));
        }
        // On a device with memory of its own the host's share is no part of the budget, but its context is.
        let (shared, flag, what) = match caps.in_place_weights {
            true => (host, "--ram", "the program itself"),
            false => (caps.overhead_bytes, "--vram", "context and code"),
        };
        let mut budget = self.budget.bytes.saturating_sub(shared);
        budget -= budget % caps.granularity as u64;
        let reach =
            if caps.in_place_weights { u64::MAX } else { caps.free_bytes + caps.overhead_bytes };
        Phases::new(
            &self.model,
            loras,
            settings,
            schedule.steps() - first,
            self.backend.as_ref(),
            budget,
        )
        .map_err(|refused| {
            match refused {
                Refused::Failed(e) => e,
                Refused::TooSmall(least) => {
                    // Rounded up, with room for what the process may hold more when it is started again.
                    let least = least.next_multiple_of(caps.granularity as u64);
                    let enough = (shared + least).div_ceil(1_000_000) + 8;
                    Error::memory("the request does not fit in the memory budget")
                        .found(format!(
                            "{} ({})",
                            units::bytes(self.budget.bytes),
                            self.budget.source
                        ))
                        .expected(format!(
                            "at least {enough} MB, {} of them for {what}",
                            units::bytes(shared)
                        ))
                        .try_(match enough * 1_000_000 > reach {
                            true => "a smaller picture, or end other programs that use the GPU"
                                .to_string(),
                            false => format!("{flag} {enough}M, or a smaller picture"),
                        })
                }
            }
        })
    }

    /// Host memory that may be pinned for weights that pass in every step, where the device has memory of its own.
    pub(super) fn pinned_bytes(&self, settings: &Settings, loras: &LoraSet) -> u64 {
        if !self.backend.caps().pins {
            return 0;
        }
        self.host.bytes.saturating_sub(self.host_bytes(settings, loras))
    }

    /// Host memory beside the plan, in bytes: the process as it stands, embeddings, modulation of all steps, latents, pixels, and LoRAs where the device has copies.
    fn host_bytes(&self, s: &Settings, loras: &LoraSet) -> u64 {
        let m = &self.model;
        let prompts = if s.cfg_scale != 1.0 { 2 } else { 1 };
        let pixels = s.width * s.height;
        let floats = prompts * s.count * m.t5_length * m.t5.config.width * 2
            + s.steps * prompts * m.flux.config.modulation_cols()
            + s.count * pixels / 4
            + (s.width + s.height) * 1024
            + pixels * 8;
        let copied = if self.backend.caps().in_place_weights { 0 } else { loras.bytes() };
        self.base_bytes + PROCESS_BYTES + copied + 4 * floats as u64 + (s.count * pixels * 3) as u64
    }

    /// What a generation would use, without running it.
    pub fn plan(&self, request: &Request) -> Result<PlanReport> {
        let settings = self.settle(request)?;
        let loras = self.lora_set(&settings)?;
        let phases = self.phases(&settings, &loras)?;
        let host_bytes = self.host_bytes(&settings, &loras);
        let caps = self.backend.caps();
        let shared = if caps.in_place_weights { host_bytes } else { caps.overhead_bytes };
        Ok(PlanReport {
            model: settings.model.clone(),
            device: caps.description.clone(),
            width: settings.width,
            height: settings.height,
            count: settings.count,
            steps: settings.steps,
            budget_bytes: self.budget.bytes,
            budget_source: self.budget.source.clone(),
            host_bytes,
            overhead_bytes: caps.overhead_bytes,
            pinned_bytes: self.pinned_bytes(&settings, &loras),
            own_memory: !caps.in_place_weights,
            keeps_weights: phases.keep,
            loras: loras.lines(),
            lora_bytes: phases.all().map(|r| r.plan.residency.side_bytes as u64).sum(),
            phases: phases.all().map(|r| r.report()).collect(),
            peak_bytes: shared + phases.peak_bytes(caps.granularity),
        })
    }
}

/// What results depend on beside the request and the weights.
fn arithmetic(caps: &Caps, options: &RunOptions) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "{version} {} {} {} {:?}",
        caps.name, caps.description, options.compute, options.kernels
    )
}

/// A pipeline may be made in one thread and used in another: servers do.
const _: fn() = || {
    fn send<T: Send>() {}
    send::<Pipeline>();
};

/// 32 bits, since torch's generator uses no more of a seed.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{KernelChoice, wgpu};
    use crate::error::Kind;
    use crate::event::Phase;

    /// What follows when a GPU fails for good under `--device auto`, whatever it computed in.
    #[test]
    fn the_cpu_takes_over_and_draws_what_it_always_draws() {
        if wgpu::adapters().first().is_none_or(|a| a.unusable.is_some()) {
            eprintln!("SKIPPED: no adapter");
            return;
        }
        let mut ignore = |_| ControlFlow::Continue(());
        let open = |device| {
            let options = RunOptions { device, no_cache: true, ..RunOptions::default() };
            Pipeline::open(&ModelFiles::default(), &options, &mut |_| ControlFlow::Continue(()))
                .unwrap()
        };
        let request =
            Request { prompt: "a fox".into(), seed: Some(1), steps: Some(1), ..Request::default() };
        let want = open(Device::Cpu).generate(&request, &mut ignore).unwrap().pictures;
        let mut pipeline = open(Device::Wgpu(0));
        pipeline.options.device = Device::Auto;
        pipeline.options.compute = Compute::F16;
        pipeline.options.kernels = vec![KernelChoice::new("linear", "linear_any")];
        assert!(pipeline.may_change_device() && !pipeline.backend.caps().in_place_weights);
        pipeline.open_again(true, &mut ignore).unwrap();
        assert!(pipeline.backend.caps().in_place_weights);
        assert!(pipeline.generate(&request, &mut ignore).unwrap().pictures == want);
    }

    /// What follows when products in F16 overflow, on a device that has none: what goes wrong here stays wrong, so that the second try ends in the error.
    #[test]
    fn f9_numbers_that_left_f16_are_drawn_again_once_in_f32_and_said_aloud() {
        let mut bytes = EMBEDDED.to_vec();
        let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let name = "model.diffusion_model.double_blocks.0.img_mlp.2.bias";
        let at = json[name]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[8 + header + at..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let files =
            ModelFiles { model: Some(file.path().display().to_string()), ..ModelFiles::default() };
        let options = RunOptions { device: Device::Cpu, no_cache: true, ..RunOptions::default() };
        let mut pipeline =
            Pipeline::open(&files, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        pipeline.options.compute = Compute::F16;
        let request =
            Request { prompt: "a fox".into(), seed: Some(1), steps: Some(1), ..Request::default() };
        for tries in [2, 1] {
            let (mut warnings, mut phases) = (vec![], 0);
            let e = pipeline.generate(&request, &mut |event| {
                match event {
                    Event::Warning(w) if w.contains("drawing again, with products in F32") => {
                        warnings.push(w)
                    }
                    Event::PhaseStart { phase: Phase::Denoise, .. } => phases += 1,
                    _ => {}
                }
                ControlFlow::Continue(())
            });
            let e = e.unwrap_err();
            assert_eq!(e.kind(), Kind::NotFinite);
            assert!(e.to_string().contains("double.0."), "{e}");
            assert_eq!((phases, warnings.len()), (tries, tries - 1), "{warnings:?}");
            assert_eq!(pipeline.options.compute, Compute::Auto);
        }
    }
}
