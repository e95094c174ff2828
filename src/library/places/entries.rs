//! The files and folders in the places of this machine that have names of models.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::roots::{ModelFolder, Role, find_folders};
use crate::host::{Environment, current_folder, expand, process_environment};
use crate::library::file_names::{FileName, is_weights};
use crate::library::hf_cache::HubCache;
use crate::spec::{FAMILIES, Families};

/// How many levels of subfolders are searched.
const MAX_DEPTH: usize = 6;
/// How many files and folders are examined in one folder and its subfolders.
const MAX_EXAMINED: usize = 20_000;
/// The words for the Hugging Face cache.
const CACHE: &str = "the Hugging Face cache";

/// A model in one of the places: a file, the first of several shards, or a diffusers folder.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Entry {
    /// Its name: its path in the place, or `org/name` and a file for the Hugging Face cache.
    pub name: String,
    /// The file or folder.
    pub path: PathBuf,
    /// The size of a file with all its shards, or of the weights in a diffusers folder.
    pub bytes: u64,
    /// The purpose of its folder.
    pub role: Role,
    /// Words for the place where it was found.
    pub place: String,
    /// Its path without links.
    #[serde(skip)]
    pub(super) real: PathBuf,
}

/// The places where models are searched.
#[derive(Debug, Clone)]
pub struct ModelPlaces {
    /// The Hugging Face cache, which is searched last.
    pub cache: HubCache,
    /// The families among which files are recognised.
    pub families: Families,
    /// The folders, and notes about what could not be read. They are collected at the first look-up
    /// of a name: most commands look up none and need not read the lists of other programs.
    found: Arc<OnceLock<(Vec<ModelFolder>, Vec<String>)>>,
    here: PathBuf,
    pub(super) home: PathBuf,
}

impl ModelPlaces {
    /// The places of this machine, seen from the folder `here`. `given` are searched first: folders
    /// of ComfyUI or A1111, folders of models, or YAML files in the format of ComfyUI's
    /// `extra_model_paths.yaml`.
    pub fn new(env: Environment, here: &Path, given: &[PathBuf]) -> Self {
        ModelPlaces {
            found: Arc::new(OnceLock::from(find_folders(env, here, given))),
            ..ModelPlaces::unread(env, here)
        }
    }

    /// The places that the environment and the current folder of this process lead to. The folders
    /// are looked for when a name is looked up.
    pub fn of_process() -> Self {
        ModelPlaces::unread(&process_environment, &current_folder())
    }

    fn unread(env: Environment, here: &Path) -> Self {
        ModelPlaces {
            cache: HubCache::from_env(env),
            families: FAMILIES,
            found: Arc::default(),
            here: here.into(),
            home: expand(env, "~"),
        }
    }

    fn found(&self) -> &(Vec<ModelFolder>, Vec<String>) {
        self.found.get_or_init(|| find_folders(&process_environment, &self.here, &[]))
    }

    /// The folders, in the order of the search.
    pub fn folders(&self) -> &[ModelFolder] {
        &self.found().0
    }

    /// Notes for the user about files that could not be read while the folders were collected.
    pub fn notes(&self) -> &[String] {
        &self.found().1
    }

    /// The folder that relative paths start from.
    pub fn here(&self) -> &Path {
        &self.here
    }

    /// Every file and folder with the name of a model, each once, sorted by place and name.
    pub fn entries(&self) -> Vec<Entry> {
        let mut out = Vec::new();
        let mut seen = HashSet::new();
        for folder in self.folders() {
            let mut walk = Walk::new(folder, &mut seen);
            walk.folder(&folder.path, "", if folder.recursive { MAX_DEPTH } else { 0 });
            out.append(&mut merge_shards(walk.found));
        }
        for id in self.cache.repos() {
            let Some(snapshot) = self.cache.repo(&id).current() else { continue };
            out.extend(snapshot_entries(&id, &snapshot, &mut seen));
        }
        let mut files = HashSet::new();
        out.retain(|e| files.insert(e.real.clone()));
        out
    }

    /// Words for the place that contains `path`, if one does.
    pub fn place_of(&self, path: &Path) -> Option<String> {
        let around = self.folders().iter().filter(|f| path.starts_with(&f.path));
        let nearest = around.max_by_key(|f| f.path.components().count()).map(|f| f.words.clone());
        if path.starts_with(&self.cache.root) { Some(CACHE.to_string()) } else { nearest }
    }

    /// The searched places as lines for the user. The folders of one program share a line.
    pub fn searched(&self) -> Vec<String> {
        let mut programs: Vec<(&Path, Vec<String>)> = Vec::new();
        let mut others = Vec::new();
        for folder in self.folders() {
            let (Some(parent), Some(name)) = (folder.path.parent(), folder.path.file_name()) else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            match programs.iter_mut().find(|(at, _)| *at == parent) {
                _ if folder.role == Role::Any => others.push(folder.path.display().to_string()),
                Some((_, names)) => names.push(name),
                None => programs.push((parent, vec![name])),
            }
        }
        let programs = programs
            .into_iter()
            .map(|(at, names)| format!("{} ({})", at.display(), names.join(", ")));
        let absent = if self.cache.root.is_dir() { "" } else { ", which does not exist" };
        let cache = format!("{CACHE} ({}{absent})", self.cache.root.display());
        programs.chain(others).chain([cache]).collect()
    }
}

/// The entries of one snapshot in the Hugging Face cache. A diffusers snapshot is one entry, and
/// the weight files next to its component folders are others.
pub(super) fn snapshot_entries(
    id: &str,
    snapshot: &Path,
    seen: &mut HashSet<PathBuf>,
) -> Vec<Entry> {
    let folder = ModelFolder {
        path: snapshot.into(),
        role: Role::Any,
        words: CACHE.to_string(),
        recursive: true,
    };
    let mut walk = Walk::new(&folder, seen);
    if snapshot.join("model_index.json").is_file() {
        walk.add_diffusers(snapshot, id.to_string());
        walk.folder(snapshot, &format!("{id}/"), 0);
    } else {
        walk.folder(snapshot, &format!("{id}/"), MAX_DEPTH);
    }
    merge_shards(walk.found)
}

/// A search through one folder and its subfolders.
struct Walk<'a> {
    place: &'a ModelFolder,
    /// Folders that were searched with their subfolders; links may lead to them again.
    seen: &'a mut HashSet<PathBuf>,
    /// How many files and folders may still be examined.
    left: usize,
    found: Vec<Entry>,
}

impl<'a> Walk<'a> {
    fn new(place: &'a ModelFolder, seen: &'a mut HashSet<PathBuf>) -> Self {
        Walk { place, seen, left: MAX_EXAMINED, found: Vec::new() }
    }

    /// Adds the weight files and diffusers folders in `folder` and in `depth` levels of subfolders.
    /// `prefix` is put before their names.
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) {
        let Ok(real) = folder.canonicalize() else { return };
        // A folder that is searched without its subfolders is not marked: it may come again with
        // them.
        if self.seen.contains(&real) || depth > 0 && !self.seen.insert(real) {
            return;
        }
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        for name in names.into_iter().filter(|n| !n.starts_with('.')) {
            if self.left == 0 {
                return;
            }
            self.left -= 1;
            let path = folder.join(&name);
            let Ok(metadata) = path.metadata() else { continue };
            let name = format!("{prefix}{name}");
            if metadata.is_dir() && path.join("model_index.json").is_file() {
                self.add_diffusers(&path, name);
            } else if metadata.is_dir() && depth > 0 {
                self.folder(&path, &format!("{name}/"), depth - 1);
            } else if metadata.is_file() && is_weights(&name) {
                self.add(path, name, metadata.len());
            }
        }
    }

    /// Adds a diffusers folder, with the size of the weights in its component folders.
    fn add_diffusers(&mut self, folder: &Path, name: String) {
        let inside = |f: PathBuf| {
            std::fs::read_dir(f).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()))
        };
        let folders = inside(folder.into()).filter(|p| p.is_dir());
        let weights = folders.flat_map(inside).filter(|p| is_weights(&p.to_string_lossy()));
        let bytes = weights.filter_map(|p| Some(p.metadata().ok()?.len())).sum();
        self.add(folder.into(), name, bytes);
    }

    fn add(&mut self, path: PathBuf, name: String, bytes: u64) {
        let Ok(real) = path.canonicalize() else { return };
        self.found.push(Entry {
            name,
            path,
            bytes,
            role: self.place.role,
            place: self.place.words.clone(),
            real,
        });
    }
}

/// Replaces the shards of one model by the first of them, with the size of all.
fn merge_shards(entries: Vec<Entry>) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    let mut firsts: BTreeMap<FileName, usize> = BTreeMap::new();
    for entry in entries {
        let name = FileName::parse(&entry.name);
        match firsts.get(&name.group()) {
            Some(&first) if name.shards > 0 => out[first].bytes += entry.bytes,
            _ => {
                firsts.insert(name.group(), out.len());
                out.push(entry);
            }
        }
    }
    out
}
