//! The folders in which FLUX files lie: ComfyUI's, A1111's, those that their users named, and the current one.

use std::path::{Path, PathBuf};

use super::super::hub::cache::{Env, expand, home, set};
use super::extra_paths;

/// What the files of a folder are for, as its program sorts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Transformers and whole checkpoints.
    Model,
    /// CLIP and T5.
    Text,
    Vae,
    Lora,
    /// Nobody sorted them.
    Any,
}

impl Role {
    /// The role of the folders that hold `component`.
    pub fn of(component: crate::spec::Component) -> Role {
        match component.role {
            crate::spec::Role::Transformer => Role::Model,
            crate::spec::Role::Text(_) | crate::spec::Role::Vision => Role::Text,
            crate::spec::Role::Autoencoder => Role::Vae,
        }
    }
}

/// A folder that is looked through.
#[derive(Debug, Clone)]
pub struct Place {
    pub folder: PathBuf,
    pub role: Role,
    /// `ComfyUI, loras`.
    pub words: String,
    /// Its folders are looked through, too.
    pub deep: bool,
}

/// The keys of ComfyUI and the folders of A1111 and Forge.
const FOLDERS: [(&str, Role); 14] = [
    ("checkpoints", Role::Model),
    ("diffusion_models", Role::Model),
    ("unet", Role::Model),
    ("unet_gguf", Role::Model),
    ("diffusers", Role::Model),
    ("text_encoders", Role::Text),
    ("clip", Role::Text),
    ("clip_gguf", Role::Text),
    ("vae", Role::Vae),
    ("loras", Role::Lora),
    ("Stable-diffusion", Role::Model),
    ("text_encoder", Role::Text),
    ("VAE", Role::Vae),
    ("Lora", Role::Lora),
];
/// How many of these are ComfyUI's.
const COMFY: usize = 10;

/// Names that people give to the programs' folders.
const COMFY_ROOTS: [&str; 4] =
    ["ComfyUI", "comfy/ComfyUI", "Documents/ComfyUI", "ComfyUI_windows_portable/ComfyUI"];
const A1111_ROOTS: [&str; 3] =
    ["stable-diffusion-webui", "stable-diffusion-webui-forge", "stable-diffusion-webui-reForge"];

/// All places of this machine, the more telling ones first, and what could not be read on the way.
pub fn places(env: Env, here: &Path, given: &[PathBuf]) -> (Vec<Place>, Vec<String>) {
    let mut roots = Roots { env, places: Vec::new(), notes: Vec::new() };
    for path in given {
        if !roots.root(path) {
            match path.is_dir() {
                true => roots.add(path, Role::Any, path.display().to_string(), true),
                false => roots.notes.push(format!("{} is no folder of models", path.display())),
            }
        }
    }
    if let Some(path) =
        set(env, "COMFYUI_PATH").map(|p| here.join(expand(env, &p.to_string_lossy())))
        && !roots.root(&path)
    {
        roots
            .notes
            .push(format!("COMFYUI_PATH is {}, which has no folders of models", path.display()));
    }
    roots.root(here);
    let disks = [PathBuf::from("/opt"), PathBuf::from("/workspace"), PathBuf::from("C:\\")];
    let parents = [Some(here.to_path_buf()), here.parent().map(Path::to_path_buf), home(env)];
    for parent in parents.into_iter().flatten().chain(disks) {
        for name in COMFY_ROOTS.iter().chain(&A1111_ROOTS) {
            roots.root(&parent.join(name));
        }
    }
    let configs = [
        set(env, "APPDATA").map(|p| PathBuf::from(p).join("ComfyUI")),
        home(env).map(|h| h.join("Library/Application Support/ComfyUI")),
        home(env).map(|h| h.join(".config/ComfyUI")),
    ];
    for config in configs.into_iter().flatten() {
        roots.yaml(&config.join("extra_models_config.yaml"));
    }
    roots.add(&here.join("models"), Role::Any, "./models".to_string(), true);
    roots.add(here, Role::Any, "the current folder".to_string(), false);
    (roots.places, roots.notes)
}

struct Roots<'a> {
    env: Env<'a>,
    places: Vec<Place>,
    notes: Vec<String>,
}

impl Roots<'_> {
    fn add(&mut self, folder: &Path, role: Role, words: String, deep: bool) {
        if folder.is_dir() && !self.places.iter().any(|p| p.folder == folder && p.deep == deep) {
            self.places.push(Place { folder: folder.into(), role, words, deep });
        }
    }

    /// Adds the folders of a program in `root`, or of a folder of models sorted as theirs, or what a YAML file names. Whether there was anything.
    fn root(&mut self, root: &Path) -> bool {
        if root.is_file() {
            return root.extension().is_some_and(|e| e == "yaml" || e == "yml") && self.yaml(root);
        }
        // Where the user wants other folders first, these come first.
        let yaml = self.yaml(&root.join("extra_model_paths.yaml"));
        let models = root.join("models");
        let base = if models.is_dir() { models } else { root.to_path_buf() };
        let mut known = false;
        // A lone folder called `vae` is no sign of ComfyUI: it may be a diffusers model.
        let is_program =
            ["checkpoints", "diffusion_models", "unet", "loras", "Stable-diffusion", "Lora"];
        if !base.join("model_index.json").exists()
            && is_program.iter().any(|f| base.join(f).is_dir())
        {
            for (i, (name, role)) in FOLDERS.iter().enumerate() {
                let program = if i < COMFY { "ComfyUI" } else { "A1111" };
                known |= base.join(name).is_dir();
                self.add(&base.join(name), *role, format!("{program}, {name}"), true);
            }
        }
        known || yaml
    }

    /// Adds the folders that ComfyUI's list at `path` names. Whether there is such a list.
    fn yaml(&mut self, path: &Path) -> bool {
        if !path.is_file() {
            return false;
        }
        let mut extras = match extra_paths::read(path, &|p| expand(self.env, p)) {
            Ok(extras) => extras,
            Err(e) => {
                self.notes.push(e.to_string());
                return true;
            }
        };
        extras.sort_by_key(|e| !e.first);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for extra in extras {
            if let Some((_, role)) = FOLDERS.iter().find(|(key, _)| *key == extra.key) {
                self.add(
                    &extra.folder,
                    *role,
                    format!("{}, {} ({name})", extra.group, extra.key),
                    true,
                );
            }
        }
        true
    }
}
