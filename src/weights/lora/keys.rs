//! The keys of LoRA files: which layer a key is about, and which part of the pair
//! it contains.
//!
//! Every trainer spells both in its own way. A layer's name is a prefix, which shows the trainer,
//! and a spelling, which may be that of any dialect of the component, with dots or with underscores
//! in their place. [`LoraKeys`] has the spellings of one family.

use crate::spec::lora::{LoraPrefix, Rows};
use crate::spec::names::block_number;
use crate::spec::{Component, Family, Role};

/// The matrix or number of a pair that a key contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A, `rank x columns`.
    Down,
    /// B, `rows x rank`.
    Up,
    /// The number alpha.
    Alpha,
}

/// A key that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key<'a> {
    /// The part of the pair.
    pub part: Part,
    /// The key without its suffix; equal for the parts of one pair.
    pub base: &'a str,
    /// `base` without its prefix: the layer as the trainer calls it.
    pub module: &'a str,
    /// The component that has the layer.
    pub component: Component,
    /// The canonical weight, `...weight`.
    pub weight: String,
    /// The number of its block, if it is in one.
    pub block: Option<usize>,
    /// The rows of the weight that the pair changes.
    pub rows: Rows,
    /// The trainer; `None` for text encoders, whose names do not show it.
    pub dialect: Option<&'static str>,
}

/// Suffixes, with the part of the pair. Those of XLabs come last, since they are endings of others.
const SUFFIXES: [(&str, Part); 14] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".alpha", Part::Alpha),
    ("_lora.alpha", Part::Alpha),
    (".lora.alpha", Part::Alpha),
    (".lora_linear_layer.alpha", Part::Alpha),
    (".down.weight", Part::Down),
    (".up.weight", Part::Up),
];

/// A way in which a layer is written.
struct Spelling {
    component: Component,
    stored: String,
    /// `stored` with underscores for dots.
    flat: String,
    /// The canonical weight, `...weight`.
    canonical: String,
    rows: Rows,
    dialect: Option<&'static str>,
}

/// The names that LoRAs of one family have.
pub struct LoraKeys {
    /// The family.
    pub family: &'static Family,
    prefixes: Vec<&'static LoraPrefix>,
    spellings: Vec<Spelling>,
}

impl LoraKeys {
    /// The names of `family`'s LoRAs.
    pub fn of(family: &'static Family) -> Self {
        let mut prefixes: Vec<&LoraPrefix> =
            family.lora.prefixes.iter().copied().flatten().collect();
        prefixes.sort_by_key(|p| std::cmp::Reverse(p.prefix.len()));
        let mut keys = LoraKeys { family, prefixes, spellings: vec![] };
        for &component in family.components {
            for layer in component.0.lora.layers {
                keys.add(component, layer, layer, Rows::All, None);
                for (stored, rows) in dialect_spellings(component, layer) {
                    keys.add(component, &stored, layer, rows, None);
                }
            }
            for s in component.0.lora.spellings {
                keys.add(component, s.stored, s.canonical, s.rows, s.tool);
            }
        }
        keys
    }

    fn add(
        &mut self,
        component: Component,
        stored: &str,
        canonical: &str,
        rows: Rows,
        dialect: Option<&'static str>,
    ) {
        let (stored, flat) = (stored.to_string(), stored.replace('.', "_"));
        let canonical = format!("{canonical}.weight");
        self.spellings.push(Spelling { component, stored, flat, canonical, rows, dialect });
    }

    /// Understands a key; `None` if it names no layer that a LoRA of the family may change.
    pub fn parse<'a>(&self, key: &'a str) -> Option<Key<'a>> {
        splits(key).find_map(|(base, part)| {
            self.prefixes.iter().find_map(|prefix| {
                let module = base.strip_prefix(prefix.prefix)?;
                // One trainer ends its names with an underscore.
                let layer =
                    if prefix.flat { module.strip_suffix('_').unwrap_or(module) } else { module };
                let (spelling, block) = self.find(layer, prefix)?;
                let transformer = spelling.component.role == Role::Transformer;
                Some(Key {
                    part,
                    base,
                    module,
                    component: spelling.component,
                    weight: match block {
                        Some(n) => spelling.canonical.replacen("{}", &n.to_string(), 1),
                        None => spelling.canonical.clone(),
                    },
                    block,
                    rows: spelling.rows,
                    dialect: spelling.dialect.or(prefix.trainer.filter(|_| transformer)),
                })
            })
        })
    }

    /// `key` without the longest known prefix.
    pub fn without_prefix<'a>(&self, key: &'a str) -> &'a str {
        self.prefixes.iter().find_map(|p| key.strip_prefix(p.prefix)).unwrap_or(key)
    }

    fn find(&self, layer: &str, prefix: &LoraPrefix) -> Option<(&Spelling, Option<usize>)> {
        // Older versions of diffusers put this between a block's attention and its matrices.
        let plain =
            layer.contains(".attn.processor.").then(|| layer.replacen(".processor.", ".", 1));
        let layer = plain.as_deref().unwrap_or(layer);
        let allowed = |s: &&Spelling| prefix.role.is_none_or(|role| s.component.role == role);
        self.spellings.iter().filter(allowed).find_map(|s| {
            let pattern = if prefix.flat { &s.flat } else { &s.stored };
            let Some((before, after)) = pattern.split_once("{}") else {
                return (pattern == layer).then_some((s, None));
            };
            let digits = layer.strip_prefix(before)?.strip_suffix(after)?;
            Some((s, Some(block_number(digits)?)))
        })
    }
}

/// How the dialects of `component` spell a canonical layer, and the rows of each stored part.
fn dialect_spellings(component: Component, layer: &str) -> Vec<(String, Rows)> {
    // The tables of names know blocks by number only.
    const NUMBER: &str = "9999";
    let name = layer.replace("{}", NUMBER) + ".weight";
    let own = |part: &str| part.trim_end_matches(".weight").replace(NUMBER, "{}");
    let mut spellings = vec![];
    for dialect in component.0.dialects.iter().filter(|d| !d.gguf) {
        let Some(stored) = dialect.naming.write(0, &name) else { continue };
        let count = stored.names.len();
        for (i, part) in stored.names.iter().enumerate().filter(|(_, part)| **part != name) {
            let rows = Rows::of_part(stored.split, stored.swapped, i, count);
            spellings.push((own(part), rows));
        }
    }
    spellings
}

/// The ways of cutting a suffix off.
fn splits(key: &str) -> impl Iterator<Item = (&str, Part)> {
    let peft =
        [(".lora_A", Part::Down), (".lora_B", Part::Up)].into_iter().find_map(|(infix, part)| {
            let (base, rest) = key.split_once(infix)?;
            // `.weight`, nothing, or the name of an adapter before it.
            let known =
                rest.is_empty() || rest.strip_suffix(".weight").is_some_and(is_adapter_name);
            known.then_some((base, part))
        });
    peft.into_iter().chain(
        SUFFIXES.iter().filter_map(move |(suffix, part)| Some((key.strip_suffix(suffix)?, *part))),
    )
}

/// Whether this is empty or a dot and one word.
fn is_adapter_name(text: &str) -> bool {
    text.is_empty()
        || text.strip_prefix('.').is_some_and(|word| !word.is_empty() && !word.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::flux1::{FLUX1, TRANSFORMER};

    #[test]
    fn every_spelling_names_one_layer_and_every_layer_is_canonical() {
        let mut seen = std::collections::BTreeSet::new();
        for s in &LoraKeys::of(&FLUX1).spellings {
            assert!(s.component.is_canonical(&s.canonical.replace("{}", "3")), "{}", s.canonical);
            assert!(seen.insert((s.component, s.stored.clone())), "{} twice", s.stored);
            assert!(seen.insert((s.component, format!("flat {}", s.flat))), "{} twice", s.flat);
        }
        let spelled = |layer: &&str| dialect_spellings(TRANSFORMER, layer).len();
        assert_eq!(TRANSFORMER.lora.layers.iter().map(spelled).sum::<usize>(), 30);
    }
}
