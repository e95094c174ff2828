//! A model and a device, ready to serve one request after another.

use std::ops::ControlFlow;

use super::controlnets::ControlNets;
use super::embedded;
use super::flux1_kind::Flux1Kind;
use super::generate::{generate, input_images};
use super::images::ReferenceSize;
use super::inputs::ModelInputs;
use super::loaded::{InputImages, LoadedModel};
use super::loras::Loras;
use super::model::Model;
use super::open_device::OpenDevice;
use super::progress::{Listener, send};
use super::report::PlanReport;
use super::request::{AspectRatio, Generated, Options, Request, Settings};
use super::settle::{default_settings, masking_for, noise_levels, settings_for};
use crate::backend::{Backend, Int8Use};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::host;
use crate::library;
use crate::library::lookup;
use crate::library::places::ModelPlaces;
use crate::weights::ComponentWeights;

/// Opens a model once and makes images with it, one request after another.
pub struct Engine {
    loaded: LoadedModel,
    device: OpenDevice,
}

impl Engine {
    /// Opens the model and the device that `options` name; see [`Engine::open_with`].
    pub fn open(options: Options) -> Result<Engine> {
        Engine::open_with(options, |_| ControlFlow::Continue(()))
    }

    /// Opens the model, checks every tensor of it, and prepares the device. `on` receives notes and
    /// warnings for the user; [`ControlFlow::Break`] cancels.
    ///
    /// The options may name any path: a front end that receives names from untrusted users must
    /// call [`ModelPlaces::named`] first.
    ///
    /// # Errors
    /// Errors of every [`Kind`](crate::error::Kind) except `Output` and `NotFinite`.
    pub fn open_with(
        options: Options,
        mut on: impl FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Engine> {
        let on: Listener<'_> = &mut on;
        let process;
        let places = match &options.places {
            Some(places) => places,
            None => {
                process = ModelPlaces::of_process();
                &process
            }
        };
        // What a process that was killed has left: a synthetic model has gigabytes.
        for folder in ["", "text", "synthetic"] {
            host::remove_abandoned(&host::cache_folder().join(folder));
        }
        let found = lookup::find(&options.files, places, &mut |event| notify(on, event))?;
        let device = OpenDevice::open(&options, on)?;
        let mut embedded = false;
        let checkpoint = match lookup::open(found, places, &mut |event| notify(on, event))? {
            Some(checkpoint) => checkpoint,
            None => {
                embedded = true;
                let bytes = embedded::model()?;
                let note = "using the small embedded model (animals, plants and food, 128x128); \
                     for FLUX.1 or FLUX.2 give {model}, see README.md";
                notify(on, Event::note(note))?;
                library::open_bytes(bytes, embedded::EMBEDDED)?
            }
        };
        let mut notes = Vec::new();
        let model = Model::new(checkpoint, &mut notes)?;
        notes.into_iter().try_for_each(|n| notify(on, Event::note(n)))?;
        let transformer = model.weights(model.family.transformer());
        if transformer.is_some_and(ComponentWeights::is_rotated)
            && device.caps().int8 == Int8Use::Stored
        {
            let note = "the transformer is stored for products in int8 (ConvRot), and they are \
                        computed so; {compute=bf16} is more exact, and slower";
            notify(on, Event::note(note))?;
        }
        let (loras, controlnets) = (Loras::new(places), ControlNets::new(places));
        let mut loaded = LoadedModel::new(model, loras, controlnets, !options.no_cache);
        loaded.embedded = embedded;
        Ok(Engine { loaded, device })
    }

    /// Uses `backend` instead of the one that was opened: for tests of a device that is lost.
    #[doc(hidden)]
    pub fn replace_backend(&mut self, backend: Box<dyn Backend>) {
        self.device.replace_backend(backend);
    }

    /// Whether text embeddings are kept on disk and taken from there (they are, unless
    /// [`Options::no_cache`] is set).
    pub fn use_text_cache(&mut self, on: bool) {
        self.loaded.text_cache = on;
    }

    /// Bounds the device's memory (the host's, on the CPU) to `bytes` from the next request on, as
    /// [`Options`] do from the start.
    pub fn limit_memory(&mut self, bytes: u64) -> Result<()> {
        self.device.limit_memory(bytes)
    }

    /// Width and height with the shape `ratio`, at the number of pixels of the model's own size.
    pub fn size_for(&self, ratio: AspectRatio) -> (usize, usize) {
        let model = &self.loaded.model;
        ratio.size(model.defaults.width * model.defaults.height, model.token_pixels())
    }

    /// What the model reads besides the prompt. It looks for the networks for styles in the folders
    /// of models, and does not open them.
    pub fn inputs(&self) -> ModelInputs {
        let model = &self.loaded.model;
        match model.flux1_kind() {
            Some(kind) => ModelInputs {
                references: kind == Flux1Kind::Kontext,
                kontext_sizes: kind == Flux1Kind::Kontext,
                needs_control: kind.is_control(),
                needs_mask: kind == Flux1Kind::Fill,
                controlnets: true,
                styles: model.styles.are_there(),
            },
            None => ModelInputs { references: true, ..ModelInputs::default() },
        }
    }

    /// In which size the model reads reference images; `None` if it reads none.
    pub fn reference_size(&self) -> Option<ReferenceSize> {
        let model = &self.loaded.model;
        match model.flux1_kind() {
            None => Some(ReferenceSize::Limited),
            Some(Flux1Kind::Kontext) => Some(ReferenceSize::Kontext { unit: model.token_pixels() }),
            Some(_) => None,
        }
    }

    /// The model's own settings: those of a request that sets nothing. Such a request need not be
    /// one that the model can draw: some need an image, too.
    pub fn defaults(&self) -> Result<Settings> {
        default_settings(&self.loaded.model)
    }

    /// `request` with the defaults of the model filled in, checked against the model.
    pub fn settings(&self, request: &Request) -> Result<Settings> {
        match request.control {
            // LoRAs that read it have defaults of their own.
            Some(_) if request.has_loras() => self.loaded.settle(request).map(|(s, _)| s),
            _ => settings_for(&self.loaded.model, request),
        }
    }

    /// Makes the images that `request` asks for; see [`Engine::generate_with`].
    pub fn generate(&mut self, request: &Request) -> Result<Generated> {
        self.generate_with(request, |_| ControlFlow::Continue(()))
    }

    /// Makes the images that `request` asks for. Everything is planned first, so that a request
    /// that cannot fit is refused before anything runs. `on` receives progress, notes and warnings;
    /// [`ControlFlow::Break`] cancels at the next operation.
    ///
    /// A GPU that is lost meanwhile is opened again once, if that is possible; the second time the
    /// CPU takes over if the options left the choice of the device to the program.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) for a request that does not suit the model,
    /// [`Kind::Memory`](crate::error::Kind::Memory) with the bound that would be enough,
    /// [`Kind::Cancelled`](crate::error::Kind::Cancelled), and errors of the device.
    pub fn generate_with(
        &mut self,
        request: &Request,
        mut on: impl FnMut(Event) -> ControlFlow<()>,
    ) -> Result<Generated> {
        // Said once, and not to those who know it.
        if request.shift.is_none()
            && request.scheduler.is_none()
            && let Some(note) = self.loaded.model.assumed.take()
        {
            send(&mut on, Event::note(note))?;
        }
        generate(&self.loaded, &mut self.device, request, &mut on)
    }

    /// What a generation would use, without running it.
    pub fn plan(&self, request: &Request) -> Result<PlanReport> {
        let (settings, sigmas, images) = self.settled(request)?;
        self.loaded.report(&settings, &sigmas, &self.device, &images)
    }

    /// The least [`Options::ram`] with which `request` can be drawn, in bytes, as refusals name it.
    /// Only the sizes of its images matter, and which part of a masked image is repainted.
    pub fn least_ram(&self, request: &Request) -> Result<u64> {
        let (settings, sigmas, images) = self.settled(request)?;
        self.loaded.least_ram(&settings, &sigmas, &self.device, &images)
    }

    /// The settings of `request`, its noise levels, and what its images need.
    fn settled(&self, request: &Request) -> Result<(Settings, Vec<f32>, InputImages)> {
        let model = &self.loaded.model;
        let (settings, _) = self.loaded.settle(request)?;
        let sigmas = noise_levels(model, &settings);
        let masking = masking_for(model, request)?;
        let images = input_images(model, request, &settings, masking.as_ref());
        Ok((settings, sigmas, images))
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
    send::<Engine>();
};

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use super::*;
    use crate::backend::{Compute, Device};
    use crate::error::Kind;
    use crate::event::Phase;

    /// What follows when a GPU fails for good under `--device auto`, whatever it computed in.
    #[cfg(feature = "wgpu")]
    #[test]
    fn the_cpu_takes_over_and_makes_its_usual_image() {
        use crate::backend::{KernelChoice, wgpu};
        if wgpu::adapters().first().is_none_or(|a| a.unusable.is_some()) {
            eprintln!("SKIPPED: no adapter");
            return;
        }
        let mut ignore = |_| ControlFlow::Continue(());
        let open = |device| {
            let options = Options::default().device(device).no_cache(true);
            Engine::open(options).unwrap()
        };
        let request = Request::new("a fox").seed(1).steps(1);
        let want = open(Device::Cpu).generate_with(&request, &mut ignore).unwrap().images;
        let mut pipeline = open(Device::Wgpu(0));
        let device = &mut pipeline.device;
        device.options_mut().device = Device::Auto;
        device.options_mut().compute = Compute::F16;
        device.options_mut().kernels = vec![KernelChoice::new("linear", "linear_any")];
        assert!(device.is_automatic() && !device.caps().in_place_weights);
        device.take_cpu(&mut ignore).unwrap();
        assert!(device.caps().in_place_weights);
        assert!(pipeline.generate_with(&request, &mut ignore).unwrap().images == want);
    }

    /// The recovery from products that overflow in F16, on a device without F16: the infinite bias
    /// is in the file, so the second try ends in the error.
    #[test]
    fn f9_numbers_beyond_f16_are_computed_again_once_in_f32_with_a_warning() {
        let mut bytes = embedded::model().unwrap().to_vec();
        let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let name = "model.diffusion_model.double_blocks.0.img_mlp.2.bias";
        let at = json[name]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[8 + header + at..][..2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
        let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let options = Options::default().device(Device::Cpu).no_cache(true);
        let mut pipeline = Engine::open(options.model(file.path().display().to_string())).unwrap();
        pipeline.device.options_mut().compute = Compute::F16;
        let request = Request::new("a fox").seed(1).steps(1);
        for tries in [2, 1] {
            let (mut warnings, mut phases) = (vec![], 0);
            let e = pipeline.generate_with(&request, |event| {
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
