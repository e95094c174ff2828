//! The T5 v1.1 XXL encoder.

use crate::spec::family::{
    ComponentSpec, Diffusers, Fact, FileNames, Fit, Lookalike, Role, Tokenizer, Variant,
};
use crate::spec::lora::LoraLayers;
use crate::spec::names::{Dialect, Naming, Rename};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Text(0),
    name: "t5",
    title: "T5 text encoder",
    option: Some("t5"),
    diffusers: Diffusers {
        folder: "text_encoder_2",
        python_library: "transformers",
        class: "T5EncoderModel",
        classes: "*T5*",
    },
    tokenizer: Some(Tokenizer { folder: "tokenizer_2", sets_length: true }),
    files: FileNames {
        folders: &["text_encoders", "text_encoder_2", "clip", "text_encoder"],
        ranks: &[&["*t5xxl*", "*t5_xxl*"], &["*t5*", "model*"], &["*"]],
        known: &["*t5*xxl*", "*xxl*t5*"],
        not: &["*umt5*"],
        written: "t5xxl.safetensors",
    },
    // The form that costs least.
    source: Some("comfyanonymous/flux_text_encoders/t5xxl_fp8_e4m3fn.safetensors"),
    comfy_prefix: "text_encoders.t5xxl.transformer.",
    gguf: Some("t5encoder"),
    tensors: &[
        "shared.weight",
        "encoder.block.{}.layer.0.SelfAttention.{q|k|v|o}.weight",
        BIAS,
        "encoder.block.{}.layer.{0|1}.layer_norm.weight",
        "encoder.block.{}.layer.1.DenseReluDense.{wi_0|wi_1|wo}.weight",
        "encoder.final_layer_norm.weight",
    ],
    dialects: &[
        Dialect {
            name: "Hugging Face",
            markers: &[
                "encoder.block.0.layer.0.SelfAttention.q.weight",
                "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
                // One that has lost its first block is damaged, not absent.
                "encoder.block.1.layer.0.SelfAttention.q.weight",
            ],
            requires: &[],
            naming: Naming::Canonical,
            gguf: false,
        },
        Dialect {
            name: "llama.cpp",
            markers: &[
                "enc.blk.0.attn_q.weight",
                "enc.blk.0.ffn_gate.weight",
                "enc.blk.1.attn_q.weight",
            ],
            requires: &[],
            naming: Naming::Renamed(LLAMA),
            gguf: true,
        },
    ],
    aliases: &[("encoder.embed_tokens.weight", "shared.weight")],
    // The decoder of a whole T5 model.
    unused: &["*lm_head.*", "*decoder.block.*", "*decoder.final_layer_norm*", "dec.*"],
    lookalikes: &[
        // A table of position biases in every block, where T5 has one in the first block.
        Lookalike {
            what: "UMT5 (the text encoder of Wan, AuraFlow and others)",
            signs: &[
                "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
                "encoder.block.2.layer.0.SelfAttention.relative_attention_bias.weight",
                "enc.blk.1.attn_rel_b.weight",
                "enc.blk.2.attn_rel_b.weight",
            ],
        },
        Lookalike {
            what: "T5 of version 1.0, which has no gated feed-forward layers",
            signs: &["*.DenseReluDense.wi.weight"],
        },
    ],
    fit: Some(Fit {
        own: ("encoder.block.0.layer.0.SelfAttention.q.weight", 1),
        transformer: ("txt_in.weight", 1),
        divisor: 1,
    }),
    tables: &["shared.weight", BIAS],
    quantised: &["encoder.block."],
    unscaled_queries: Some(("encoder.block.{}.layer.0.SelfAttention.q.weight", 8.0)),
    facts: &[
        ("layers", Fact::Count("encoder.block.")),
        ("width", Fact::Axis("shared.weight", 1)),
        ("vocabulary", Fact::Axis("shared.weight", 0)),
    ],
    variant: Some(Variant::Size {
        label: "width",
        tensor: "encoder.block.0.layer.0.SelfAttention.q.weight",
        axis: 1,
    }),
    lora: LoraLayers {
        layers: &[
            "encoder.block.{}.layer.0.SelfAttention.q",
            "encoder.block.{}.layer.0.SelfAttention.k",
            "encoder.block.{}.layer.0.SelfAttention.v",
            "encoder.block.{}.layer.0.SelfAttention.o",
            "encoder.block.{}.layer.1.DenseReluDense.wi_0",
            "encoder.block.{}.layer.1.DenseReluDense.wi_1",
            "encoder.block.{}.layer.1.DenseReluDense.wo",
        ],
        vectors: &[
            "encoder.block.{}.layer.0.layer_norm.weight",
            "encoder.block.{}.layer.1.layer_norm.weight",
            "encoder.final_layer_norm.weight",
        ],
        spellings: &[],
        input: None,
        blocks_hint: super::lora::TEXT_BLOCKS,
    },
    ..ComponentSpec::EMPTY
};

/// The table of position biases.
const BIAS: &str = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight";

/// llama.cpp's names, as GGUF files have them.
const LLAMA: &[Rename] = &[
    Rename::one("shared.weight", &["token_embd.weight"]),
    Rename::one("encoder.block.{}.layer.0.SelfAttention.q.weight", &["enc.blk.{}.attn_q.weight"]),
    Rename::one("encoder.block.{}.layer.0.SelfAttention.k.weight", &["enc.blk.{}.attn_k.weight"]),
    Rename::one("encoder.block.{}.layer.0.SelfAttention.v.weight", &["enc.blk.{}.attn_v.weight"]),
    Rename::one("encoder.block.{}.layer.0.SelfAttention.o.weight", &["enc.blk.{}.attn_o.weight"]),
    Rename::one(BIAS, &["enc.blk.{}.attn_rel_b.weight"]),
    Rename::one("encoder.block.{}.layer.0.layer_norm.weight", &["enc.blk.{}.attn_norm.weight"]),
    Rename::one(
        "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight",
        &["enc.blk.{}.ffn_gate.weight"],
    ),
    Rename::one(
        "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight",
        &["enc.blk.{}.ffn_up.weight"],
    ),
    Rename::one(
        "encoder.block.{}.layer.1.DenseReluDense.wo.weight",
        &["enc.blk.{}.ffn_down.weight"],
    ),
    Rename::one("encoder.block.{}.layer.1.layer_norm.weight", &["enc.blk.{}.ffn_norm.weight"]),
    Rename::one("encoder.final_layer_norm.weight", &["enc.output_norm.weight"]),
];
