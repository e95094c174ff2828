//! The keys of LoRA files: which layer a key is about, and which part of the pair it holds. Every trainer spells both in its own way; a layer's name is a
//! prefix, which tells the trainer, and a spelling, which may be BFL's, diffusers' or XLabs', with dots or with underscores in their place.

use std::sync::OnceLock;

use super::super::Component;
use crate::weights::dialect::names::diffusers_names;

/// Which rows of a canonical weight a stored matrix makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rows {
    All,
    /// One of q, k, v of a fused matrix that holds nothing else.
    Third(usize),
    /// One of q, k, v of a single block's `linear1`: as many rows as it has columns.
    Square(usize),
    /// q, k and v of `linear1` together.
    Squares,
    /// What follows q, k and v in `linear1`.
    Rest,
    /// All, the second half stored first.
    Swapped,
}

/// Consecutive rows of a stored matrix and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// First row of the weight.
    pub row: usize,
    /// First row of the stored matrix.
    pub from: usize,
    pub rows: usize,
}

impl Rows {
    /// The rows of a `rows x cols` weight; `None` where it cannot be divided so.
    pub fn of(self, (rows, cols): (usize, usize)) -> Option<Vec<Block>> {
        let block = |row: usize, rows: usize| vec![Block { row, from: 0, rows }];
        let squares = cols.checked_mul(3).filter(|n| *n <= rows);
        match self {
            Rows::All => Some(block(0, rows)),
            Rows::Third(i) => rows.is_multiple_of(3).then(|| block(rows / 3 * i, rows / 3)),
            Rows::Square(i) => squares.map(|_| block(cols * i, cols)),
            Rows::Squares => squares.map(|n| block(0, n)),
            Rows::Rest => squares.map(|n| block(n, rows - n)),
            Rows::Swapped => rows.is_multiple_of(2).then(|| {
                let half = rows / 2;
                vec![
                    Block { row: 0, from: half, rows: half },
                    Block { row: half, from: 0, rows: half },
                ]
            }),
        }
    }
}

/// What a key holds of its pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A, `rank x columns`.
    Down,
    /// B, `rows x rank`.
    Up,
    Alpha,
}

/// A key that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key<'a> {
    pub part: Part,
    /// The key without its suffix; equal for the parts of one pair.
    pub base: &'a str,
    /// `base` without its prefix: the layer as the trainer calls it.
    pub module: &'a str,
    pub component: Component,
    /// The canonical weight, `...weight`.
    pub weight: String,
    /// The number of its block, if it is in one.
    pub block: Option<usize>,
    pub rows: Rows,
    /// Whose names these are; `None` for text encoders, whose names do not tell.
    pub dialect: Option<&'static str>,
}

/// Suffixes with what they hold. Those of XLabs come last, since they are endings of others.
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

/// Prefixes, what may follow them, whether underscores stand for dots in it, and the trainer. Longer ones come first.
const PREFIXES: [(&str, &[Component], bool, Option<&str>); 20] = [
    ("lora_unet_", FLUX_ONLY, true, Some("Kohya sd-scripts")),
    ("lora_transformer_", FLUX_ONLY, true, Some("OneTrainer")),
    ("lycoris_", FLUX_ONLY, true, Some("LyCORIS (SimpleTuner)")),
    ("lora_te_", CLIP_ONLY, true, None),
    ("lora_te1_", CLIP_ONLY, true, None),
    ("lora_te2_", T5_ONLY, true, None),
    ("lora_te3_", T5_ONLY, true, None),
    ("base_model.model.", &Component::ALL, false, Some("PEFT")),
    ("model.diffusion_model.", FLUX_ONLY, false, Some("ComfyUI")),
    ("diffusion_model.", FLUX_ONLY, false, Some("PEFT (ai-toolkit)")),
    ("transformer.", FLUX_ONLY, false, Some("diffusers")),
    ("text_encoders.clip_l.transformer.", CLIP_ONLY, false, None),
    ("text_encoders.t5xxl.transformer.", T5_ONLY, false, None),
    ("text_encoders.clip_l.", CLIP_ONLY, false, None),
    ("text_encoders.t5xxl.", T5_ONLY, false, None),
    ("text_encoders.transformer.", &Component::ALL, false, None),
    ("text_encoder.", CLIP_ONLY, false, None),
    ("text_encoder_2.", T5_ONLY, false, None),
    ("unet.", FLUX_ONLY, false, Some("diffusers")),
    ("", &Component::ALL, false, Some("no prefix")),
];
const FLUX_ONLY: &[Component] = &[Component::Flux];
const CLIP_ONLY: &[Component] = &[Component::Clip];
const T5_ONLY: &[Component] = &[Component::T5];

/// The layers that a LoRA can be beside: canonical names without `.weight`.
const FLUX: [&str; 23] = [
    "img_in",
    "txt_in",
    "time_in.in_layer",
    "time_in.out_layer",
    "vector_in.in_layer",
    "vector_in.out_layer",
    "guidance_in.in_layer",
    "guidance_in.out_layer",
    "double_blocks.{}.img_mod.lin",
    "double_blocks.{}.txt_mod.lin",
    "double_blocks.{}.img_attn.qkv",
    "double_blocks.{}.txt_attn.qkv",
    "double_blocks.{}.img_attn.proj",
    "double_blocks.{}.txt_attn.proj",
    "double_blocks.{}.img_mlp.0",
    "double_blocks.{}.img_mlp.2",
    "double_blocks.{}.txt_mlp.0",
    "double_blocks.{}.txt_mlp.2",
    "single_blocks.{}.modulation.lin",
    "single_blocks.{}.linear1",
    "single_blocks.{}.linear2",
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
];

const T5: [&str; 7] = [
    "encoder.block.{}.layer.0.SelfAttention.q",
    "encoder.block.{}.layer.0.SelfAttention.k",
    "encoder.block.{}.layer.0.SelfAttention.v",
    "encoder.block.{}.layer.0.SelfAttention.o",
    "encoder.block.{}.layer.1.DenseReluDense.wi_0",
    "encoder.block.{}.layer.1.DenseReluDense.wi_1",
    "encoder.block.{}.layer.1.DenseReluDense.wo",
];

/// CLIP's layers below `text_model.encoder.layers.{}.`, and what older diffusers called them.
const CLIP: [(&str, &str); 6] = [
    ("self_attn.q_proj", "self_attn.to_q"),
    ("self_attn.k_proj", "self_attn.to_k"),
    ("self_attn.v_proj", "self_attn.to_v"),
    ("self_attn.out_proj", "self_attn.to_out"),
    ("mlp.fc1", ""),
    ("mlp.fc2", ""),
];

/// Spellings that belong to one tool alone: (stored, canonical, rows, tool or the prefix's).
const OTHERS: [(&str, &str, Rows, Option<&str>); 10] = [
    ("double_blocks.{}.processor.qkv_lora1", "double_blocks.{}.img_attn.qkv", Rows::All, XLABS),
    ("double_blocks.{}.processor.qkv_lora2", "double_blocks.{}.txt_attn.qkv", Rows::All, XLABS),
    ("double_blocks.{}.processor.proj_lora1", "double_blocks.{}.img_attn.proj", Rows::All, XLABS),
    ("double_blocks.{}.processor.proj_lora2", "double_blocks.{}.txt_attn.proj", Rows::All, XLABS),
    // Their `_lora` is taken for a part of the suffix.
    ("single_blocks.{}.processor.qkv", "single_blocks.{}.linear1", Rows::Squares, XLABS),
    ("single_blocks.{}.processor.proj", "single_blocks.{}.linear2", Rows::All, XLABS),
    ("single_blocks.{}.linear1_qkv", "single_blocks.{}.linear1", Rows::Squares, None),
    ("transformer_blocks.{}.attn.to_qkv", "double_blocks.{}.img_attn.qkv", Rows::All, None),
    ("transformer_blocks.{}.attn.to_added_qkv", "double_blocks.{}.txt_attn.qkv", Rows::All, None),
    ("single_transformer_blocks.{}.attn.to_qkv", "single_blocks.{}.linear1", Rows::Squares, None),
];
const XLABS: Option<&str> = Some("XLabs");

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

fn spellings() -> &'static [Spelling] {
    static TABLE: OnceLock<Vec<Spelling>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = vec![];
        let mut add = |component, stored: &str, canonical: &str, rows, dialect| {
            let (stored, flat) = (stored.to_string(), stored.replace('.', "_"));
            table.push(Spelling {
                component,
                stored,
                flat,
                canonical: format!("{canonical}.weight"),
                rows,
                dialect,
            });
        };
        for layer in FLUX {
            add(Component::Flux, layer, layer, Rows::All, None);
            for (stored, rows) in diffusers_spellings(layer) {
                add(Component::Flux, &stored, layer, rows, None);
            }
        }
        for (stored, canonical, rows, dialect) in OTHERS {
            add(Component::Flux, stored, canonical, rows, dialect);
        }
        for layer in T5 {
            add(Component::T5, layer, layer, Rows::All, None);
        }
        for (layer, old) in CLIP {
            let canonical = format!("text_model.encoder.layers.{{}}.{layer}");
            for name in [layer, old].into_iter().filter(|n| !n.is_empty()) {
                for root in ["text_model.", ""] {
                    let stored = format!("{root}encoder.layers.{{}}.{name}");
                    add(Component::Clip, &stored, &canonical, Rows::All, None);
                }
            }
        }
        table
    })
}

/// How diffusers spells a canonical layer, and the rows of each of its parts.
fn diffusers_spellings(layer: &str) -> Vec<(String, Rows)> {
    // The table of names knows blocks by number only.
    const NUMBER: &str = "9999";
    let name = layer.replace("{}", NUMBER) + ".weight";
    let Some((parts, swap)) = diffusers_names(Component::Flux, &name, 0) else { return vec![] };
    let rows = |i: usize| match (parts.len(), i) {
        (1, _) if swap => Rows::Swapped,
        (3, i) => Rows::Third(i),
        (4, 3) => Rows::Rest,
        (4, i) => Rows::Square(i),
        _ => Rows::All,
    };
    let spelling = |part: &str| part.trim_end_matches(".weight").replace(NUMBER, "{}");
    parts.iter().enumerate().map(|(i, part)| (spelling(part), rows(i))).collect()
}

/// Understands a key; `None` if it names no layer that a LoRA can be beside.
pub fn parse(key: &str) -> Option<Key<'_>> {
    splits(key).find_map(|(base, part)| {
        PREFIXES.iter().find_map(|(prefix, components, flat, trainer)| {
            let module = base.strip_prefix(prefix)?;
            // One trainer ends its names with an underscore.
            let layer = if *flat { module.strip_suffix('_').unwrap_or(module) } else { module };
            let (spelling, block) = find(layer, components, *flat)?;
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
                dialect: spelling
                    .dialect
                    .or(trainer.filter(|_| spelling.component == Component::Flux)),
            })
        })
    })
}

/// `key` without a prefix that is known, longest first.
pub fn without_prefix(key: &str) -> &str {
    PREFIXES
        .iter()
        .filter_map(|(prefix, ..)| key.strip_prefix(prefix))
        .min_by_key(|rest| rest.len())
        .unwrap_or(key)
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

fn find(
    layer: &str,
    components: &[Component],
    flat: bool,
) -> Option<(&'static Spelling, Option<usize>)> {
    // What old diffusers put between a block's attention and its matrices.
    let plain = layer.contains(".attn.processor.").then(|| layer.replacen(".processor.", ".", 1));
    let layer = plain.as_deref().unwrap_or(layer);
    spellings().iter().filter(|s| components.contains(&s.component)).find_map(|s| {
        let pattern = if flat { &s.flat } else { &s.stored };
        let Some((before, after)) = pattern.split_once("{}") else {
            return (pattern == layer).then_some((s, None));
        };
        let digits = layer.strip_prefix(before)?.strip_suffix(after)?;
        let number =
            digits.parse::<usize>().ok().filter(|n| *n < 10_000 && n.to_string() == digits)?;
        Some((s, Some(number)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::dialect::names::is_canonical;

    #[test]
    fn every_spelling_is_one_layers_alone_and_every_layer_is_canonical() {
        let mut seen = std::collections::BTreeSet::new();
        for s in spellings() {
            assert!(is_canonical(s.component, &s.canonical.replace("{}", "3")), "{}", s.canonical);
            assert!(seen.insert((s.component, s.stored.clone())), "{} twice", s.stored);
            assert!(seen.insert((s.component, format!("flat {}", s.flat))), "{} twice", s.flat);
        }
        assert_eq!(FLUX.iter().map(|l| diffusers_spellings(l).len()).sum::<usize>(), 30);
    }

    #[test]
    fn rows_divide_the_weights_of_flux() {
        let one = |row, rows| Some(vec![Block { row, from: 0, rows }]);
        assert_eq!(Rows::Third(2).of((9216, 3072)), one(6144, 3072));
        assert_eq!(Rows::Square(1).of((21504, 3072)), one(3072, 3072));
        assert_eq!(Rows::Rest.of((21504, 3072)), one(9216, 12288));
        assert_eq!(Rows::Squares.of((21504, 3072)), one(0, 9216));
        let halves = vec![Block { row: 0, from: 3, rows: 3 }, Block { row: 3, from: 0, rows: 3 }];
        assert_eq!(Rows::Swapped.of((6, 2)), Some(halves));
        assert_eq!(Rows::Third(0).of((8, 2)), None);
        assert_eq!(Rows::Rest.of((5, 2)), None);
    }
}
