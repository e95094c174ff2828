//! Refuses what no model of a family can use, each by its name: other adapters than LoRA, LoRAs of
//! other models, files that are not adapters.

use std::collections::HashSet;

use super::group::{Group, Grouped, base_model};
use super::keys::{LoraKeys, Part};
use super::values::all_zero;
use crate::error::{Error, Result};
use crate::spec::foreign::STABLE_DIFFUSION;
use crate::spec::names::Meaning;
use crate::spec::{Family, Role};
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::TensorEntry;
use crate::weights::dialect::recognise::recognise;

/// The number of keys that an error names.
const NAMED: usize = 3;
const CONTROL: &str = "a control LoRA in the form into which ComfyUI converts BFL's";
/// The kind of an adapter for convolutions.
const TUCKER: &str = "LoKr or LoHa with a third factor, which is for convolutions";

/// Files that are not a LoRA: (a part of a key, what it is).
const NO_LORA: [(&str, &str); 8] = [
    ("ip_adapter", "an IP-Adapter"),
    ("image_proj.", "an IP-Adapter"),
    ("controlnet_blocks.", "a ControlNet"),
    ("controlnet_single_blocks.", "a ControlNet"),
    ("input_hint_block.", "a ControlNet"),
    ("control_model.", "a ControlNet"),
    ("redux_up.", "a FLUX Redux adapter"),
    ("pulid_", "a PuLID adapter"),
];

/// The same, unless the file also contains a LoRA.
const EMBEDDINGS: [(&str, &str); 3] = [
    ("emb_params", "a textual inversion embedding"),
    ("string_to_param", "a textual inversion embedding"),
    ("bundle_emb.", "a textual inversion embedding"),
];

/// Adapters that are not a pair of matrices: (a part of a key, what it is).
const OTHER_ADAPTERS: [(&str, &str); 26] = [
    (".lokr_t1", TUCKER),
    (".lokr_t2", TUCKER),
    (".hada_t1", TUCKER),
    (".hada_t2", TUCKER),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".glora_", "GLoRA"),
    (".a1.weight", "GLoRA"),
    (".on_input", "IA3"),
    (".ia3_l", "IA3"),
    (".hra_u", "HRA"),
    (".fourierft_spectrum", "FourierFT"),
    (".vblora_", "VB-LoRA"),
    (".randlora_", "RandLoRA"),
    (".bone_", "Bone"),
    (".c3a_kernel", "C3A"),
    (".road_", "RoAd"),
    (".q_loras.", "EasyControl adapter"),
    (".vera_lambda", "VeRA"),
    (".lora_mid.", "LoCon with a middle matrix, which is for convolutions"),
    (".reshape_weight", CONTROL),
    (".qkv_proj.lora_", "LoRA in nunchaku's layout, packed for SVDQuant"),
    (".smooth_factor", "LoRA in nunchaku's layout, packed for SVDQuant"),
    (".lora_embedding_", "LoRA on an embedding table"),
    (".lora_E", "AdaLoRA"),
    (".ranknum", "AdaLoRA"),
];

/// Endings of tensors that are added to a whole weight, a bias or a norm. Trainers write them even
/// if all values are zero.
const DIFFERENCES: [(&str, &str); 8] = [
    (".diff", "whole differences of weights (.diff)"),
    (".diff_b", "differences of biases (.diff_b)"),
    (".w_norm", "differences of norms (.w_norm)"),
    (".b_norm", "differences of norms (.b_norm)"),
    (".lora_B.bias", "differences of biases (lora_B.bias)"),
    (".lora_up.bias", "differences of biases (lora_up.bias)"),
    (".lora_A.bias", "biases of the down matrix (lora_A.bias)"),
    (".lora_down.bias", "biases of the down matrix (lora_down.bias)"),
];

/// Refuses what no model of the family can use. Differences that are zero everywhere are dropped
/// with a note.
pub fn check(file: &WeightFile, keys: &LoraKeys, found: &mut Grouped) -> Result<()> {
    let family = keys.family;
    drop_zeros(file, found)?;
    // Tensors without an effect need not be understood.
    let unmatched = found.unmatched.iter().map(|u| u.key.as_str());
    let grouped = found.groups.iter().flat_map(Group::keys);
    let named: HashSet<&str> =
        unmatched.chain(grouped.map(|i| file.header.tensors[i].name.as_str())).collect();
    let all = &file.header.tensors;
    let tensors: Vec<&TensorEntry> =
        all.iter().filter(|t| named.contains(t.name.as_str())).collect();
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    if let Some((what, key)) = first_of(&NO_LORA, &tensors) {
        return Err(no_lora(family, what, key));
    }
    if let Some((model, key)) = first_of(family.lora.foreign, &tensors) {
        let model = if model == STABLE_DIFFUSION { sd_version(&tensors) } else { model };
        return Err(foreign(family, model, key));
    }
    if let Some((what, key)) = first_of(&OTHER_ADAPTERS, &tensors) {
        return Err(unsupported(
            what,
            key,
            tensors.iter().filter(|t| kind_of(t) == Some(what)).count(),
            tensors.len(),
        ));
    }
    if found.groups.is_empty() {
        return match first_of(&EMBEDDINGS, &tensors) {
            Some((what, key)) => Err(no_lora(family, what, key)),
            None => {
                let all: Vec<&str> = all.iter().map(|t| t.name.as_str()).collect();
                Err(nothing_matched(file, family, &all))
            }
        };
    }
    // The gains of control LoRAs have the names of weights, too.
    let gains = found.groups.iter().filter_map(|group| group.parts.get(&Part::Gain));
    let gains: HashSet<&str> = gains.map(|i| all[*i].name.as_str()).collect();
    let is_whole = |name: &&&str| !gains.contains(**name) && is_whole_weight(keys, name);
    if let Some(whole) = names.iter().find(is_whole) {
        let what = "LoRA that also replaces whole weights";
        let count = names.iter().filter(is_whole).count();
        return Err(unsupported(what, whole, count, names.len()));
    }
    foreign_by_metadata(file, family, found)?;
    not_understood(found, names.len())
}

/// Refuses a file of which only a part is understood: the part alone would draw an image that is
/// neither the one with the LoRA nor the one without.
fn not_understood(found: &Grouped, all: usize) -> Result<()> {
    let Some(first) = found.unknown.first() else { return Ok(()) };
    Err(Error::model("a part of this LoRA is not understood, so none of it is used")
        .at(&first.key)
        .found(format!("{}; {} of {all} keys like that", first.why, found.unknown.len()))
        .expected("keys of layers that the model has, in the names of a known trainer")
        .try_("look for the same LoRA in the names of another tool, such as ComfyUI or diffusers"))
}

/// The first entry of `table` that a key shows, with that key.
fn first_of<'t>(
    table: &[(&str, &'static str)],
    tensors: &[&'t TensorEntry],
) -> Option<(&'static str, &'t str)> {
    table.iter().find_map(|(part, what)| {
        tensors.iter().find(|t| t.name.contains(part)).map(|t| (*what, t.name.as_str()))
    })
}

fn kind_of(entry: &TensorEntry) -> Option<&'static str> {
    OTHER_ADAPTERS.iter().find(|(part, _)| entry.name.contains(part)).map(|(_, what)| *what)
}

fn no_lora(family: &Family, what: &str, key: &str) -> Error {
    let e = Error::model(format!("this is {what}, not a LoRA")).at(key);
    match what.contains("Redux") {
        true => e.try_("{style} with an image, and {redux} with this file"),
        false => e.try_(format!("use a plain LoRA of {}, in .safetensors", family.title)),
    }
}

fn unsupported(what: &str, key: &str, count: usize, all: usize) -> Error {
    let article = match what.as_bytes() {
        [b'a', b' ', ..] => "",
        [b'A' | b'E' | b'I' | b'O', ..] => "an ",
        _ => "a ",
    };
    Error::model(format!("this is {article}{what}, which is not supported"))
        .at(key)
        .found(format!("{count} of {all} keys of that kind"))
        .expected("only pairs such as lora_down and lora_up, or lora_A and lora_B")
        .try_("use a plain LoRA; most trainers and merging tools can extract one from the result")
}

/// The error of a LoRA for another model.
pub fn foreign(family: &Family, model: &str, key: &str) -> Error {
    Error::model("this LoRA was made for another model")
        .at(key)
        .found(format!("keys of {model}"))
        .expected(format!("a LoRA of {}", family.title))
        .try_(format!(
            "use it with the model that it was made for, or look for its {} version",
            family.title
        ))
}

/// The version of Stable Diffusion, from the width of the text that cross-attention reads.
fn sd_version(tensors: &[&TensorEntry]) -> &'static str {
    let width = tensors.iter().find_map(|t| {
        let reads_text =
            t.name.contains("attn2") && (t.name.contains("to_k") || t.name.contains("to_v"));
        let down = t.name.contains("down.weight") || t.name.contains("lora_A");
        t.shape.get(1).copied().filter(|_| reads_text && down)
    });
    match width {
        Some(768) => "Stable Diffusion 1.x",
        Some(1024) => "Stable Diffusion 2.x",
        Some(2048) => "Stable Diffusion XL",
        _ => STABLE_DIFFUSION,
    }
}

/// Whether `name` is a tensor of the model itself.
fn is_whole_weight(keys: &LoraKeys, name: &str) -> bool {
    let name = name.replace(".modules_to_save.default.", ".");
    keys.behind_prefixes(&name, &|name| {
        keys.family.components.iter().any(|c| {
            let part = |d| matches!(c.meaning(d, 0, name), Meaning::Part { .. });
            c.is_canonical(name) || c.role == Role::Transformer && c.0.dialects.iter().any(part)
        })
    })
}

fn nothing_matched(file: &WeightFile, family: &'static Family, names: &[&str]) -> Error {
    let shown: Vec<&str> = names.iter().take(NAMED).copied().collect();
    let found = match names.len() {
        0 => "no tensors at all".to_string(),
        n => format!("{n} keys, such as {}", shown.join(", ")),
    };
    let models = recognise(names, crate::spec::FAMILIES);
    if let Some(first) = models.first() {
        let e = Error::model("this is a model, not a LoRA").found(first.component.title);
        return e.try_("give it with {model}");
    }
    let trained = base_model(file)
        .map(|m| format!("; its metadata names the base model {m}"))
        .unwrap_or_default();
    Error::model(format!("no key of this file is a LoRA of {}", family.title))
        .found(found + &trained)
        .expected(family.lora.example)
        .try_("the file may be of another model; {:inspect FILE} lists its tensors")
}

/// Drops difference tensors that are zero everywhere, with a note.
fn drop_zeros(file: &WeightFile, found: &mut Grouped) -> Result<()> {
    let mut dropped: HashSet<&str> = HashSet::new();
    for (ending, what) in DIFFERENCES {
        let mut count = 0;
        for (i, entry) in file.header.tensors.iter().enumerate() {
            if entry.name.ends_with(ending) && all_zero(file, i)? {
                dropped.insert(&entry.name);
                count += 1;
            }
        }
        if count > 0 {
            found.notes.push(format!("{count} {what} are zero and were left out"));
        }
    }
    let name = |i: usize| file.header.tensors[i].name.as_str();
    for group in &mut found.groups {
        group.parts.retain(|_, i| !dropped.contains(name(*i)));
    }
    found.groups.retain(|g| g.parts.keys().any(|part| *part != Part::Alpha));
    found.unmatched.retain(|u| !dropped.contains(u.key.as_str()));
    found.unknown.retain(|u| !dropped.contains(u.key.as_str()));
    Ok(())
}

/// Stable Diffusion 1.x has the same CLIP. If a file names text encoders only, its metadata
/// decides.
fn foreign_by_metadata(file: &WeightFile, family: &Family, found: &mut Grouped) -> Result<()> {
    let Some(model) = base_model(file) else { return Ok(()) };
    let lower = model.to_lowercase();
    if !family.lora.foreign_bases.iter().any(|o| lower.starts_with(o)) {
        return Ok(());
    }
    match found.groups.iter().find(|g| g.layer.component.role == Role::Transformer) {
        Some(_) => {
            found.notes.push(format!(
                "its names are those of {}, but its metadata names the base model {model}",
                family.title
            ));
            Ok(())
        }
        None => Err(foreign(family, model, &found.groups[0].base)),
    }
}
