//! FLUX.1's autoencoder, with 16 latent channels.

use super::affine;
use crate::spec::family::{
    ComponentSpec, Diffusers, Fact, FileNames, Fit, Lookalike, Role, Variant,
};
use crate::spec::names::{Dialect, Naming, Rename};

/// `affine!` of a name in two pieces.
macro_rules! affine_of {
    ($first:literal, $second:literal) => {
        concat!($first, $second, ".{weight|bias}")
    };
}
pub(in crate::spec) use affine_of;

/// A layer of the attention in the middle: the name since diffusers 0.17 and the older one.
macro_rules! attention {
    ($canonical:literal, $stored:literal) => {
        Rename::one(
            affine_of!("{encoder|decoder}.mid.attn_1.", $canonical),
            &[affine_of!("{encoder|decoder}.mid_block.attentions.0.", $stored)],
        )
        .flat()
    };
}
pub(in crate::spec) use attention;

/// diffusers' names, with `more` that another autoencoder of this shape has.
macro_rules! diffusers_names {
    ($($more:expr),* $(,)?) => {
        &[
            Rename::one(
                affine!("{encoder|decoder}.{conv_in|conv_out}"),
                &[affine!("{encoder|decoder}.{conv_in|conv_out}")],
            ),
            Rename::one(
                affine!("{encoder|decoder}.norm_out"),
                &[affine!("{encoder|decoder}.conv_norm_out")],
            ),
            Rename::one(
                affine!("{encoder|decoder}.mid.block_1.{norm1|conv1|norm2|conv2}"),
                &[affine!("{encoder|decoder}.mid_block.resnets.0.{norm1|conv1|norm2|conv2}")],
            ),
            Rename::one(
                affine!("{encoder|decoder}.mid.block_2.{norm1|conv1|norm2|conv2}"),
                &[affine!("{encoder|decoder}.mid_block.resnets.1.{norm1|conv1|norm2|conv2}")],
            ),
            attention!("norm", "group_norm"),
            attention!("q", "to_q"),
            attention!("k", "to_k"),
            attention!("v", "to_v"),
            attention!("proj_out", "to_out.0"),
            Rename::one(
                affine!("encoder.down.{}.block.{}.{norm1|conv1|norm2|conv2}"),
                &[affine!("encoder.down_blocks.{}.resnets.{}.{norm1|conv1|norm2|conv2}")],
            ),
            Rename::one(
                affine!("encoder.down.{}.block.{}.nin_shortcut"),
                &[affine!("encoder.down_blocks.{}.resnets.{}.conv_shortcut")],
            ),
            Rename::one(
                affine!("encoder.down.{}.downsample.conv"),
                &[affine!("encoder.down_blocks.{}.downsamplers.0.conv")],
            ),
            // Canonical `up` counts from the highest resolution, `up_blocks` from the lowest.
            Rename::one(
                affine!("decoder.up.{-}.block.{}.{norm1|conv1|norm2|conv2}"),
                &[affine!("decoder.up_blocks.{-}.resnets.{}.{norm1|conv1|norm2|conv2}")],
            ),
            Rename::one(
                affine!("decoder.up.{-}.block.{}.nin_shortcut"),
                &[affine!("decoder.up_blocks.{-}.resnets.{}.conv_shortcut")],
            ),
            Rename::one(
                affine!("decoder.up.{-}.upsample.conv"),
                &[affine!("decoder.up_blocks.{-}.upsamplers.0.conv")],
            ),
            // Files from before diffusers 0.17. Writers take the entries above.
            attention!("q", "query"),
            attention!("k", "key"),
            attention!("v", "value"),
            attention!("proj_out", "proj_attn"),
            $($more,)*
        ]
    };
}
pub(in crate::spec) use diffusers_names;

/// Patterns of the canonical names, with `more` that another autoencoder of this shape has.
macro_rules! tensor_names {
    ($($more:expr),* $(,)?) => {
        &[
            affine!("{encoder|decoder}.{conv_in|conv_out|norm_out}"),
            affine!("{encoder|decoder}.mid.{block_1|block_2}.{norm1|conv1|norm2|conv2}"),
            affine!("{encoder|decoder}.mid.attn_1.{norm|q|k|v|proj_out}"),
            affine!("encoder.down.{}.block.{}.{norm1|conv1|norm2|conv2|nin_shortcut}"),
            affine!("encoder.down.{}.downsample.conv"),
            affine!("decoder.up.{}.block.{}.{norm1|conv1|norm2|conv2|nin_shortcut}"),
            affine!("decoder.up.{}.upsample.conv"),
            $($more,)*
        ]
    };
}
pub(in crate::spec) use tensor_names;

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Autoencoder,
    name: "vae",
    title: "autoencoder (VAE)",
    option: Some("vae"),
    diffusers: Diffusers {
        folder: "vae",
        python_library: "diffusers",
        class: "AutoencoderKL",
        classes: "*Autoencoder*",
    },
    files: FileNames {
        folders: &["vae", "VAE"],
        ranks: &[&["ae"], &["*flux*", "ae*", "diffusion_pytorch_model*"], &["*vae*"]],
        known: &["ae.*", "*/ae.*", "*flux*vae*", "*vae*flux*"],
        not: &[],
        written: "ae.safetensors",
    },
    source: Some("black-forest-labs/FLUX.1-schnell/ae.safetensors"),
    comfy_prefix: "vae.",
    tensors: tensor_names!(),
    dialects: &[
        Dialect {
            name: "BFL",
            markers: &[
                "decoder.mid.block_1.conv1.weight",
                "decoder.mid.block_2.conv1.weight",
                "encoder.mid.block_1.conv1.weight",
            ],
            requires: &[],
            naming: Naming::Canonical,
            gguf: false,
        },
        Dialect {
            name: "diffusers",
            markers: &[
                "decoder.mid_block.resnets.0.conv1.weight",
                "decoder.mid_block.resnets.1.conv1.weight",
                "encoder.mid_block.resnets.0.conv1.weight",
            ],
            requires: &[],
            naming: Naming::Renamed(diffusers_names!()),
            gguf: false,
        },
    ],
    lookalikes: &[
        Lookalike {
            what: "the autoencoder of FLUX.2",
            signs: &["bn.running_mean", "bn.running_var"],
        },
        Lookalike {
            what: "the autoencoder of Qwen-Image or of a video model",
            signs: &["*.to_qkv.weight", "*.time_conv.weight"],
        },
        Lookalike {
            what: "the autoencoder of Stable Diffusion or another model, which has a quant_conv",
            signs: &["*post_quant_conv.weight", "*quant_conv.weight"],
        },
    ],
    // A token of the transformer is 2 x 2 latent pixels.
    fit: Some(Fit {
        own: ("decoder.conv_in.weight", 1),
        transformer: ("final_layer.linear.weight", 0),
        divisor: 4,
    }),
    convolutional: true,
    facts: &[
        ("levels", Fact::Count("decoder.up.")),
        ("width", Fact::Axis("decoder.norm_out.weight", 0)),
        ("latent channels", Fact::Axis("decoder.conv_in.weight", 1)),
        ("encoder", Fact::Present("encoder.conv_in.weight")),
    ],
    variant: Some(Variant::Size {
        label: "latent channels",
        tensor: "decoder.conv_in.weight",
        axis: 1,
    }),
    ..ComponentSpec::EMPTY
};
