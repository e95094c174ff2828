//! Canonical names, and how the dialects spell them. One table serves both directions: reading maps stored names to canonical ones,
//! writing synthetic checkpoints maps canonical names to stored ones.
//!
//! Canonical are BFL's names for the transformer and the autoencoder, Hugging Face's for T5 and CLIP.

use crate::weights::Component;

/// How a component's tensors are named within a file, apart from a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Naming {
    /// The canonical names.
    Canonical,
    /// diffusers' names of the transformer or the autoencoder; `levels` is how many resolutions an autoencoder has.
    Diffusers { levels: usize },
    /// CLIP without the leading `text_model.`.
    BareClip,
    /// llama.cpp's names of T5, as GGUF files have them.
    LlamaCpp,
}

/// What a stored tensor is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Part `part` of the `parts` that make up the canonical tensor, stacked by rows; with `swap` its two halves of rows change places.
    Part { canonical: String, part: usize, parts: usize, swap: bool },
    /// Another name of the canonical tensor, used where that one is absent.
    Alias { canonical: String },
    /// Known, and of no use here (`logit_scale`, `position_ids` ...).
    Unused,
    /// Not known.
    Unknown,
}

/// A transformer layer: canonical name and diffusers' name(s). `{}` stands for a number.
struct Layer {
    canonical: &'static str,
    stored: &'static [&'static str],
    what: What,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    /// Names stand for `.weight` and `.bias`.
    Affine,
    /// Whole names of a vector without bias.
    Gain,
    /// Affine, rows stored as (scale, shift) where the canonical order is (shift, scale).
    Swapped,
}

const fn affine(canonical: &'static str, stored: &'static [&'static str]) -> Layer {
    Layer { canonical, stored, what: What::Affine }
}

const fn gain(canonical: &'static str, stored: &'static [&'static str]) -> Layer {
    Layer { canonical, stored, what: What::Gain }
}

const FLUX: [Layer; 29] = [
    affine("img_in", &["x_embedder"]),
    affine("txt_in", &["context_embedder"]),
    affine("time_in.in_layer", &["time_text_embed.timestep_embedder.linear_1"]),
    affine("time_in.out_layer", &["time_text_embed.timestep_embedder.linear_2"]),
    affine("vector_in.in_layer", &["time_text_embed.text_embedder.linear_1"]),
    affine("vector_in.out_layer", &["time_text_embed.text_embedder.linear_2"]),
    affine("guidance_in.in_layer", &["time_text_embed.guidance_embedder.linear_1"]),
    affine("guidance_in.out_layer", &["time_text_embed.guidance_embedder.linear_2"]),
    affine("double_blocks.{}.img_mod.lin", &["transformer_blocks.{}.norm1.linear"]),
    affine("double_blocks.{}.txt_mod.lin", &["transformer_blocks.{}.norm1_context.linear"]),
    affine(
        "double_blocks.{}.img_attn.qkv",
        &[
            "transformer_blocks.{}.attn.to_q",
            "transformer_blocks.{}.attn.to_k",
            "transformer_blocks.{}.attn.to_v",
        ],
    ),
    affine(
        "double_blocks.{}.txt_attn.qkv",
        &[
            "transformer_blocks.{}.attn.add_q_proj",
            "transformer_blocks.{}.attn.add_k_proj",
            "transformer_blocks.{}.attn.add_v_proj",
        ],
    ),
    gain(
        "double_blocks.{}.img_attn.norm.query_norm.scale",
        &["transformer_blocks.{}.attn.norm_q.weight"],
    ),
    gain(
        "double_blocks.{}.img_attn.norm.key_norm.scale",
        &["transformer_blocks.{}.attn.norm_k.weight"],
    ),
    gain(
        "double_blocks.{}.txt_attn.norm.query_norm.scale",
        &["transformer_blocks.{}.attn.norm_added_q.weight"],
    ),
    gain(
        "double_blocks.{}.txt_attn.norm.key_norm.scale",
        &["transformer_blocks.{}.attn.norm_added_k.weight"],
    ),
    affine("double_blocks.{}.img_attn.proj", &["transformer_blocks.{}.attn.to_out.0"]),
    affine("double_blocks.{}.txt_attn.proj", &["transformer_blocks.{}.attn.to_add_out"]),
    affine("double_blocks.{}.img_mlp.0", &["transformer_blocks.{}.ff.net.0.proj"]),
    affine("double_blocks.{}.img_mlp.2", &["transformer_blocks.{}.ff.net.2"]),
    affine("double_blocks.{}.txt_mlp.0", &["transformer_blocks.{}.ff_context.net.0.proj"]),
    affine("double_blocks.{}.txt_mlp.2", &["transformer_blocks.{}.ff_context.net.2"]),
    affine("single_blocks.{}.modulation.lin", &["single_transformer_blocks.{}.norm.linear"]),
    affine(
        "single_blocks.{}.linear1",
        &[
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
            "single_transformer_blocks.{}.proj_mlp",
        ],
    ),
    affine("single_blocks.{}.linear2", &["single_transformer_blocks.{}.proj_out"]),
    gain(
        "single_blocks.{}.norm.query_norm.scale",
        &["single_transformer_blocks.{}.attn.norm_q.weight"],
    ),
    gain(
        "single_blocks.{}.norm.key_norm.scale",
        &["single_transformer_blocks.{}.attn.norm_k.weight"],
    ),
    affine("final_layer.linear", &["proj_out"]),
    Layer {
        canonical: "final_layer.adaLN_modulation.1",
        stored: &["norm_out.linear"],
        what: What::Swapped,
    },
];

/// The autoencoder's layers below `encoder.` and `decoder.`, canonical and diffusers' names; all have weight and bias.
const VAE: [(&str, &str); 20] = [
    ("conv_in", "conv_in"),
    ("conv_out", "conv_out"),
    ("norm_out", "conv_norm_out"),
    ("mid.block_1.{r}", "mid_block.resnets.0.{r}"),
    ("mid.block_2.{r}", "mid_block.resnets.1.{r}"),
    ("mid.attn_1.norm", "mid_block.attentions.0.group_norm"),
    ("mid.attn_1.q", "mid_block.attentions.0.to_q"),
    ("mid.attn_1.k", "mid_block.attentions.0.to_k"),
    ("mid.attn_1.v", "mid_block.attentions.0.to_v"),
    ("mid.attn_1.proj_out", "mid_block.attentions.0.to_out.0"),
    ("down.{}.block.{}.{r}", "down_blocks.{}.resnets.{}.{r}"),
    ("down.{}.block.{}.nin_shortcut", "down_blocks.{}.resnets.{}.conv_shortcut"),
    ("down.{}.downsample.conv", "down_blocks.{}.downsamplers.0.conv"),
    // Canonical `up` counts from the highest resolution, diffusers' `up_blocks` from the lowest.
    ("up.{-}.block.{}.{r}", "up_blocks.{-}.resnets.{}.{r}"),
    ("up.{-}.block.{}.nin_shortcut", "up_blocks.{-}.resnets.{}.conv_shortcut"),
    ("up.{-}.upsample.conv", "up_blocks.{-}.upsamplers.0.conv"),
    // Files from before diffusers 0.17.
    ("mid.attn_1.q", "mid_block.attentions.0.query"),
    ("mid.attn_1.k", "mid_block.attentions.0.key"),
    ("mid.attn_1.v", "mid_block.attentions.0.value"),
    ("mid.attn_1.proj_out", "mid_block.attentions.0.proj_attn"),
];

const T5: [&str; 12] = [
    "shared.weight",
    "encoder.block.{}.layer.0.SelfAttention.q.weight",
    "encoder.block.{}.layer.0.SelfAttention.k.weight",
    "encoder.block.{}.layer.0.SelfAttention.v.weight",
    "encoder.block.{}.layer.0.SelfAttention.o.weight",
    "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
    "encoder.block.{}.layer.0.layer_norm.weight",
    "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight",
    "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight",
    "encoder.block.{}.layer.1.DenseReluDense.wo.weight",
    "encoder.block.{}.layer.1.layer_norm.weight",
    "encoder.final_layer_norm.weight",
];

/// llama.cpp's names of the tensors of `T5`, in its order.
const LLAMA_T5: [&str; 12] = [
    "token_embd.weight",
    "enc.blk.{}.attn_q.weight",
    "enc.blk.{}.attn_k.weight",
    "enc.blk.{}.attn_v.weight",
    "enc.blk.{}.attn_o.weight",
    "enc.blk.{}.attn_rel_b.weight",
    "enc.blk.{}.attn_norm.weight",
    "enc.blk.{}.ffn_gate.weight",
    "enc.blk.{}.ffn_up.weight",
    "enc.blk.{}.ffn_down.weight",
    "enc.blk.{}.ffn_norm.weight",
    "enc.output_norm.weight",
];

/// CLIP below `text_model.`; embeddings have no bias.
const CLIP: [&str; 11] = [
    "embeddings.token_embedding",
    "embeddings.position_embedding",
    "encoder.layers.{}.self_attn.q_proj",
    "encoder.layers.{}.self_attn.k_proj",
    "encoder.layers.{}.self_attn.v_proj",
    "encoder.layers.{}.self_attn.out_proj",
    "encoder.layers.{}.layer_norm1",
    "encoder.layers.{}.layer_norm2",
    "encoder.layers.{}.mlp.fc1",
    "encoder.layers.{}.mlp.fc2",
    "final_layer_norm",
];

/// Tensors of the rest of CLIP or T5 that text-to-image never uses, by what their names contain.
const UNUSED: [&str; 8] = [
    "logit_scale",
    "text_projection",
    "position_ids",
    "vision_model.",
    "visual_projection",
    "lm_head.",
    "decoder.block.",
    "decoder.final_layer_norm",
];

/// One thing that a placeholder of a pattern stood for.
#[derive(Clone, Copy)]
enum Bound<'a> {
    Number(usize),
    Word(&'a str),
}

/// Matches a dotted name against a dotted pattern: `{}` and `{-}` stand for a number without leading zeros, `{r}` for a layer of a
/// residual block.
fn bind<'a>(pattern: &str, name: &'a str) -> Option<Vec<Bound<'a>>> {
    let mut bound = Vec::new();
    let (mut p, mut n) = (pattern.split('.'), name.split('.'));
    loop {
        match (p.next(), n.next()) {
            (None, None) => return Some(bound),
            (Some("{}" | "{-}"), Some(digits)) => {
                let number = digits
                    .parse::<usize>()
                    .ok()
                    .filter(|i| *i < 10_000 && i.to_string() == digits)?;
                bound.push(Bound::Number(number));
            }
            (Some("{r}"), Some(word)) => {
                bound.push(Bound::Word(
                    Some(word).filter(|w| matches!(*w, "norm1" | "conv1" | "norm2" | "conv2"))?,
                ));
            }
            (Some(a), Some(b)) if a == b => {}
            _ => return None,
        }
    }
}

/// Fills the placeholders of `pattern`; `{-}` counts down from `levels - 1`.
fn fill(pattern: &str, bound: &[Bound], levels: usize) -> Option<String> {
    let mut bound = bound.iter();
    let segments = pattern.split('.').map(|segment| {
        Some(match (segment, segment.starts_with('{').then(|| bound.next()).flatten()) {
            ("{-}", Some(Bound::Number(i))) => levels.checked_sub(1)?.checked_sub(*i)?.to_string(),
            ("{}", Some(Bound::Number(i))) => i.to_string(),
            ("{r}", Some(Bound::Word(w))) => w.to_string(),
            _ => segment.to_string(),
        })
    });
    Some(segments.collect::<Option<Vec<_>>>()?.join("."))
}

/// `name` without `.weight` or `.bias`, and what was taken off.
fn split_affine(name: &str) -> Option<(&str, &str)> {
    [".weight", ".bias"].iter().find_map(|suffix| Some((name.strip_suffix(suffix)?, *suffix)))
}

/// Whether `name` is a canonical name that a `component` may have.
pub fn is_canonical(component: Component, name: &str) -> bool {
    let layer = split_affine(name);
    match component {
        Component::Flux => FLUX.iter().any(|l| match (l.what, layer) {
            (What::Gain, _) => bind(l.canonical, name).is_some(),
            (_, Some((base, _))) => bind(l.canonical, base).is_some(),
            _ => false,
        }),
        Component::T5 => T5.iter().any(|p| bind(p, name).is_some()),
        Component::Clip => layer.is_some_and(|(base, suffix)| {
            base.strip_prefix("text_model.")
                .is_some_and(|base| CLIP.iter().any(|p| bind(p, base).is_some()))
                && (suffix == ".weight" || !base.contains(".embeddings."))
        }),
        Component::Vae => {
            layer.and_then(|(base, _)| base.split_once('.')).is_some_and(|(side, base)| {
                let other_side = match side {
                    "encoder" => "up.",
                    "decoder" => "down.",
                    _ => return false,
                };
                !base.starts_with(other_side) && VAE.iter().any(|(p, _)| bind(p, base).is_some())
            })
        }
    }
}

/// What the tensor `name` (without the file's prefix) of `component` is for.
pub fn role(component: Component, naming: Naming, name: &str) -> Role {
    let whole = |canonical: String| Role::Part { canonical, part: 0, parts: 1, swap: false };
    let known = match (component, naming) {
        (_, Naming::Canonical) => is_canonical(component, name).then(|| whole(name.to_string())),
        (_, Naming::BareClip) => Some(format!("text_model.{name}"))
            .filter(|n| is_canonical(Component::Clip, n))
            .map(whole),
        (_, Naming::LlamaCpp) => {
            let found = LLAMA_T5
                .iter()
                .zip(T5)
                .find_map(|(stored, canonical)| fill(canonical, &bind(stored, name)?, 0));
            found.map(whole)
        }
        (Component::Vae, Naming::Diffusers { levels }) => diffusers_vae(name, levels).map(whole),
        (_, Naming::Diffusers { .. }) => diffusers_flux(name),
    };
    known.unwrap_or_else(|| {
        if component == Component::T5 && name == "encoder.embed_tokens.weight" {
            Role::Alias { canonical: "shared.weight".into() }
        } else if matches!(component, Component::T5 | Component::Clip)
            && (UNUSED.iter().any(|u| name.contains(u))
                || (naming == Naming::LlamaCpp && name.starts_with("dec.")))
        {
            Role::Unused
        } else {
            Role::Unknown
        }
    })
}

fn diffusers_flux(name: &str) -> Option<Role> {
    let affine = split_affine(name);
    FLUX.iter().find_map(|layer| {
        layer.stored.iter().enumerate().find_map(|(part, pattern)| {
            let (bound, suffix) = match layer.what {
                What::Gain => (bind(pattern, name)?, ""),
                _ => (bind(pattern, affine?.0)?, affine?.1),
            };
            let canonical = fill(layer.canonical, &bound, 0)? + suffix;
            Some(Role::Part {
                canonical,
                part,
                parts: layer.stored.len(),
                swap: layer.what == What::Swapped,
            })
        })
    })
}

fn diffusers_vae(name: &str, levels: usize) -> Option<String> {
    let (base, suffix) = split_affine(name)?;
    let (side, base) = base.split_once('.')?;
    let canonical =
        VAE.iter().find_map(|(canonical, stored)| fill(canonical, &bind(stored, base)?, levels))?;
    Some(format!("{side}.{canonical}{suffix}")).filter(|n| is_canonical(Component::Vae, n))
}

/// How llama.cpp spells T5's canonical tensor `name`.
pub fn llama_name(name: &str) -> Option<String> {
    T5.iter().zip(LLAMA_T5).find_map(|(canonical, stored)| fill(stored, &bind(canonical, name)?, 0))
}

/// How diffusers spells the canonical tensor `name`: the parts' names in order, and whether the halves of its rows change places.
/// `None` where the name stays as it is.
pub fn diffusers_names(
    component: Component,
    name: &str,
    levels: usize,
) -> Option<(Vec<String>, bool)> {
    let affine = split_affine(name);
    match component {
        Component::T5 | Component::Clip => None,
        Component::Vae => {
            let (base, suffix) = affine?;
            let (side, base) = base.split_once('.')?;
            let stored = VAE
                .iter()
                .find_map(|(canonical, stored)| fill(stored, &bind(canonical, base)?, levels))?;
            Some((vec![format!("{side}.{stored}{suffix}")], false))
        }
        Component::Flux => FLUX.iter().find_map(|layer| {
            let (bound, suffix) = match layer.what {
                What::Gain => (bind(layer.canonical, name)?, ""),
                _ => (bind(layer.canonical, affine?.0)?, affine?.1),
            };
            let names = layer
                .stored
                .iter()
                .map(|s| Some(fill(s, &bound, 0)? + suffix))
                .collect::<Option<_>>()?;
            Some((names, layer.what == What::Swapped))
        }),
    }
}

/// How many resolutions an autoencoder with these names has, in diffusers' or canonical names.
pub fn vae_levels<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let level = |name: &str| {
        let rest = ["decoder.up_blocks.", "encoder.down_blocks.", "decoder.up.", "encoder.down."]
            .iter()
            .find_map(|p| name.strip_prefix(p))?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    names.filter_map(level).max().map_or(0, |n| n.saturating_add(1))
}
