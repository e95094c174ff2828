//! Weight files that belong together: a single file, or all shards of one model.
//!
//! Only names, indexes and headers are read here. What a file contains is recognised by its tensor
//! names, never by its file name.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::file_names::{FileName, ShardName, is_gguf, is_index, is_weights};
use crate::error::{Error, Result};
use crate::spec::{Component, Families};
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
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.headers.iter().flat_map(|h| &h.tensors).map(|t| t.name.as_str())
    }

    /// The stored shape of the canonical tensor `name` of `component`. For a tensor that is stored
    /// in several parts, the shape of the first part.
    pub fn shape(&self, component: Component, name: &str) -> Option<&[usize]> {
        let stored = self.find(component)?.stored(name);
        let mut tensors = self.headers.iter().flat_map(|h| &h.tensors);
        tensors.find(|t| Some(&t.name) == stored.first()).map(|t| t.shape.as_slice())
    }
}

/// The units in `folder`, without its subfolders, sorted by name. A folder that cannot be read has
/// none. Errors: a missing shard, or an index that cannot be read.
pub fn units(folder: &Path) -> Result<Vec<Unit>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    let mut units = Vec::new();
    let mut listed: HashSet<PathBuf> = HashSet::new();
    for index in files.iter().filter(|p| is_index(&file_name(p))) {
        let unit = indexed_shards(index)?;
        listed.extend(unit.paths.iter().cloned());
        units.push(unit);
    }
    for path in files.into_iter().filter(|p| is_weights(&file_name(p))) {
        if listed.contains(&path) {
            continue;
        }
        let unit = match split_gguf(&path)? {
            Some(unit) => unit,
            None => Unit { bytes: path.metadata().map_or(0, |m| m.len()), paths: vec![path] },
        };
        listed.extend(unit.paths.iter().cloned());
        units.push(unit);
    }
    Ok(units)
}

/// The unit that the file at `path` belongs to: all shards if it is a shard with an index next to
/// it, an index, or a part of a split GGUF file; otherwise the file alone.
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
    if let Some(unit) = split_gguf(path)? {
        return Ok(unit);
    }
    let bytes = path.metadata().map_err(|e| unreadable(path, &e))?.len();
    Ok(Unit { paths: vec![path.into()], bytes })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// All parts of a split GGUF model, given one of them, such as `x-00002-of-00003.gguf`. There is no
/// index for these; the names contain the number of parts. `None` for every other file.
fn split_gguf(path: &Path) -> Result<Option<Unit>> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let Some(shard) = ShardName::parse(&stem).filter(|_| is_gguf(&file_name(path))) else {
        return Ok(None);
    };
    if !shard.is_valid() {
        return Err(Error::model("the numbers in the name of a split GGUF file are not possible")
            .at_path(path)
            .found(format!("{} of {}", shard.number, shard.count))
            .try_("rename it to the name that it was published under"));
    }
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let paths = shard.all().map(|name| path.with_file_name(format!("{name}.{ending}")));
    let expected = format!("all {} files of the split model", shard.count);
    together(paths, &expected).map(Some)
}

/// These files as one unit. A file that is missing is an error that names what is `expected`.
fn together(paths: impl Iterator<Item = PathBuf>, expected: &str) -> Result<Unit> {
    let mut unit = Unit { paths: vec![], bytes: 0 };
    for path in paths {
        let Ok(metadata) = path.metadata() else {
            return Err(Error::missing("a shard is missing")
                .at_path(&path)
                .expected(expected)
                .try_("download the folder again; the files that are complete are kept"));
        };
        unit.bytes = unit.bytes.saturating_add(metadata.len());
        unit.paths.push(path);
    }
    Ok(unit)
}

/// The files that an index of shards lists. They must be in the folder of the index.
fn indexed_shards(index: &Path) -> Result<Unit> {
    let text = std::fs::read(index).map_err(|e| unreadable(index, &e))?;
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
