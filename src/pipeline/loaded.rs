//! A loaded model: what a pipeline has besides its device.

use std::sync::Arc;

use super::budget::{PROCESS_BYTES, least_ram, overhead_bytes};
use super::controlnets::{ControlNets, Controlling};
use super::flux1_kind::Flux1Kind;
use super::loras::{LoraSet, Loras};
use super::model::{Model, Networks};
use super::open_device::OpenDevice;
use super::phases::{Flux1Inputs, GenerationPhase, Phases, Refused, flux1, flux2};
use super::report::PlanReport;
use super::request::{Request, Settings};
use super::settle::{no_control_image, settings_for};
use super::speed::Speeds;
use crate::backend::Int8Use;
use crate::error::{Error, Result};
use crate::host::{cache_folder, steady_memory};

/// A model with the LoRAs that were used with it.
pub struct LoadedModel {
    /// Networks and weights.
    pub model: Model,
    /// The LoRA files that were read.
    pub loras: Loras,
    /// The ControlNets that were opened.
    pub controlnets: ControlNets,
    /// Text embeddings are kept on disk and taken from there.
    pub text_cache: bool,
    /// Times of generations are kept on disk, for plans.
    pub keeps_speeds: bool,
    /// It is the model inside the program.
    pub embedded: bool,
    /// Resident set of the process when the model was open and nothing had run, in bytes.
    base_bytes: u64,
}

/// Sizes and memory of the images that a request starts from or refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputImages {
    /// Host memory for the images as they are given, and to prepare them, in bytes.
    pub host_bytes: u64,
    /// A part of the image to start from is kept.
    pub is_masked: bool,
    /// Rows and columns of tokens of each reference image.
    pub references: Vec<(usize, usize)>,
}

/// The plan of one request.
pub struct PlannedRequest<'a> {
    /// The planned phases.
    pub phases: Phases<'a>,
    /// Host memory that the process needs besides the plans of the phases, in bytes.
    pub host_bytes: u64,
}

impl LoadedModel {
    /// Measures what the process uses now.
    pub fn new(model: Model, loras: Loras, controlnets: ControlNets, text_cache: bool) -> Self {
        LoadedModel {
            model,
            loras,
            controlnets,
            text_cache,
            keeps_speeds: text_cache,
            embedded: false,
            base_bytes: steady_memory(),
        }
    }

    /// The LoRAs of `settings`, read and checked.
    pub fn lora_set(&self, settings: &Settings) -> Result<Arc<LoraSet>> {
        let choices: Vec<_> = settings.all_loras().cloned().collect();
        self.loras.set(&choices, self.model.family, &|component| self.model.weights(component))
    }

    /// The ControlNets of `settings`, opened and checked, in the order of the request.
    pub fn controls(&self, settings: &Settings) -> Result<Vec<Controlling>> {
        self.controlnets.open(&settings.controlnets, &self.model)
    }

    /// `request` with the defaults of the model and of its LoRAs filled in, and these LoRAs.
    ///
    /// # Errors
    /// Those of [`settings_for`] and [`LoadedModel::lora_set`];
    /// [`Kind::Argument`](crate::error::Kind::Argument) for a control image that nothing reads, and
    /// a control LoRA without one.
    pub fn settle(&self, request: &Request) -> Result<(Settings, Arc<LoraSet>)> {
        let mut settings = settings_for(&self.model, request)?;
        let loras = self.lora_set(&settings)?;
        let is_plain = self.model.flux1_kind() == Some(Flux1Kind::TextToImage);
        match (&request.control, loras.control_kind()) {
            (_, Some(_)) if !is_plain => {
                return Err(Error::argument("a control LoRA is for a plain FLUX.1 [dev]")
                    .at_parameter("lora")
                    .found("a model that reads other images")
                    .try_("{model} with FLUX.1 [dev], or leave the LoRA out"));
            }
            (None, Some(_)) => {
                return Err(Error::argument("a control LoRA needs a control image")
                    .at_parameter("control")
                    .try_(
                        "{control} with a photo or a drawing of edges (Canny), or an image of \
                         depths, in which near is bright (Depth)",
                    ));
            }
            (Some(_), None) if is_plain => return Err(no_control_image()),
            (Some(_), Some(kind)) => {
                let (guidance, steps) = kind.defaults();
                if request.guidance.is_none() && settings.guidance.is_some() {
                    settings.guidance = Some(guidance);
                }
                settings.steps = request.steps.unwrap_or(steps);
            }
            _ => {}
        }
        Ok((settings, loras))
    }

    /// The phases of a generation with `settings` and its noise levels `sigmas`, planned for
    /// `device`. `images` is what the images of the request need, and `controls` the ControlNets
    /// that act in it.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) if the budget is too small.
    pub fn plan<'a>(
        &'a self,
        settings: &Settings,
        sigmas: &[f32],
        loras: &LoraSet,
        device: &OpenDevice,
        images: &InputImages,
        controls: &'a [Controlling],
    ) -> Result<PlannedRequest<'a>> {
        let (list, host_bytes) = self.phases(settings, sigmas, loras, device, images, controls)?;
        let (caps, bounds) = (device.caps(), device.bounds());
        bounds.check_loras(loras.bytes())?;
        bounds.check_host(host_bytes)?;
        let budget = bounds.plan_bytes(caps, host_bytes);
        match Phases::plan(list, loras, device.backend()?, budget) {
            Ok(phases) => Ok(PlannedRequest { phases, host_bytes }),
            Err(Refused::Failed(e)) => Err(e),
            Err(Refused::TooSmall(least)) => Err(bounds.refusal(caps, host_bytes, least)),
        }
    }

    /// The phases of [`plan`](LoadedModel::plan), and the host memory that the process needs
    /// besides their plans, in bytes.
    fn phases<'a>(
        &'a self,
        settings: &Settings,
        sigmas: &[f32],
        loras: &LoraSet,
        device: &OpenDevice,
        images: &InputImages,
        controls: &'a [Controlling],
    ) -> Result<(Vec<Box<dyn GenerationPhase + 'a>>, u64)> {
        let key = self.text_cache.then(|| format!("{} {}", device.arithmetic(), loras.text_key()));
        let model = &self.model;
        let list = match &model.networks {
            Networks::Flux1(networks) => {
                let styles = match settings.style_strengths.is_empty() {
                    true => None,
                    // What was found was said when the request was checked.
                    false => Some(model.styles.networks(model, &mut Vec::new())?),
                };
                let added_inputs = loras.added_inputs();
                let inputs = Flux1Inputs { images, styles, controls, added_inputs };
                flux1(model, networks, settings, sigmas, key, inputs)
            }
            Networks::Flux2(networks) => flux2(model, networks, settings, sigmas, key, images)?,
        };
        // A device with memory of its own needs copies of the LoRAs' matrices.
        let copied = if device.caps().in_place_weights { 0 } else { loras.bytes() };
        let phases_bytes: u64 = list.iter().map(|phase| phase.host_bytes()).sum();
        let host_bytes =
            self.base_bytes + PROCESS_BYTES + copied + phases_bytes + images.host_bytes;
        Ok((list, host_bytes))
    }

    /// The LoRAs of `settings`, and the ControlNets that act between the noise levels `sigmas`.
    fn additions(
        &self,
        settings: &Settings,
        sigmas: &[f32],
    ) -> Result<(Arc<LoraSet>, Vec<Controlling>)> {
        let loras = self.lora_set(settings)?;
        let mut controls = self.controls(settings)?;
        controls.retain(|control| acts(control, sigmas));
        Ok((loras, controls))
    }

    /// The least bound on host memory with which a generation with `settings` runs on `device`, in
    /// bytes.
    pub fn least_ram(
        &self,
        settings: &Settings,
        sigmas: &[f32],
        device: &OpenDevice,
        images: &InputImages,
    ) -> Result<u64> {
        let (loras, controls) = self.additions(settings, sigmas)?;
        let (list, host_bytes) =
            self.phases(settings, sigmas, &loras, device, images, &controls)?;
        // No plan fits in 0 bytes, and the refusal has the least that is enough.
        let least = match Phases::plan(list, &loras, device.backend()?, 0) {
            Ok(_) => 0,
            Err(Refused::TooSmall(least)) => least,
            Err(Refused::Failed(e)) => return Err(e),
        };
        Ok(least_ram(device.caps(), host_bytes, least))
    }

    /// What a generation with `settings` would use on `device`.
    pub fn report(
        &self,
        settings: &Settings,
        sigmas: &[f32],
        device: &OpenDevice,
        images: &InputImages,
    ) -> Result<PlanReport> {
        let (loras, controls) = self.additions(settings, sigmas)?;
        let PlannedRequest { phases, host_bytes } =
            self.plan(settings, sigmas, &loras, device, images, &controls)?;
        let (caps, budget) = (device.caps(), &device.bounds().budget);
        let mut programs = phases.reports();
        let speeds = Speeds::load(&cache_folder());
        let time_source =
            speeds.estimate(&device.speed_key(), &mut programs, device.assumed_speed());
        Ok(PlanReport {
            model: settings.model.clone(),
            device: caps.description.clone(),
            width: settings.width,
            height: settings.height,
            count: settings.images(),
            steps: settings.steps,
            budget_bytes: budget.bytes,
            budget_source: budget.source.clone(),
            host_bytes,
            overhead_bytes: caps.overhead_bytes,
            pinned_bytes: device.pinned_bytes(host_bytes),
            own_memory: !caps.in_place_weights,
            keeps_weights: phases.keeps_weights(),
            offers_int8: caps.int8 != Int8Use::Never,
            loras: loras.lines(),
            controlnets: controls.iter().map(Controlling::line).collect(),
            lora_bytes: phases.programs().map(|p| p.plan.residency.side_bytes as u64).sum(),
            peak_bytes: overhead_bytes(caps, host_bytes) + phases.peak_bytes(caps.granularity),
            seconds: time_source.and_then(|_| programs.iter().map(|p| p.seconds).sum()),
            time_source,
            phases: programs,
        })
    }
}

/// Whether a ControlNet acts in any of the steps between the noise levels `sigmas`.
pub fn acts(control: &Controlling, sigmas: &[f32]) -> bool {
    let steps = sigmas.len() - 1;
    (0..steps).any(|step| control.choice.acts_in(step, steps))
}
