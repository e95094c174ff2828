//! The first look: every key of a file is put with the pair it belongs to, or on the list of those that belong to none.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use serde_json::Value;

use super::super::Component;
use super::names::{Part, Rows, parse};
use super::summary::Unmatched;
use crate::weights::container::file::WeightFile;

/// The keys of one pair: indices among the file's tensors.
pub struct Group {
    /// What the keys begin with.
    pub base: String,
    pub component: Component,
    /// The canonical weight.
    pub weight: String,
    pub block: Option<usize>,
    pub rows: Rows,
    pub dialect: Option<&'static str>,
    pub down: Option<usize>,
    pub up: Option<usize>,
    pub alpha: Option<usize>,
    /// Alpha and whether it is divided by the root of the rank, as the header has it; the tensor goes before it.
    pub configured: Option<(f64, bool)>,
}

impl Group {
    /// The tensors that it has.
    pub fn keys(&self) -> impl Iterator<Item = usize> {
        [self.down, self.up, self.alpha].into_iter().flatten()
    }
}

/// What a file holds.
pub struct Found {
    /// By component, weight and rows.
    pub groups: Vec<Group>,
    pub unmatched: Vec<Unmatched>,
    pub notes: Vec<String>,
}

/// Sorts the keys of a file.
pub fn collect(file: &WeightFile) -> Found {
    let config = Config::of(&file.header.metadata);
    let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
    let mut unmatched = vec![];
    for (i, entry) in file.header.tensors.iter().enumerate() {
        let Some(key) = parse(&entry.name) else {
            unmatched.push(Unmatched::new(
                &entry.name,
                "names no layer of FLUX.1 that a LoRA can be beside",
            ));
            continue;
        };
        let group = match groups.entry(key.base) {
            Slot::Occupied(group) => group.into_mut(),
            Slot::Vacant(slot) => slot.insert(Group {
                base: key.base.into(),
                component: key.component,
                weight: key.weight,
                block: key.block,
                rows: key.rows,
                dialect: key.dialect,
                down: None,
                up: None,
                alpha: None,
                configured: config.alpha(key.component, key.module),
            }),
        };
        let part = match key.part {
            Part::Down => &mut group.down,
            Part::Up => &mut group.up,
            Part::Alpha => &mut group.alpha,
        };
        if part.is_some() {
            unmatched.push(Unmatched::new(&entry.name, "a second matrix for the same place"));
        } else {
            *part = Some(i);
        }
    }
    let (mut whole, alone): (Vec<Group>, Vec<Group>) =
        groups.into_values().partition(|g| g.down.is_some() || g.up.is_some());
    for i in alone.iter().flat_map(Group::keys) {
        unmatched.push(Unmatched::new(&file.header.tensors[i].name, "an alpha without matrices"));
    }
    whole.sort_by(|a, b| {
        (a.component, &a.weight, a.rows, &a.base).cmp(&(b.component, &b.weight, b.rows, &b.base))
    });
    Found { groups: whole, unmatched, notes: vec![] }
}

/// PEFT's configuration, which diffusers keeps in the header where others store an alpha beside each pair.
struct Config(Option<Value>);

impl Config {
    fn of(metadata: &BTreeMap<String, String>) -> Self {
        Config(
            metadata.get("lora_adapter_metadata").and_then(|text| serde_json::from_str(text).ok()),
        )
    }

    /// Alpha for a layer, and whether it is divided by the root of the rank.
    fn alpha(&self, component: Component, module: &str) -> Option<(f64, bool)> {
        let config = self.0.as_ref()?;
        let prefixed = |key: &str| config.get(format!("{}.{key}", component.folder()));
        let get = |key: &str| {
            prefixed(key).or_else(|| (component == Component::Flux).then(|| config.get(key))?)
        };
        let own = get("alpha_pattern").and_then(Value::as_object).and_then(|patterns| {
            let names = |pattern: &str| {
                let pattern = pattern.trim_start_matches('^');
                module
                    .strip_suffix(pattern)
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            };
            patterns
                .iter()
                .find(|(pattern, _)| names(pattern))
                .and_then(|(_, alpha)| alpha.as_f64())
        });
        let alpha = own.or_else(|| get("lora_alpha")?.as_f64())?;
        Some((alpha, get("use_rslora").and_then(Value::as_bool).unwrap_or(false)))
    }
}
