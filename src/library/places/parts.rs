//! Components that lie neither in a model's file nor beside it: in the folders where other programs keep theirs, and in what was pulled.

use std::path::PathBuf;

use super::super::find::{Look, Unit, Widths, choose, unit_of, units};
use super::super::hub::select::is_weights;
use super::{Entry, Places, Role};
use crate::weights::Component;

impl Places {
    /// Looks among `entries` for the `component` of a transformer of these `widths`: the unit, what it holds, and where it was, in words.
    /// First in folders that are for such files; then, by names that are known for it, in folders that nobody sorted.
    pub(crate) fn component(
        &self,
        entries: &[Entry],
        component: Component,
        widths: &Widths,
    ) -> Option<(Unit, Look, String)> {
        let role = match component {
            Component::Flux => return None,
            Component::T5 | Component::Clip => Role::Text,
            Component::Vae => Role::Vae,
        };
        let sorted = |e: &&Entry| e.role == role && e.path.is_file();
        let unsorted =
            |e: &&Entry| e.role == Role::Any && (e.path.is_dir() || is_called(component, &e.name));
        let find = |among: Vec<&Entry>| {
            // Place after place: a user's own order says more than names and sizes do.
            among.chunk_by(|a, b| a.place == b.place).find_map(|there| {
                let units = there.iter().flat_map(|e| units_of(e, component)).collect();
                let (unit, look) = choose(units, component, widths)?;
                Some((unit, look, format!("in {}", there[0].place)))
            })
        };
        find(entries.iter().filter(sorted).collect())
            .or_else(|| find(entries.iter().filter(unsorted).collect()))
    }

    /// The folders in which `component` looks, for errors.
    pub(crate) fn component_folders(&self, component: Component) -> Vec<PathBuf> {
        let role = if component == Component::Vae { Role::Vae } else { Role::Text };
        let folders = self
            .places
            .iter()
            .filter(|p| p.role == role || p.role == Role::Any)
            .map(|p| p.folder.clone());
        folders.chain([self.cache.root.clone()]).collect()
    }
}

/// The files of `entry` that may be `component`: of a diffusers folder those in the component's own, if it is FLUX's.
fn units_of(entry: &Entry, component: Component) -> Vec<Unit> {
    if !entry.path.is_dir() {
        let readable = is_weights(&entry.name) && !entry.name.to_lowercase().ends_with(".gguf");
        return unit_of(&entry.path).into_iter().filter(|_| readable).collect();
    }
    // Stable Diffusion 3 has an autoencoder of the same shapes and other weights: the transformer beside it tells them apart.
    let transformers = units(&entry.path.join(Component::Flux.folder())).unwrap_or_default();
    match choose(transformers, Component::Flux, &Widths::default()) {
        Some(_) => units(&entry.path.join(component.folder())).unwrap_or_default(),
        None => Vec::new(),
    }
}

/// Whether a file is called as people call FLUX's `component`, where nothing else tells what it is for.
fn is_called(component: Component, name: &str) -> bool {
    let name = name.to_lowercase().replace('-', "_");
    let has = |part: &str| name.contains(part);
    let stem = name.rsplit('/').next().unwrap_or(&name).split('.').next().unwrap_or_default();
    match component {
        Component::Flux => false,
        Component::T5 => has("t5") && has("xxl") && !has("umt5"),
        Component::Clip => has("clip_l") || has("clip_vit_large_patch14"),
        Component::Vae => stem == "ae" || has("flux") && has("vae"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_people_give_to_flux_components_are_known() {
        for (component, name) in [
            (Component::T5, "comfyanonymous/flux_text_encoders/t5xxl_fp8_e4m3fn.safetensors"),
            (Component::T5, "google/t5-v1_1-xxl/model-00001-of-00002.safetensors"),
            (Component::Clip, "comfyanonymous/flux_text_encoders/clip_l.safetensors"),
            (Component::Clip, "openai/clip-vit-large-patch14/model.safetensors"),
            (Component::Vae, "black-forest-labs/FLUX.1-schnell/ae.safetensors"),
            (Component::Vae, "flux_vae.sft"),
        ] {
            assert!(is_called(component, name), "{name}");
        }
        for (component, name) in [
            (Component::T5, "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
            (Component::Clip, "clip_g.safetensors"),
            (
                Component::Vae,
                "stabilityai/stable-diffusion-3-medium/vae/diffusion_pytorch_model.safetensors",
            ),
            (Component::Vae, "sae.safetensors"),
            (Component::Flux, "flux1-dev.safetensors"),
        ] {
            assert!(!is_called(component, name), "{name}");
        }
    }
}
