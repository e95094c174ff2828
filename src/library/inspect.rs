//! The contents of a file or folder, for `inspect`. It need not be usable.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::similar::no_such_path;
use super::unit::{FolderUnits, Unit, unit_of, units};
use crate::error::{Error, Result};
use crate::spec::{Component, FAMILIES, Fact, Families};
use crate::text::{one_line, shortened};
use crate::units;
use crate::weights::container::file::WeightFile;
use crate::weights::dialect::recognise::{
    foreign_model, foreign_part, foreign_storage, is_lora, recognise,
};
use crate::weights::{ComponentWeights, lora};

/// How many keys of metadata the summary for users shows.
const MAX_SHOWN: usize = 100;

/// Everything that the headers at a path show.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// The path that was inspected.
    pub path: PathBuf,
    /// A short description.
    pub what: String,
    /// The files.
    pub files: Vec<FileInfo>,
    /// The components that can be used.
    pub components: Vec<ComponentInfo>,
    /// The element types, by size.
    pub dtypes: Vec<TypeInfo>,
    /// The header metadata of all files; long values are cut.
    pub metadata: BTreeMap<String, String>,
    /// LoRAs: trainer, ranks, layers, and keys that are not understood.
    pub loras: Vec<lora::Summary>,
    /// Problems, and other lines for the user.
    pub notes: Vec<String>,
    /// All tensors as stored.
    pub tensors: Vec<TensorInfo>,
}

/// A file that was inspected.
#[derive(Debug, Clone, Serialize)]
pub struct FileInfo {
    /// The path.
    pub path: PathBuf,
    /// The size in bytes.
    pub bytes: u64,
    /// The number of tensors.
    pub tensors: usize,
}

/// A component that can be used.
#[derive(Debug, Clone, Serialize)]
pub struct ComponentInfo {
    /// The component; in JSON its name.
    pub component: Component,
    /// How it is stored: `BFL, scaled fp8 (new)`.
    pub dialect: String,
    /// The number of canonical tensors.
    pub tensors: usize,
    /// The stored size in bytes.
    pub bytes: u64,
    /// The number of values.
    pub parameters: u64,
    /// Facts that the shapes show: blocks, widths, guidance.
    pub geometry: BTreeMap<&'static str, String>,
}

/// The tensors of one element type.
#[derive(Debug, Clone, Serialize)]
pub struct TypeInfo {
    /// The name of the type.
    pub dtype: &'static str,
    /// The number of tensors.
    pub tensors: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// A tensor as stored.
#[derive(Debug, Clone, Serialize)]
pub struct TensorInfo {
    /// The stored name.
    pub name: String,
    /// The name of the element type.
    pub dtype: &'static str,
    /// All axes.
    pub shape: Vec<usize>,
}

/// Inspects a `.safetensors` or `.gguf` file, all shards of a model, or a folder, including the
/// component folders of a diffusers model.
///
/// # Errors
/// If there are no such files, or if one of them cannot be read.
pub fn inspect(path: &Path) -> Result<Inspection> {
    inspect_among(path, FAMILIES)
}

/// The same with these families.
pub fn inspect_among(path: &Path, families: Families) -> Result<Inspection> {
    if !path.exists() {
        return Err(no_such_path(path));
    }
    let mut found = FolderUnits::default();
    if path.is_dir() {
        let mut folders = vec![path.to_path_buf()];
        for component in families.components() {
            let folder = path.join(component.0.diffusers.folder);
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        for FolderUnits { mut units, mut broken } in folders.iter().map(|f| units(f)) {
            found.units.append(&mut units);
            found.broken.append(&mut broken);
        }
        if found.units.is_empty() {
            return Err(found.broken.into_iter().next().unwrap_or_else(|| {
                Error::missing("no .safetensors or .gguf files in this folder").at_path(path)
            }));
        }
    } else {
        found.units.push(unit_of(path)?);
    }
    let mut inspection = Inspection {
        path: path.into(),
        what: String::new(),
        files: vec![],
        components: vec![],
        dtypes: vec![],
        metadata: BTreeMap::new(),
        loras: vec![],
        notes: found.broken.iter().map(Error::to_string).collect(),
        tensors: vec![],
    };
    let mut what: Vec<String> = vec![];
    for unit in found.units {
        let words = inspection.add(&unit, families)?;
        if !what.contains(&words) {
            what.push(words);
        }
    }
    inspection.what = what.join("; ");
    inspection.dtypes.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    Ok(inspection)
}

impl Inspection {
    /// Adds a unit and returns what it is, in a few words.
    fn add(&mut self, unit: &Unit, families: Families) -> Result<String> {
        let files = unit
            .paths
            .iter()
            .map(|p| WeightFile::open(p).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        for file in &files {
            self.add_file(file);
        }
        let names: Vec<&str> =
            files.iter().flat_map(|f| &f.header.tensors).map(|t| t.name.as_str()).collect();
        let found = recognise(&names, families);
        let mut words = vec![];
        for f in &found {
            match ComponentWeights::collect(&files, f, &found) {
                Ok(weights) => {
                    words.push(format!("{}: {}", f.component.title, weights.dialect()));
                    self.notes.extend(weights.check(&all_of(&weights)).into_iter().flatten());
                    self.components.push(describe(&weights));
                }
                Err(e) => {
                    words.push(format!("{}, not usable", f.component.title));
                    self.notes.push(e.to_string());
                }
            }
        }
        if !words.is_empty() {
            return Ok(words.join("; "));
        }
        Ok(if is_lora(&names) {
            let mut words = vec![];
            for file in &files {
                let lora::Survey { summary, problem, .. } = lora::survey_file(file, families);
                if words.is_empty() {
                    words.push(summary.kind());
                }
                if !summary.dialect.is_empty() {
                    words.push(summary.dialect.clone());
                }
                if let Some(e) = problem {
                    words.push("not usable".into());
                    self.notes.push(e.to_string());
                }
                self.loras.push(summary);
            }
            words.join(", ")
        } else if let Some(model) = foreign_model(&names) {
            model.what.into()
        } else if let Some((format, _)) = foreign_storage(names.iter().copied()) {
            format!("weights in {format}")
        } else {
            foreign_part(&names).map_or("not a model that is known here", |p| p.what).into()
        })
    }

    fn add_file(&mut self, file: &WeightFile) {
        let bytes = file.source.bytes().len() as u64;
        self.files.push(FileInfo {
            path: file.path.clone(),
            bytes,
            tensors: file.header.tensors.len(),
        });
        self.notes.extend(file.note.clone());
        for (key, value) in &file.header.metadata {
            let mut value = value.clone();
            if let Some((cut, _)) = value.char_indices().nth(2000) {
                value.truncate(cut);
                value.push('…');
            }
            self.metadata.insert(key.clone(), value);
        }
        for entry in &file.header.tensors {
            let dtype = entry.stored.name();
            let i = self.dtypes.iter().position(|t| t.dtype == dtype).unwrap_or_else(|| {
                self.dtypes.push(TypeInfo { dtype, tensors: 0, bytes: 0 });
                self.dtypes.len() - 1
            });
            self.dtypes[i].tensors += 1;
            self.dtypes[i].bytes += entry.range.len() as u64;
            self.tensors.push(TensorInfo {
                name: entry.name.clone(),
                dtype,
                shape: entry.shape.clone(),
            });
        }
    }
}

/// The tensors that a component has. A check against them reports only tensors that are not known.
fn all_of(weights: &ComponentWeights) -> Vec<(String, Vec<usize>)> {
    weights.names().filter_map(|n| Some((n.to_string(), weights.full_shape(n)?.to_vec()))).collect()
}

fn describe(weights: &ComponentWeights) -> ComponentInfo {
    let shapes = weights.names().filter_map(|n| weights.shape(n));
    ComponentInfo {
        component: weights.component(),
        dialect: weights.dialect().into(),
        tensors: weights.names().count(),
        bytes: weights.stored_bytes(),
        parameters: shapes.map(|(rows, cols)| (rows * cols) as u64).sum(),
        geometry: geometry(weights),
    }
}

/// The facts about a component that its shapes show.
fn geometry(weights: &ComponentWeights) -> BTreeMap<&'static str, String> {
    let blocks = |prefix: &str| {
        let number = |n: &str| n.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
        weights.names().filter_map(number).max().map(|n| (n + 1).to_string())
    };
    let axis = |name: &str, axis: usize| weights.full_shape(name)?.get(axis).copied();
    let yes = |name: &str| if weights.shape(name).is_some() { "yes" } else { "no" };
    let fact = |fact: &Fact| match *fact {
        Fact::Count(prefix) => blocks(prefix),
        Fact::Axis(name, i) => axis(name, i).map(|n| n.to_string()),
        Fact::Named(name, i, known) => {
            let found = known.iter().find(|(n, _)| axis(name, i) == Some(*n));
            found.map(|(_, name)| name.to_string())
        }
        Fact::Present(name) => Some(yes(name).to_string()),
    };
    let component = weights.component();
    component.0.facts.iter().filter_map(|(label, f)| Some((*label, fact(f)?))).collect()
}

/// A summary for users; the tensors are only counted.
impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = |path: &Path| one_line(&path.display().to_string()).into_owned();
        writeln!(f, "{}\n  {}", path(&self.path), one_line(&self.what))?;
        for c in &self.components {
            let (n, millions) = (c.tensors, c.parameters as f64 / 1e6);
            writeln!(
                f,
                "  {:<5} {}, {n} tensors, {millions:.1} M parameters, {}",
                c.component.name,
                one_line(&c.dialect),
                units::bytes(c.bytes)
            )?;
            let facts: Vec<String> = c.geometry.iter().map(|(k, v)| format!("{k} {v}")).collect();
            writeln!(f, "        {}", facts.join(", "))?;
        }
        for lora in &self.loras {
            for line in lora.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
        }
        for t in &self.dtypes {
            writeln!(f, "  {:<8} {} tensors, {}", t.dtype, t.tensors, units::bytes(t.bytes))?;
        }
        // The metadata of a LoRA is part of its summary above.
        let metadata = if self.loras.is_empty() { self.metadata.len() } else { 0 };
        for (key, value) in self.metadata.iter().take(metadata.min(MAX_SHOWN)) {
            let (key, value) = (shortened(key, 100), shortened(value, 100));
            writeln!(f, "  {}: {}", one_line(&key), one_line(&value))?;
        }
        if metadata > MAX_SHOWN {
            writeln!(f, "  and {} more keys of metadata", metadata - MAX_SHOWN)?;
        }
        for file in &self.files {
            writeln!(
                f,
                "  {} ({}, {} tensors)",
                path(&file.path),
                units::bytes(file.bytes),
                file.tensors
            )?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {}", one_line(note))?;
        }
        Ok(())
    }
}
