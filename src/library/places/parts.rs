//! Components that lie neither in a model's file nor beside it: in the folders where other programs keep theirs, and in what was pulled.

use std::path::PathBuf;

use super::super::find::{Look, Unit, Wanted, choose, unit_of, units};
use super::super::hub::select::is_weights;
use super::{Entry, Places, Role};
use crate::spec::Component;

impl Places {
    /// Looks among `entries` for a component: the unit, what it holds, and where it was, in words.
    /// First in folders that are for such files; then, by names that are known for it, in folders
    /// that nobody sorted.
    pub(crate) fn component(
        &self,
        entries: &[Entry],
        wanted: &Wanted,
    ) -> Option<(Unit, Look, String)> {
        let role = Role::of(wanted.component);
        if role == Role::Model {
            return None;
        }
        let known = |e: &Entry| wanted.component.files.is_known(&e.name);
        let sorted = |e: &&Entry| e.role == role && e.path.is_file();
        let unsorted = |e: &&Entry| e.role == Role::Any && (e.path.is_dir() || known(e));
        let find = |among: Vec<&Entry>| {
            // Place after place: a user's own order says more than names and sizes do.
            among.chunk_by(|a, b| a.place == b.place).find_map(|there| {
                let units = there.iter().flat_map(|e| units_of(e, wanted)).collect();
                let (unit, look) = choose(units, wanted)?;
                Some((unit, look, format!("in {}", there[0].place)))
            })
        };
        find(entries.iter().filter(sorted).collect())
            .or_else(|| find(entries.iter().filter(unsorted).collect()))
    }

    /// The folders in which `component` is looked for, for errors.
    pub(crate) fn component_folders(&self, component: Component) -> Vec<PathBuf> {
        let role = Role::of(component);
        let folders = self
            .places
            .iter()
            .filter(|p| p.role == role || p.role == Role::Any)
            .map(|p| p.folder.clone());
        folders.chain([self.cache.root.clone()]).collect()
    }
}

/// The files of `entry` that may be the wanted component: of a diffusers folder those in the
/// component's own, if the transformer there is one of its family.
fn units_of(entry: &Entry, wanted: &Wanted) -> Vec<Unit> {
    if !entry.path.is_dir() {
        let readable = is_weights(&entry.name) && !entry.name.to_lowercase().ends_with(".gguf");
        return unit_of(&entry.path).into_iter().filter(|_| readable).collect();
    }
    // Stable Diffusion 3 has an autoencoder of the same shapes and other weights: the transformer
    // beside it tells them apart.
    let component = wanted.component;
    let Some(family) = wanted.families.of(component) else { return Vec::new() };
    let transformer = family.transformer();
    let transformers = units(&entry.path.join(transformer.diffusers.folder)).unwrap_or_default();
    match choose(transformers, &Wanted::any(transformer, wanted.families)) {
        Some(_) => units(&entry.path.join(component.diffusers.folder)).unwrap_or_default(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::flux1::{CLIP, T5, TRANSFORMER, VAE};

    #[test]
    fn names_that_people_give_to_flux_components_are_known() {
        for (component, name) in [
            (T5, "comfyanonymous/flux_text_encoders/t5xxl_fp8_e4m3fn.safetensors"),
            (T5, "google/t5-v1_1-xxl/model-00001-of-00002.safetensors"),
            (CLIP, "comfyanonymous/flux_text_encoders/clip_l.safetensors"),
            (CLIP, "openai/clip-vit-large-patch14/model.safetensors"),
            (VAE, "black-forest-labs/FLUX.1-schnell/ae.safetensors"),
            (VAE, "flux_vae.sft"),
        ] {
            assert!(component.files.is_known(name), "{name}");
        }
        for (component, name) in [
            (T5, "umt5_xxl_fp8_e4m3fn_scaled.safetensors"),
            (CLIP, "clip_g.safetensors"),
            (VAE, "stabilityai/stable-diffusion-3-medium/vae/diffusion_pytorch_model.safetensors"),
            (VAE, "sae.safetensors"),
            (TRANSFORMER, "flux1-dev.safetensors"),
        ] {
            assert!(!component.files.is_known(name), "{name}");
        }
    }
}
