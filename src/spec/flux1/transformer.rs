//! FLUX.1's transformer.

use super::blocks::{ALIASES, BLOCKS, GAINS, INT8, MARKERS, block_tensors, diffusers_blocks};
use super::{IMAGE_INPUTS, affine};
use crate::spec::family::{ComponentSpec, Diffusers, Fact, FileNames, Role, Variant};
use crate::spec::lora::{LoraLayers, LoraSpelling, Rows};
use crate::spec::names::{Dialect, Naming, Rename, Split};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Transformer,
    name: "flux",
    title: "FLUX transformer",
    diffusers: Diffusers {
        folder: "transformer",
        python_library: "diffusers",
        class: "FluxTransformer2DModel",
        classes: "Flux*",
    },
    files: FileNames {
        folders: &["transformer"],
        ranks: &[&["*flux*"], &["diffusion_pytorch_model*"], &["*"]],
        known: &[],
        not: &[],
        written: "flux1-synthetic.safetensors",
    },
    comfy_prefix: "model.diffusion_model.",
    gguf: Some("flux"),
    tensors: TENSORS,
    dialects: &[
        Dialect {
            name: "BFL",
            markers: MARKERS,
            requires: &[],
            naming: Naming::Canonical,
            gguf: false,
        },
        Dialect {
            name: "diffusers",
            markers: &[
                "single_transformer_blocks.0.attn.to_q.weight",
                "single_transformer_blocks.0.proj_mlp.weight",
            ],
            requires: &[],
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
        ("kind", Fact::Named("img_in.weight", 1, IMAGE_INPUTS)),
        ("text width", Fact::Axis("txt_in.weight", 1)),
        ("pooled width", Fact::Axis("vector_in.in_layer.weight", 1)),
        ("guidance", Fact::Present("guidance_in.in_layer.weight")),
    ],
    // One of BFL's two models was distilled with its guidance as an input.
    variant: Some(Variant::Either {
        tensor: "guidance_in.in_layer.weight",
        with: "dev",
        without: "schnell",
    }),
    lora: LoraLayers {
        layers: LORA,
        vectors: GAINS,
        spellings: SPELLINGS,
        input: Some("img_in.weight"),
        blocks_hint: "FLUX.1 has 19 double and 38 single blocks; HunyuanVideo has 20 and 40, \
                      Qwen-Image 60 of one kind",
    },
    ..ComponentSpec::EMPTY
};

const TENSORS: &[&str] =
    block_tensors![affine!("final_layer.linear"), affine!("final_layer.adaLN_modulation.1"),];

const DIFFUSERS: &[Rename] = diffusers_blocks![
    Rename::one(affine!("final_layer.linear"), &[affine!("proj_out")]),
    // diffusers stores (scale, shift), BFL (shift, scale).
    Rename::one(affine!("final_layer.adaLN_modulation.1"), &[affine!("norm_out.linear")]).swapped(),
];

/// The layers that a LoRA may change.
const LORA: &[&str] = &[
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

const DIFFSYNTH: &str = "DiffSynth-Studio";

/// DiffSynth-Studio's name of a whole layer.
const fn diffsynth(stored: &'static str, canonical: &'static str) -> LoraSpelling {
    LoraSpelling::all(stored, canonical).by(DIFFSYNTH)
}

/// OneTrainer's name of a part of a fused layer.
const fn numbered(stored: &'static str, canonical: &'static str, rows: Rows) -> LoraSpelling {
    LoraSpelling::part(stored, canonical, rows).by("OneTrainer")
}

/// Spellings of single tools. XLabs' `_lora` before `.down` is a part of the suffix.
const SPELLINGS: &[LoraSpelling] = &[
    LoraSpelling::all("double_blocks.{}.processor.qkv_lora1", "double_blocks.{}.img_attn.qkv")
        .by("XLabs"),
    LoraSpelling::all("double_blocks.{}.processor.qkv_lora2", "double_blocks.{}.txt_attn.qkv")
        .by("XLabs"),
    LoraSpelling::all("double_blocks.{}.processor.proj_lora1", "double_blocks.{}.img_attn.proj")
        .by("XLabs"),
    LoraSpelling::all("double_blocks.{}.processor.proj_lora2", "double_blocks.{}.txt_attn.proj")
        .by("XLabs"),
    LoraSpelling::squares("single_blocks.{}.processor.qkv", "single_blocks.{}.linear1").by("XLabs"),
    LoraSpelling::all("single_blocks.{}.processor.proj", "single_blocks.{}.linear2").by("XLabs"),
    LoraSpelling::squares("single_blocks.{}.linear1_qkv", "single_blocks.{}.linear1"),
    LoraSpelling::all("transformer_blocks.{}.attn.to_qkv", "double_blocks.{}.img_attn.qkv"),
    LoraSpelling::all("transformer_blocks.{}.attn.to_added_qkv", "double_blocks.{}.txt_attn.qkv"),
    LoraSpelling::squares("single_transformer_blocks.{}.attn.to_qkv", "single_blocks.{}.linear1"),
    numbered("double_blocks.{}.img_attn.qkv.0", "double_blocks.{}.img_attn.qkv", Rows::Equal(0, 3)),
    numbered("double_blocks.{}.img_attn.qkv.1", "double_blocks.{}.img_attn.qkv", Rows::Equal(1, 3)),
    numbered("double_blocks.{}.img_attn.qkv.2", "double_blocks.{}.img_attn.qkv", Rows::Equal(2, 3)),
    numbered("double_blocks.{}.txt_attn.qkv.0", "double_blocks.{}.txt_attn.qkv", Rows::Equal(0, 3)),
    numbered("double_blocks.{}.txt_attn.qkv.1", "double_blocks.{}.txt_attn.qkv", Rows::Equal(1, 3)),
    numbered("double_blocks.{}.txt_attn.qkv.2", "double_blocks.{}.txt_attn.qkv", Rows::Equal(2, 3)),
    numbered("single_blocks.{}.linear1.0", "single_blocks.{}.linear1", Rows::Square(0)),
    numbered("single_blocks.{}.linear1.1", "single_blocks.{}.linear1", Rows::Square(1)),
    numbered("single_blocks.{}.linear1.2", "single_blocks.{}.linear1", Rows::Square(2)),
    numbered("single_blocks.{}.linear1.3", "single_blocks.{}.linear1", Rows::Rest),
    diffsynth("blocks.{}.attn.a_to_qkv", "double_blocks.{}.img_attn.qkv"),
    diffsynth("blocks.{}.attn.b_to_qkv", "double_blocks.{}.txt_attn.qkv"),
    diffsynth("blocks.{}.attn.a_to_out", "double_blocks.{}.img_attn.proj"),
    diffsynth("blocks.{}.attn.b_to_out", "double_blocks.{}.txt_attn.proj"),
    diffsynth("blocks.{}.ff_a.0", "double_blocks.{}.img_mlp.0"),
    diffsynth("blocks.{}.ff_a.2", "double_blocks.{}.img_mlp.2"),
    diffsynth("blocks.{}.ff_b.0", "double_blocks.{}.txt_mlp.0"),
    diffsynth("blocks.{}.ff_b.2", "double_blocks.{}.txt_mlp.2"),
    diffsynth("blocks.{}.norm1_a.linear", "double_blocks.{}.img_mod.lin"),
    diffsynth("blocks.{}.norm1_b.linear", "double_blocks.{}.txt_mod.lin"),
    diffsynth("blocks.{}.attn.norm_q_a", "double_blocks.{}.img_attn.norm.query_norm.scale"),
    diffsynth("blocks.{}.attn.norm_k_a", "double_blocks.{}.img_attn.norm.key_norm.scale"),
    diffsynth("blocks.{}.attn.norm_q_b", "double_blocks.{}.txt_attn.norm.query_norm.scale"),
    diffsynth("blocks.{}.attn.norm_k_b", "double_blocks.{}.txt_attn.norm.key_norm.scale"),
    diffsynth("single_blocks.{}.to_qkv_mlp", "single_blocks.{}.linear1"),
    diffsynth("single_blocks.{}.proj_out", "single_blocks.{}.linear2"),
    diffsynth("single_blocks.{}.norm.linear", "single_blocks.{}.modulation.lin"),
    diffsynth("single_blocks.{}.norm_q_a", "single_blocks.{}.norm.query_norm.scale"),
    diffsynth("single_blocks.{}.norm_k_a", "single_blocks.{}.norm.key_norm.scale"),
    diffsynth("time_embedder.timestep_embedder.0", "time_in.in_layer"),
    diffsynth("time_embedder.timestep_embedder.2", "time_in.out_layer"),
    diffsynth("guidance_embedder.timestep_embedder.0", "guidance_in.in_layer"),
    diffsynth("guidance_embedder.timestep_embedder.2", "guidance_in.out_layer"),
    diffsynth("pooled_text_embedder.0", "vector_in.in_layer"),
    diffsynth("pooled_text_embedder.2", "vector_in.out_layer"),
    diffsynth("final_proj_out", "final_layer.linear"),
    LoraSpelling::part("final_norm_out.linear", "final_layer.adaLN_modulation.1", Rows::Swapped)
        .by(DIFFSYNTH),
];
