//! From a name to a file: a path, an id of the Hugging Face cache, or what the places hold under that name.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::super::find::{distance, no_such};
use super::super::hub::cache::{is_inside, is_repo_id};
use super::super::hub::select::{Files, Stem, is_weights};
use super::{Entry, Places, Role, in_snapshot, look};
use crate::error::{Error, Kind, Result};

/// Gives the entries of all places once they are needed: most names are paths.
type Entries<'f, 'a> = &'f dyn Fn() -> Cow<'a, [Entry]>;

impl Places {
    /// The file or folder that `name` means to someone who may name any path: a path, or what `named` knows.
    ///
    /// `Kind::Missing` tells what has a similar name, and where was looked; `Kind::Argument` lists several that have this one.
    pub fn resolve(&self, name: &str, role: Role) -> Result<PathBuf> {
        self.resolve_among(name, role, &|| self.entries().into())
    }

    /// The model that is called `name`, for anyone: `org/name` (or `org/name/file`) in the Hugging Face cache, or a file of the places, by its path there, or
    /// by its name with or without ending. No name leads out of the places.
    pub fn named(&self, name: &str, role: Role) -> Result<PathBuf> {
        self.named_among(name, role, &|| self.entries().into())
    }

    /// What to type for `entry` where a `role` is asked for: its name, or its path where the name means something else or nothing.
    pub(super) fn typed(&self, entry: &Entry, role: Role, entries: &[Entry]) -> String {
        let found = self.resolve_among(&entry.name, role, &|| entries.into());
        match found.and_then(|path| self.here.join(path).canonicalize().map_err(|_| not_a_name())) {
            Ok(real) if real == entry.real => entry.name.clone(),
            _ => entry.path.display().to_string(),
        }
    }

    fn resolve_among(&self, name: &str, role: Role, entries: Entries) -> Result<PathBuf> {
        if name.is_empty() || name.contains('\0') {
            return Err(not_a_name());
        }
        let path = match name.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                self.home.join(rest.trim_start_matches('/'))
            }
            _ => self.here.join(name),
        };
        if path.exists() {
            return Ok(if path == self.here.join(name) { PathBuf::from(name) } else { path });
        }
        let is_path = Path::new(name).is_absolute()
            || name.starts_with(['.', '~', '\\'])
            || name.contains("..");
        if is_path {
            return Err(no_such(&std::path::absolute(&path).unwrap_or(path)));
        }
        self.named_among(name, role, entries).map_err(|e| match e.kind() {
            // Whoever may name any path may also know where was looked.
            Kind::Missing => e.expected(format!(
                "a file or folder, or a name in {}",
                self.looked_in().join(", ")
            )),
            _ => e,
        })
    }

    fn named_among(&self, name: &str, role: Role, entries: Entries) -> Result<PathBuf> {
        let lower = name.to_lowercase();
        let name = name.trim_end_matches('/');
        if !is_inside(name) || ["%2e", "%2f", "%5c", "%00"].iter().any(|code| lower.contains(code))
        {
            return Err(not_a_name());
        }
        if let Some(path) = self.cached(name, role)? {
            return Ok(path);
        }
        let entries = entries();
        let suits = |e: &&Entry| role == Role::Any || e.role == Role::Any || e.role == role;
        let right: Vec<&Entry> = entries.iter().filter(suits).collect();
        let all: Vec<&Entry> = entries.iter().collect();
        for among in [right, all] {
            for how in [exactly, shortly, loosely] {
                let found: Vec<&Entry> =
                    among.iter().copied().filter(|e| how(&e.name, name)).collect();
                match found.as_slice() {
                    [] => {}
                    [one] => return Ok(one.path.clone()),
                    several => {
                        return Err(ambiguous(
                            name,
                            several.iter().map(|e| e.path.display().to_string()),
                        ));
                    }
                }
            }
        }
        Err(Error::missing("no model of this name was found").at(name).try_(advice(name, &entries)))
    }

    /// What the Hugging Face cache has of an id; of several files the only one that is what `role` asks for.
    fn cached(&self, name: &str, role: Role) -> Result<Option<PathBuf>> {
        let Ok((repo, revision, files)) = super::super::hub::parse(name, "https://huggingface.co")
        else {
            return Ok(None);
        };
        let folder = self.cache.repo(&repo);
        let snapshot =
            if revision == "main" { folder.current() } else { folder.snapshot_of(&revision) };
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
            several => {
                let right: Vec<&Entry> = several
                    .iter()
                    .filter(|e| look(&e.path, self.families).0.role() == role)
                    .collect();
                match right.as_slice() {
                    [one] => Ok(Some(one.path.clone())),
                    _ => Err(ambiguous(name, several.iter().map(|e| e.name.clone()))),
                }
            }
        }
    }
}

/// No path is told: whoever tries such names knows it.
fn not_a_name() -> Error {
    Error::argument("not the name of a model").expected("a name that `flux-fast models` lists")
}

fn ambiguous(name: &str, paths: impl Iterator<Item = String>) -> Error {
    let paths: Vec<String> = paths.collect();
    let more =
        if paths.len() > 8 { format!(" and {} more", paths.len() - 8) } else { String::new() };
    Error::argument("several models have this name")
        .at(name)
        .found(paths.len())
        .try_(format!("one of {}{more}", paths[..paths.len().min(8)].join(", ")))
}

/// What to try for a name under which nothing is: a pull where it looks like a repository, similar names, or the list.
fn advice(name: &str, entries: &[Entry]) -> String {
    // `models/x.safetensors` has the form of an id, but whoever types it means a file.
    let repo = name.split('@').next().unwrap_or(name);
    let is_id = is_repo_id(repo) && repo.contains('/') && !is_weights(repo);
    let near = near(name, entries);
    match (is_id, near.as_slice()) {
        (true, []) => format!("flux-fast pull {name}"),
        (true, near) => format!("flux-fast pull {name}; or did you mean {}?", near.join(" or ")),
        (false, []) => {
            "`flux-fast models` lists what there is; `flux-fast pull org/name` downloads"
                .to_string()
        }
        (false, near) => {
            format!("did you mean {}? `flux-fast models` lists what there is", near.join(" or "))
        }
    }
}

/// The three entries whose names are most like `name`.
fn near<'a>(name: &str, entries: &'a [Entry]) -> Vec<&'a str> {
    let lower = name.to_lowercase();
    let last = |n: &str| n.rsplit('/').next().unwrap_or(n).to_string();
    let wanted = last(&lower);
    let start: String = wanted.chars().take(5).collect();
    let mut near: Vec<(usize, &str)> = entries
        .iter()
        .filter_map(|e| {
            let entry = e.name.to_lowercase();
            let stem = last(without_ending(&entry));
            // Names are short; what is typed may be anything.
            let far = distance(without_ending(&wanted), &stem);
            let alike = far <= 2.max(stem.len() / 4);
            let contains = entry.contains(&lower) || start.len() >= 4 && entry.contains(&start);
            (alike || contains).then_some((if alike { far } else { usize::MAX }, e.name.as_str()))
        })
        .collect();
    near.sort();
    near.into_iter().map(|(_, name)| name).take(3).collect()
}

fn without_ending(name: &str) -> &str {
    if is_weights(name) { name.rsplit_once('.').map_or(name, |(stem, _)| stem) } else { name }
}

fn exactly(entry: &str, name: &str) -> bool {
    entry == name
}

/// By the last part of its path, with or without the ending.
fn shortly(entry: &str, name: &str) -> bool {
    let last = entry.rsplit('/').next().unwrap_or(entry);
    let stem = Stem::of(last);
    let shards = if stem.shards > 0 { stem.stem } else { String::new() };
    last == name || without_ending(last) == name || without_ending(entry) == name || shards == name
}

fn loosely(entry: &str, name: &str) -> bool {
    let (entry, name) = (entry.to_lowercase(), name.to_lowercase());
    entry == name || shortly(&entry, &name)
}
