//! Weight files that belong together: a single file, or all shards of one model.
//!
//! Only names, indexes and headers are read here. What a file contains is recognised by its tensor
//! names, never by its file name. Shards are found by their index or, without one, by their names,
//! which contain the number of shards.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::config::read_json_bytes;
use super::file_names::{FileName, ShardName, is_index, is_weights, unfinished};
use crate::error::{Error, Result};
use crate::spec::{Component, Families, Lookalike};
use crate::weights::container::file::read_header;
use crate::weights::container::header::Header;
use crate::weights::container::map::unreadable;
use crate::weights::dialect::recognise::{Recognised, recognise};

/// Files that belong together: one file, or all shards of one model in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The files; never empty.
    pub paths: Vec<PathBuf>,
    /// The size of all files together.
    pub bytes: u64,
}

impl Unit {
    /// The path to show: the file, or the folder of the shards.
    pub fn place(&self) -> &Path {
        if self.paths.len() == 1 { &self.paths[0] } else { self.folder() }
    }

    /// The folder that contains the files.
    pub fn folder(&self) -> &Path {
        self.paths[0].parent().unwrap_or(Path::new(""))
    }

    /// The name of the first file.
    pub fn file_name(&self) -> String {
        file_name(&self.paths[0])
    }

    /// Reads the headers of all files and recognises the components of `families` in them.
    pub fn contents(&self, families: Families) -> Result<Contents> {
        let headers = self.paths.iter().map(|p| read_header(p)).collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> =
            headers.iter().flat_map(|h| &h.tensors).map(|t| t.name.as_str()).collect();
        Ok(Contents { found: recognise(&names, families), headers })
    }
}

/// The headers of a [`Unit`] and what they show.
pub struct Contents {
    /// The components that the tensor names show.
    pub found: Vec<Recognised>,
    /// One header per file of the unit.
    pub headers: Vec<Header>,
}

impl Contents {
    /// The recognised `component`, if the unit contains it.
    pub fn find(&self, component: Component) -> Option<&Recognised> {
        self.found.iter().find(|f| f.component == component)
    }

    /// Whether the unit contains `component`.
    pub fn has(&self, component: Component) -> bool {
        self.find(component).is_some()
    }

    /// The names of all tensors.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> + Clone {
        self.headers.iter().flat_map(|h| &h.tensors).map(|t| t.name.as_str())
    }

    /// Whether the unit contains the canonical tensor `name` of `component`, or a part of it.
    pub fn contains(&self, component: Component, name: &str) -> bool {
        let stored = self.find(component).map(|f| f.stored(name)).unwrap_or_default();
        self.tensor_names().any(|n| stored.iter().any(|s| s == n))
    }

    /// The network that the tensors of `component` are of, if it only resembles the component.
    pub fn lookalike(&self, component: Component) -> Option<&'static Lookalike> {
        let prefix = self.find(component)?.prefix.as_str();
        component.lookalike(self.tensor_names().filter_map(|name| name.strip_prefix(prefix)))
    }
}

/// The weight files in a folder.
#[derive(Debug, Default)]
pub struct FolderUnits {
    /// The units, sorted by name.
    pub units: Vec<Unit>,
    /// Files that are not part of any unit, each as the error of opening it: shards of which one is
    /// missing, an index that cannot be read, an unfinished download.
    pub broken: Vec<Error>,
}

/// The units in `folder`, without its subfolders. A folder that cannot be read has none.
pub fn units(folder: &Path) -> FolderUnits {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    let mut out = FolderUnits::default();
    let mut listed: HashSet<PathBuf> = HashSet::new();
    for index in files.iter().filter(|p| is_index(&file_name(p))) {
        match indexed_shards(index) {
            Ok(unit) => {
                listed.extend(unit.paths.iter().cloned());
                out.units.push(unit);
            }
            Err(e) => {
                // One error is enough for the shards that are there.
                let name = file_name(index);
                let is_listed = |p: &&PathBuf| FileName::parse(&file_name(p)).has_index(&name);
                listed.extend(files.iter().filter(is_listed).cloned());
                out.broken.push(e);
            }
        }
    }
    for path in files {
        let name = file_name(&path);
        if unfinished(&name).is_some() {
            out.broken.push(unfinished_download(&path));
        }
        if !is_weights(&name) || listed.contains(&path) {
            continue;
        }
        match named_shards(&path) {
            Ok(Some(unit)) => {
                listed.extend(unit.paths.iter().cloned());
                out.units.push(unit);
            }
            Ok(None) => {
                let bytes = path.metadata().map_or(0, |m| m.len());
                out.units.push(Unit { bytes, paths: vec![path] });
            }
            Err(e) => {
                if let Some(shard) = ShardName::parse(&name).filter(ShardName::is_valid) {
                    // At most as many as the folder has files.
                    let shard = as_written(shard, &path);
                    let there = shard.all().map(|name| path.with_file_name(name));
                    listed.extend(there.take(MAX_SHARDS).filter(|p| p.is_file()));
                }
                out.broken.push(e);
            }
        }
    }
    out
}

/// The unit that the file at `path` belongs to: all shards if it is a shard or an index of shards;
/// otherwise the file alone.
pub fn unit_of(path: &Path) -> Result<Unit> {
    let name = file_name(path);
    if is_index(&name) {
        return indexed_shards(path);
    }
    let parsed = FileName::parse(&name);
    if parsed.shards > 0 {
        let indexes = parsed.indexes().into_iter().map(|index| path.with_file_name(index));
        for index in indexes.filter(|index| index.is_file()) {
            let unit = indexed_shards(&index)?;
            if unit.paths.iter().any(|p| p == path) {
                return Ok(unit);
            }
        }
    }
    if is_weights(&name)
        && let Some(unit) = named_shards(path)?
    {
        return Ok(unit);
    }
    let bytes = path.metadata().map_err(|e| unreadable(path, &e))?.len();
    Ok(Unit { paths: vec![path.into()], bytes })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The largest number of shards of one model. Real models have at most a few hundred.
const MAX_SHARDS: usize = 10_000;

/// All shards of a model, given one of them, such as `x-00002-of-00003.gguf`: the names contain how
/// many there are. `None` for every other file.
fn named_shards(path: &Path) -> Result<Option<Unit>> {
    let name = file_name(path);
    let Some(shard) = ShardName::parse(&name) else { return Ok(None) };
    if !shard.is_valid() || shard.count as usize > MAX_SHARDS {
        return Err(Error::model("the numbers in the name of this shard are not possible")
            .at_path(path)
            .found(format!("{} of {}", shard.number, shard.count))
            .try_("rename it to the name that it was published under"));
    }
    let shard = as_written(shard, path);
    let paths = shard.all().map(|name| path.with_file_name(name));
    let expected = format!("all {} files of the split model", shard.count);
    together(paths, &expected).map(Some)
}

/// The spelling of `shard`, the name of the file at `path`, in which the first shard is there.
fn as_written<'a>(shard: ShardName<'a>, path: &Path) -> ShardName<'a> {
    let has_first =
        |s: &ShardName| s.all().next().is_some_and(|first| path.with_file_name(first).is_file());
    shard.spellings().into_iter().find(has_first).unwrap_or(shard)
}

/// These files as one unit. A file that is missing is an error that names what is `expected`.
fn together(paths: impl Iterator<Item = PathBuf>, expected: &str) -> Result<Unit> {
    let mut unit = Unit { paths: vec![], bytes: 0 };
    for path in paths {
        let Ok(metadata) = path.metadata() else {
            let e = Error::missing("a shard is missing").at_path(&path).expected(expected);
            let e = match unfinished_name_of(&path) {
                Some(part) => e.found(format!("{part}, an unfinished download")),
                None => e,
            };
            return Err(e.try_("download the folder again; the files that are complete are kept"));
        };
        unit.bytes = unit.bytes.saturating_add(metadata.len());
        unit.paths.push(path);
    }
    Ok(unit)
}

/// The error for a file whose name ends like that of an unfinished download (`.part`).
fn unfinished_download(path: &Path) -> Error {
    Error::missing("the download of this file is not finished").at_path(path).try_(
        "wait until it is complete, or download it again; rename it if it is complete already",
    )
}

/// The name of an unfinished download of the file at `path`, if one is in its folder.
fn unfinished_name_of(path: &Path) -> Option<String> {
    let complete = file_name(path);
    let folder = path.parent().filter(|f| *f != Path::new("")).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter(|name| unfinished(name) == Some(complete.as_str())).min()
}

/// The files that an index of shards lists. They must be in the folder of the index.
fn indexed_shards(index: &Path) -> Result<Unit> {
    let text = read_json_bytes(index)?;
    let broken = |what: &str| Error::model(format!("index of shards {what}")).at_path(index);
    let json: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| broken(&format!("is not JSON: {e}")))?;
    let map = json
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| broken("has no weight_map"))?;
    let mut names: Vec<&str> = Vec::new();
    for file in map.values() {
        let name = file.as_str().ok_or_else(|| broken("contains a name that is not a string"))?;
        if Path::new(name).file_name().is_none_or(|f| f != name) || name.contains('\\') {
            return Err(broken("lists a file outside its folder").found(name));
        }
        names.push(name);
    }
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Err(broken("lists no files"));
    }
    let expected = format!("every file that {} lists", index.display());
    together(names.into_iter().map(|name| index.with_file_name(name)), &expected)
}
