//! Where component files are: the shards of one model in a folder, and the usual places around a transformer file.
//! Only headers are read here, and only of files in these places; files are known by their tensor names.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::spec::{Component, Families};
use crate::weights::container::file::read_header;
use crate::weights::container::map::unreadable;
use crate::weights::container::safetensors::Header;
use crate::weights::dialect::recognise::{Recognised, foreign_storage, recognise};

/// At most this many headers are read in one place.
const LOOKED_AT: usize = 64;

/// Files that belong together: one file, or all shards of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub paths: Vec<PathBuf>,
    pub bytes: u64,
}

impl Unit {
    /// The file, or the folder of the shards.
    pub fn place(&self) -> &Path {
        if self.paths.len() == 1 { &self.paths[0] } else { self.folder() }
    }

    /// The folder that the files lie in.
    pub fn folder(&self) -> &Path {
        self.paths[0].parent().unwrap_or(Path::new(""))
    }

    /// The lower-case name of its (first) file without the ending.
    fn stem(&self) -> String {
        self.paths[0].file_stem().unwrap_or_default().to_string_lossy().to_lowercase()
    }

    /// What it holds, from its headers.
    pub fn look(&self, families: Families) -> Result<Look> {
        let headers = self.paths.iter().map(|p| read_header(p)).collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> =
            headers.iter().flat_map(|h| &h.tensors).map(|t| t.name.as_str()).collect();
        Ok(Look { found: recognise(&names, families), headers })
    }
}

/// What the headers of a unit show.
pub struct Look {
    /// The components that were recognised.
    pub found: Vec<Recognised>,
    /// The headers of the unit's files.
    pub headers: Vec<Header>,
}

impl Look {
    /// The recognised `component`, if it is there.
    pub fn find(&self, component: Component) -> Option<&Recognised> {
        self.found.iter().find(|f| f.component == component)
    }

    /// Whether it holds `component`.
    pub fn has(&self, component: Component) -> bool {
        self.find(component).is_some()
    }

    /// The stored shape of the canonical tensor `name` of `component`: of its first part, where it
    /// is stored in several.
    pub fn shape(&self, component: Component, name: &str) -> Option<&[usize]> {
        let stored = self.find(component)?.stored(name);
        let mut tensors = self.headers.iter().flat_map(|h| &h.tensors);
        tensors.find(|t| Some(&t.name) == stored.first()).map(|t| t.shape.as_slice())
    }

    /// Whether it holds the wanted component, of the right size and stored in a way that can be
    /// read.
    fn suits(&self, wanted: &Wanted) -> bool {
        let component = wanted.component;
        let mut tensors = self.headers.iter().flat_map(|h| &h.tensors);
        if !self.has(component) || tensors.any(|t| foreign_storage(&t.name).is_some()) {
            return false;
        }
        let size = component.0.fit.as_ref().and_then(|fit| {
            let (name, axis) = fit.own;
            self.shape(component, name)?.get(axis).copied()
        });
        let fits = wanted.size.zip(size).is_none_or(|(wanted, size)| wanted == size);
        fits && component.excludes.iter().all(|name| self.shape(component, name).is_none())
    }
}

/// A component that is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The component.
    pub component: Component,
    /// The families among which files are recognised.
    pub families: Families,
    /// The size that its transformer requires of it (see [`crate::spec::Fit`]); `None` for any.
    pub size: Option<usize>,
}

impl Wanted {
    /// `component` of any size.
    pub fn any(component: Component, families: Families) -> Self {
        Wanted { component, families, size: None }
    }
}

/// The units in `folder`, not below it, sorted by name. A folder that cannot be read has none.
pub fn units(folder: &Path) -> Result<Vec<Unit>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    let mut units = Vec::new();
    let mut sharded: HashSet<PathBuf> = HashSet::new();
    for index in files.iter().filter(|p| p.to_string_lossy().ends_with(".safetensors.index.json")) {
        let unit = shards(index)?;
        sharded.extend(unit.paths.iter().cloned());
        units.push(unit);
    }
    for path in files.into_iter().filter(|p| is_weights(p)) {
        if sharded.contains(&path) {
            continue;
        }
        let unit = match split(&path)? {
            Some(unit) => unit,
            None => Unit { bytes: path.metadata().map_or(0, |m| m.len()), paths: vec![path] },
        };
        sharded.extend(unit.paths.iter().cloned());
        units.push(unit);
    }
    Ok(units)
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending))
}

/// Whether a file's name is that of weights; what they are, its header tells.
fn is_weights(path: &Path) -> bool {
    has_ending(path, "safetensors") || has_ending(path, "gguf")
}

/// The unit that the file at `path` belongs to: itself, or with its sister shards where an index lies beside it.
pub fn unit_of(path: &Path) -> Result<Unit> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".safetensors.index.json") {
        return shards(path);
    }
    if let Some((stem, _)) = name.split_once("-00") {
        let index = path.with_file_name(format!("{stem}.safetensors.index.json"));
        if index.is_file() {
            let unit = shards(&index)?;
            if unit.paths.iter().any(|p| p == path) {
                return Ok(unit);
            }
        }
    }
    if let Some(unit) = split(path)? {
        return Ok(unit);
    }
    let bytes = path.metadata().map_err(|e| unreadable(path, &e))?.len();
    Ok(Unit { paths: vec![path.into()], bytes })
}

/// The files of a GGUF model that was split, by the name of one of them: `x-00002-of-00003.gguf`. They have no index; the names say how many there are.
fn split(path: &Path) -> Result<Option<Unit>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let number =
        |digits: &str| match digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse::<u32>().ok(),
            false => None,
        };
    let parts = name.rsplit_once("-of-").and_then(|(rest, count)| {
        let (stem, at) = rest.rsplit_once('-')?;
        Some((stem, number(at)?, number(count)?))
    });
    let Some((stem, at, count)) = parts.filter(|_| has_ending(path, "gguf")) else {
        return Ok(None);
    };
    if at == 0 || at > count {
        return Err(Error::model("the numbers of a split GGUF file cannot be")
            .at_path(path)
            .found(format!("{at} of {count}"))
            .try_("give it the name that it was published under"));
    }
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    let names = (1..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}.{ending}"));
    let others = format!("all {count} files of the split model");
    together(names.map(|name| path.with_file_name(name)), &others).map(Some)
}

/// These files, which belong together, as a unit; the first that is missing is an error.
fn together(paths: impl Iterator<Item = PathBuf>, expected: &str) -> Result<Unit> {
    let mut unit = Unit { paths: vec![], bytes: 0 };
    for path in paths {
        let Ok(metadata) = path.metadata() else {
            return Err(Error::missing("a shard is missing")
                .at_path(&path)
                .expected(expected)
                .try_("download the folder again; what is there already is kept"));
        };
        unit.bytes = unit.bytes.saturating_add(metadata.len());
        unit.paths.push(path);
    }
    Ok(unit)
}

/// The files that an index of shards names. They must lie beside it.
fn shards(index: &Path) -> Result<Unit> {
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
        let name = file.as_str().ok_or_else(|| broken("names a file that is no text"))?;
        if Path::new(name).file_name().is_none_or(|f| f != name) || name.contains('\\') {
            return Err(broken("names a file outside its folder").found(name));
        }
        names.push(name);
    }
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Err(broken("names no files"));
    }
    let expected = format!("every file that {} names", index.display());
    together(names.into_iter().map(|name| index.with_file_name(name)), &expected)
}

/// Chooses among `units` the one to take `component` from: right-looking names first, then the smaller (of T5 an 8-bit file serves as well and costs half), then by
/// path. GGUF files come last, and of them the largest first: people keep many, down to two bits, and the smaller the worse. Files that cannot be read are
/// passed over.
pub fn choose(mut units: Vec<Unit>, wanted: &Wanted) -> Option<(Unit, Look)> {
    units.sort_by_cached_key(|u| {
        let gguf = has_ending(&u.paths[0], "gguf");
        let size = if gguf { u64::MAX - u.bytes } else { u.bytes };
        (name_rank(wanted.component, &u.stem()), gguf, size, u.paths[0].clone())
    });
    units.into_iter().take(LOOKED_AT).find_map(|unit| {
        let look = unit.look(wanted.families).ok().filter(|look| look.suits(wanted))?;
        Some((unit, look))
    })
}

/// How much a file's name looks like the component; 0 is best.
fn name_rank(component: Component, stem: &str) -> usize {
    // Half-precision variants in a diffusers folder lie beside the plain file.
    let variant = usize::from(stem.ends_with(".fp16") || stem.ends_with(".bf16"));
    2 * component.files.rank(stem) + variant
}

/// Folders of transformers whose sisters hold the other components (ComfyUI, A1111 and Forge, diffusers).
const MODEL_FOLDERS: [&str; 5] =
    ["checkpoints", "unet", "diffusion_models", "stable-diffusion", "transformer"];

/// The places in which `component` is looked for when the transformer lies in `folder`, with words for each.
pub fn places(folder: &Path, component: Component) -> Vec<(PathBuf, String)> {
    let mut places = vec![(folder.to_path_buf(), "beside the model".to_string())];
    let mut below = |root: &Path| {
        places.extend(
            component
                .files
                .folders
                .iter()
                .map(|f| (root.join(f), format!("in {}", root.join(f).display()))),
        );
    };
    below(folder);
    // People sort their models into folders of their own, two deep at most.
    for ancestor in folder.ancestors().take(3) {
        let name = ancestor.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if let (true, Some(root)) = (MODEL_FOLDERS.contains(&name.as_str()), ancestor.parent()) {
            below(root);
            break;
        }
    }
    // `vae` and `VAE` are one folder on some systems.
    let mut seen = HashSet::new();
    places.retain(|(path, _)| path.canonicalize().map_or(true, |real| seen.insert(real)));
    places
}

/// Looks for a component around a transformer in `folder`: the unit, what it holds, and where it was. `Err` lists where it was looked for.
pub fn search(
    folder: &Path,
    wanted: &Wanted,
) -> std::result::Result<(Unit, Look, String), Vec<PathBuf>> {
    let places = places(folder, wanted.component);
    for (place, words) in &places {
        if let Some((unit, look)) = choose(units(place).unwrap_or_default(), wanted) {
            return Ok((unit, look, words.clone()));
        }
    }
    Err(places.into_iter().map(|(path, _)| path).collect())
}

/// The error for a path at which nothing is, naming what lies there under a similar name.
pub fn no_such(path: &Path) -> Error {
    let wanted = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut near: Vec<(usize, String)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .map(|name| (distance(&wanted, &name.to_lowercase()), name))
        .filter(|(d, name)| *d <= 3.max(name.len() / 3))
        .collect();
    near.sort();
    let e = Error::missing("no such file or folder").at_path(path);
    match near.as_slice() {
        [] if folder.is_dir() => e,
        [] => e.try_(format!("the folder {} is not there either", folder.display())),
        near => {
            let names: Vec<&str> = near.iter().take(3).map(|(_, n)| n.as_str()).collect();
            e.try_(format!("did you mean {}?", names.join(" or ")))
        }
    }
}

/// Levenshtein's distance.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}
