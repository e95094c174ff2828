//! What a set of tensor names is: which components, in which naming, behind which prefix. File names are never asked.

use super::names::{Naming, vae_levels};
use crate::weights::Component;

/// A component found among the tensors of one file (or of the shards of one model).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub component: Component,
    pub naming: Naming,
    /// What stands before every name, with its dot; often nothing.
    pub prefix: String,
}

/// Names whose presence shows a component. Several for each, so that a file which lacks one tensor is still recognised, and the error names that tensor.
const MARKERS: [(Component, Naming, &[&str]); 7] = [
    (
        Component::Flux,
        Naming::Canonical,
        &[
            "double_blocks.0.img_attn.qkv.weight",
            "double_blocks.0.img_attn.proj.weight",
            "single_blocks.0.linear1.weight",
        ],
    ),
    (
        Component::Flux,
        Naming::Diffusers { levels: 0 },
        &[
            "single_transformer_blocks.0.attn.to_q.weight",
            "single_transformer_blocks.0.proj_mlp.weight",
        ],
    ),
    (
        Component::T5,
        Naming::Canonical,
        &[
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        ],
    ),
    (Component::T5, Naming::LlamaCpp, &["enc.blk.0.attn_q.weight", "enc.blk.0.ffn_gate.weight"]),
    (
        Component::Clip,
        Naming::Canonical,
        &[
            "text_model.encoder.layers.0.self_attn.q_proj.weight",
            "text_model.encoder.layers.0.mlp.fc1.weight",
        ],
    ),
    (
        Component::Vae,
        Naming::Canonical,
        &["decoder.mid.block_1.conv1.weight", "encoder.mid.block_1.conv1.weight"],
    ),
    (
        Component::Vae,
        Naming::Diffusers { levels: 0 },
        &["decoder.mid_block.resnets.0.conv1.weight", "encoder.mid_block.resnets.0.conv1.weight"],
    ),
];

/// The components among `names`, at most one of each.
pub fn recognise(names: &[&str]) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for (component, naming, markers) in MARKERS {
        if found.iter().any(|f| f.component == component) {
            continue;
        }
        let Some(prefix) = markers.iter().find_map(|m| shortest_prefix(names, m)) else { continue };
        let naming = match (component, naming) {
            (Component::Vae, Naming::Diffusers { .. }) => Naming::Diffusers {
                levels: vae_levels(names.iter().filter_map(|n| n.strip_prefix(prefix))),
            },
            (_, naming) => naming,
        };
        found.push(Found { component, naming, prefix: prefix.into() });
    }
    if !found.iter().any(|f| f.component == Component::Clip)
        && let Some(prefix) = shortest_prefix(names, "encoder.layers.0.self_attn.q_proj.weight")
        && names.iter().any(|n| {
            n.strip_prefix(prefix).is_some_and(|n| n.starts_with("embeddings.token_embedding."))
        })
    {
        found.push(Found {
            component: Component::Clip,
            naming: Naming::BareClip,
            prefix: prefix.into(),
        });
    }
    found
}

/// What stands before `marker` in the names that end with it; the shortest, since copies (EMA) carry longer ones.
fn shortest_prefix<'a>(names: &[&'a str], marker: &str) -> Option<&'a str> {
    let prefixes = names
        .iter()
        .filter_map(|n| n.strip_suffix(marker))
        .filter(|p| p.is_empty() || p.ends_with('.'));
    prefixes.min_by_key(|p| (p.len(), *p))
}

/// Whether the names are those of a LoRA (or LoKr, LoHa, DoRA), which changes a model but is none.
pub fn is_lora(names: &[&str]) -> bool {
    const PARTS: [&str; 9] = [
        ".lora_A.",
        ".lora_B.",
        ".lora_down.",
        ".lora_up.",
        ".lora.down.",
        "_lora.down.",
        ".lokr_w1",
        ".hada_w1_a",
        "_lora1.down.",
    ];
    names.iter().any(|n| PARTS.iter().any(|p| n.contains(p)))
}

/// A way of storing weights that cannot be read here, by the tensors that give it away: (ending of the name, what it is).
const FOREIGN_STORAGE: [(&str, &str); 5] = [
    (".SCB", "bitsandbytes int8"),
    (".wscales", "SVDQuant (nunchaku)"),
    (".qweight", "SVDQuant, GPTQ or AWQ"),
    (".weight_zero_point", "integer quantisation with zero points"),
    (".weight_qtype", "optimum-quanto"),
];

/// The unreadable storage that `name` gives away, if it does.
pub fn foreign_storage(name: &str) -> Option<&'static str> {
    FOREIGN_STORAGE.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, what)| *what)
}

/// Other image models, by a part of their tensor names.
const FOREIGN_MODELS: [(&str, &str); 7] = [
    ("double_stream_modulation_img.", "a FLUX.2 model"),
    ("distilled_guidance_layer.", "a Chroma model"),
    ("joint_blocks.0.", "a Stable Diffusion 3 model"),
    ("input_blocks.0.0.", "a Stable Diffusion model (1.x, 2.x or XL)"),
    ("down_blocks.0.attentions.", "a Stable Diffusion model (1.x, 2.x or XL) in diffusers' names"),
    ("controlnet_blocks.", "a ControlNet"),
    ("redux_up.", "a FLUX Redux adapter"),
];

/// Which other model the names are of, as far as they are known.
pub fn foreign_model(names: &[&str]) -> Option<&'static str> {
    FOREIGN_MODELS
        .iter()
        .find(|(part, _)| names.iter().any(|n| n.contains(part)))
        .map(|(_, what)| *what)
}
