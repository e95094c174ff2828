//! ControlNets for FLUX.1: a small transformer with the blocks of the large one.
//!
//! Canonical are the names of XLabs, which are BFL's where the large transformer has them, too.

use super::affine;
use super::blocks::{ALIASES, block_tensors, diffusers_blocks};
use crate::spec::family::{ComponentSpec, Diffusers, Fact, FileNames, Role};
use crate::spec::names::{Dialect, Naming, Rename, Split};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Control,
    name: "controlnet",
    title: "FLUX ControlNet",
    diffusers: Diffusers {
        folder: "controlnet",
        python_library: "diffusers",
        class: "FluxControlNetModel",
        classes: "Flux*ControlNet*",
    },
    files: FileNames {
        folders: &["controlnet"],
        ranks: &[&["*controlnet*", "*union*"], &["diffusion_pytorch_model*"], &["*"]],
        known: &[],
        not: &[],
        written: "controlnet-synthetic.safetensors",
    },
    tensors: block_tensors![
        affine!("pos_embed_input"),
        affine!("input_hint_block.{}"),
        affine!("controlnet_blocks.{}"),
        affine!("controlnet_single_blocks.{}"),
        "controlnet_mode_embedder.weight",
    ],
    // The markers contain those of the transformer, and the names that are required besides make
    // this the more specific one.
    dialects: &[
        Dialect {
            name: "XLabs",
            markers: &[
                "double_blocks.0.img_attn.qkv.weight",
                "double_blocks.0.img_attn.proj.weight",
                "single_blocks.0.linear1.weight",
                "pos_embed_input.weight",
            ],
            requires: &[&["pos_embed_input."], &["controlnet_blocks."], &["vector_in."]],
            naming: Naming::Canonical,
            gguf: false,
        },
        Dialect {
            name: "diffusers",
            markers: &[
                "single_transformer_blocks.0.attn.to_q.weight",
                "single_transformer_blocks.0.proj_mlp.weight",
                "controlnet_x_embedder.weight",
            ],
            requires: &[&["controlnet_x_embedder."], &["context_embedder."], &["time_text_embed."]],
            naming: Naming::Renamed(diffusers_blocks![
                Rename::one(affine!("pos_embed_input"), &[affine!("controlnet_x_embedder")]),
                Rename::one(affine!("controlnet_blocks.{}"), &[affine!("controlnet_blocks.{}")],),
                Rename::one(
                    affine!("controlnet_single_blocks.{}"),
                    &[affine!("controlnet_single_blocks.{}")],
                ),
                Rename::one(
                    "controlnet_mode_embedder.weight",
                    &["controlnet_mode_embedder.weight"],
                ),
                Rename::one(affine!("input_hint_block.0"), &[affine!("input_hint_block.conv_in")]),
                Rename::one(affine!("input_hint_block.2"), &[affine!("input_hint_block.blocks.0")]),
                Rename::one(affine!("input_hint_block.4"), &[affine!("input_hint_block.blocks.1")]),
                Rename::one(affine!("input_hint_block.6"), &[affine!("input_hint_block.blocks.2")]),
                Rename::one(affine!("input_hint_block.8"), &[affine!("input_hint_block.blocks.3")]),
                Rename::one(
                    affine!("input_hint_block.10"),
                    &[affine!("input_hint_block.blocks.4")],
                ),
                Rename::one(
                    affine!("input_hint_block.12"),
                    &[affine!("input_hint_block.blocks.5")],
                ),
                Rename::one(
                    affine!("input_hint_block.14"),
                    &[affine!("input_hint_block.conv_out")],
                ),
            ]),
            gguf: false,
        },
    ],
    aliases: ALIASES,
    tables: &["controlnet_mode_embedder.weight"],
    quantised: &["double_blocks.", "single_blocks.", "controlnet_blocks.", "controlnet_single_"],
    facts: &[
        ("double blocks", Fact::Count("double_blocks.")),
        ("single blocks", Fact::Count("single_blocks.")),
        ("hidden width", Fact::Axis("img_in.weight", 0)),
        ("input channels", Fact::Axis("img_in.weight", 1)),
        ("control channels", Fact::Axis("pos_embed_input.weight", 1)),
        ("modes", Fact::Axis("controlnet_mode_embedder.weight", 0)),
        ("reads pixels", Fact::Present("input_hint_block.0.weight")),
        ("guidance", Fact::Present("guidance_in.in_layer.weight")),
    ],
    ..ComponentSpec::EMPTY
};
