//! FLUX.2's LoRAs: how they are named, and the marks of other models.

use crate::spec::lora::{COMMON_PREFIXES, LoraSpec, OTHER_MODELS, join};

pub const SPEC: LoraSpec = LoraSpec {
    prefixes: &[COMMON_PREFIXES],
    foreign: &FOREIGN,
    foreign_bases: &[
        "sd_",
        "sd1",
        "sd3",
        "sdxl",
        "stable-diffusion",
        "hunyuan",
        "wan",
        "qwen-image",
        "chroma",
        "flux1",
        "flux.1",
    ],
    widths: &[
        (3072, "its layers are as wide as those of [klein] 4B (or FLUX.1); this model's are not"),
        (4096, "its layers are as wide as those of [klein] 9B; this model's are not"),
        (6144, "its width is that of FLUX.2 [dev]"),
    ],
    other_width: "compare both by {:inspect}",
    example: "keys such as lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight or \
              transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight",
};

/// Names that FLUX.1 has and FLUX.2 does not.
const FLUX1: [(&str, &str); 9] = [
    ("img_mod.lin", "FLUX.1"),
    ("img_mod_lin", "FLUX.1"),
    ("txt_mod.lin", "FLUX.1"),
    ("txt_mod_lin", "FLUX.1"),
    (".modulation.lin", "FLUX.1"),
    ("vector_in", "FLUX.1"),
    ("proj_mlp", "FLUX.1"),
    (".norm1.linear", "FLUX.1"),
    ("ff.net.0", "FLUX.1"),
];

const FOREIGN: [(&str, &str); FLUX1.len() + OTHER_MODELS.len()] = join(&FLUX1, OTHER_MODELS);
