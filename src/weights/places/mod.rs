//! Models where people keep them: in the Hugging Face cache, in ComfyUI's and A1111's folders, and here. Names are looked up among what was found, so
//! that no name leads anywhere else.

mod extra_paths;
mod roots;

pub use roots::{Place, Role};

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::hub::cache::{Cache, Env, expand, hub_cache, is_inside};
use super::hub::select::{Files, Stem, is_weights};
use crate::error::{Error, Result};

/// Folders below a place are looked through so deep.
const DEPTH: usize = 6;
/// At most so many files and folders of one place are looked at.
const MOST: usize = 20_000;

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
    here: PathBuf,
    home: PathBuf,
}

impl Places {
    /// The places of this machine seen from the folder `here`; `given` are looked into first: folders of ComfyUI or A1111, of models, or YAML files.
    pub fn new(env: Env, here: &Path, given: &[PathBuf]) -> Self {
        let (places, notes) = roots::places(env, here, given);
        Places { places, cache: Cache { root: hub_cache(env) }, notes, here: here.into(), home: expand(env, "~") }
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

    /// The file or folder that `name` means to someone who may name any path: a path, or what `named` knows.
    pub fn resolve(&self, name: &str, role: Role) -> Result<PathBuf> {
        if name.is_empty() || name.contains('\0') {
            return Err(not_a_name());
        }
        let path = match name.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => self.home.join(rest.trim_start_matches('/')),
            _ => self.here.join(name),
        };
        if path.exists() {
            return Ok(if path == self.here.join(name) { PathBuf::from(name) } else { path });
        }
        let is_path = Path::new(name).is_absolute() || name.starts_with(['.', '~', '\\']) || name.contains("..");
        if is_path {
            return Err(Error::missing("no such file or folder").at(name));
        }
        self.named(name, role)
    }

    /// The model that is called `name`, for anyone: `org/name` (or `org/name/file`) in the Hugging Face cache, or a file of the places, by its path there, or
    /// by its name with or without ending. No name leads out of the places.
    pub fn named(&self, name: &str, role: Role) -> Result<PathBuf> {
        let lower = name.to_lowercase();
        let name = name.trim_end_matches('/');
        if !is_inside(name) || ["%2e", "%2f", "%5c", "%00"].iter().any(|code| lower.contains(code)) {
            return Err(not_a_name());
        }
        if let Some(path) = self.cached(name)? {
            return Ok(path);
        }
        let entries = self.entries();
        let suits = |e: &&Entry| role == Role::Any || e.role == Role::Any || e.role == role;
        let right: Vec<&Entry> = entries.iter().filter(suits).collect();
        let all: Vec<&Entry> = entries.iter().collect();
        for among in [right, all] {
            for how in [exactly, shortly, loosely] {
                let found: Vec<&Entry> = among.iter().copied().filter(|e| how(&e.name, name)).collect();
                match found.as_slice() {
                    [] => {}
                    [one] => return Ok(one.path.clone()),
                    several => return Err(ambiguous(name, several.iter().map(|e| e.path.display().to_string()))),
                }
            }
        }
        let e = Error::missing("no model of this name was found").at(name);
        let near: Vec<&str> = entries.iter().map(|e| e.name.as_str()).filter(|n| is_near(n, &lower)).take(3).collect();
        Err(match near.as_slice() {
            [] => e.try_("`flux-fast models` lists what there is; `flux-fast pull org/name` downloads"),
            near => e.try_(format!("did you mean {}?", near.join(" or "))),
        })
    }

    /// What the Hugging Face cache has of an id.
    fn cached(&self, name: &str) -> Result<Option<PathBuf>> {
        let Ok((repo, revision, files)) = super::hub::parse(name, "https://huggingface.co") else { return Ok(None) };
        let folder = self.cache.repo(&repo);
        let snapshot = if revision == "main" { folder.current() } else { folder.snapshot_of(&revision) };
        let Some(snapshot) = snapshot else { return Ok(None) };
        if let Files::Named(files) = files {
            return Ok(files.first().map(|f| snapshot.join(f)).filter(|p| p.exists()));
        }
        if snapshot.join("model_index.json").is_file() {
            return Ok(Some(snapshot));
        }
        let entries = in_snapshot(&repo, &snapshot, &mut HashSet::new());
        match entries.as_slice() {
            [] => Err(Error::missing("the Hugging Face cache has no weights of it")
                .at(name)
                .try_(format!("flux-fast pull {name}"))),
            [one] => Ok(Some(one.path.clone())),
            several => Err(ambiguous(name, several.iter().map(|e| e.name.clone()))),
        }
    }
}

/// No path is told: whoever tries such names knows it.
fn not_a_name() -> Error {
    Error::argument("not the name of a model").expected("a name that `flux-fast models` lists")
}

fn ambiguous(name: &str, paths: impl Iterator<Item = String>) -> Error {
    let paths: Vec<String> = paths.collect();
    let more = if paths.len() > 8 { format!(" and {} more", paths.len() - 8) } else { String::new() };
    Error::argument("several models have this name")
        .at(name)
        .found(paths.len())
        .try_(format!("one of {}{more}", paths[..paths.len().min(8)].join(", ")))
}

fn exactly(entry: &str, name: &str) -> bool {
    entry == name
}

/// By the last part of its path, with or without the ending.
fn shortly(entry: &str, name: &str) -> bool {
    let last = entry.rsplit('/').next().unwrap_or(entry);
    let without =
        |n: &str| if is_weights(n) { n.rsplit_once('.').map_or(n, |(s, _)| s).to_string() } else { n.to_string() };
    let stem = Stem::of(last);
    let shards = if stem.shards > 0 { stem.stem } else { String::new() };
    last == name || without(last) == name || without(entry) == name || shards == name
}

fn loosely(entry: &str, name: &str) -> bool {
    let (entry, name) = (entry.to_lowercase(), name.to_lowercase());
    entry == name || shortly(&entry, &name)
}

fn is_near(entry: &str, lower: &str) -> bool {
    let entry = entry.to_lowercase();
    let start: String = lower.rsplit('/').next().unwrap_or(lower).chars().take(5).collect();
    entry.contains(lower) || start.len() >= 4 && entry.contains(&start)
}

/// What a snapshot of the Hugging Face cache holds. Of a diffusers folder that is the folder, and the files beside its components.
fn in_snapshot(id: &str, snapshot: &Path, seen: &mut HashSet<PathBuf>) -> Vec<Entry> {
    let place =
        Place { folder: snapshot.into(), role: Role::Any, words: "the Hugging Face cache".to_string(), deep: true };
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
        let inside = |f: PathBuf| std::fs::read_dir(f).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
        let folders = inside(folder.into()).filter(|p| p.is_dir());
        let weights = folders.flat_map(inside).filter(|p| is_weights(&p.to_string_lossy()));
        let bytes = weights.filter_map(|p| Some(p.metadata().ok()?.len())).sum();
        self.add(folder.into(), name, bytes);
    }

    fn add(&mut self, path: PathBuf, name: String, bytes: u64) {
        let Ok(real) = path.canonicalize() else { return };
        self.found.push(Entry { name, path, bytes, role: self.place.role, place: self.place.words.clone(), real });
    }
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
