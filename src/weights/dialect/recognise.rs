//! Recognises components by their tensor names: which components, in which dialect, behind which
//! prefix. File names are never used.

use std::collections::BTreeMap;

use crate::spec::foreign;
use crate::spec::foreign::ForeignModel;
use crate::spec::names::Dialect;
use crate::spec::{Component, FAMILIES, Families, Role};

/// A component found among the tensors of one file, or of the shards of one model.
#[derive(Debug, Clone)]
pub struct Recognised {
    /// The component.
    pub component: Component,
    /// How its tensors are named.
    pub dialect: &'static Dialect,
    /// The number of levels that `{-}` placeholders of the dialect count down from.
    pub levels: usize,
    /// The prefix of all names, with its dot; often empty.
    pub prefix: String,
}

impl Recognised {
    /// The program whose names these are. Canonical names behind a prefix are ComfyUI's.
    pub fn program(&self) -> &'static str {
        let plain = !matches!(self.dialect.naming, crate::spec::names::Naming::Renamed(_));
        if plain && !self.prefix.is_empty() { "ComfyUI" } else { self.dialect.name }
    }

    /// The stored names of the canonical tensor `name`, prefix included; empty if the dialect has
    /// none for it.
    pub fn stored(&self, name: &str) -> Vec<String> {
        let stored = self.dialect.naming.write(self.levels, name);
        let names = stored.map(|s| s.names).unwrap_or_default();
        names.into_iter().map(|name| format!("{}{name}", self.prefix)).collect()
    }
}

/// A component that the names may be, with the tensors that show it.
struct Candidate {
    recognised: Recognised,
    /// The markers that are present, prefix included.
    claims: Vec<String>,
    /// How many things were required of the names and found.
    evidence: usize,
}

/// The components of `families` among `names`, at most one of each. Where two components claim the
/// same tensor, the one with more evidence is taken, which is the more specific one; among equals
/// the one that `families` lists first. Other models have FLUX.1's blocks, too: a transformer among
/// tensors of [`foreign_model`] is not recognised.
pub fn recognise(names: &[&str], families: Families) -> Vec<Recognised> {
    let is_foreign = foreign_model(names).is_some();
    let candidates: Vec<Candidate> = families
        .components()
        .into_iter()
        .filter(|component| !(is_foreign && component.role == Role::Transformer))
        .filter_map(|component| {
            component.0.dialects.iter().find_map(|dialect| candidate(component, dialect, names))
        })
        .collect();
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(candidates[*i].evidence));
    let mut kept: Vec<usize> = vec![];
    for i in order {
        let claims = |j: &usize, name: &String| candidates[*j].claims.contains(name);
        let taken = |name: &String| kept.iter().any(|j| claims(j, name));
        if !candidates[i].claims.iter().any(taken) {
            kept.push(i);
        }
    }
    let of = |(i, c): (usize, Candidate)| kept.contains(&i).then_some(c.recognised);
    candidates.into_iter().enumerate().filter_map(of).collect()
}

fn candidate(component: Component, dialect: &'static Dialect, names: &[&str]) -> Option<Candidate> {
    let prefix = dialect.markers.iter().find_map(|m| shortest_prefix(names, m))?;
    let behind = || names.iter().filter_map(|n| n.strip_prefix(prefix));
    let begins = |start: &&str| behind().any(|n| n.starts_with(*start));
    if !dialect.requires.iter().all(|any| any.iter().any(begins)) {
        return None;
    }
    let present = dialect.markers.iter().map(|m| format!("{prefix}{m}"));
    let claims: Vec<String> = present.filter(|m| names.contains(&m.as_str())).collect();
    let evidence = claims.len() + dialect.requires.len();
    let levels = dialect.naming.levels(behind());
    let recognised = Recognised { component, dialect, levels, prefix: prefix.into() };
    Some(Candidate { recognised, claims, evidence })
}

/// The text before `marker` in the names that end with it; the shortest one, since copies (EMA)
/// have longer ones.
fn shortest_prefix<'a>(names: &[&'a str], marker: &str) -> Option<&'a str> {
    let prefixes = names
        .iter()
        .filter_map(|n| n.strip_suffix(marker))
        .filter(|p| p.is_empty() || p.ends_with('.'));
    prefixes.min_by_key(|p| (p.len(), *p))
}

/// Whether the names are those of a LoRA (or LoKr, LoHa, DoRA, differences), which changes a model
/// but is not one.
pub fn is_lora(names: &[&str]) -> bool {
    const PARTS: [&str; 9] = [
        ".lora_A.",
        ".lora_B.",
        ".lora_down.",
        ".lora_up.",
        ".lora.down.",
        "_lora.down.",
        ".lokr_w1",
        ".hada_w1_a",
        "_lora1.down.",
    ];
    const ENDINGS: [&str; 8] = [
        ".lora_A",
        ".lora_B",
        ".lokr_w2",
        ".diff",
        ".diff_b",
        ".w_norm",
        ".set_weight",
        ".dora_scale",
    ];
    names.iter().any(|n| {
        PARTS.iter().any(|p| n.contains(p)) || ENDINGS.iter().any(|ending| n.ends_with(ending))
    })
}

/// The way of storing weights that these names show, if it is one that cannot be read, and a name
/// that shows it.
pub fn foreign_storage<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
) -> Option<(&'static str, &'a str)> {
    foreign::STORAGE.iter().find_map(|storage| {
        Some((storage.what, names.clone().find(|name| storage.is_shown_by(name))?))
    })
}

/// Which other model the names are of, as far as they are known.
pub fn foreign_model(names: &[&str]) -> Option<&'static ForeignModel> {
    let is_add_on = || {
        let add_ons = FAMILIES.0.iter().flat_map(|family| family.add_ons);
        let mut dialects = add_ons.flat_map(|c| c.0.dialects.iter().map(|d| (*c, d)));
        dialects.any(|(component, dialect)| candidate(component, dialect, names).is_some())
    };
    // A ControlNet that can be used has the names of others.
    let usable = |model: &ForeignModel| model.what == foreign::CONTROLNET && is_add_on();
    foreign::MODELS.iter().find(|model| model.is_shown_by(names) && !usable(model))
}

/// Which part of another model the names are of: a text encoder, an autoencoder and the like.
pub fn foreign_part(names: &[&str]) -> Option<&'static ForeignModel> {
    foreign::PARTS.iter().find(|part| part.is_shown_by(names))
}

/// The program that the metadata of a file names, if its files cannot be read whatever they
/// contain.
pub fn foreign_metadata(metadata: &BTreeMap<String, String>) -> Option<&'static str> {
    let is_mlx = metadata.get("format").is_some_and(|format| format == "mlx")
        || metadata.contains_key("mflux_version");
    is_mlx.then_some("MLX (mflux)")
}
