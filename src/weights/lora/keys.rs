//! The keys of LoRA files: which layer a key is about, and which part of the pair
//! it contains.
//!
//! Every trainer spells both in its own way. A layer's name is a prefix, which shows the trainer,
//! and a spelling, which may be that of any dialect of the component, with dots or with underscores
//! in their place. [`LoraKeys`] has the spellings of one family.

use crate::spec::lora::{CUT_NAMES, LoraPrefix, Rows, WRAPPERS};
use crate::spec::names::block_number;
use crate::spec::{Component, Family, Role};

/// What a tensor of an adapter is for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A of a LoRA, `rank x columns`.
    Down,
    /// B of a LoRA, `rows x rank`.
    Up,
    /// A bias of A, one number for each rank: its product with B is added to the layer's bias.
    DownBias,
    /// A bias of B: it is added to the layer's bias.
    UpBias,
    /// The number alpha.
    Alpha,
    /// DoRA's lengths of the rows or columns.
    Magnitude,
    /// LoHa: `rows x rank` of the first product.
    HadaW1A,
    /// LoHa: `rank x columns` of the first product.
    HadaW1B,
    /// LoHa: `rows x rank` of the second product.
    HadaW2A,
    /// LoHa: `rank x columns` of the second product.
    HadaW2B,
    /// LoKr: the outer factor.
    KronW1,
    /// LoKr: the left factor of the outer factor.
    KronW1A,
    /// LoKr: the right factor of the outer factor.
    KronW1B,
    /// LoKr: the inner factor.
    KronW2,
    /// LoKr: the left factor of the inner factor.
    KronW2A,
    /// LoKr: the right factor of the inner factor.
    KronW2B,
    /// Added to the whole weight.
    Diff,
    /// Added to the bias.
    DiffBias,
    /// Put in place of the weight.
    Set,
    /// The gain of a norm in a control LoRA: put in place of the model's, whatever the strength.
    Gain,
}

impl Part {
    /// The kind of adapter that the part belongs to; `None` for what several kinds have.
    pub fn family(self) -> Option<&'static str> {
        match self {
            Part::Down | Part::Up => Some("LoRA"),
            Part::HadaW1A | Part::HadaW1B | Part::HadaW2A | Part::HadaW2B => Some("LoHa"),
            Part::KronW1
            | Part::KronW1A
            | Part::KronW1B
            | Part::KronW2
            | Part::KronW2A
            | Part::KronW2B => Some("LoKr"),
            Part::Diff => Some("difference"),
            Part::Set | Part::Gain => Some("replacement"),
            Part::DownBias | Part::UpBias | Part::Alpha | Part::Magnitude | Part::DiffBias => None,
        }
    }
}

/// A key that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The part of the adapter that the tensor contains.
    pub part: Part,
    /// The key without its suffix; equal for the parts of one change.
    pub base: String,
    /// The layer.
    pub layer: Layer,
}

/// A layer that a key names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The layer as the trainer calls it, without prefixes.
    pub module: String,
    /// The component that has the layer.
    pub component: Component,
    /// The canonical tensor: the matrix of a layer, or a vector.
    pub weight: String,
    /// Whether it is a vector.
    pub vector: bool,
    /// The number of its block, if it is in one.
    pub block: Option<usize>,
    /// The rows of the weight that are changed.
    pub rows: Rows,
    /// The trainer; `None` for text encoders, whose names do not show it.
    pub dialect: Option<&'static str>,
}

impl Layer {
    /// The canonical name of its bias; `None` if such layers have none.
    pub fn bias(&self) -> Option<String> {
        Some(format!("{}.bias", self.weight.strip_suffix(".weight")?))
    }
}

/// Suffixes, with what they are. Those of XLabs come last, since they are endings of others.
const SUFFIXES: [(&str, Part); 22] = [
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
    (".lora_down.bias", Part::DownBias),
    (".lora_up.bias", Part::UpBias),
    (".diff", Part::Diff),
    (".w_norm", Part::Diff),
    (".diff_b", Part::DiffBias),
    (".b_norm", Part::DiffBias),
    (".set_weight", Part::Set),
    (".dora_scale", Part::Magnitude),
    (".down.weight", Part::Down),
    (".up.weight", Part::Up),
];

/// Words behind which the name of an adapter and `.weight` may follow, as PEFT writes them.
const INFIXES: [(&str, Part); 14] = [
    (".lora_A", Part::Down),
    (".lora_B", Part::Up),
    (".lora_magnitude_vector", Part::Magnitude),
    (".magnitude", Part::Magnitude),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".lokr_w1_a", Part::KronW1A),
    (".lokr_w1_b", Part::KronW1B),
    (".lokr_w2_a", Part::KronW2A),
    (".lokr_w2_b", Part::KronW2B),
    (".lokr_w1", Part::KronW1),
    (".lokr_w2", Part::KronW2),
];

/// How many prefixes may stand in front of each other.
const NESTED: usize = 6;

/// A way in which a layer is written.
struct Spelling {
    component: Component,
    stored: String,
    /// `stored` with underscores for dots.
    flat: String,
    /// The canonical tensor.
    canonical: String,
    vector: bool,
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

/// What is known about a name after some of its prefixes were cut off.
#[derive(Clone, Copy)]
struct Prefixed {
    role: Option<Role>,
    flat: bool,
    trainer: Option<&'static str>,
    depth: usize,
}

impl LoraKeys {
    /// The names of `family`'s LoRAs.
    pub fn of(family: &'static Family) -> Self {
        let mut prefixes: Vec<&LoraPrefix> =
            family.lora.prefixes.iter().copied().flatten().collect();
        prefixes.sort_by_key(|p| std::cmp::Reverse(p.prefix.len()));
        let mut keys = LoraKeys { family, prefixes, spellings: vec![] };
        for &component in family.components {
            let lora = &component.0.lora;
            for layer in lora.layers {
                keys.add(component, layer, layer, Rows::All, None);
                for (stored, rows) in dialect_spellings(component, &format!("{layer}.weight")) {
                    keys.add(component, &stored, layer, rows, None);
                }
            }
            for vector in lora.vectors {
                let short = vector.rsplit_once('.').map_or(*vector, |(short, _)| short);
                keys.add(component, short, vector, Rows::All, None);
                if !vector.ends_with(".weight") {
                    keys.add(component, vector, vector, Rows::All, None);
                }
                for (stored, rows) in dialect_spellings(component, vector) {
                    keys.add(component, &stored, vector, rows, None);
                }
            }
            for s in lora.spellings {
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
        let vector = component.0.lora.vectors.contains(&canonical);
        let canonical = if vector { canonical.to_string() } else { format!("{canonical}.weight") };
        self.spellings.push(Spelling { component, stored, flat, canonical, vector, rows, dialect });
    }

    /// Understands a key; `None` if it names no layer that an adapter of the family may change, or
    /// has an unknown ending.
    pub fn parse(&self, key: &str) -> Option<Key> {
        splits(key).find_map(|(base, part)| {
            let layer = self.layer(base)?;
            Some(Key { part, base: base.to_string(), layer })
        })
    }

    /// The whole gain of a norm under the model's own name, as control LoRAs store it.
    pub fn gain(&self, name: &str) -> Option<Key> {
        let layer = self.layer(name).or_else(|| self.layer(name.strip_suffix(".weight")?));
        let layer = layer.filter(|layer| layer.vector)?;
        Some(Key { part: Part::Gain, base: name.to_string(), layer })
    }

    /// Whether `key` is A of the layer that control LoRAs widen.
    pub fn is_input(&self, key: &str) -> bool {
        self.parse(key).is_some_and(|key| {
            let Layer { component, weight, .. } = &key.layer;
            key.part == Part::Down && component.lora.input == Some(weight)
        })
    }

    /// The layer of which `key` is an unknown part: the longest beginning of `key` that names one.
    pub fn parent(&self, key: &str) -> Option<Layer> {
        // The names of layers are short; a long key is looked at only in part.
        const LONGEST: usize = 300;
        let key = match key.char_indices().nth(LONGEST) {
            Some((end, _)) => &key[..end],
            None => key,
        };
        let dots = key.rmatch_indices('.').map(|(i, _)| i);
        dots.chain([key.len()]).find_map(|i| {
            let base = &key[..i];
            self.layer(base).or_else(|| self.layer(base.strip_suffix("_lora")?))
        })
    }

    /// The layer that `base` names, with prefixes nested in any order.
    fn layer(&self, base: &str) -> Option<Layer> {
        let plain = without_wrappers(base);
        self.nested(&plain, Prefixed { role: None, flat: false, trainer: None, depth: 0 })
    }

    fn nested(&self, name: &str, mut known: Prefixed) -> Option<Layer> {
        let restored = restored(name, &mut known);
        let name = restored.as_deref().unwrap_or(name);
        self.prefixes.iter().find_map(|prefix| {
            // After a flat prefix, names have underscores in place of dots.
            let rest = match known.flat {
                true if prefix.prefix.ends_with('.') => {
                    name.strip_prefix(prefix.prefix.replace('.', "_").as_str())?
                }
                _ => name.strip_prefix(prefix.prefix)?,
            };
            let role = match (known.role, prefix.role) {
                (Some(a), Some(b)) if a != b => return None,
                (a, b) => a.or(b),
            };
            let trainer = known.trainer.or(prefix.trainer.filter(|_| !prefix.prefix.is_empty()));
            let known =
                Prefixed { role, flat: known.flat || prefix.flat, trainer, depth: known.depth + 1 };
            if prefix.prefix.is_empty() {
                return self.find(rest, known, prefix.trainer);
            }
            if known.depth < NESTED { self.nested(rest, known) } else { None }
        })
    }

    /// Whether `key`, behind any prefixes, is a name for which `which` is true.
    pub fn behind_prefixes(&self, key: &str, which: &dyn Fn(&str) -> bool) -> bool {
        self.behind(&without_wrappers(key), which, 0)
    }

    fn behind(&self, key: &str, which: &dyn Fn(&str) -> bool, depth: usize) -> bool {
        let dotted = self.prefixes.iter().filter(|p| !p.flat && !p.prefix.is_empty());
        let mut rests = dotted.filter_map(|p| key.strip_prefix(p.prefix));
        which(key) || depth < NESTED && rests.any(|rest| self.behind(rest, which, depth + 1))
    }

    fn find(&self, module: &str, known: Prefixed, bare: Option<&'static str>) -> Option<Layer> {
        // One trainer ends its names with an underscore.
        let layer = if known.flat { module.strip_suffix('_').unwrap_or(module) } else { module };
        // Older versions of diffusers put this between a block's attention and its matrices.
        let plain =
            layer.contains(".attn.processor.").then(|| layer.replacen(".processor.", ".", 1));
        let layer = plain.as_deref().unwrap_or(layer);
        let allowed = |s: &&Spelling| known.role.is_none_or(|role| s.component.role == role);
        let (s, block) = self.spellings.iter().filter(allowed).find_map(|s| {
            let pattern = if known.flat { &s.flat } else { &s.stored };
            let Some((before, after)) = pattern.split_once("{}") else {
                return (pattern == layer).then_some((s, None));
            };
            let digits = layer.strip_prefix(before)?.strip_suffix(after)?;
            Some((s, Some(block_number(digits)?)))
        })?;
        let transformer = s.component.role == Role::Transformer;
        Some(Layer {
            module: module.to_string(),
            component: s.component,
            weight: match block {
                Some(n) => s.canonical.replacen("{}", &n.to_string(), 1),
                None => s.canonical.clone(),
            },
            vector: s.vector,
            block,
            rows: s.rows,
            dialect: s.dialect.or(known.trainer.or(bare).filter(|_| transformer)),
        })
    }
}

/// `name` with a beginning that was cut off. If underscores follow it, the name had a prefix that
/// says so, which was cut off with it.
fn restored(name: &str, known: &mut Prefixed) -> Option<String> {
    CUT_NAMES.iter().find_map(|(cut, whole)| {
        let rest = name.strip_prefix(cut)?;
        known.flat |= rest.starts_with('_');
        rest.starts_with(['.', '_']).then(|| format!("{whole}{rest}"))
    })
}

/// `name` without the wrappers of training frameworks, with dots or with underscores.
fn without_wrappers(name: &str) -> String {
    WRAPPERS.iter().fold(name.to_string(), |name, wrapper| {
        if !name.contains(&wrapper[..wrapper.len() - 1]) {
            return name;
        }
        name.replace(wrapper, "").replace(&wrapper.replace('.', "_"), "")
    })
}

/// How the dialects of `component` spell a canonical tensor, and the rows of each stored part.
fn dialect_spellings(component: Component, tensor: &str) -> Vec<(String, Rows)> {
    // The tables of names know blocks by number only.
    const NUMBER: &str = "9999";
    let name = tensor.replace("{}", NUMBER);
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
pub fn splits(key: &str) -> impl Iterator<Item = (&str, Part)> {
    let peft = INFIXES.into_iter().filter_map(move |(infix, part)| {
        let (base, rest) = key.rsplit_once(infix)?;
        // Nothing, `.weight`, the name of an adapter, or both.
        let known = is_adapter_name(rest.strip_suffix(".weight").unwrap_or(rest));
        let bias = rest.strip_suffix(".bias").is_some_and(is_adapter_name);
        match part {
            Part::Down if bias => Some((base, Part::DownBias)),
            Part::Up if bias => Some((base, Part::UpBias)),
            // A word behind the matrices of a LoRA is a name only in front of `.weight`.
            Part::Down | Part::Up if !rest.is_empty() && !rest.ends_with(".weight") => None,
            _ => (known && !bias).then_some((base, part)),
        }
    });
    peft.chain(
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
        let spelled =
            |layer: &&str| dialect_spellings(TRANSFORMER, &format!("{layer}.weight")).len();
        assert_eq!(TRANSFORMER.lora.layers.iter().map(spelled).sum::<usize>(), 30);
    }

    #[test]
    fn prefixes_and_wrappers_nest_in_any_order() {
        let keys = LoraKeys::of(&FLUX1);
        let weight = "double_blocks.3.img_attn.proj.weight";
        for prefix in [
            "transformer.base_model.model.",
            "base_model.model.transformer.",
            "module.transformer._orig_mod.base_model.model.",
            "_orig_mod.module.base_model.model.",
            "base_model.model.base_model.model.",
            "model.diffusion_model.module.",
            "diffusion_model._orig_mod.",
            "pipe.dit.",
            "",
        ] {
            for layer in ["transformer_blocks.3.attn.to_out.0", "double_blocks.3.img_attn.proj"] {
                let key = keys.parse(&format!("{prefix}{layer}.lora_A.weight"));
                assert_eq!(key.map(|k| k.layer.weight).as_deref(), Some(weight), "{prefix}{layer}");
            }
        }
        for flat in [
            "lora_unet__orig_mod_double_blocks_3_img_attn_proj",
            "lora_unet_double_blocks_3__orig_mod_img_attn_proj",
            "lora_transformer_module_transformer_blocks_3_attn_to_out_0",
        ] {
            let key = keys.parse(&format!("{flat}.lora_down.weight"));
            assert_eq!(key.map(|k| k.layer.weight).as_deref(), Some(weight), "{flat}");
        }
        // Four letters of the first name are cut off, alone or with a prefix.
        for cut in ["sformer_blocks.3.attn.to_out.0", "sformer_blocks_3_attn_to_out_0"] {
            for prefix in ["", "transformer.", "base_model.model."] {
                let key = keys.parse(&format!("{prefix}{cut}.lora_down.weight"));
                let weight_of = key.map(|k| k.layer.weight);
                assert_eq!(weight_of.as_deref(), Some(weight), "{prefix}{cut}");
            }
        }
        assert_eq!(keys.parse("sformer_blocksx.3.attn.to_out.0.lora_A.weight"), None);
        // The prefixes of two components contradict each other.
        assert_eq!(keys.parse("text_encoder.transformer.x_embedder.lora_A.weight"), None);
    }

    #[test]
    fn the_layer_of_an_unknown_part_is_found() {
        let keys = LoraKeys::of(&FLUX1);
        for part in ["qkv.3.lora_A.weight", "qkv.lora_C.weight", "qkv.strange"] {
            let key = format!("transformer.double_blocks.0.img_attn.{part}");
            assert_eq!(keys.parse(&key), None);
            let weight = keys.parent(&key).map(|l| l.weight);
            assert_eq!(weight.as_deref(), Some("double_blocks.0.img_attn.qkv.weight"), "{key}");
        }
        assert_eq!(keys.parent("bundle_emb.a.b"), None);
    }
}
