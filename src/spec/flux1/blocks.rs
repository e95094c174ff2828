//! What all transformers with double and single blocks have in common.

/// Tensors that show BFL's names, and XLabs'.
pub const MARKERS: &[&str] = &[
    "double_blocks.0.img_attn.qkv.weight",
    "double_blocks.0.img_attn.proj.weight",
    "single_blocks.0.linear1.weight",
];

/// PyTorch's own RMSNorm, which newer versions of ComfyUI use, calls its gain `weight`.
pub const ALIASES: &[(&str, &str)] = &[
    (
        "double_blocks.{}.{img_attn|txt_attn}.norm.{query_norm|key_norm}.weight",
        "double_blocks.{}.{img_attn|txt_attn}.norm.{query_norm|key_norm}.scale",
    ),
    (
        "single_blocks.{}.norm.{query_norm|key_norm}.weight",
        "single_blocks.{}.norm.{query_norm|key_norm}.scale",
    ),
];

/// The beginnings of the names of what is quantised.
pub const BLOCKS: &[&str] = &["double_blocks.", "single_blocks."];

/// Weights whose products may be computed in 8-bit integers.
pub const INT8: &[&str] = &[
    "double_blocks.{}.{img_attn|txt_attn}.{qkv|proj}.weight",
    "double_blocks.{}.{img_mlp|txt_mlp}.{0|2}.weight",
    "single_blocks.{}.{linear1|linear2}.weight",
];

/// The gains of queries and keys.
pub const GAINS: &[&str] = &[
    "double_blocks.{}.img_attn.norm.query_norm.scale",
    "double_blocks.{}.img_attn.norm.key_norm.scale",
    "double_blocks.{}.txt_attn.norm.query_norm.scale",
    "double_blocks.{}.txt_attn.norm.key_norm.scale",
    "single_blocks.{}.norm.query_norm.scale",
    "single_blocks.{}.norm.key_norm.scale",
];

/// The tensors of embedders and blocks, and `more`.
macro_rules! block_tensors {
    ($($more:expr),* $(,)?) => {
        &[
            affine!("img_in"),
            affine!("txt_in"),
            affine!("time_in.{in_layer|out_layer}"),
            affine!("vector_in.{in_layer|out_layer}"),
            affine!("guidance_in.{in_layer|out_layer}"),
            affine!("double_blocks.{}.{img_mod|txt_mod}.lin"),
            affine!("double_blocks.{}.{img_attn|txt_attn}.{qkv|proj}"),
            "double_blocks.{}.{img_attn|txt_attn}.norm.{query_norm|key_norm}.scale",
            affine!("double_blocks.{}.{img_mlp|txt_mlp}.{0|2}"),
            affine!("single_blocks.{}.modulation.lin"),
            affine!("single_blocks.{}.{linear1|linear2}"),
            "single_blocks.{}.norm.{query_norm|key_norm}.scale",
            $($more,)*
        ]
    };
}
pub(super) use block_tensors;

/// diffusers' names of the gains of queries and keys, and `more`.
macro_rules! with_gains {
    ($($more:expr),* $(,)?) => {
        &[
            Rename::one(
                "double_blocks.{}.img_attn.norm.query_norm.scale",
                &["transformer_blocks.{}.attn.norm_q.weight"],
            ),
            Rename::one(
                "double_blocks.{}.img_attn.norm.key_norm.scale",
                &["transformer_blocks.{}.attn.norm_k.weight"],
            ),
            Rename::one(
                "double_blocks.{}.txt_attn.norm.query_norm.scale",
                &["transformer_blocks.{}.attn.norm_added_q.weight"],
            ),
            Rename::one(
                "double_blocks.{}.txt_attn.norm.key_norm.scale",
                &["transformer_blocks.{}.attn.norm_added_k.weight"],
            ),
            Rename::one(
                "single_blocks.{}.norm.query_norm.scale",
                &["single_transformer_blocks.{}.attn.norm_q.weight"],
            ),
            Rename::one(
                "single_blocks.{}.norm.key_norm.scale",
                &["single_transformer_blocks.{}.attn.norm_k.weight"],
            ),
            $($more,)*
        ]
    };
}
pub(in crate::spec) use with_gains;

/// diffusers' names of embedders and blocks, and `more`.
macro_rules! diffusers_blocks {
    ($($more:expr),* $(,)?) => {
        $crate::spec::flux1::blocks::with_gains![
            Rename::one(affine!("img_in"), &[affine!("x_embedder")]),
            Rename::one(affine!("txt_in"), &[affine!("context_embedder")]),
            Rename::one(
                affine!("time_in.in_layer"),
                &[affine!("time_text_embed.timestep_embedder.linear_1")],
            ),
            Rename::one(
                affine!("time_in.out_layer"),
                &[affine!("time_text_embed.timestep_embedder.linear_2")],
            ),
            Rename::one(
                affine!("vector_in.in_layer"),
                &[affine!("time_text_embed.text_embedder.linear_1")],
            ),
            Rename::one(
                affine!("vector_in.out_layer"),
                &[affine!("time_text_embed.text_embedder.linear_2")],
            ),
            Rename::one(
                affine!("guidance_in.in_layer"),
                &[affine!("time_text_embed.guidance_embedder.linear_1")],
            ),
            Rename::one(
                affine!("guidance_in.out_layer"),
                &[affine!("time_text_embed.guidance_embedder.linear_2")],
            ),
            Rename::one(
                affine!("double_blocks.{}.img_mod.lin"),
                &[affine!("transformer_blocks.{}.norm1.linear")],
            ),
            Rename::one(
                affine!("double_blocks.{}.txt_mod.lin"),
                &[affine!("transformer_blocks.{}.norm1_context.linear")],
            ),
            Rename::fused(
                affine!("double_blocks.{}.img_attn.qkv"),
                &[
                    affine!("transformer_blocks.{}.attn.to_q"),
                    affine!("transformer_blocks.{}.attn.to_k"),
                    affine!("transformer_blocks.{}.attn.to_v"),
                ],
                Split::Equal,
            ),
            Rename::fused(
                affine!("double_blocks.{}.txt_attn.qkv"),
                &[
                    affine!("transformer_blocks.{}.attn.add_q_proj"),
                    affine!("transformer_blocks.{}.attn.add_k_proj"),
                    affine!("transformer_blocks.{}.attn.add_v_proj"),
                ],
                Split::Equal,
            ),
            Rename::one(
                affine!("double_blocks.{}.img_attn.proj"),
                &[affine!("transformer_blocks.{}.attn.to_out.0")],
            ),
            Rename::one(
                affine!("double_blocks.{}.txt_attn.proj"),
                &[affine!("transformer_blocks.{}.attn.to_add_out")],
            ),
            Rename::one(
                affine!("double_blocks.{}.img_mlp.0"),
                &[affine!("transformer_blocks.{}.ff.net.0.proj")],
            ),
            Rename::one(
                affine!("double_blocks.{}.img_mlp.2"),
                &[affine!("transformer_blocks.{}.ff.net.2")],
            ),
            Rename::one(
                affine!("double_blocks.{}.txt_mlp.0"),
                &[affine!("transformer_blocks.{}.ff_context.net.0.proj")],
            ),
            Rename::one(
                affine!("double_blocks.{}.txt_mlp.2"),
                &[affine!("transformer_blocks.{}.ff_context.net.2")],
            ),
            Rename::one(
                affine!("single_blocks.{}.modulation.lin"),
                &[affine!("single_transformer_blocks.{}.norm.linear")],
            ),
            Rename::fused(
                affine!("single_blocks.{}.linear1"),
                &[
                    affine!("single_transformer_blocks.{}.attn.to_q"),
                    affine!("single_transformer_blocks.{}.attn.to_k"),
                    affine!("single_transformer_blocks.{}.attn.to_v"),
                    affine!("single_transformer_blocks.{}.proj_mlp"),
                ],
                Split::Square,
            ),
            Rename::one(
                affine!("single_blocks.{}.linear2"),
                &[affine!("single_transformer_blocks.{}.proj_out")],
            ),
            $($more,)*
        ]
    };
}
pub(super) use diffusers_blocks;
