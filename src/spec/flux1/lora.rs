//! FLUX.1's LoRAs: where the text encoders' layers are named, and the marks of other models.

use crate::spec::family::Role;
use crate::spec::foreign::STABLE_DIFFUSION as SD;
use crate::spec::lora::{COMMON_PREFIXES, LoraPrefix, LoraSpec};

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
    foreign: FOREIGN,
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
        (3072, "its width is that of the full FLUX.1, the model's is not"),
    ],
    other_width: "compare both by {:inspect}",
    example: "keys such as lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight or \
              transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
};

const FOREIGN: &[(&str, &str)] = &[
    ("distilled_guidance_layer", "Chroma"),
    ("stream_modulation", "FLUX.2"),
    ("to_qkv_mlp_proj", "FLUX.2"),
    (".ff.linear_in", "FLUX.2"),
    ("double_stream_blocks", "HiDream"),
    ("single_stream_blocks", "HiDream"),
    ("individual_token_refiner", "HunyuanVideo"),
    ("img_mlp.fc1", "HunyuanVideo"),
    ("img_mlp_fc1", "HunyuanVideo"),
    ("img_mod.linear", "HunyuanVideo"),
    ("img_mod_linear", "HunyuanVideo"),
    ("img_attn_qkv.lora_A", "HunyuanVideo"),
    ("joint_transformer_blocks", "AuraFlow"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("img_mod.1", "Qwen-Image"),
    ("img_mod_1", "Qwen-Image"),
    ("txt_mod.1", "Qwen-Image"),
    ("txt_mod_1", "Qwen-Image"),
    ("img_mlp.net", "Qwen-Image"),
    ("img_mlp_net", "Qwen-Image"),
    ("noise_refiner", "Lumina 2 or Z-Image"),
    ("context_refiner", "Lumina 2 or Z-Image"),
    (".attention.to_q", "Lumina 2 or Z-Image"),
    ("_attention_to_q", "Lumina 2 or Z-Image"),
    ("caption_projection", "PixArt or LTX-Video"),
    (".cross_attn.", "Wan"),
    ("_cross_attn_", "Wan"),
    ("condition_embedder", "Wan"),
    ("lora_prior_", "Stable Cascade"),
    ("down_blocks.", SD),
    ("down_blocks_", SD),
    ("up_blocks.", SD),
    ("up_blocks_", SD),
    ("mid_block.", SD),
    ("mid_block_", SD),
    ("input_blocks.", SD),
    ("input_blocks_", SD),
    ("output_blocks.", SD),
    ("output_blocks_", SD),
    ("lora_te2_text_model_", "Stable Diffusion XL or 3"),
    ("text_encoder_2.text_model.", "Stable Diffusion XL or 3"),
    (".attn2.", "a model with cross-attention, such as LTX-Video, PixArt or Stable Diffusion"),
    ("_attn2_", "a model with cross-attention, such as LTX-Video, PixArt or Stable Diffusion"),
    ("model.layers.", "a language model"),
];
