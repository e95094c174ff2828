//! Files that belong to no family here, by parts of their tensor names: other models, and ways of
//! storing weights that this program cannot read. A family that is added leaves this list.

use super::names::matches_glob;

/// A model of another kind.
#[derive(Debug)]
pub struct ForeignModel {
    /// What it is, with its article: `a Chroma model`.
    pub what: &'static str,
    /// What to do instead.
    pub advice: &'static str,
    /// Each sign is a list of parts of tensor names; it shows the model if all of them occur.
    pub signs: &'static [&'static [&'static str]],
}

impl ForeignModel {
    /// Whether tensors of these names are of this model.
    pub fn is_shown_by(&self, names: &[&str]) -> bool {
        let occurs = |part: &&str| names.iter().any(|n| n.contains(part));
        self.signs.iter().any(|sign| sign.iter().all(occurs))
    }
}

/// A way of storing weights that cannot be read.
#[derive(Debug)]
pub struct ForeignStorage {
    /// The format, or the program that writes it.
    pub what: &'static str,
    /// Globs of tensor names; one of them is enough.
    pub signs: &'static [&'static str],
}

impl ForeignStorage {
    /// Whether the name of a tensor shows this way of storing weights.
    pub fn is_shown_by(&self, name: &str) -> bool {
        matches_glob(self.signs, name)
    }
}

/// Advice for a model of another family.
const OTHER_MODEL: &str = "use FLUX.1 [dev] or [schnell], FLUX.2 [klein], or one of their \
                           fine-tunes; this model needs another program, such as ComfyUI";
/// Advice for something that is added to a model.
const ADD_ON: &str = "give the FLUX.1 model that it was made for; add-ons of this kind are not \
                      supported";
/// A ControlNet; those that can be used have some of its signs.
pub const CONTROLNET: &str = "a ControlNet";
/// Advice for a ControlNet of another kind.
const OTHER_CONTROLNET: &str = "use a ControlNet for FLUX.1 with the tensors of InstantX, \
                                Shakker-Labs, jasperai, alimama or XLabs";
/// Advice for a text encoder, an autoencoder or another part of a model.
const OTHER_PART: &str = "FLUX.1 needs T5 v1.1 XXL, CLIP-L and the autoencoder ae.safetensors; \
                          FLUX.2 [klein] needs Qwen3-4B or 8B and flux2-vae.safetensors";

macro_rules! foreign {
    ($what:literal, $advice:expr, $($sign:expr),+) => {
        ForeignModel { what: $what, advice: $advice, signs: &[$(&$sign),+] }
    };
}

/// Other models. The first one whose sign is there is taken, so that what is more specific comes
/// first. None of the signs is in a FLUX.1 model, so a transformer with one of them is not FLUX.1
/// even if it has FLUX.1's blocks.
pub static MODELS: &[ForeignModel] = &[
    foreign!(
        "a FLUX.3 model",
        OTHER_MODEL,
        ["early_stream_modulations."],
        ["content_mode_blocks."]
    ),
    foreign!("a Chroma model", OTHER_MODEL, ["distilled_guidance_layer."], ["nerf_blocks."]),
    foreign!("a MistoLine ControlNet", OTHER_CONTROLNET, ["controlnet_blocks.0.linear."]),
    ForeignModel {
        what: CONTROLNET,
        advice: OTHER_CONTROLNET,
        signs: &[
            &["controlnet_blocks."],
            &["controlnet_x_embedder."],
            &["controlnet_single_blocks."],
            &["controlnet_cond_embedding."],
            &["controlnet_down_blocks."],
            &["input_hint_block."],
            &["control_model."],
            &["zero_convs."],
        ],
    },
    foreign!("an IP-Adapter", ADD_ON, ["ip_adapter"], ["image_proj_model."], [".ip_k_proj."]),
    foreign!("a PuLID adapter", ADD_ON, ["pulid_ca."], ["pulid_encoder."]),
    foreign!("a HiDream model", OTHER_MODEL, ["double_stream_blocks."]),
    foreign!(
        "a HunyuanVideo model",
        OTHER_MODEL,
        ["individual_token_refiner."],
        ["token_refiner.refiner_blocks."]
    ),
    foreign!(
        "a Qwen-Image model",
        OTHER_MODEL,
        ["transformer_blocks.0.img_mod.1."],
        ["transformer_blocks.0.txt_mod.1."],
        ["txt_norm.", "transformer_blocks.0.img_mlp."]
    ),
    // Lumina 2 has the same networks. Its pieces have other names in diffusers, and in ComfyUI's
    // names only pad tokens distinguish the two.
    foreign!(
        "a Z-Image model",
        OTHER_MODEL,
        ["cap_pad_token"],
        ["x_pad_token"],
        ["all_x_embedder."],
        ["all_final_layer."],
        ["context_refiner.", ".attention.to_q."],
        ["noise_refiner.", ".attention.to_q."]
    ),
    foreign!(
        "a Lumina 2 model",
        OTHER_MODEL,
        ["time_caption_embed.", "context_refiner."],
        ["time_caption_embed.", "noise_refiner."]
    ),
    foreign!("an OmniGen 2 model", OTHER_MODEL, ["ref_image_refiner."]),
    foreign!(
        "a Z-Image or Lumina 2 model",
        OTHER_MODEL,
        ["cap_embedder.", "context_refiner."],
        ["context_refiner.", ".attention.qkv."],
        ["noise_refiner.", ".attention.qkv."]
    ),
    foreign!(
        "an AuraFlow model",
        OTHER_MODEL,
        ["cond_seq_linear."],
        ["joint_transformer_blocks."],
        ["double_layers.0.attn.w1q."]
    ),
    foreign!(
        "a Stable Diffusion 3 model",
        OTHER_MODEL,
        ["joint_blocks."],
        ["pos_embed.", ".attn.add_q_proj."],
        ["pos_embed.", ".attn.add_k_proj."],
        ["pos_embed.", ".attn.add_v_proj."]
    ),
    foreign!(
        "a Hunyuan-DiT model",
        OTHER_MODEL,
        ["mlp_t5."],
        ["extra_embedder.", "text_embedder."]
    ),
    foreign!("a Mochi model", OTHER_MODEL, ["t5_yproj."], ["blocks.0.attn.qkv_x."]),
    foreign!("a CogVideoX model", OTHER_MODEL, ["patch_embed.text_proj."]),
    foreign!("a Kandinsky 5 model", OTHER_MODEL, ["visual_transformer_blocks."]),
    foreign!("a BAGEL model", OTHER_MODEL, ["_moe_gen."]),
    foreign!("a Stable Audio model", OTHER_MODEL, ["transformer.rotary_pos_emb.inv_freq"]),
    foreign!("an AnimateDiff motion module", ADD_ON, [".motion_modules."]),
    foreign!("an LTX-Video model", OTHER_MODEL, ["patchify_proj.", "adaln_single."]),
    foreign!("a PixArt model", OTHER_MODEL, ["adaln_single.", "caption_projection."]),
    foreign!("a PixArt or Sana model", OTHER_MODEL, ["y_embedder.y_proj."]),
    foreign!(
        "a Sana model",
        OTHER_MODEL,
        ["time_embed.timestep_embedder.", "caption_projection.", "caption_norm."]
    ),
    foreign!(
        "a Wan model",
        OTHER_MODEL,
        ["blocks.", ".self_attn.q."],
        ["blocks.", ".cross_attn.norm_q."],
        [".attn2.norm_q.", "condition_embedder."]
    ),
    foreign!("a Cosmos model", OTHER_MODEL, ["blocks.block0.blocks.0."], ["net.blocks.0.adaln_"]),
    foreign!(
        "a Stable Diffusion XL model",
        OTHER_MODEL,
        ["input_blocks.0.0.", "label_emb."],
        ["conditioner.embedders."],
        ["down_blocks.1.attentions.", "add_embedding.linear_1."]
    ),
    foreign!(
        "a Stable Diffusion model (1.x or 2.x)",
        OTHER_MODEL,
        ["input_blocks.0.0."],
        ["down_blocks.0.attentions."]
    ),
    foreign!(
        "a Stable Cascade model",
        OTHER_MODEL,
        ["clip_txt_pooled_mapper."],
        ["clf.1.", "down_repeat"]
    ),
];

/// Parts of other models, which are looked for only in files without a component that is known.
pub static PARTS: &[ForeignModel] = &[
    foreign!(
        "a Qwen3-VL language model (a text encoder of FLUX.3)",
        OTHER_PART,
        ["language_model.layers.0.self_attn.q_norm."]
    ),
    foreign!(
        "a language model (a text encoder of another image model)",
        OTHER_PART,
        ["layers.0.self_attn.q_proj.", "layers.0.mlp.gate_proj."],
        ["blk.0.attn_output.", "blk.0.ffn_gate."]
    ),
    foreign!("an OpenCLIP text encoder", OTHER_PART, ["transformer.resblocks.0."]),
    foreign!(
        "a vision encoder (CLIP vision, or another SigLIP)",
        OTHER_PART,
        ["vision_model.embeddings.patch_embedding."]
    ),
    foreign!(
        "a small autoencoder for previews (TAESD)",
        OTHER_PART,
        ["decoder.layers.1.conv.0."],
        ["3.conv.0.", "3.conv.2.", "1.weight"],
        ["1.conv.0.", "1.conv.2.", "0.weight"]
    ),
    foreign!(
        "an autoencoder of a video model (Wan or Qwen-Image)",
        OTHER_PART,
        ["decoder.middle.0.residual."]
    ),
    foreign!("an upscaler (ESRGAN)", OTHER_PART, ["body.0.rdb1."], ["RDB1.conv1."]),
    foreign!("a textual inversion embedding", OTHER_PART, ["emb_params"]),
    foreign!(
        "weights in bitsandbytes int8 without the other tensors of a model",
        "give the folder or the file that has all tensors of a FLUX.1 or FLUX.2 model",
        [".SCB"]
    ),
    // Both models have blocks of these names; what would distinguish them is in another shard.
    foreign!(
        "blocks of a Stable Diffusion 3 or FLUX.1 transformer without its other tensors",
        "give the folder or the file that has all tensors of a FLUX.1 model",
        ["transformer_blocks.", ".attn.add_q_proj."],
        ["transformer_blocks.", ".attn.add_k_proj."],
        ["transformer_blocks.", ".attn.add_v_proj."]
    ),
];

/// Ways of storing weights that cannot be read; the first one whose sign is there is taken.
pub static STORAGE: &[ForeignStorage] = &[
    ForeignStorage {
        what: "SVDQuant (nunchaku)",
        signs: &["*.wscales", "*.wcscales", "*.wtscale", "*.smooth_factor"],
    },
    ForeignStorage { what: "GPTQ or AWQ", signs: &["*.qzeros", "*.g_idx"] },
    ForeignStorage { what: "SVDQuant, GPTQ or AWQ", signs: &["*.qweight"] },
    ForeignStorage {
        what: "optimum-quanto",
        signs: &["*._data", "*._scale", "*._shift", "*.weight_qtype"],
    },
    ForeignStorage {
        what: "torchao",
        signs: &[
            "*:qdata",
            "*:_data",
            "*:int_data",
            "*weight_qdata",
            "*.weight.tensor_impl*",
            "*.weight.qdata",
            "*.weight.int_data",
            "*.weight.layout_tensor*",
        ],
    },
    ForeignStorage { what: "MLX in groups of 4 or 8 bits", signs: &["*.biases"] },
    ForeignStorage { what: "HQQ", signs: &["*.W_q"] },
    ForeignStorage { what: "compressed-tensors with packed integers", signs: &["*.weight_packed"] },
    ForeignStorage {
        what: "integer quantisation with zero points",
        signs: &["*.weight_zero_point", "*.zero_point", "*.zero_points"],
    },
    ForeignStorage {
        what: "NVIDIA ModelOpt's quantisers",
        signs: &["*.weight_quantizer.*", "*.input_quantizer.*"],
    },
];

/// FLUX.1 models whose transformer has inputs that are not known: inputs for 64 outputs, what it
/// is, and what to do.
pub static INPUTS: &[(usize, &str, &str)] = &[(
    196,
    "Flex.2, whose input has an image, a mask and a control image besides the noise",
    "use FLUX.1 [dev] or Flex.1 for text to image",
)];

/// Stable Diffusion before its version is known.
pub const STABLE_DIFFUSION: &str = "Stable Diffusion (1.x, 2.x or XL)";
