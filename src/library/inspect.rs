//! What a file or folder is, for `inspect`: recognised as a whole, without needing to be usable.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::similar::no_such_path;
use super::unit::{Unit, unit_of, units};
use crate::error::{Error, Result};
use crate::spec::{Component, FAMILIES, Fact, Families};
use crate::units;
use crate::weights::container::file::WeightFile;
use crate::weights::dialect::recognise::{foreign_model, foreign_storage, is_lora, recognise};
use crate::weights::{ComponentWeights, lora};

/// Everything that a look at a path shows.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    pub path: PathBuf,
    /// What it is in a few words.
    pub what: String,
    pub files: Vec<FileInfo>,
    pub components: Vec<ComponentInfo>,
    pub dtypes: Vec<TypeInfo>,
    /// Header metadata of all files; long values are cut.
    pub metadata: BTreeMap<String, String>,
    /// LoRAs: whose names, ranks, what they are about, what of them is not understood.
    pub loras: Vec<lora::Summary>,
    /// What is wrong or worth knowing.
    pub notes: Vec<String>,
    pub tensors: Vec<TensorInfo>,
}

/// A file that was looked into.
#[derive(Debug, Clone, Serialize)]
pub struct FileInfo {
    pub path: PathBuf,
    pub bytes: u64,
    pub tensors: usize,
}

/// A component that can be used from here.
#[derive(Debug, Clone, Serialize)]
pub struct ComponentInfo {
    pub component: Component,
    /// `BFL, scaled fp8 (new)`.
    pub dialect: String,
    /// Canonical tensors.
    pub tensors: usize,
    pub bytes: u64,
    pub parameters: u64,
    /// Inferred from the shapes: blocks, widths, guidance.
    pub geometry: BTreeMap<&'static str, String>,
}

/// How much is stored in one element type.
#[derive(Debug, Clone, Serialize)]
pub struct TypeInfo {
    pub dtype: &'static str,
    pub tensors: usize,
    pub bytes: u64,
}

/// A tensor as stored.
#[derive(Debug, Clone, Serialize)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
}

/// Looks into a `.safetensors` or `.gguf` file, a shard with its sisters, or a folder (a diffusers model's component folders included).
pub fn inspect(path: &Path) -> Result<Inspection> {
    inspect_among(path, FAMILIES)
}

/// The same with these families.
pub fn inspect_among(path: &Path, families: Families) -> Result<Inspection> {
    if !path.exists() {
        return Err(no_such_path(path));
    }
    let mut found = vec![];
    if path.is_dir() {
        found.extend(units(path)?);
        let mut folders: Vec<&str> = vec![];
        for component in families.components() {
            if !folders.contains(&component.diffusers.folder) {
                folders.push(component.0.diffusers.folder);
            }
        }
        for folder in folders {
            found.extend(units(&path.join(folder))?);
        }
        if found.is_empty() {
            return Err(
                Error::missing("no .safetensors or .gguf files in this folder").at_path(path)
            );
        }
    } else {
        found.push(unit_of(path)?);
    }
    let mut inspection = Inspection {
        path: path.into(),
        what: String::new(),
        files: vec![],
        components: vec![],
        dtypes: vec![],
        metadata: BTreeMap::new(),
        loras: vec![],
        notes: vec![],
        tensors: vec![],
    };
    let mut what: Vec<String> = vec![];
    for unit in found {
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
    /// Adds a unit and says what it is.
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
            let mut words = vec!["LoRA".to_string()];
            for file in &files {
                let lora::Survey { summary, problem, .. } = lora::survey_file(file, families);
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
        } else if let Some(format) = names.iter().find_map(|n| foreign_storage(n)) {
            format!("weights in {format}")
        } else {
            foreign_model(&names).unwrap_or("not a model that is known here").into()
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

/// What the component has, as an expectation: so that a check reports only tensors that were not understood.
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

/// What the shapes tell about the model.
fn geometry(weights: &ComponentWeights) -> BTreeMap<&'static str, String> {
    let blocks = |prefix: &str| {
        let number = |n: &str| n.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
        weights.names().filter_map(number).max().map(|n| (n + 1).to_string())
    };
    let axis = |name: &str, axis: usize| {
        weights.full_shape(name).and_then(|shape| shape.get(axis)).map(usize::to_string)
    };
    let yes = |name: &str| if weights.shape(name).is_some() { "yes" } else { "no" };
    let fact = |fact: &Fact| match *fact {
        Fact::Count(prefix) => blocks(prefix),
        Fact::Axis(name, i) => axis(name, i),
        Fact::Present(name) => Some(yes(name).to_string()),
    };
    let component = weights.component();
    component.0.facts.iter().filter_map(|(label, f)| Some((*label, fact(f)?))).collect()
}

/// A summary for people; the tensors are only counted.
impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n  {}", self.path.display(), self.what)?;
        for c in &self.components {
            let (n, millions) = (c.tensors, c.parameters as f64 / 1e6);
            writeln!(
                f,
                "  {:<5} {}, {n} tensors, {millions:.1} M parameters, {}",
                c.component.name,
                c.dialect,
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
        // What a LoRA says of itself was told above.
        for (key, value) in self.metadata.iter().filter(|_| self.loras.is_empty()) {
            let short: String = value.chars().take(100).collect();
            writeln!(f, "  {key}: {short}{}", if short.len() < value.len() { "…" } else { "" })?;
        }
        for file in &self.files {
            writeln!(
                f,
                "  {} ({}, {} tensors)",
                file.path.display(),
                units::bytes(file.bytes),
                file.tensors
            )?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}
