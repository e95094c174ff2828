//! The first look: sorts every key of a file into the pair that it belongs to, or into the list of
//! those that belong to none.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use serde_json::Value;

use super::group::{Group, Grouped, Unmatched};
use super::keys::{LoraKeys, Part};
use crate::spec::{Component, Role};
use crate::weights::container::file::WeightFile;

/// Sorts the keys of a file into pairs of the layers that `names` knows.
pub fn collect(file: &WeightFile, names: &LoraKeys) -> Grouped {
    let config = Config::of(&file.header.metadata);
    let mut groups: BTreeMap<&str, Group> = BTreeMap::new();
    let mut unmatched = vec![];
    for (i, entry) in file.header.tensors.iter().enumerate() {
        let Some(key) = names.parse(&entry.name) else {
            unmatched.push(Unmatched::new(
                &entry.name,
                format!("names no layer of {} that a LoRA can change", names.family.title),
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
            unmatched.push(Unmatched::new(&entry.name, "a second matrix for the same layer"));
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
    Grouped { groups: whole, unmatched, notes: vec![] }
}

/// PEFT's configuration. diffusers stores it in the header, while others store an alpha with each
/// pair.
struct Config(Option<Value>);

impl Config {
    fn of(metadata: &BTreeMap<String, String>) -> Self {
        Config(
            metadata.get("lora_adapter_metadata").and_then(|text| serde_json::from_str(text).ok()),
        )
    }

    /// Alpha for a layer, and whether it is divided by the square root of the rank.
    fn alpha(&self, component: Component, module: &str) -> Option<(f64, bool)> {
        let config = self.0.as_ref()?;
        let prefixed = |key: &str| config.get(format!("{}.{key}", component.diffusers.folder));
        let get = |key: &str| {
            prefixed(key)
                .or_else(|| (component.role == Role::Transformer).then(|| config.get(key))?)
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
