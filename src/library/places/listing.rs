//! What the entries of the places are, from their headers alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::find::{Look, Widths, choose, unit_of, units};
use super::{Places, Role};
use crate::dtype::DType;
use crate::error::Result;
use crate::weights::dialect::names::Naming;
use crate::weights::dialect::recognise::{foreign_model, foreign_storage, is_lora};
use crate::weights::{Component, lora};

/// How an entry can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A FLUX transformer, alone or with other components.
    Model,
    T5,
    Clip,
    Vae,
    Lora,
    /// Nothing that is used here: other models, forms that are not read, broken files.
    Other,
}

impl Kind {
    /// As what it is asked for.
    pub fn role(self) -> Role {
        match self {
            Kind::Model => Role::Model,
            Kind::T5 | Kind::Clip => Role::Text,
            Kind::Vae => Role::Vae,
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
            let (kind, what) = look(&entry.path);
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
pub fn look(path: &Path) -> (Kind, String) {
    let looked =
        if path.is_dir() { folder(path) } else { unit_of(path).and_then(|u| Ok(file(&u.look()?))) };
    looked.unwrap_or_else(|e| {
        // The listing says already where it lies.
        let text = e.to_string();
        let place = format!("{}: ", path.display());
        (Kind::Other, text.strip_prefix(&place).unwrap_or(&text).to_string())
    })
}

/// A diffusers folder: known by its transformer.
fn folder(path: &Path) -> Result<(Kind, String)> {
    let inside = |component: Component| {
        Ok(choose(units(&path.join(component.folder()))?, component, &Widths::default())
            .map(|(_, look)| look))
    };
    let Some(look) = inside(Component::Flux)? else {
        let index = std::fs::read(path.join("model_index.json")).unwrap_or_default();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
        let class = index["_class_name"].as_str().unwrap_or("class not named");
        return Ok((
            Kind::Other,
            format!("a diffusers folder without a FLUX transformer ({class})"),
        ));
    };
    let (kind, mut what) = file(&look);
    let mut others = Vec::new();
    for component in OTHERS {
        if inside(component)?.is_some() {
            others.push(component);
        }
    }
    what = format!("{what}, folder{}", with(&others));
    Ok((kind, what))
}

/// The components beside a transformer, in the order in which they are used.
const OTHERS: [Component; 3] = [Component::T5, Component::Clip, Component::Vae];

fn with(others: &[Component]) -> String {
    let names: Vec<String> = others.iter().map(|c| c.name().to_uppercase()).collect();
    if names.is_empty() { String::new() } else { format!("; with {}", names.join(", ")) }
}

/// A file, or the shards of one model.
fn file(look: &Look) -> (Kind, String) {
    let names: Vec<&str> =
        look.headers.iter().flat_map(|h| &h.tensors).map(|t| t.name.as_str()).collect();
    if is_lora(&names) {
        return match lora::dialect(&names) {
            Some(dialect) => (Kind::Lora, format!("LoRA, {dialect}")),
            None => (Kind::Other, "a LoRA for another model".to_string()),
        };
    }
    if let Some(what) = foreign_model(&names) {
        return (Kind::Other, what.to_string());
    }
    if let Some(format) = names.iter().find_map(|n| foreign_storage(n)) {
        return (Kind::Other, format!("weights in {format}, which is not read"));
    }
    let has = |component| look.has(component);
    let others: Vec<Component> = OTHERS.into_iter().filter(|c| has(*c)).collect();
    let (kind, main) = match others.as_slice() {
        _ if has(Component::Flux) => (Kind::Model, Component::Flux),
        [Component::T5, ..] => (Kind::T5, Component::T5),
        [Component::Clip, ..] => (Kind::Clip, Component::Clip),
        [Component::Vae, ..] => (Kind::Vae, Component::Vae),
        _ => return (Kind::Other, "not a model that is known here".to_string()),
    };
    let rest: Vec<Component> = others.into_iter().filter(|c| *c != main).collect();
    (
        kind,
        format!("{}{}, {}{}", main.title(), detail(look, main), storage(look, main), with(&rest)),
    )
}

/// What tells models of one architecture apart.
fn detail(look: &Look, component: Component) -> String {
    let size = |axis: usize, names: &[&str]| {
        look.shape(component, names).and_then(|s| s.get(axis).copied())
    };
    let told = |what: &str, n: Option<usize>| n.map_or(String::new(), |n| format!(", {what} {n}"));
    match component {
        Component::Flux => {
            let guided = [
                "guidance_in.in_layer.weight",
                "time_text_embed.guidance_embedder.linear_1.weight",
            ];
            // As BFL's two: one was distilled with its guidance as an input.
            if look.shape(component, &guided).is_some() { " (dev)" } else { " (schnell)" }
                .to_string()
        }
        Component::T5 => {
            told("width", size(1, &["encoder.block.0.layer.0.SelfAttention.q.weight"]))
        }
        Component::Clip => {
            let q = "encoder.layers.0.self_attn.q_proj.weight";
            told("width", size(1, &[&format!("text_model.{q}"), q]))
        }
        Component::Vae => told("latent channels", size(1, &["decoder.conv_in.weight"])),
    }
}

/// Whose names a component has, and the element type of most of its bytes.
fn storage(look: &Look, component: Component) -> String {
    let Some(found) = look.found.iter().find(|f| f.component == component) else {
        return String::new();
    };
    let names = match (found.naming, component) {
        (Naming::Diffusers { .. }, _) => "diffusers",
        (_, Component::Flux | Component::Vae) if found.prefix.is_empty() => "BFL",
        _ if found.prefix.is_empty() => "Hugging Face",
        _ => "ComfyUI",
    };
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
