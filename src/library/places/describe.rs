//! What a file or a folder contains, from the headers alone.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;

use super::roots::Role;
use crate::error::Result;
use crate::library::config::read_json;
use crate::library::find::{Taken, Wanted, choose};
use crate::library::opened::OpenedUnit;
use crate::library::unit::{Contents, unit_of, units};
use crate::spec;
use crate::spec::flux1::IMAGE_INPUTS;
use crate::spec::foreign::INPUTS;
use crate::spec::{Component, Families, Variant};
use crate::weights::dialect::recognise::{foreign_model, foreign_part, foreign_storage, is_lora};
use crate::weights::lora;

/// How a file or folder can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// A transformer, alone or with other components.
    Model,
    /// A LoRA for a model of one of the families.
    Lora,
    /// Not usable: another model, a form that cannot be read, or a broken file.
    Other,
    /// Another component. In JSON it is the name of the component.
    #[serde(untagged)]
    Part(Component),
}

impl ModelKind {
    /// The role that a user looks for it under.
    pub fn role(self) -> Role {
        match self {
            ModelKind::Model => Role::Model,
            ModelKind::Part(component) => Role::of(component),
            ModelKind::Lora => Role::Lora,
            ModelKind::Other => Role::Any,
        }
    }
}

/// Describes the file or folder at `path`: how it can be used with a model of `families`, and words
/// for what it contains. For [`ModelKind::Other`] the words are the reason why it cannot be used.
pub fn describe(path: &Path, families: Families) -> (ModelKind, String) {
    let described = match path.is_dir() {
        true => describe_folder(path, families),
        false => describe_file(path, families),
    };
    described.unwrap_or_else(|e| {
        // A listing contains the path already.
        let text = e.to_string();
        let place = format!("{}: ", path.display());
        (ModelKind::Other, text.strip_prefix(&place).unwrap_or(&text).to_string())
    })
}

/// Describes a file and the shards that belong to it.
fn describe_file(path: &Path, families: Families) -> Result<(ModelKind, String)> {
    let unit = unit_of(path)?;
    let contents = unit.contents(families)?;
    let open = || OpenedUnit::unit(unit.clone(), families);
    Ok(describe_contents(&contents, families, &open))
}

/// Describes a diffusers folder, which is recognised by its transformer.
fn describe_folder(path: &Path, families: Families) -> Result<(ModelKind, String)> {
    let inside = |component: Component| {
        let units = units(&path.join(component.diffusers.folder));
        choose(units, &Wanted::any(component, families))
    };
    for family in families.0 {
        let choice = inside(family.transformer());
        let Some(Taken { opened, contents, .. }) = choice.taken else {
            match choice.passed_over.into_iter().next() {
                Some(e) => return Err(e),
                None => continue,
            }
        };
        let reopen = || Ok(OpenedUnit::files(opened.files.clone(), families));
        let (kind, what) = describe_contents(&contents, families, &reopen);
        let others = family.components[1..].iter().copied();
        let others: Vec<Component> = others.filter(|c| inside(*c).taken.is_some()).collect();
        return Ok((kind, format!("{what}, folder{}", with(&others))));
    }
    let parts = families.components().into_iter().filter(|c| c.role.is_optional());
    let parts: Vec<_> = parts.filter_map(|c| Some((c, inside(c).taken?))).collect();
    if let [(part, Taken { opened, contents, .. }), others @ ..] = parts.as_slice() {
        let reopen = || Ok(OpenedUnit::files(opened.files.clone(), families));
        let (kind, what) = describe_contents(contents, families, &reopen);
        debug_assert_eq!(kind, ModelKind::Part(*part));
        let others: Vec<Component> = others.iter().map(|(c, _)| *c).collect();
        return Ok((kind, format!("{what}, folder{}", with(&others))));
    }
    let index = read_json(&path.join("model_index.json")).ok().flatten().unwrap_or_default();
    let class = index["_class_name"].as_str().unwrap_or("class not named");
    let titles: Vec<&str> = families.transformers().map(|c| c.0.title).collect();
    let what = format!("a diffusers folder without a {} ({class})", titles.join(" or a "));
    Ok((ModelKind::Other, what))
}

/// Words for the components next to a transformer, such as `; with T5, VAE`.
fn with(others: &[Component]) -> String {
    let names: Vec<String> = others.iter().map(|c| c.name.to_uppercase()).collect();
    if names.is_empty() { String::new() } else { format!("; with {}", names.join(", ")) }
}

/// Describes a file, or the shards of one model. `open` opens them, for what their headers do not
/// show.
fn describe_contents(
    contents: &Contents,
    families: Families,
    open: &dyn Fn() -> Result<OpenedUnit>,
) -> (ModelKind, String) {
    let names: Vec<&str> = contents.tensor_names().collect();
    if is_lora(&names) {
        return match lora::dialect(&names, families) {
            Some((_, dialect)) => (ModelKind::Lora, format!("LoRA, {dialect}")),
            None => (ModelKind::Other, "a LoRA for another model".to_string()),
        };
    }
    if let Some(model) = foreign_model(&names) {
        return (ModelKind::Other, model.what.to_string());
    }
    if let Some((format, _)) = foreign_storage(names.iter().copied()) {
        return (ModelKind::Other, format!("weights in {format}, which cannot be read"));
    }
    let mut components: Vec<Component> = contents.found.iter().map(|f| f.component).collect();
    components.sort();
    let Some((&main, rest)) = components.split_first() else {
        let part = foreign_part(&names).map_or("not a known model", |part| part.what);
        return (ModelKind::Other, part.to_string());
    };
    if let Some(other) = contents.lookalike(main) {
        return (ModelKind::Other, other.what.to_string());
    }
    let inputs = inputs(contents, main);
    if let Some((_, what, _)) = INPUTS.iter().find(|(n, ..)| Some(*n) == inputs) {
        return (ModelKind::Other, what.to_string());
    }
    let known = IMAGE_INPUTS.iter().find(|(n, _)| Some(*n) == inputs);
    let title = match known {
        Some((_, name)) => format!("{} {name}", main.title),
        None => main.title.to_string(),
    };
    let kind = match main.role {
        spec::Role::Transformer => ModelKind::Model,
        _ => ModelKind::Part(main),
    };
    let (variant, storage) = (variant(contents, main, open), storage(contents, main));
    (kind, format!("{title}{variant}, {storage}{}", with(rest)))
}

/// How many inputs a transformer has for each token, as far as a header shows it.
fn inputs(contents: &Contents, component: Component) -> Option<usize> {
    let stored = contents.find(component)?.stored(component.lora.input?);
    let mut tensors = contents.headers.iter().flat_map(|h| &h.tensors);
    tensors.find(|t| Some(&t.name) == stored.first())?.shape.get(1).copied()
}

/// What distinguishes models of one architecture, such as ` (dev)` or `, width 4096`.
fn variant(
    contents: &Contents,
    component: Component,
    open: &dyn Fn() -> Result<OpenedUnit>,
) -> String {
    match &component.0.variant {
        Some(Variant::Either { tensor, with, without }) => {
            let name = if contents.contains(component, tensor) { with } else { without };
            format!(" ({name})")
        }
        Some(Variant::Size { label, tensor, axis }) => {
            // The shape in a header may be that of packed bytes.
            let weights = open().and_then(|opened| opened.weights(component)).ok();
            let size = weights.and_then(|w| w.full_shape(tensor)?.get(*axis).copied());
            size.map_or(String::new(), |n| format!(", {label} {n}"))
        }
        None => String::new(),
    }
}

/// The dialect of a component's tensor names, and the type that most of its bytes are stored in.
fn storage(contents: &Contents, component: Component) -> String {
    let Some(found) = contents.find(component) else { return String::new() };
    let program = found.program();
    let mut bytes: HashMap<&str, usize> = HashMap::new();
    let tensors = contents.headers.iter().flat_map(|h| &h.tensors);
    let own = || tensors.clone().filter(|t| t.name.starts_with(&found.prefix));
    for tensor in own() {
        *bytes.entry(tensor.stored.name()).or_default() += tensor.range.len();
    }
    let most = bytes.into_iter().max_by_key(|(name, n)| (*n, *name)).map(|(name, _)| name);
    let has = |ending: &str| own().any(|t| t.name.ends_with(ending));
    let scales_are =
        |dtype: &str| own().any(|t| t.name.ends_with(".weight_scale") && t.stored.name() == dtype);
    // Narrow types share a container type: the tensors next to a weight tell them apart.
    let stored = match most {
        None => "no numbers".to_string(),
        Some("U8") if has("bitsandbytes__nf4") => "nf4".to_string(),
        Some("U8") if has("bitsandbytes__fp4") => "fp4".to_string(),
        Some("U8") if has(".weight_scale_2") => "nvfp4".to_string(),
        Some("I8") => "int8".to_string(),
        Some("F8_E4M3") if scales_are("F8_E8M0") => "mxfp8".to_string(),
        Some("F8_E4M3") => "fp8".to_string(),
        Some("F8_E5M2") => "fp8 (e5m2)".to_string(),
        Some(name) => name.to_lowercase(),
    };
    format!("{program}, {stored}")
}
