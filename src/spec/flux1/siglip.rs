//! The vision tower of SigLIP so400m-patch14-384, whose tokens FLUX.1 Redux reads.

use super::affine;
use crate::spec::family::{ComponentSpec, Diffusers, Fact, FileNames, Role, Variant};
use crate::spec::names::{Dialect, Naming};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Vision,
    name: "siglip",
    title: "SigLIP vision tower",
    option: Some("siglip"),
    diffusers: Diffusers {
        folder: "image_encoder",
        python_library: "transformers",
        class: "SiglipVisionModel",
        classes: "*Siglip*",
    },
    files: FileNames {
        folders: &["clip_vision", "image_encoder"],
        ranks: &[
            &["sigclip_vision_patch14_384"],
            &["*siglip*so400m*14*384*", "model*"],
            &["*sigclip*", "*siglip*"],
        ],
        known: &["*sigclip_vision*", "*siglip*", "*image_encoder/model*"],
        not: &[],
        written: "sigclip_vision_patch14_384.safetensors",
    },
    source: Some("Comfy-Org/sigclip_vision_384/sigclip_vision_patch14_384.safetensors"),
    comfy_prefix: "clip_vision.siglip.",
    tensors: &[
        affine!("vision_model.embeddings.patch_embedding"),
        POSITIONS,
        affine!("vision_model.encoder.layers.{}.self_attn.{q_proj|k_proj|v_proj|out_proj}"),
        affine!("vision_model.encoder.layers.{}.{layer_norm1|layer_norm2}"),
        affine!("vision_model.encoder.layers.{}.mlp.{fc1|fc2}"),
        affine!("vision_model.post_layernorm"),
    ],
    dialects: &[Dialect {
        name: "Hugging Face",
        markers: &[
            "vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "vision_model.encoder.layers.0.mlp.fc1.weight",
            // One that has lost its first block is damaged, not absent.
            "vision_model.encoder.layers.1.self_attn.q_proj.weight",
        ],
        // The towers of CLIP have no bias here.
        requires: &[&["vision_model.embeddings.patch_embedding.bias"]],
        naming: Naming::Canonical,
        gguf: false,
    }],
    // The head that pools the tokens, and the text half of a whole SigLIP model.
    unused: &[
        "*vision_model.head.*",
        "*text_model.*",
        "*logit_scale*",
        "*logit_bias*",
        "*position_ids*",
    ],
    tables: &[POSITIONS],
    quantised: &["vision_model.encoder.layers."],
    facts: &[
        ("layers", Fact::Count("vision_model.encoder.layers.")),
        ("width", Fact::Axis(WIDTH, 0)),
        ("tokens", Fact::Axis(POSITIONS, 0)),
    ],
    variant: Some(Variant::Size { label: "width", tensor: WIDTH, axis: 0 }),
    ..ComponentSpec::EMPTY
};

const POSITIONS: &str = "vision_model.embeddings.position_embedding.weight";
const WIDTH: &str = "vision_model.post_layernorm.weight";
