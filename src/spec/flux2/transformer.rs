//! FLUX.2's transformer.

use crate::spec::family::{ComponentSpec, Diffusers, Fact, FileNames, Role, Variant};
use crate::spec::flux1::blocks::{ALIASES, BLOCKS, GAINS, INT8, MARKERS, with_gains};
use crate::spec::lora::{LoraLayers, LoraSpelling, Rows};
use crate::spec::names::{Dialect, Naming, Rename, Split};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Transformer,
    name: "flux2",
    title: "FLUX.2 transformer",
    diffusers: Diffusers {
        folder: "transformer",
        python_library: "diffusers",
        class: "Flux2Transformer2DModel",
        classes: "Flux2*",
    },
    files: FileNames {
        folders: &["transformer"],
        ranks: &[&["*klein*", "*flux*2*"], &["diffusion_pytorch_model*"], &["*"]],
        known: &[],
        not: &[],
        written: "flux2-synthetic.safetensors",
    },
    comfy_prefix: "model.diffusion_model.",
    // city96's converter calls it by the same name as FLUX.1.
    gguf: Some("flux"),
    tensors: TENSORS,
    dialects: &[
        Dialect {
            name: "BFL",
            markers: MARKERS,
            requires: &[SHARED_MODULATION],
            naming: Naming::Canonical,
            gguf: false,
        },
        Dialect {
            name: "diffusers",
            markers: &[
                "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight",
                "transformer_blocks.0.ff.linear_in.weight",
            ],
            requires: &[SHARED_MODULATION],
            naming: Naming::Renamed(DIFFUSERS),
            gguf: false,
        },
    ],
    aliases: ALIASES,
    quantised: BLOCKS,
    int8: INT8,
    facts: &[
        ("double blocks", Fact::Count("double_blocks.")),
        ("single blocks", Fact::Count("single_blocks.")),
        ("hidden width", Fact::Axis("img_in.weight", 0)),
        ("head width", Fact::Axis("double_blocks.0.img_attn.norm.query_norm.scale", 0)),
        ("input channels", Fact::Axis("img_in.weight", 1)),
        ("text width", Fact::Axis("txt_in.weight", 1)),
        ("guidance", Fact::Present("guidance_in.in_layer.weight")),
    ],
    variant: Some(Variant::Either {
        tensor: "guidance_in.in_layer.weight",
        with: "dev",
        without: "klein",
    }),
    lora: LoraLayers {
        layers: LORA,
        vectors: GAINS,
        spellings: SPELLINGS,
        // Its input has the width of a FLUX.1 control model, and no adapter widens it.
        input: None,
        blocks_hint: "FLUX.2 [klein] 4B has 5 double and 20 single blocks, 9B has 8 and 24, [dev] \
                      has 8 and 48; FLUX.1 has 19 and 38",
    },
    ..ComponentSpec::EMPTY
};

/// Layers that FLUX.1 does not have. One of them is enough, so that a file that lacks another is
/// not taken for FLUX.1.
const SHARED_MODULATION: &[&str] = &[
    "single_stream_modulation.",
    "double_stream_modulation_img.",
    "double_stream_modulation_txt.",
];

const TENSORS: &[&str] = &[
    "{img_in|txt_in}.weight",
    "{time_in|guidance_in}.{in_layer|out_layer}.weight",
    "{double_stream_modulation_img|double_stream_modulation_txt}.lin.weight",
    "single_stream_modulation.lin.weight",
    "double_blocks.{}.{img_attn|txt_attn}.{qkv|proj}.weight",
    "double_blocks.{}.{img_attn|txt_attn}.norm.{query_norm|key_norm}.scale",
    "double_blocks.{}.{img_mlp|txt_mlp}.{0|2}.weight",
    "single_blocks.{}.{linear1|linear2}.weight",
    "single_blocks.{}.norm.{query_norm|key_norm}.scale",
    "final_layer.linear.weight",
    "final_layer.adaLN_modulation.1.weight",
];

const DIFFUSERS: &[Rename] = with_gains![
    Rename::one("img_in.weight", &["x_embedder.weight"]),
    Rename::one("txt_in.weight", &["context_embedder.weight"]),
    Rename::one(
        "time_in.in_layer.weight",
        &["time_guidance_embed.timestep_embedder.linear_1.weight"],
    ),
    Rename::one(
        "time_in.out_layer.weight",
        &["time_guidance_embed.timestep_embedder.linear_2.weight"],
    ),
    Rename::one(
        "guidance_in.in_layer.weight",
        &["time_guidance_embed.guidance_embedder.linear_1.weight"],
    ),
    Rename::one(
        "guidance_in.out_layer.weight",
        &["time_guidance_embed.guidance_embedder.linear_2.weight"],
    ),
    Rename::one(
        "{double_stream_modulation_img|double_stream_modulation_txt}.lin.weight",
        &["{double_stream_modulation_img|double_stream_modulation_txt}.linear.weight"],
    ),
    Rename::one("single_stream_modulation.lin.weight", &["single_stream_modulation.linear.weight"]),
    Rename::fused(
        "double_blocks.{}.img_attn.qkv.weight",
        &[
            "transformer_blocks.{}.attn.to_q.weight",
            "transformer_blocks.{}.attn.to_k.weight",
            "transformer_blocks.{}.attn.to_v.weight",
        ],
        Split::Equal,
    ),
    Rename::fused(
        "double_blocks.{}.txt_attn.qkv.weight",
        &[
            "transformer_blocks.{}.attn.add_q_proj.weight",
            "transformer_blocks.{}.attn.add_k_proj.weight",
            "transformer_blocks.{}.attn.add_v_proj.weight",
        ],
        Split::Equal,
    ),
    Rename::one(
        "double_blocks.{}.img_attn.proj.weight",
        &["transformer_blocks.{}.attn.to_out.0.weight"],
    ),
    Rename::one(
        "double_blocks.{}.txt_attn.proj.weight",
        &["transformer_blocks.{}.attn.to_add_out.weight"],
    ),
    Rename::one(
        "double_blocks.{}.img_mlp.0.weight",
        &["transformer_blocks.{}.ff.linear_in.weight"],
    ),
    Rename::one(
        "double_blocks.{}.img_mlp.2.weight",
        &["transformer_blocks.{}.ff.linear_out.weight"],
    ),
    Rename::one(
        "double_blocks.{}.txt_mlp.0.weight",
        &["transformer_blocks.{}.ff_context.linear_in.weight"],
    ),
    Rename::one(
        "double_blocks.{}.txt_mlp.2.weight",
        &["transformer_blocks.{}.ff_context.linear_out.weight"],
    ),
    Rename::one(
        "single_blocks.{}.linear1.weight",
        &["single_transformer_blocks.{}.attn.to_qkv_mlp_proj.weight"],
    ),
    Rename::one(
        "single_blocks.{}.linear2.weight",
        &["single_transformer_blocks.{}.attn.to_out.weight"],
    ),
    Rename::one("final_layer.linear.weight", &["proj_out.weight"]),
    // diffusers stores (scale, shift), BFL (shift, scale).
    Rename::one("final_layer.adaLN_modulation.1.weight", &["norm_out.linear.weight"]).swapped(),
];

/// The layers that a LoRA may change.
const LORA: &[&str] = &[
    "img_in",
    "txt_in",
    "time_in.in_layer",
    "time_in.out_layer",
    "guidance_in.in_layer",
    "guidance_in.out_layer",
    "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.lin",
    "single_stream_modulation.lin",
    "double_blocks.{}.img_attn.qkv",
    "double_blocks.{}.txt_attn.qkv",
    "double_blocks.{}.img_attn.proj",
    "double_blocks.{}.txt_attn.proj",
    "double_blocks.{}.img_mlp.0",
    "double_blocks.{}.img_mlp.2",
    "double_blocks.{}.txt_mlp.0",
    "double_blocks.{}.txt_mlp.2",
    "single_blocks.{}.linear1",
    "single_blocks.{}.linear2",
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
];

/// Spellings that are not a dialect of the weights.
const SPELLINGS: &[LoraSpelling] = &[
    LoraSpelling::all("transformer_blocks.{}.attn.to_qkv", "double_blocks.{}.img_attn.qkv"),
    LoraSpelling::all("transformer_blocks.{}.attn.to_added_qkv", "double_blocks.{}.txt_attn.qkv"),
    LoraSpelling::part(
        "double_blocks.{}.img_attn.qkv.0",
        "double_blocks.{}.img_attn.qkv",
        Rows::Equal(0, 3),
    ),
    LoraSpelling::part(
        "double_blocks.{}.img_attn.qkv.1",
        "double_blocks.{}.img_attn.qkv",
        Rows::Equal(1, 3),
    ),
    LoraSpelling::part(
        "double_blocks.{}.img_attn.qkv.2",
        "double_blocks.{}.img_attn.qkv",
        Rows::Equal(2, 3),
    ),
    LoraSpelling::part(
        "double_blocks.{}.txt_attn.qkv.0",
        "double_blocks.{}.txt_attn.qkv",
        Rows::Equal(0, 3),
    ),
    LoraSpelling::part(
        "double_blocks.{}.txt_attn.qkv.1",
        "double_blocks.{}.txt_attn.qkv",
        Rows::Equal(1, 3),
    ),
    LoraSpelling::part(
        "double_blocks.{}.txt_attn.qkv.2",
        "double_blocks.{}.txt_attn.qkv",
        Rows::Equal(2, 3),
    ),
];
