//! A loaded model: what a pipeline has besides its device.

use std::sync::Arc;

use super::budget::{host_bytes, overhead_bytes};
use super::loras::{LoraSet, Loras};
use super::model::Model;
use super::open_device::OpenDevice;
use super::phases::{Phases, Refused, flux1};
use super::report::PlanReport;
use super::request::Settings;
use super::tokenizers::Tokenizers;
use crate::error::Result;
use crate::host::resident_memory;

/// A model with its tokenizers and the LoRAs that were used with it.
pub struct LoadedModel {
    /// Networks and weights.
    pub model: Model,
    /// Both tokenizers.
    pub tokenizers: Tokenizers,
    /// The LoRA files that were read.
    pub loras: Loras,
    /// Text embeddings are kept on disk and taken from there.
    pub text_cache: bool,
    /// Resident set of the process when the model was open and nothing had run, in bytes.
    base_bytes: u64,
}

impl LoadedModel {
    /// Measures what the process uses now.
    pub fn new(model: Model, tokenizers: Tokenizers, loras: Loras, text_cache: bool) -> Self {
        LoadedModel { model, tokenizers, loras, text_cache, base_bytes: resident_memory() }
    }

    /// The LoRAs of `settings`, read and checked.
    pub fn lora_set(&self, settings: &Settings) -> Result<Arc<LoraSet>> {
        let choices: Vec<_> = settings.all_loras().cloned().collect();
        self.loras.set(&choices, self.model.family, &|component| self.model.weights(component))
    }

    /// The phases of a generation with `settings` and its noise levels `sigmas`, planned for
    /// `device`.
    ///
    /// # Errors
    /// [`Kind::Memory`](crate::error::Kind::Memory) if the budget is too small.
    pub fn plan(
        &self,
        settings: &Settings,
        sigmas: &[f32],
        loras: &LoraSet,
        device: &OpenDevice,
    ) -> Result<Phases<'_>> {
        let (caps, bounds) = (device.caps(), device.bounds());
        let host = self.host_bytes(settings, loras, device);
        bounds.check_loras(loras.bytes())?;
        bounds.check_host(host)?;
        let key = self.text_cache.then(|| format!("{} {}", device.arithmetic(), loras.text_key()));
        let list = flux1(&self.model, &self.tokenizers, settings, sigmas, key);
        Phases::plan(list, loras, device.backend()?, bounds.plan_bytes(caps, host)).map_err(
            |refused| match refused {
                Refused::Failed(e) => e,
                Refused::TooSmall(least) => bounds.refusal(caps, host, least),
            },
        )
    }

    /// Host memory that a generation needs besides its plan, in bytes; with LoRAs if the device
    /// copies their matrices.
    pub fn host_bytes(&self, settings: &Settings, loras: &LoraSet, device: &OpenDevice) -> u64 {
        let copied = if device.caps().in_place_weights { 0 } else { loras.bytes() };
        host_bytes(&self.model, settings, self.base_bytes) + copied
    }

    /// Host memory that may be pinned for weights that pass to the device in every step, in bytes.
    pub fn pinned_bytes(&self, settings: &Settings, loras: &LoraSet, device: &OpenDevice) -> u64 {
        if !device.caps().pins {
            return 0;
        }
        device.bounds().host.bytes.saturating_sub(self.host_bytes(settings, loras, device))
    }

    /// What a generation with `settings` would use on `device`.
    pub fn report(
        &self,
        settings: &Settings,
        sigmas: &[f32],
        device: &OpenDevice,
    ) -> Result<PlanReport> {
        let loras = self.lora_set(settings)?;
        let phases = self.plan(settings, sigmas, &loras, device)?;
        let host_bytes = self.host_bytes(settings, &loras, device);
        let (caps, budget) = (device.caps(), &device.bounds().budget);
        Ok(PlanReport {
            model: settings.model.clone(),
            device: caps.description.clone(),
            width: settings.width,
            height: settings.height,
            count: settings.count,
            steps: settings.steps,
            budget_bytes: budget.bytes,
            budget_source: budget.source.clone(),
            host_bytes,
            overhead_bytes: caps.overhead_bytes,
            pinned_bytes: self.pinned_bytes(settings, &loras, device),
            own_memory: !caps.in_place_weights,
            keeps_weights: phases.keeps_weights(),
            loras: loras.lines(),
            lora_bytes: phases.programs().map(|p| p.plan.residency.side_bytes as u64).sum(),
            phases: phases.programs().map(|p| p.report()).collect(),
            peak_bytes: overhead_bytes(caps, host_bytes) + phases.peak_bytes(caps.granularity),
        })
    }
}
