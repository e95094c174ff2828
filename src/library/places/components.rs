//! Components that are neither in a model's file nor next to it: in the folders of other programs,
//! and in the Hugging Face cache.

use std::path::PathBuf;

use super::entries::{Entry, ModelPlaces};
use super::roots::Role;
use crate::error::Error;
use crate::library::file_names::is_weights;
use crate::library::find::{Taken, Wanted, choose};
use crate::library::unit::{FolderUnits, unit_of, units};
use crate::spec::Component;

impl ModelPlaces {
    /// Looks among `entries` for a component that is not a transformer. Returns the files, and
    /// words for where they were found; or why files were passed over.
    ///
    /// Folders for such files come first. In other folders a file is taken only if it has one of
    /// the usual names of the component.
    pub(crate) fn component(
        &self,
        entries: &[Entry],
        wanted: &Wanted,
    ) -> Result<(Taken, String), Vec<Error>> {
        let role = Role::of(wanted.component);
        let mut passed_over = Vec::new();
        if role == Role::Model {
            return Err(passed_over);
        }
        let has_usual_name = |e: &Entry| wanted.component.files.is_known(&e.name);
        let sorted = |e: &&Entry| e.role == role && e.path.is_file();
        let unsorted = |e: &&Entry| e.role == Role::Any && (e.path.is_dir() || has_usual_name(e));
        let groups: [Vec<&Entry>; 2] =
            [entries.iter().filter(sorted).collect(), entries.iter().filter(unsorted).collect()];
        // One place after the other: the user's own order takes precedence over names and sizes.
        for there in groups.iter().flat_map(|among| among.chunk_by(|a, b| a.place == b.place)) {
            let mut candidates = FolderUnits::default();
            for entry in there {
                let FolderUnits { mut units, mut broken } = units_of(entry, wanted);
                candidates.units.append(&mut units);
                candidates.broken.append(&mut broken);
            }
            let mut choice = choose(candidates, wanted);
            if let Some(taken) = choice.taken {
                return Ok((taken, format!("found in {}", there[0].place)));
            }
            passed_over.append(&mut choice.passed_over);
        }
        Err(passed_over)
    }

    /// The folders in which [`component`](Self::component) looks for `component`, for error
    /// messages.
    pub(crate) fn component_folders(&self, component: Component) -> Vec<PathBuf> {
        let role = Role::of(component);
        let folders = self
            .folders()
            .iter()
            .filter(|f| f.role == role || f.role == Role::Any)
            .map(|f| f.path.clone());
        folders.chain([self.cache.root.clone()]).collect()
    }
}

/// The files of `entry` that may be the wanted component: a weight file itself; for a diffusers
/// folder with a transformer of the same family, the files in the component's own folder.
fn units_of(entry: &Entry, wanted: &Wanted) -> FolderUnits {
    if !entry.path.is_dir() {
        let mut out = FolderUnits::default();
        if is_weights(&entry.name) {
            match unit_of(&entry.path) {
                Ok(unit) => out.units.push(unit),
                Err(e) => out.broken.push(e),
            }
        }
        return out;
    }
    // The autoencoder of Stable Diffusion 3 has the same shapes and other weights. Only the
    // transformer next to it shows which one it is.
    let component = wanted.component;
    let inside = || units(&entry.path.join(component.diffusers.folder));
    if component.role.is_optional() {
        // Its repository has no transformer.
        return inside();
    }
    let Some(family) = wanted.families.of(component) else { return FolderUnits::default() };
    let transformer = family.transformer();
    let transformers = units(&entry.path.join(transformer.diffusers.folder));
    match choose(transformers, &Wanted::any(transformer, wanted.families)).taken {
        Some(_) => inside(),
        None => FolderUnits::default(),
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
