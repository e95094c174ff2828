//! The text model of CLIP ViT-L/14, whose pooled embedding FLUX.1 reads.

use super::affine;
use crate::spec::family::{
    ComponentSpec, Diffusers, Fact, FileNames, Fit, Role, Tokenizer, Variant,
};
use crate::spec::lora::{LoraLayers, LoraSpelling};
use crate::spec::names::{Dialect, Naming};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Text(1),
    name: "clip",
    title: "CLIP text encoder",
    option: Some("clip"),
    diffusers: Diffusers {
        folder: "text_encoder",
        python_library: "transformers",
        class: "CLIPTextModel",
        classes: "*CLIP*",
    },
    tokenizer: Some(Tokenizer { folder: "tokenizer", sets_length: false }),
    files: FileNames {
        folders: &["text_encoders", "text_encoder", "clip"],
        ranks: &[&["clip_l"], &["*clip_l*", "model*"], &["*clip*", "*vit*"]],
        known: &["*clip_l*", "*clip_vit_large_patch14*"],
        not: &[],
        written: "clip_l.safetensors",
    },
    source: Some("comfyanonymous/flux_text_encoders/clip_l.safetensors"),
    comfy_prefix: "text_encoders.clip_l.transformer.",
    tensors: &[
        EMBEDDINGS,
        affine!("text_model.encoder.layers.{}.self_attn.{q_proj|k_proj|v_proj|out_proj}"),
        affine!("text_model.encoder.layers.{}.{layer_norm1|layer_norm2}"),
        affine!("text_model.encoder.layers.{}.mlp.{fc1|fc2}"),
        affine!("text_model.final_layer_norm"),
    ],
    dialects: &[
        Dialect {
            name: "Hugging Face",
            markers: &[
                "text_model.encoder.layers.0.self_attn.q_proj.weight",
                "text_model.encoder.layers.0.mlp.fc1.weight",
                // One that has lost its first block is damaged, not absent.
                "text_model.encoder.layers.1.self_attn.q_proj.weight",
            ],
            requires: &[],
            naming: Naming::Canonical,
            gguf: false,
        },
        Dialect {
            name: "Hugging Face",
            markers: &[
                "encoder.layers.0.self_attn.q_proj.weight",
                "encoder.layers.1.self_attn.q_proj.weight",
            ],
            requires: &[&["embeddings.token_embedding."]],
            naming: Naming::Without("text_model."),
            gguf: false,
        },
    ],
    // The projections and the image half of a whole CLIP model.
    unused: &[
        "*logit_scale*",
        "*text_projection*",
        "*position_ids*",
        "*vision_model.*",
        "*visual_projection*",
    ],
    fit: Some(Fit {
        own: ("text_model.encoder.layers.0.self_attn.q_proj.weight", 1),
        transformer: ("vector_in.in_layer.weight", 1),
        divisor: 1,
    }),
    tables: &[EMBEDDINGS],
    facts: &[
        ("layers", Fact::Count("text_model.encoder.layers.")),
        ("width", Fact::Axis("text_model.embeddings.token_embedding.weight", 1)),
        ("positions", Fact::Axis("text_model.embeddings.position_embedding.weight", 0)),
    ],
    variant: Some(Variant::Size {
        label: "width",
        tensor: "text_model.encoder.layers.0.self_attn.q_proj.weight",
        axis: 1,
    }),
    lora: LoraLayers {
        layers: &[
            "text_model.encoder.layers.{}.self_attn.q_proj",
            "text_model.encoder.layers.{}.self_attn.k_proj",
            "text_model.encoder.layers.{}.self_attn.v_proj",
            "text_model.encoder.layers.{}.self_attn.out_proj",
            "text_model.encoder.layers.{}.mlp.fc1",
            "text_model.encoder.layers.{}.mlp.fc2",
        ],
        vectors: &[
            "text_model.encoder.layers.{}.layer_norm1.weight",
            "text_model.encoder.layers.{}.layer_norm2.weight",
            "text_model.final_layer_norm.weight",
        ],
        spellings: OLD,
        input: None,
        blocks_hint: super::lora::TEXT_BLOCKS,
    },
    ..ComponentSpec::EMPTY
};

/// The tables of tokens and positions.
const EMBEDDINGS: &str = "text_model.embeddings.{token_embedding|position_embedding}.weight";

/// A layer of the attention as older versions of diffusers call it, with and without the root.
macro_rules! old {
    ($old:literal, $new:literal) => {
        [
            LoraSpelling::all(
                concat!("text_model.encoder.layers.{}.self_attn.", $old),
                concat!("text_model.encoder.layers.{}.self_attn.", $new),
            ),
            LoraSpelling::all(
                concat!("encoder.layers.{}.self_attn.", $old),
                concat!("text_model.encoder.layers.{}.self_attn.", $new),
            ),
        ]
    };
}

const OLD: &[LoraSpelling] = {
    const Q: [LoraSpelling; 2] = old!("to_q", "q_proj");
    const K: [LoraSpelling; 2] = old!("to_k", "k_proj");
    const V: [LoraSpelling; 2] = old!("to_v", "v_proj");
    const OUT: [LoraSpelling; 2] = old!("to_out", "out_proj");
    let ([a, b], [c, d], [e, f], [g, h]) = (Q, K, V, OUT);
    &[a, b, c, d, e, f, g, h]
};
