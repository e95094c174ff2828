//! The first look: sorts every key of a file by the layer that it changes, or into the list of
//! those that change none.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use super::group::{Group, Grouped, Unmatched};
use super::keys::{LoraKeys, Part, splits};
use super::values::all_zero;
use crate::error::Result;
use crate::spec::names::matches_glob;
use crate::weights::container::file::WeightFile;

/// Beginnings of keys that belong to no network: embeddings that some trainers store with a LoRA.
const APART: [&str; 2] = ["bundle_emb.", "emb_params"];

/// Sorts the keys of a file by the layers that `names` knows.
pub fn collect(file: &WeightFile, names: &LoraKeys) -> Result<Grouped> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let (mut unmatched, mut others) = (vec![], vec![]);
    let may_have_gains = file.header.tensors.iter().any(|entry| names.is_input(&entry.name));
    let gain = |name: &str| may_have_gains.then(|| names.gain(name)).flatten();
    for (i, entry) in file.header.tensors.iter().enumerate() {
        let Some(key) = names.parse(&entry.name).or_else(|| gain(&entry.name)) else {
            others.push(i);
            continue;
        };
        let group = match groups.entry(key.base.clone()) {
            Slot::Occupied(group) => group.into_mut(),
            Slot::Vacant(slot) => slot.insert(Group {
                base: key.base,
                layer: key.layer,
                parts: BTreeMap::new(),
                configured: None,
            }),
        };
        match group.parts.entry(key.part) {
            Slot::Occupied(_) => {
                unmatched.push(Unmatched::new(&entry.name, "a second matrix for the same layer"));
            }
            Slot::Vacant(slot) => {
                slot.insert(i);
            }
        }
    }
    let (mut whole, alone): (Vec<Group>, Vec<Group>) =
        groups.into_values().partition(|g| g.parts.keys().any(|part| *part != Part::Alpha));
    for i in alone.iter().flat_map(Group::keys) {
        unmatched.push(Unmatched::new(&file.header.tensors[i].name, "an alpha without matrices"));
    }
    whole.sort_by(|a, b| {
        let key = |g: &Group| (g.layer.component, g.layer.weight.clone(), g.layer.rows);
        (key(a), &a.base).cmp(&(key(b), &b.base))
    });
    let mut found = Grouped { groups: whole, unmatched, unknown: vec![], notes: vec![] };
    judge(file, names, &others, &mut found)?;
    Ok(found)
}

/// Sorts the keys that name no layer, or an unknown part of one, into those without an effect and
/// those that might change the image.
fn judge(file: &WeightFile, names: &LoraKeys, others: &[usize], found: &mut Grouped) -> Result<()> {
    let tensors = &file.header.tensors;
    // The parts of one unknown layer belong together: an up matrix of zeros makes the down matrix
    // harmless, too.
    let mut bases: BTreeMap<&str, Vec<(Option<Part>, usize)>> = BTreeMap::new();
    for &i in others {
        let name = tensors[i].name.as_str();
        let (base, part) = splits(name).next().map_or((name, None), |(b, p)| (b, Some(p)));
        bases.entry(base).or_default().push((part, i));
    }
    let mut zeros = 0;
    for parts in bases.into_values() {
        let apart = |i: usize| APART.iter().any(|start| tensors[i].name.starts_with(start));
        let alphas = parts.iter().all(|(part, _)| *part == Some(Part::Alpha));
        let dead = !alphas && !parts.iter().any(|(_, i)| apart(*i)) && no_effect(file, &parts)?;
        for (_, i) in parts {
            let name = &tensors[i].name;
            let layer = names.parent(name);
            let unused = names.family.components.iter().any(|c| matches_glob(c.unused, name));
            let why = match &layer {
                Some(layer) => format!("an unknown part of {}", layer.weight),
                None if unused => format!("{} does not use this layer", names.family.title),
                None => format!("names no layer of {} that a LoRA can change", names.family.title),
            };
            if dead {
                zeros += 1;
            } else {
                let entry = Unmatched::new(name, why);
                if !(apart(i) || unused || alphas && layer.is_none()) {
                    found.unknown.push(entry.clone());
                }
                found.unmatched.push(entry);
            }
        }
    }
    let places: BTreeMap<&str, usize> =
        tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    found.unmatched.sort_by_key(|u| places.get(u.key.as_str()));
    if zeros > 0 {
        found.notes.push(format!(
            "{zeros} keys name no layer of {}; their changes are zero and were left out",
            names.family.title
        ));
    }
    Ok(())
}

/// Whether the tensors of an unknown layer change nothing: every product has a factor that is zero
/// everywhere, and every difference is zero.
fn no_effect(file: &WeightFile, parts: &[(Option<Part>, usize)]) -> Result<bool> {
    let zero = |which: &dyn Fn(Part) -> bool| -> Result<(usize, usize)> {
        let mut counts = (0, 0);
        for (_, i) in parts.iter().filter(|(part, _)| part.is_some_and(which)) {
            counts.0 += 1;
            counts.1 += usize::from(all_zero(file, *i)?);
        }
        Ok(counts)
    };
    for (part, i) in parts {
        let fine = match part {
            Some(Part::Alpha) => true,
            // A tensor that is not known may mean anything, also if it is zero.
            Some(Part::Magnitude | Part::Set | Part::Gain) | None => false,
            Some(Part::Diff | Part::DiffBias | Part::DownBias | Part::UpBias) => {
                all_zero(file, *i)?
            }
            Some(part) => zero(&|p| p.family() == part.family())?.1 > 0,
        };
        if !fine {
            return Ok(false);
        }
    }
    Ok(true)
}
