//! What cannot be used with any FLUX.1 model, each by its name: other adapters than LoRA, LoRAs of other models, files that are no adapters.

use std::collections::HashSet;

use super::super::Component;
use super::collect::Found;
use super::names::without_prefix;
use super::summary::BASE_MODEL;
use crate::error::{Error, Result};
use crate::weights::container::file::WeightFile;
use crate::weights::container::safetensors::Entry;
use crate::weights::dialect::names::{Naming, Role, is_canonical, role};
use crate::weights::dialect::recognise::recognise;

/// How many keys an error names.
const NAMED: usize = 3;
const CONTROL: &str = "a BFL control LoRA (FLUX.1 Canny or Depth: it widens img_in for a control image, moves biases and replaces norms)";

/// Files that are no LoRA: (a part of a key, what it is).
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

/// The same, unless there is a LoRA beside it.
const EMBEDDINGS: [(&str, &str); 3] = [
    ("emb_params", "a textual inversion embedding"),
    ("string_to_param", "a textual inversion embedding"),
    ("bundle_emb.", "a textual inversion embedding"),
];

/// Models whose keys are never FLUX.1's: (a part of a key, the model). What is more special comes first.
const FOREIGN: [(&str, &str); 44] = [
    ("distilled_guidance_layer", "Chroma"),
    ("stream_modulation", "FLUX.2"),
    ("to_qkv_mlp_proj", "FLUX.2"),
    (".ff.linear_in", "FLUX.2"),
    ("double_stream_blocks", "HiDream"),
    ("single_stream_blocks", "HiDream"),
    ("individual_token_refiner", "HunyuanVideo"),
    ("img_mlp.fc1", "HunyuanVideo"),
    ("img_mlp_fc1", "HunyuanVideo"),
    ("img_mod.linear", "HunyuanVideo"),
    ("img_mod_linear", "HunyuanVideo"),
    ("img_attn_qkv.lora_A", "HunyuanVideo"),
    ("joint_transformer_blocks", "AuraFlow"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("img_mod.1", "Qwen-Image"),
    ("img_mod_1", "Qwen-Image"),
    ("txt_mod.1", "Qwen-Image"),
    ("txt_mod_1", "Qwen-Image"),
    ("img_mlp.net", "Qwen-Image"),
    ("img_mlp_net", "Qwen-Image"),
    ("noise_refiner", "Lumina 2 or Z-Image"),
    ("context_refiner", "Lumina 2 or Z-Image"),
    (".attention.to_q", "Lumina 2 or Z-Image"),
    ("_attention_to_q", "Lumina 2 or Z-Image"),
    ("caption_projection", "PixArt or LTX-Video"),
    (".cross_attn.", "Wan"),
    ("_cross_attn_", "Wan"),
    ("condition_embedder", "Wan"),
    ("lora_prior_", "Stable Cascade"),
    ("down_blocks.", SD),
    ("down_blocks_", SD),
    ("up_blocks.", SD),
    ("up_blocks_", SD),
    ("mid_block.", SD),
    ("mid_block_", SD),
    ("input_blocks.", SD),
    ("input_blocks_", SD),
    ("output_blocks.", SD),
    ("output_blocks_", SD),
    ("lora_te2_text_model_", "Stable Diffusion XL or 3"),
    ("text_encoder_2.text_model.", "Stable Diffusion XL or 3"),
    (".attn2.", "a model with cross-attention, such as LTX-Video, PixArt or Stable Diffusion"),
    ("_attn2_", "a model with cross-attention, such as LTX-Video, PixArt or Stable Diffusion"),
    ("model.layers.", "a language model"),
];
const SD: &str = "Stable Diffusion (1.x, 2.x or XL)";

/// Adapters that are not a pair of matrices: (a part of a key, what it is).
const OTHER_ADAPTERS: [(&str, &str); 18] = [
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".lokr_", "LoKr"),
    (".hada_", "LoHa"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".glora_", "GLoRA"),
    (".a1.weight", "GLoRA"),
    (".on_input", "IA3"),
    (".vera_lambda", "VeRA"),
    (".lora_mid.", "LoCon with a middle matrix, which is for convolutions"),
    (".set_weight", CONTROL),
    (".reshape_weight", CONTROL),
    (".qkv_proj.lora_", "LoRA in nunchaku's layout, packed for SVDQuant"),
    (".smooth_factor", "LoRA in nunchaku's layout, packed for SVDQuant"),
    (".lora_embedding_", "LoRA on an embedding table"),
    (".lora_E", "AdaLoRA"),
    (".ranknum", "AdaLoRA"),
];

/// Endings of tensors that are added to a whole weight, a bias or a norm. Trainers write them even where nothing was learnt.
const DIFFERENCES: [(&str, &str); 8] = [
    (".diff", "whole differences of weights (.diff)"),
    (".diff_b", "differences of biases (.diff_b)"),
    (".w_norm", "differences of norms (.w_norm)"),
    (".b_norm", "differences of norms (.b_norm)"),
    (".lora_B.bias", "differences of biases (lora_B.bias)"),
    (".lora_up.bias", "differences of biases (lora_up.bias)"),
    (".lora_A.bias", "biases inside of the pair (lora_A.bias)"),
    (".lora_down.bias", "biases inside of the pair (lora_down.bias)"),
];

/// Refuses what no FLUX.1 model can use. Differences that are zero everywhere are dropped with a note.
pub fn check(file: &WeightFile, found: &mut Found) -> Result<()> {
    let tensors = &file.header.tensors;
    let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    if let Some((what, key)) = first_of(&NO_LORA, tensors) {
        return Err(no_lora(what, key));
    }
    if let Some((model, key)) = first_of(&FOREIGN, tensors) {
        return Err(foreign(if model == SD { sd_version(tensors) } else { model }, key));
    }
    if let Some((what, key)) = first_of(&OTHER_ADAPTERS, tensors) {
        return Err(unsupported(
            what,
            key,
            tensors.iter().filter(|t| kind_of(t) == Some(what)).count(),
            tensors.len(),
        ));
    }
    if found.groups.is_empty() {
        return Err(match first_of(&EMBEDDINGS, tensors) {
            Some((what, key)) => no_lora(what, key),
            None => nothing_matched(file, &names),
        });
    }
    if let Some(whole) = names.iter().find(|n| is_whole_weight(n)) {
        let img_in = found.groups.iter().any(|g| g.weight == "img_in.weight");
        let what = if img_in { CONTROL } else { "LoRA that replaces whole weights besides" };
        let count = names.iter().filter(|n| is_whole_weight(n)).count();
        return Err(unsupported(what, whole, count, names.len()));
    }
    drop_differences(file, found)?;
    foreign_by_metadata(file, found)
}

/// The first entry of `table` that a key shows, with that key.
fn first_of<'t>(
    table: &[(&str, &'static str)],
    tensors: &'t [Entry],
) -> Option<(&'static str, &'t str)> {
    table.iter().find_map(|(part, what)| {
        tensors.iter().find(|t| t.name.contains(part)).map(|t| (*what, t.name.as_str()))
    })
}

fn kind_of(entry: &Entry) -> Option<&'static str> {
    OTHER_ADAPTERS.iter().find(|(part, _)| entry.name.contains(part)).map(|(_, what)| *what)
}

fn no_lora(what: &str, key: &str) -> Error {
    Error::model(format!("this is {what}, not a LoRA"))
        .at(key)
        .try_("use a plain LoRA of FLUX.1, in .safetensors")
}

fn unsupported(what: &str, key: &str, count: usize, all: usize) -> Error {
    let article = match what.as_bytes() {
        [b'a', b' ', ..] => "",
        [b'A' | b'I' | b'O', ..] => "an ",
        _ => "a ",
    };
    Error::model(format!("this is {article}{what}, which is not supported"))
        .at(key)
        .found(format!("{count} of {all} keys of that kind"))
        .expected("nothing but pairs such as lora_down and lora_up, or lora_A and lora_B")
        .try_("use a plain LoRA; most trainers and merging tools can extract one from the result")
}

/// The error of a LoRA for another model.
pub fn foreign(model: &str, key: &str) -> Error {
    Error::model("this LoRA was made for another model")
        .at(key)
        .found(format!("keys of {model}"))
        .expected("a LoRA of FLUX.1")
        .try_("use it with the model that it was made for, or look for its FLUX.1 version")
}

/// Tells Stable Diffusion's versions apart by the width of the text that cross-attention reads.
fn sd_version(tensors: &[Entry]) -> &'static str {
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
        _ => SD,
    }
}

/// A tensor of the model itself.
fn is_whole_weight(name: &str) -> bool {
    let name = without_prefix(name).replace(".modules_to_save.default.", ".");
    Component::ALL.iter().any(|c| is_canonical(*c, &name))
        || matches!(
            role(Component::Flux, Naming::Diffusers { levels: 0 }, &name),
            Role::Part { .. }
        )
}

fn nothing_matched(file: &WeightFile, names: &[&str]) -> Error {
    let shown: Vec<&str> = names.iter().take(NAMED).copied().collect();
    let found = match names.len() {
        0 => "no tensors at all".to_string(),
        n => format!("{n} keys, such as {}", shown.join(", ")),
    };
    let models = recognise(names);
    if let Some(first) = models.first() {
        let e = Error::model("this is a model, not a LoRA").found(first.component.title());
        return e.try_("give it by --model");
    }
    let trained = base_model(file)
        .map(|m| format!("; it says that it was trained on {m}"))
        .unwrap_or_default();
    Error::model("no key of this file is a LoRA of FLUX.1")
        .found(found + &trained)
        .expected(
            "keys such as lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight or \
             transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        )
        .try_("the file may be of another model; `flux-fast inspect FILE` lists its tensors")
}

/// Drops tensors of differences that are zero everywhere; others are refused.
fn drop_differences(file: &WeightFile, found: &mut Found) -> Result<()> {
    let mut dropped: HashSet<&str> = HashSet::new();
    for (ending, what) in DIFFERENCES {
        let tensors = || file.header.tensors.iter().filter(|t| t.name.ends_with(ending));
        for entry in tensors() {
            file.source.will_need(entry.range.clone())?;
            if file.source.bytes()[entry.range.clone()].iter().any(|b| *b != 0) {
                return Err(unsupported(
                    &format!("LoRA with {what}"),
                    &entry.name,
                    tensors().count(),
                    file.header.tensors.len(),
                ));
            }
            dropped.insert(&entry.name);
        }
        if tensors().next().is_some() {
            found.notes.push(format!("{} {what} are zero and were left out", tensors().count()));
        }
    }
    found.unmatched.retain(|u| !dropped.contains(u.key.as_str()));
    Ok(())
}

fn base_model(file: &WeightFile) -> Option<&str> {
    BASE_MODEL.iter().find_map(|k| file.header.metadata.get(*k)).map(String::as_str)
}

/// CLIP is the same in Stable Diffusion 1.x: where only text encoders are named, the header is asked.
fn foreign_by_metadata(file: &WeightFile, found: &mut Found) -> Result<()> {
    const OTHERS: [&str; 10] = [
        "sd_",
        "sd1",
        "sd3",
        "sdxl",
        "stable-diffusion",
        "hunyuan",
        "wan",
        "qwen",
        "chroma",
        "flux2",
    ];
    let Some(model) = base_model(file) else { return Ok(()) };
    let lower = model.to_lowercase();
    if !OTHERS.iter().any(|o| lower.starts_with(o)) {
        return Ok(());
    }
    match found.groups.iter().find(|g| g.component == Component::Flux) {
        Some(_) => {
            found.notes.push(format!(
                "its names are FLUX.1's, but it says that it was trained on {model}"
            ));
            Ok(())
        }
        None => Err(foreign(model, &found.groups[0].base)),
    }
}
