//! The folders that may contain FLUX files: those of ComfyUI and A1111, those that the user named,
//! and the current folder.

use std::path::{Path, PathBuf};

use super::extra_paths;
use crate::host::{Environment, expand, home_folder, variable};
use crate::spec;
use crate::spec::Component;

/// The purpose of the files in a folder, which is known from the folder's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Transformers and whole checkpoints.
    Model,
    /// CLIP and T5.
    Text,
    /// VAEs (autoencoders).
    Vae,
    /// LoRAs.
    Lora,
    /// ControlNets.
    ControlNet,
    /// Vision towers.
    Vision,
    /// Redux adapters.
    Style,
    /// Not known: files of any kind.
    Any,
}

impl Role {
    /// The role of the folders that contain `component`.
    pub fn of(component: Component) -> Role {
        match component.role {
            spec::Role::Transformer => Role::Model,
            spec::Role::Text(_) => Role::Text,
            spec::Role::Autoencoder => Role::Vae,
            spec::Role::Control => Role::ControlNet,
            spec::Role::Vision => Role::Vision,
            spec::Role::Style => Role::Style,
        }
    }
}

/// A folder that is searched for models.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// The purpose of its files.
    pub role: Role,
    /// Words for messages, such as `ComfyUI, loras`.
    pub words: String,
    /// Whether its subfolders are searched, too.
    pub recursive: bool,
}

/// The folders of ComfyUI, which are also the keys of its lists of folders, and of A1111 and Forge.
const FOLDERS: [(&str, Role); 19] = [
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
    ("controlnet", Role::ControlNet),
    ("xlabs/controlnets", Role::ControlNet),
    ("clip_vision", Role::Vision),
    ("style_models", Role::Style),
    ("Stable-diffusion", Role::Model),
    ("text_encoder", Role::Text),
    ("VAE", Role::Vae),
    ("Lora", Role::Lora),
    ("ControlNet", Role::ControlNet),
];
/// How many of [`FOLDERS`] belong to ComfyUI.
const COMFY_FOLDERS: usize = 14;

/// The usual names of ComfyUI's own folder.
const COMFY_ROOTS: [&str; 4] =
    ["ComfyUI", "comfy/ComfyUI", "Documents/ComfyUI", "ComfyUI_windows_portable/ComfyUI"];
/// The usual names of the folders of A1111 and its successors.
const A1111_ROOTS: [&str; 3] =
    ["stable-diffusion-webui", "stable-diffusion-webui-forge", "stable-diffusion-webui-reForge"];

/// All folders of this machine to search, the most specific first, and notes about what could not
/// be read. The parameters are those of [`ModelPlaces::new`](super::ModelPlaces::new).
pub(super) fn find_folders(
    env: Environment,
    here: &Path,
    given: &[PathBuf],
) -> (Vec<ModelFolder>, Vec<String>) {
    let mut roots = Roots { env, folders: Vec::new(), notes: Vec::new() };
    for path in given {
        if !roots.add_root(path) {
            match path.is_dir() {
                true => roots.add(path, Role::Any, path.display().to_string(), true),
                false => roots.notes.push(format!("{} is not a folder of models", path.display())),
            }
        }
    }
    if let Some(path) =
        variable(env, "COMFYUI_PATH").map(|p| here.join(expand(env, &p.to_string_lossy())))
        && !roots.add_root(&path)
    {
        roots.notes.push(format!(
            "COMFYUI_PATH is {}, which contains no folders of models",
            path.display()
        ));
    }
    roots.add_root(here);
    let disks = [PathBuf::from("/opt"), PathBuf::from("/workspace"), PathBuf::from("C:\\")];
    let parents =
        [Some(here.to_path_buf()), here.parent().map(Path::to_path_buf), home_folder(env)];
    for parent in parents.into_iter().flatten().chain(disks) {
        for name in COMFY_ROOTS.iter().chain(&A1111_ROOTS) {
            roots.add_root(&parent.join(name));
        }
    }
    let configs = [
        variable(env, "APPDATA").map(|p| PathBuf::from(p).join("ComfyUI")),
        home_folder(env).map(|h| h.join("Library/Application Support/ComfyUI")),
        home_folder(env).map(|h| h.join(".config/ComfyUI")),
    ];
    for config in configs.into_iter().flatten() {
        roots.add_list(&config.join("extra_models_config.yaml"));
    }
    roots.add(&here.join("models"), Role::Any, "./models".to_string(), true);
    roots.add(here, Role::Any, "the current folder".to_string(), false);
    (roots.folders, roots.notes)
}

/// Collects folders.
struct Roots<'a> {
    env: Environment<'a>,
    folders: Vec<ModelFolder>,
    notes: Vec<String>,
}

impl Roots<'_> {
    /// Adds one folder, if it exists and is not there yet.
    fn add(&mut self, path: &Path, role: Role, words: String, recursive: bool) {
        let is_known = self.folders.iter().any(|f| f.path == path && f.recursive == recursive);
        if path.is_dir() && !is_known {
            self.folders.push(ModelFolder { path: path.into(), role, words, recursive });
        }
    }

    /// Adds the model folders under `root`: the folder of a program, a folder with the same
    /// subfolders, or a YAML file that lists folders. Returns whether there were any.
    fn add_root(&mut self, root: &Path) -> bool {
        if root.is_file() {
            return root.extension().is_some_and(|e| e == "yaml" || e == "yml")
                && self.add_list(root);
        }
        // The list comes first: it can say that its folders take precedence.
        let has_list = self.add_list(&root.join("extra_model_paths.yaml"));
        let models = root.join("models");
        let base = if models.is_dir() { models } else { root.to_path_buf() };
        let mut has_folders = false;
        // A folder called `vae` alone does not show a program: it may be part of a diffusers model.
        let is_program =
            ["checkpoints", "diffusion_models", "unet", "loras", "Stable-diffusion", "Lora"];
        if !base.join("model_index.json").exists()
            && is_program.iter().any(|f| base.join(f).is_dir())
        {
            for (i, (name, role)) in FOLDERS.iter().enumerate() {
                let program = if i < COMFY_FOLDERS { "ComfyUI" } else { "A1111" };
                has_folders |= base.join(name).is_dir();
                self.add(&base.join(name), *role, format!("{program}, {name}"), true);
            }
        }
        has_folders || has_list
    }

    /// Adds the folders in ComfyUI's list at `path`. Returns whether the file exists.
    fn add_list(&mut self, path: &Path) -> bool {
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
