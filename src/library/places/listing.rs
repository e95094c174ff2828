//! What the entries of the places are, from their headers alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::find::{Look, Wanted, choose, unit_of, units};
use super::{Places, Role};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::spec;
use crate::spec::{Component, Families, Variant};
use crate::weights::dialect::recognise::{foreign_model, foreign_storage, is_lora};
use crate::weights::lora;

/// How an entry can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A transformer, alone or with other components.
    Model,
    Lora,
    /// Nothing that is used here: other models, forms that are not read, broken files.
    Other,
    /// Another component; in JSON its name.
    #[serde(untagged)]
    Part(Component),
}

impl Kind {
    /// As what it is asked for.
    pub fn role(self) -> Role {
        match self {
            Kind::Model => Role::Model,
            Kind::Part(component) => Role::of(component),
            Kind::Lora => Role::Lora,
            Kind::Other => Role::Any,
        }
    }
}

/// An entry and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// What to type to get it: its name, or its path where that is not clear enough.
    pub name: String,
    pub kind: Kind,
    /// `FLUX transformer (dev), BFL, f8_e4m3; with T5, CLIP, VAE`; of `Kind::Other` why it cannot be used.
    pub what: String,
    /// Of a file and its shards; of a folder, of what lies in it.
    pub bytes: u64,
    /// Where it was found, in words.
    pub place: String,
    pub path: PathBuf,
}

impl Places {
    /// Everything that is called like a model, and what it is; in the order of the places. Only headers are read.
    pub fn list(&self) -> Vec<Listing> {
        let entries = self.entries();
        let list = entries.iter().map(|entry| {
            let (kind, what) = look(&entry.path, self.families);
            let name = self.typed(entry, kind.role(), &entries);
            Listing {
                name,
                kind,
                what,
                bytes: entry.bytes,
                place: entry.place.clone(),
                path: entry.path.clone(),
            }
        });
        list.collect()
    }
}

/// What the file or folder at `path` is.
pub fn look(path: &Path, families: Families) -> (Kind, String) {
    let looked = match path.is_dir() {
        true => folder(path, families),
        false => unit_of(path).and_then(|u| Ok(file(&u.look(families)?, families))),
    };
    looked.unwrap_or_else(|e| {
        // The listing says already where it lies.
        let text = e.to_string();
        let place = format!("{}: ", path.display());
        (Kind::Other, text.strip_prefix(&place).unwrap_or(&text).to_string())
    })
}

/// A diffusers folder: known by its transformer.
fn folder(path: &Path, families: Families) -> Result<(Kind, String)> {
    let inside = |component: Component| {
        let units = units(&path.join(component.diffusers.folder))?;
        Ok::<_, Error>(choose(units, &Wanted::any(component, families)).map(|(_, look)| look))
    };
    for family in families.0 {
        let Some(look) = inside(family.transformer())? else { continue };
        let (kind, what) = file(&look, families);
        let mut others = Vec::new();
        for &component in &family.components[1..] {
            if inside(component)?.is_some() {
                others.push(component);
            }
        }
        return Ok((kind, format!("{what}, folder{}", with(&others))));
    }
    let index = std::fs::read(path.join("model_index.json")).unwrap_or_default();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
    let class = index["_class_name"].as_str().unwrap_or("class not named");
    let titles: Vec<&str> = families.transformers().map(|c| c.0.title).collect();
    let what = format!("a diffusers folder without a {} ({class})", titles.join(" or a "));
    Ok((Kind::Other, what))
}

/// The components next to a transformer, in the order in which they are used.
fn with(others: &[Component]) -> String {
    let names: Vec<String> = others.iter().map(|c| c.name.to_uppercase()).collect();
    if names.is_empty() { String::new() } else { format!("; with {}", names.join(", ")) }
}

/// A file, or the shards of one model.
fn file(look: &Look, families: Families) -> (Kind, String) {
    let names: Vec<&str> =
        look.headers.iter().flat_map(|h| &h.tensors).map(|t| t.name.as_str()).collect();
    if is_lora(&names) {
        return match lora::dialect(&names, families) {
            Some((_, dialect)) => (Kind::Lora, format!("LoRA, {dialect}")),
            None => (Kind::Other, "a LoRA for another model".to_string()),
        };
    }
    if let Some(what) = foreign_model(&names) {
        return (Kind::Other, what.to_string());
    }
    if let Some(format) = names.iter().find_map(|n| foreign_storage(n)) {
        return (Kind::Other, format!("weights in {format}, which is not read"));
    }
    let mut components: Vec<Component> = look.found.iter().map(|f| f.component).collect();
    components.sort();
    let Some((&main, rest)) = components.split_first() else {
        return (Kind::Other, "not a model that is known here".to_string());
    };
    let kind = match main.role {
        spec::Role::Transformer => Kind::Model,
        _ => Kind::Part(main),
    };
    let what =
        format!("{}{}, {}{}", main.title, detail(look, main), storage(look, main), with(rest));
    (kind, what)
}

/// What tells models of one architecture apart.
fn detail(look: &Look, component: Component) -> String {
    match &component.0.variant {
        Some(Variant::Either { tensor, with, without }) => {
            let name = if look.shape(component, tensor).is_some() { with } else { without };
            format!(" ({name})")
        }
        Some(Variant::Size { label, tensor, axis }) => {
            let size = look.shape(component, tensor).and_then(|s| s.get(*axis));
            size.map_or(String::new(), |n| format!(", {label} {n}"))
        }
        None => String::new(),
    }
}

/// Whose names a component has, and the element type of most of its bytes.
fn storage(look: &Look, component: Component) -> String {
    let Some(found) = look.find(component) else { return String::new() };
    let names = found.program();
    let mut bytes: HashMap<DType, usize> = HashMap::new();
    for tensor in
        look.headers.iter().flat_map(|h| &h.tensors).filter(|t| t.name.starts_with(&found.prefix))
    {
        if let Some(dtype) = tensor.stored.float() {
            *bytes.entry(dtype).or_default() += tensor.range.len();
        }
    }
    let most =
        bytes.into_iter().max_by_key(|(dtype, n)| (*n, dtype.name())).map(|(dtype, _)| dtype);
    let dtype = most.map_or("no numbers".to_string(), |dtype| match dtype {
        DType::F8E4M3 => "fp8".to_string(),
        DType::F8E5M2 => "fp8 (e5m2)".to_string(),
        other => other.name().to_lowercase(),
    });
    format!("{names}, {dtype}")
}
