//! Components that are neither in a model's file nor next to it: in the folders of other programs,
//! and in the Hugging Face cache.

use std::path::PathBuf;

use super::entries::{Entry, ModelPlaces};
use super::roots::Role;
use crate::library::file_names::is_safetensors;
use crate::library::find::{Wanted, choose};
use crate::library::unit::{Contents, Unit, unit_of, units};
use crate::spec::Component;

impl ModelPlaces {
    /// Looks among `entries` for a component that is not a transformer. Returns the unit, its
    /// contents, and words for where it was found.
    ///
    /// Folders for such files come first. In other folders a file is taken only if it has one of
    /// the usual names of the component.
    pub(crate) fn component(
        &self,
        entries: &[Entry],
        wanted: &Wanted,
    ) -> Option<(Unit, Contents, String)> {
        let role = Role::of(wanted.component);
        if role == Role::Model {
            return None;
        }
        let has_usual_name = |e: &Entry| wanted.component.files.is_known(&e.name);
        let sorted = |e: &&Entry| e.role == role && e.path.is_file();
        let unsorted = |e: &&Entry| e.role == Role::Any && (e.path.is_dir() || has_usual_name(e));
        let find = |among: Vec<&Entry>| {
            // One place after the other: the user's own order takes precedence over names and
            // sizes.
            among.chunk_by(|a, b| a.place == b.place).find_map(|there| {
                let units = there.iter().flat_map(|e| units_of(e, wanted)).collect();
                let (unit, contents) = choose(units, wanted)?;
                Some((unit, contents, format!("in {}", there[0].place)))
            })
        };
        find(entries.iter().filter(sorted).collect())
            .or_else(|| find(entries.iter().filter(unsorted).collect()))
    }

    /// The folders in which [`component`](Self::component) looks for `component`, for error
    /// messages.
    pub(crate) fn component_folders(&self, component: Component) -> Vec<PathBuf> {
        let role = Role::of(component);
        let folders = self
            .folders
            .iter()
            .filter(|f| f.role == role || f.role == Role::Any)
            .map(|f| f.path.clone());
        folders.chain([self.cache.root.clone()]).collect()
    }
}

/// The files of `entry` that may be the wanted component: a safetensors file itself; for a
/// diffusers folder with a transformer of the same family, the files in the component's own folder.
fn units_of(entry: &Entry, wanted: &Wanted) -> Vec<Unit> {
    if !entry.path.is_dir() {
        return match is_safetensors(&entry.name) {
            true => unit_of(&entry.path).into_iter().collect(),
            false => Vec::new(),
        };
    }
    // The autoencoder of Stable Diffusion 3 has the same shapes and other weights. Only the
    // transformer next to it shows which one it is.
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
    fn the_usual_names_of_flux_components_are_recognised() {
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
