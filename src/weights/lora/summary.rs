//! The contents of a LoRA file, for users.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::group::{Group, Grouped, Unmatched, base_model};
use super::keys::Part;
use crate::spec::Component;
use crate::text::{one_line, shortened};
use crate::weights::container::file::WeightFile;

/// The number of unmatched keys that are listed.
const LISTED: usize = 10;
/// The number of characters of a metadata value that are kept.
const VALUE_CHARS: usize = 200;

/// The layers of one component that a LoRA changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Targets {
    /// The component.
    pub component: Component,
    /// The number of changes: pairs of matrices, or other kinds of changes.
    pub pairs: usize,
    /// The number of canonical weights.
    pub weights: usize,
    /// The number of pairs by kind of block and its number: `double_blocks` 3.
    pub blocks: BTreeMap<String, BTreeMap<usize, usize>>,
    /// Weights outside of blocks.
    pub others: Vec<String>,
    /// The width of the component that it was made for: the number of inputs that most of the
    /// layers in blocks have.
    pub width: Option<usize>,
}

/// The contents of a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The number of changed layers by kind: LoRA, LoHa, LoKr, DoRA, differences.
    pub kinds: BTreeMap<String, usize>,
    /// The trainer whose names it has: `Kohya sd-scripts`.
    pub dialect: String,
    /// The number of pairs by rank.
    pub ranks: BTreeMap<usize, usize>,
    /// The number of pairs by alpha; `none` means a factor of 1.
    pub alphas: BTreeMap<String, usize>,
    /// The layers that it changes, by component.
    pub targets: Vec<Targets>,
    /// The number of keys that pairs use.
    pub matched: usize,
    /// The number of keys that no pair uses.
    pub unmatched: usize,
    /// The first ten of them.
    pub first_unmatched: Vec<Unmatched>,
    /// The base model, according to its metadata.
    pub base_model: Option<String>,
    /// How it was trained, according to its metadata.
    pub training: BTreeMap<String, String>,
    /// Lines for the user.
    pub notes: Vec<String>,
}

/// Other metadata that users look for.
const TRAINING: [&str; 22] = [
    "modelspec.title",
    "modelspec.author",
    "modelspec.description",
    "modelspec.trigger_phrase",
    "modelspec.usage_hint",
    "modelspec.license",
    "modelspec.resolution",
    "ss_output_name",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_steps",
    "ss_max_train_steps",
    "ss_epoch",
    "ss_num_train_images",
    "ss_learning_rate",
    "ss_optimizer",
    "ss_resolution",
    "ss_training_comment",
    "software",
    "training_info",
];

pub(super) fn of(file: &WeightFile, found: &Grouped) -> Summary {
    let metadata = &file.header.metadata;
    let tensors = &file.header.tensors;
    let mut targets: Vec<Targets> = vec![];
    let (mut ranks, mut alphas, mut dialects) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut kinds = BTreeMap::new();
    // By component: the number of layers in blocks for each number of inputs.
    let mut widths: BTreeMap<Component, BTreeMap<usize, usize>> = BTreeMap::new();
    for (i, group) in found.groups.iter().enumerate() {
        let axis = |part: Part, axis: usize| {
            group.parts.get(&part).and_then(|i| tensors[*i].shape.get(axis).copied())
        };
        let downs = [Part::Down, Part::HadaW1B, Part::KronW2B, Part::KronW1B];
        if let Some(rank) = downs.into_iter().find_map(|part| axis(part, 0)) {
            *ranks.entry(rank).or_default() += 1;
        }
        *kinds.entry(kind(group)).or_default() += 1;
        let either = |whole, product| axis(whole, 1).or_else(|| axis(product, 1));
        let outer = either(Part::KronW1, Part::KronW1B);
        let inner = either(Part::KronW2, Part::KronW2B);
        let inputs = either(Part::Down, Part::HadaW1B).or_else(|| outer?.checked_mul(inner?));
        if let Some(inputs) = inputs.filter(|_| group.layer.block.is_some()) {
            *widths.entry(group.layer.component).or_default().entry(inputs).or_default() += 1;
        }
        let alpha = group
            .alpha(file)
            .map_or("unreadable".into(), |a| a.map_or("none".into(), |a| a.to_string()));
        *alphas.entry(alpha).or_default() += 1;
        if let Some(dialect) = group.layer.dialect {
            *dialects.entry(dialect).or_insert(0usize) += 1;
        }
        let last = i.checked_sub(1).map(|i| &found.groups[i]);
        add(
            &mut targets,
            group,
            last.is_some_and(|l| {
                (l.layer.component, &l.layer.weight) == (group.layer.component, &group.layer.weight)
            }),
        );
    }
    for target in &mut targets {
        let counts = widths.remove(&target.component).unwrap_or_default();
        target.width =
            counts.into_iter().max_by_key(|(n, count)| (*count, Reverse(*n))).map(|w| w.0);
    }
    let cut = |value: &String| {
        let mut short: String = value.chars().take(VALUE_CHARS).collect();
        if short.len() < value.len() {
            short.push('…');
        }
        short
    };
    let mut dialects: Vec<(&str, usize)> = dialects.into_iter().collect();
    dialects.sort_by_key(|(_, n)| Reverse(*n));
    let dialect = match (dialects.is_empty(), found.groups.is_empty()) {
        (false, _) => dialects.iter().map(|d| d.0).collect::<Vec<_>>().join(" + "),
        (true, false) => "text encoders only".into(),
        (true, true) => "unknown".into(),
    };
    let training = TRAINING.iter().filter_map(|k| Some((k.to_string(), cut(metadata.get(*k)?))));
    Summary {
        kinds,
        dialect,
        ranks,
        alphas,
        targets,
        matched: found.groups.iter().map(|g| g.keys().count()).sum(),
        unmatched: found.unmatched.len(),
        first_unmatched: found.unmatched.iter().take(LISTED).cloned().collect(),
        base_model: base_model(file).map(cut),
        training: training.collect(),
        notes: found.notes.clone(),
    }
}

/// The kind of change that a group makes, for people.
fn kind(group: &Group) -> String {
    let family = group.parts.keys().find_map(|part| part.family());
    let family = family.unwrap_or("difference of a bias");
    match group.parts.contains_key(&Part::Magnitude) {
        true if family == "LoRA" => "DoRA".into(),
        true => format!("DoRA of {family}"),
        false => family.into(),
    }
}

fn add(targets: &mut Vec<Targets>, group: &Group, same_weight: bool) {
    let layer = &group.layer;
    let component = layer.component;
    if targets.last().is_none_or(|t| t.component != component) {
        targets.push(Targets {
            component,
            pairs: 0,
            weights: 0,
            blocks: BTreeMap::new(),
            others: vec![],
            width: None,
        });
    }
    let Some(target) = targets.last_mut() else { return };
    target.pairs += 1;
    target.weights += usize::from(!same_weight);
    match layer.block {
        Some(n) => {
            let kind = layer.weight.split(&format!(".{n}.")).next().unwrap_or_default();
            *target.blocks.entry(kind.to_string()).or_default().entry(n).or_default() += 1;
        }
        None if !same_weight => target.others.push(layer.weight.clone()),
        None => {}
    }
}

/// Numbers as text, with ranges: `0-18, 20`.
fn runs(numbers: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = vec![];
    for n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let words = runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    words.collect::<Vec<_>>().join(", ")
}

impl Summary {
    /// The kinds of change in the file: `LoRA`, `LoHa + difference`.
    pub fn kind(&self) -> String {
        let kinds: Vec<&str> = self.kinds.keys().map(String::as_str).collect();
        if kinds.is_empty() { "LoRA".into() } else { kinds.join(" + ") }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: usize = self.targets.iter().map(|t| t.pairs).sum();
        match self.kinds.keys().all(|kind| kind == "LoRA") {
            true => {
                writeln!(f, "LoRA, names of {}, {pairs} pairs of matrices", self.dialect)?;
            }
            false => writeln!(f, "{}, names of {}, {pairs} layers", self.kind(), self.dialect)?,
        }
        let counted = |map: Vec<(String, usize)>| match map.as_slice() {
            [(one, _)] => one.clone(),
            many => {
                many.iter().map(|(k, n)| format!("{k} ({n} pairs)")).collect::<Vec<_>>().join(", ")
            }
        };
        if pairs > 0 {
            let ranks: Vec<_> = self.ranks.iter().map(|(k, n)| (k.to_string(), *n)).collect();
            match ranks.is_empty() {
                true => writeln!(f, "  rank  none, whole matrices")?,
                false => writeln!(f, "  rank  {}", counted(ranks))?,
            }
            writeln!(f, "  alpha {}", counted(self.alphas.clone().into_iter().collect()))?;
        }
        for t in &self.targets {
            let mut places: Vec<String> = t
                .blocks
                .iter()
                .map(|(kind, numbers)| format!("{kind} {}", runs(numbers.keys().copied())))
                .collect();
            places.extend(t.others.iter().cloned());
            let width = t.width.map(|w| format!(", width {w}")).unwrap_or_default();
            writeln!(
                f,
                "  {:<5} {} pairs on {} weights{width}: {}",
                t.component.name,
                t.pairs,
                t.weights,
                places.join("; ")
            )?;
        }
        writeln!(f, "  keys  {} matched, {} unmatched", self.matched, self.unmatched)?;
        for u in &self.first_unmatched {
            writeln!(f, "        {}: {}", one_line(&shortened(&u.key, 200)), one_line(&u.why))?;
        }
        if self.unmatched > self.first_unmatched.len() {
            writeln!(f, "        and {} more", self.unmatched - self.first_unmatched.len())?;
        }
        if let Some(base) = &self.base_model {
            writeln!(f, "  trained on {}", one_line(&shortened(base, 200)))?;
        }
        for (key, value) in &self.training {
            writeln!(f, "  {}: {}", one_line(key), one_line(&shortened(value, 200)))?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {}", one_line(note))?;
        }
        Ok(())
    }
}
