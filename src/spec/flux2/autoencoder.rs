//! FLUX.2's autoencoder: FLUX.1's with 32 latent channels, 1x1 convolutions next to the latents,
//! and statistics of the latents. BFL's small decoder has fewer channels.

use crate::spec::family::{
    ComponentSpec, Diffusers, Fact, FileNames, Fit, Lookalike, Role, Variant,
};
use crate::spec::flux1::affine;
use crate::spec::flux1::autoencoder::{affine_of, attention, diffusers_names, tensor_names};
use crate::spec::names::{Dialect, Naming, Rename};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Autoencoder,
    name: "vae",
    title: "FLUX.2 autoencoder (VAE)",
    option: Some("vae"),
    diffusers: Diffusers {
        folder: "vae",
        python_library: "diffusers",
        class: "AutoencoderKLFlux2",
        classes: "*Autoencoder*Flux2*",
    },
    files: FileNames {
        folders: &["vae", "VAE"],
        ranks: &[
            &["*flux2*", "*flux_2*"],
            &["ae*", "diffusion_pytorch_model*", "*small_decoder*"],
            &["*vae*"],
        ],
        known: &["*flux2*vae*", "*flux_2*vae*", "*vae*flux2*", "*small_decoder*", "ae.*", "*/ae.*"],
        not: &[],
        written: "flux2-vae.safetensors",
    },
    source: Some("black-forest-labs/FLUX.2-klein-4B/vae/diffusion_pytorch_model.safetensors"),
    comfy_prefix: "vae.",
    tensors: tensor_names!(
        affine!("encoder.quant_conv"),
        affine!("decoder.post_quant_conv"),
        "bn.{running_mean|running_var}",
    ),
    dialects: &[
        Dialect {
            name: "BFL",
            markers: &[
                "decoder.mid.block_1.conv1.weight",
                "decoder.mid.block_2.conv1.weight",
                "encoder.mid.block_1.conv1.weight",
            ],
            requires: &[&["bn.running_"]],
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
            requires: &[&["bn.running_"]],
            naming: Naming::Renamed(diffusers_names!(
                Rename::one(affine!("encoder.quant_conv"), &[affine!("quant_conv")]),
                Rename::one(affine!("decoder.post_quant_conv"), &[affine!("post_quant_conv")]),
                Rename::one("bn.{running_mean|running_var}", &["bn.{running_mean|running_var}"]),
            )),
            gguf: false,
        },
    ],
    unused: &["bn.num_batches_tracked"],
    lookalikes: &[Lookalike {
        what: "the autoencoder of Qwen-Image or of a video model",
        signs: &["*.to_qkv.weight", "*.time_conv.weight"],
    }],
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
