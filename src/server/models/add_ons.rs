//! The names of LoRAs, ControlNets and the networks for style images.

use super::listed::find_listed;
use super::{EMBEDDED, Listed, Models, ambiguous};
use crate::library::places::{Called, Role};
use crate::pipeline::models::ModelKind;
use crate::pipeline::{ControlNetInputs, ModelInputs};
use crate::server::fault::Fault;
use crate::server::model_names::inputs_of;
use crate::spec::flux1::{CONTROLNET, REDUX, SIGLIP};

impl Models {
    /// Checks that there is a LoRA called `name`. It may read folders.
    ///
    /// # Errors
    /// 404 with the names that there are.
    pub fn check_lora(&self, name: &str) -> Result<(), Fault> {
        if let Some(catalog) = self.elsewhere() {
            return self.listed_elsewhere(&catalog.loras, name, "lora").map(drop);
        }
        match self.path(name, Role::Lora) {
            Ok(_) => Ok(()),
            Err(e) => Err(self.refused(&e, "lora", self.loras())),
        }
    }

    /// What workers of other machines have under `name`, which is that of a `what`, among `all`.
    ///
    /// # Errors
    /// 404 with the names that there are, 422 for a name that several of them have.
    pub(super) fn listed_elsewhere<'a>(
        &self,
        all: &'a [Listed],
        name: &str,
        what: &str,
    ) -> Result<&'a Listed, Fault> {
        match find_listed(all, name) {
            Called::One(listed) => Ok(listed),
            Called::Several(_) => Err(ambiguous(what)),
            Called::None => Err(self.unknown(what, all.to_vec())),
        }
    }

    /// The LoRAs of this server. It may read folders.
    pub fn loras(&self) -> Vec<Listed> {
        if let Some(catalog) = self.elsewhere() {
            return catalog.loras.clone();
        }
        self.of_kind(ModelKind::Lora)
    }

    /// The ControlNets of this server. It may read folders.
    pub fn controlnets(&self) -> Vec<Listed> {
        if let Some(catalog) = self.elsewhere() {
            return catalog.controlnets.clone();
        }
        self.of_kind(ModelKind::Part(CONTROLNET))
    }

    /// What the ControlNet called `name` reads. It may read folders.
    ///
    /// # Errors
    /// 404 with the names that there are.
    pub fn controlnet(&self, name: &str) -> Result<ControlNetInputs, Fault> {
        const WHAT: &str = "controlnet";
        let all = self.controlnets();
        if self.elsewhere().is_some() {
            let found = self.listed_elsewhere(&all, name, WHAT)?.controlnet;
            return found.ok_or_else(|| self.unknown(WHAT, all));
        }
        match self.path(name, Role::ControlNet) {
            Ok(path) => {
                let listed = all.iter().find(|net| net.path.as_ref() == Some(&path));
                // A file that is not listed yet, or is something else.
                let found = listed.and_then(|net| net.controlnet);
                found
                    .or_else(|| ControlNetInputs::of(&path).ok())
                    .ok_or_else(|| self.unknown(WHAT, all))
            }
            Err(e) => Err(self.refused(&e, WHAT, all)),
        }
    }

    /// Whether the folders have the networks of FLUX.1 Redux. It may read folders.
    pub fn has_style_networks(&self) -> bool {
        [REDUX, SIGLIP].iter().all(|part| !self.of_kind(ModelKind::Part(*part)).is_empty())
    }

    /// What the model inside the program reads besides the prompt. It may read folders.
    pub(super) fn embedded_inputs(&self) -> ModelInputs {
        let mut inputs = inputs_of(EMBEDDED, "");
        inputs.styles = self.has_style_networks();
        inputs
    }
}

/// What a model of the folders reads besides the prompt, if those have the networks for styles or
/// not.
pub(super) fn inputs_with_styles(listed: &Listed, has_networks: bool) -> Option<ModelInputs> {
    let mut inputs = listed.inputs?;
    // Diffusers' folders may contain them.
    let own = || listed.path.as_ref().is_some_and(|path| path.join("image_embedder").is_dir());
    inputs.styles = inputs.controlnets && (has_networks || own());
    Some(inputs)
}
