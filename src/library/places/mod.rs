//! Models where people keep them: in the Hugging Face cache, in ComfyUI's and A1111's folders, and here. Names are looked up among what was found, so
//! that no name leads anywhere else.

mod extra_paths;
mod listing;
mod naming;
mod parts;
mod roots;

pub use listing::{Kind, Listing, look};
pub use roots::{Place, Role};

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::hub::cache::{Cache, Env, expand, hub_cache, process_env};
use super::hub::select::{Stem, is_weights};
use crate::spec::{FAMILIES, Families};

/// Folders below a place are looked through so deep.
const DEPTH: usize = 6;
/// At most so many files and folders of one place are looked at.
const MOST: usize = 20_000;
/// The words of what lies in the Hugging Face cache.
const CACHE: &str = "the Hugging Face cache";

/// A model that lies somewhere: a file, the first of several shards, or a diffusers folder.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Entry {
    /// By which it is asked for: its path in the place, or `org/name` and a file.
    pub name: String,
    pub path: PathBuf,
    /// Of a file and its shards; of a folder, of what lies in it.
    pub bytes: u64,
    pub role: Role,
    /// Where it was found, in words.
    pub place: String,
    #[serde(skip)]
    real: PathBuf,
}

/// Where models are looked for.
#[derive(Debug, Clone)]
pub struct Places {
    pub places: Vec<Place>,
    pub cache: Cache,
    /// What could not be read when the places were looked for.
    pub notes: Vec<String>,
    /// The families among which files are recognised.
    pub families: Families,
    here: PathBuf,
    home: PathBuf,
}

impl Places {
    /// The places of this machine seen from the folder `here`; `given` are looked into first: folders of ComfyUI or A1111, of models, or YAML files.
    pub fn new(env: Env, here: &Path, given: &[PathBuf]) -> Self {
        let (places, notes) = roots::places(env, here, given);
        Places {
            places,
            cache: Cache { root: hub_cache(env) },
            notes,
            families: FAMILIES,
            here: here.into(),
            home: expand(env, "~"),
        }
    }

    /// The places of this process: of its environment and its current folder.
    pub fn of_process() -> Self {
        Places::new(
            &process_env,
            &std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
            &[],
        )
    }

    /// The folder from which relative paths start.
    pub fn here(&self) -> &Path {
        &self.here
    }

    /// Everything that is called like a model, each once, sorted by place and name.
    pub fn entries(&self) -> Vec<Entry> {
        let mut out = Vec::new();
        let mut seen = HashSet::new();
        for place in &self.places {
            let mut walk = Walk { place, seen: &mut seen, left: MOST, found: Vec::new() };
            walk.folder(&place.folder, "", if place.deep { DEPTH } else { 0 });
            out.append(&mut first_shards(walk.found));
        }
        for id in self.cache.repos() {
            let Some(snapshot) = self.cache.repo(&id).current() else { continue };
            out.extend(in_snapshot(&id, &snapshot, &mut seen));
        }
        let mut files = HashSet::new();
        out.retain(|e| files.insert(e.real.clone()));
        out
    }

    /// What `look` makes of each entry; those of which it makes nothing are left out.
    pub fn find_all<T>(&self, mut look: impl FnMut(&Entry) -> Option<T>) -> Vec<(Entry, T)> {
        self.entries().into_iter().filter_map(|e| look(&e).map(|what| (e, what))).collect()
    }

    /// Where `path` lies, in words, if it lies in one of the places.
    pub fn words_of(&self, path: &Path) -> Option<String> {
        let inside = self.places.iter().filter(|p| path.starts_with(&p.folder));
        let nearest = inside.max_by_key(|p| p.folder.components().count()).map(|p| p.words.clone());
        if path.starts_with(&self.cache.root) { Some(CACHE.to_string()) } else { nearest }
    }

    /// The folders that are looked through, in words for people: those of one program together.
    pub fn looked_in(&self) -> Vec<String> {
        let mut sorted: Vec<(&Path, Vec<String>)> = Vec::new();
        let mut out = Vec::new();
        for place in &self.places {
            let (Some(parent), Some(name)) = (place.folder.parent(), place.folder.file_name())
            else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            match sorted.iter_mut().find(|(at, _)| *at == parent) {
                _ if place.role == Role::Any => out.push(place.folder.display().to_string()),
                Some((_, names)) => names.push(name),
                None => sorted.push((parent, vec![name])),
            }
        }
        let sorted = sorted
            .into_iter()
            .map(|(at, names)| format!("{} ({})", at.display(), names.join(", ")));
        let absent = if self.cache.root.is_dir() { "" } else { ", which is not there" };
        let cache = format!("{CACHE} ({}{absent})", self.cache.root.display());
        sorted.chain(out).chain([cache]).collect()
    }
}

/// What a snapshot of the Hugging Face cache holds. Of a diffusers folder that is the folder, and the files beside its components.
fn in_snapshot(id: &str, snapshot: &Path, seen: &mut HashSet<PathBuf>) -> Vec<Entry> {
    let place =
        Place { folder: snapshot.into(), role: Role::Any, words: CACHE.to_string(), deep: true };
    let mut walk = Walk { place: &place, seen, left: MOST, found: Vec::new() };
    if snapshot.join("model_index.json").is_file() {
        walk.diffusers(snapshot, id.to_string());
        walk.folder(snapshot, &format!("{id}/"), 0);
    } else {
        walk.folder(snapshot, &format!("{id}/"), DEPTH);
    }
    first_shards(walk.found)
}

/// A way through the folders of one place.
struct Walk<'a> {
    place: &'a Place,
    /// Folders that were looked through; links may lead to them again.
    seen: &'a mut HashSet<PathBuf>,
    left: usize,
    found: Vec<Entry>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, prefix: &str, depth: usize) {
        let Ok(real) = folder.canonicalize() else { return };
        // A folder that is looked through without its folders may come again with them.
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
                self.diffusers(&path, name);
            } else if metadata.is_dir() && depth > 0 {
                self.folder(&path, &format!("{name}/"), depth - 1);
            } else if metadata.is_file() && is_weights(&name) {
                self.add(path, name, metadata.len());
            }
        }
    }

    fn diffusers(&mut self, folder: &Path, name: String) {
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

/// Whether `name` is called like weights, and not like a shard other than the first.
pub fn is_first_of_weights(name: &str) -> bool {
    is_weights(name) && Stem::of(name).shard <= 1
}

/// Of the shards of one model only the first stays, with the bytes of all.
fn first_shards(entries: Vec<Entry>) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    let mut firsts: BTreeMap<Stem, usize> = BTreeMap::new();
    for entry in entries {
        let stem = Stem::of(&entry.name);
        match firsts.get(&stem.group()) {
            Some(&first) if stem.shards > 0 => out[first].bytes += entry.bytes,
            _ => {
                firsts.insert(stem.group(), out.len());
                out.push(entry);
            }
        }
    }
    out
}
