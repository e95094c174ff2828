//! FLUX.1's LoRAs: where the text encoders' layers are named, and the marks of other models.

use crate::spec::family::Role;
use crate::spec::lora::{COMMON_PREFIXES, LoraPrefix, LoraSpec, OTHER_MODELS, join};

/// The hint about a LoRA whose text encoders have more blocks.
pub const TEXT_BLOCKS: &str =
    "FLUX.1's text encoders are CLIP-L (12 layers) and T5 XXL (24 layers)";

const T5: Option<Role> = Some(Role::Text(0));
const CLIP: Option<Role> = Some(Role::Text(1));

const TEXT_PREFIXES: &[LoraPrefix] = &[
    LoraPrefix::shared("lora_te_", CLIP).flat(),
    LoraPrefix::shared("lora_te1_", CLIP).flat(),
    LoraPrefix::shared("lora_te2_", T5).flat(),
    LoraPrefix::shared("lora_te3_", T5).flat(),
    LoraPrefix::shared("text_encoders.clip_l.transformer.", CLIP),
    LoraPrefix::shared("text_encoders.t5xxl.transformer.", T5),
    LoraPrefix::shared("text_encoders.clip_l.", CLIP),
    LoraPrefix::shared("text_encoders.t5xxl.", T5),
    LoraPrefix::shared("text_encoder.", CLIP),
    LoraPrefix::shared("text_encoder_2.", T5),
];

pub const SPEC: LoraSpec = LoraSpec {
    prefixes: &[COMMON_PREFIXES, TEXT_PREFIXES],
    foreign: &FOREIGN,
    foreign_bases: &[
        "sd_",
        "sd1",
        "sd3",
        "sdxl",
        "stable-diffusion",
        "hunyuan",
        "wan",
        "qwen",
        "chroma",
        "flux2",
    ],
    widths: &[
        (1536, "its width is Stable Diffusion 3's"),
        (2432, "its width is Stable Diffusion 3's"),
        (6144, "its width is FLUX.2's"),
        (3072, "its layers are as wide as those of the full FLUX.1; this model's are not"),
    ],
    other_width: "compare both by {:inspect}",
    example: "keys such as lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight or \
              transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
};

/// Names that FLUX.2 has and FLUX.1 does not.
const FLUX2: [(&str, &str); 3] =
    [("stream_modulation", "FLUX.2"), ("to_qkv_mlp_proj", "FLUX.2"), (".ff.linear_in", "FLUX.2")];

const FOREIGN: [(&str, &str); FLUX2.len() + OTHER_MODELS.len()] = join(&FLUX2, OTHER_MODELS);
