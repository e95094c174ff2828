//! A model and a device, ready to serve one request after another.

use std::ops::ControlFlow;
use std::path::Path;

use super::generate::generate;
use super::loaded::LoadedModel;
use super::loras::Loras;
use super::model::Model;
use super::open_device::OpenDevice;
use super::progress::Listener;
use super::report::PlanReport;
use super::request::{Generated, Request, RunOptions, Settings};
use super::settle::{noise_levels, settings_for};
use super::tokenizers::Tokenizers;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::library;
use crate::library::ModelFiles;
use crate::library::lookup;
use crate::library::places::ModelPlaces;
use crate::spec::flux1::{CLIP, T5};

/// The model inside the binary: an all-in-one checkpoint in ComfyUI's names, FP8 linear weights.
pub(super) static EMBEDDED: &[u8] = include_bytes!("../../assets/tiny/flux-tiny.safetensors");

/// Loads a model once and generates images from it.
pub struct Pipeline {
    loaded: LoadedModel,
    device: OpenDevice,
}

impl Pipeline {
    /// Opens the model, checks every tensor of it, and prepares the device. Notes for the user
    /// arrive as events. Names that are not paths, and components that are neither in the model nor
    /// next to it, are looked up in the places of this process.
    pub fn open(files: &ModelFiles, options: &RunOptions, on: Listener<'_>) -> Result<Pipeline> {
        Pipeline::open_among(&ModelPlaces::of_process(), files, options, on)
    }

    /// The same as [`Pipeline::open`] with `places` that the caller chooses. `files` may contain
    /// any path: a front end that receives names from untrusted users must call
    /// [`ModelPlaces::named`] first.
    pub fn open_among(
        places: &ModelPlaces,
        files: &ModelFiles,
        options: &RunOptions,
        on: Listener<'_>,
    ) -> Result<Pipeline> {
        let found = lookup::find(files, places, &mut |event| notify(on, event))?;
        let device = OpenDevice::open(options, on)?;
        let checkpoint = match lookup::open(found, places, &mut |event| notify(on, event))? {
            Some(checkpoint) => checkpoint,
            None => {
                let note = "using the small embedded model (animals, plants and food, 128x128); \
                     for FLUX.1 itself give --model, see README.md";
                notify(on, Event::Note(note.into()))?;
                library::open_bytes(EMBEDDED, "flux-tiny")?
            }
        };
        let tokenizer = |component| checkpoint.tokenizer(component).map(Path::to_path_buf);
        let (clip, t5) = (tokenizer(CLIP), tokenizer(T5));
        let mut notes = Vec::new();
        let model = Model::new(checkpoint, &mut notes)?;
        notes.into_iter().try_for_each(|n| notify(on, Event::Note(n)))?;
        let tokenizers = Tokenizers::load(clip.as_deref(), t5.as_deref())?;
        let loaded = LoadedModel::new(model, tokenizers, Loras::new(places), !options.no_cache);
        Ok(Pipeline { loaded, device })
    }

    /// Uses `backend` instead of the one that was opened: for tests of a device that is lost.
    #[doc(hidden)]
    pub fn replace_backend(&mut self, backend: Box<dyn Backend>) {
        self.device.replace_backend(backend);
    }

    /// Whether text embeddings are kept on disk and taken from there (they are, unless
    /// [`RunOptions::no_cache`] is set).
    pub fn use_text_cache(&mut self, on: bool) {
        self.loaded.text_cache = on;
    }

    /// Bounds the device's memory (the host's, on the CPU) to `bytes` from the next request on, as
    /// [`RunOptions`] do from the start.
    pub fn limit_memory(&mut self, bytes: u64) -> Result<()> {
        self.device.limit_memory(bytes)
    }

    /// `request` with the defaults of the model filled in, checked against the model.
    pub fn settings(&self, request: &Request) -> Result<Settings> {
        settings_for(&self.loaded.model, request)
    }

    /// Makes the images that `request` asks for. Everything is planned first, so that a request
    /// that cannot fit is refused before anything runs.
    ///
    /// A GPU that is lost meanwhile is opened again once, if that is possible; the second time the
    /// CPU takes over if the options left the choice of the device to the program.
    pub fn generate(&mut self, request: &Request, on: Listener<'_>) -> Result<Generated> {
        generate(&self.loaded, &mut self.device, request, on)
    }

    /// What a generation would use, without running it.
    pub fn plan(&self, request: &Request) -> Result<PlanReport> {
        let settings = self.settings(request)?;
        let sigmas = noise_levels(&self.loaded.model, &settings);
        self.loaded.report(&settings, &sigmas, &self.device)
    }
}

fn notify(on: Listener<'_>, event: Event) -> Result<()> {
    match on(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::cancelled("stopped while the model was opened")),
    }
}

/// A pipeline can be made in one thread and used in another: servers do that.
const _: fn() = || {
    fn send<T: Send>() {}
    send::<Pipeline>();
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Compute, Device, KernelChoice, wgpu};
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
        let request = Request::new("a fox").seed(1).steps(1);
        let want = open(Device::Cpu).generate(&request, &mut ignore).unwrap().pictures;
        let mut pipeline = open(Device::Wgpu(0));
        let device = &mut pipeline.device;
        device.options_mut().device = Device::Auto;
        device.options_mut().compute = Compute::F16;
        device.options_mut().kernels = vec![KernelChoice::new("linear", "linear_any")];
        assert!(device.is_automatic() && !device.caps().in_place_weights);
        device.take_cpu(&mut ignore).unwrap();
        assert!(device.caps().in_place_weights);
        assert!(pipeline.generate(&request, &mut ignore).unwrap().pictures == want);
    }

    /// What follows when products in F16 overflow, on a device that has none: what goes wrong here
    /// stays wrong, so that the second try ends in the error.
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
        pipeline.device.options_mut().compute = Compute::F16;
        let request = Request::new("a fox").seed(1).steps(1);
        for tries in [2, 1] {
            let (mut warnings, mut phases) = (vec![], 0);
            let e = pipeline.generate(&request, &mut |event| {
                match event {
                    Event::Warning(w) if w.contains("running again with products in F32") => {
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
            assert!(!pipeline.device.in_f16());
        }
    }
}
