//! The Qwen3 language model, whose hidden states FLUX.2 \[klein\] reads.

use crate::spec::family::{
    ComponentSpec, Diffusers, Fact, FileNames, Fit, Lookalike, Role, Tokenizer, Variant,
};
use crate::spec::lora::LoraLayers;
use crate::spec::names::{Dialect, Naming, Rename};

pub static SPEC: ComponentSpec = ComponentSpec {
    role: Role::Text(0),
    name: "qwen3",
    title: "Qwen3 text encoder",
    option: Some("qwen3"),
    diffusers: Diffusers {
        folder: "text_encoder",
        python_library: "transformers",
        class: "Qwen3ForCausalLM",
        classes: "Qwen3*",
    },
    // Its configuration allows 131,072 tokens; FLUX.2 was trained with 512.
    tokenizer: Some(Tokenizer { folder: "tokenizer", sets_length: false }),
    files: FileNames {
        folders: &["text_encoders", "text_encoder", "clip"],
        ranks: &[&["*qwen*3*"], &["*qwen*", "model*"], &["*"]],
        known: &["*qwen_3_4b*", "*qwen3_4b*", "*qwen_3_8b*", "*qwen3_8b*"],
        not: &["*qwen3_vl*", "*embedding*", "*reranker*"],
        written: "qwen_3.safetensors",
    },
    comfy_prefix: "text_encoders.qwen3_4b.transformer.",
    gguf: Some("qwen3"),
    tensors: &[
        EMBEDDING,
        "model.layers.{}.self_attn.{q_proj|k_proj|v_proj|o_proj}.weight",
        "model.layers.{}.self_attn.{q_norm|k_norm}.weight",
        "model.layers.{}.mlp.{gate_proj|up_proj|down_proj}.weight",
        "model.layers.{}.{input_layernorm|post_attention_layernorm}.weight",
        "model.norm.weight",
    ],
    dialects: &[
        Dialect {
            name: "Hugging Face",
            markers: &[
                "model.layers.0.self_attn.q_norm.weight",
                "model.layers.0.self_attn.k_norm.weight",
                "model.layers.1.self_attn.q_norm.weight",
            ],
            requires: &[],
            naming: Naming::Canonical,
            gguf: false,
        },
        Dialect {
            name: "Hugging Face",
            markers: &[
                "layers.0.self_attn.q_norm.weight",
                "layers.0.self_attn.k_norm.weight",
                "layers.1.self_attn.q_norm.weight",
            ],
            requires: &[&["embed_tokens."]],
            naming: Naming::Without("model."),
            gguf: false,
        },
        Dialect {
            name: "llama.cpp",
            markers: &[
                "blk.0.attn_q_norm.weight",
                "blk.0.attn_k_norm.weight",
                "blk.1.attn_q_norm.weight",
            ],
            requires: &[],
            naming: Naming::Renamed(LLAMA),
            gguf: true,
        },
    ],
    // The head, which has the values of the embedding in the smaller models.
    unused: &["lm_head.*", "output.weight", "rope_freqs.weight"],
    lookalikes: &[
        Lookalike {
            what: "the language model of Qwen3-VL, which FLUX.3 reads",
            signs: &["*visual.*", "*language_model.*"],
        },
        Lookalike {
            what: "Gemma 3",
            signs: &["*.pre_feedforward_layernorm.weight", "*.post_ffw_norm.weight"],
        },
        Lookalike {
            what: "a Qwen3 with experts",
            signs: &["*.mlp.experts.*", "*.ffn_gate_exps.*"],
        },
    ],
    // Three hidden states stand next to one another in a row of the text.
    fit: Some(Fit { own: (EMBEDDING, 1), transformer: ("txt_in.weight", 1), divisor: 3 }),
    tables: &[EMBEDDING],
    quantised: &["model.layers."],
    facts: &[
        ("layers", Fact::Count("model.layers.")),
        ("width", Fact::Axis(EMBEDDING, 1)),
        ("vocabulary", Fact::Axis(EMBEDDING, 0)),
    ],
    variant: Some(Variant::Size { label: "width", tensor: EMBEDDING, axis: 1 }),
    lora: LoraLayers::NONE,
    ..ComponentSpec::EMPTY
};

/// The table of token embeddings.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// llama.cpp's names, as GGUF files have them.
const LLAMA: &[Rename] = &[
    Rename::one(EMBEDDING, &["token_embd.weight"]),
    Rename::one("model.layers.{}.self_attn.q_proj.weight", &["blk.{}.attn_q.weight"]),
    Rename::one("model.layers.{}.self_attn.k_proj.weight", &["blk.{}.attn_k.weight"]),
    Rename::one("model.layers.{}.self_attn.v_proj.weight", &["blk.{}.attn_v.weight"]),
    Rename::one("model.layers.{}.self_attn.o_proj.weight", &["blk.{}.attn_output.weight"]),
    Rename::one("model.layers.{}.self_attn.q_norm.weight", &["blk.{}.attn_q_norm.weight"]),
    Rename::one("model.layers.{}.self_attn.k_norm.weight", &["blk.{}.attn_k_norm.weight"]),
    Rename::one("model.layers.{}.mlp.gate_proj.weight", &["blk.{}.ffn_gate.weight"]),
    Rename::one("model.layers.{}.mlp.up_proj.weight", &["blk.{}.ffn_up.weight"]),
    Rename::one("model.layers.{}.mlp.down_proj.weight", &["blk.{}.ffn_down.weight"]),
    Rename::one("model.layers.{}.input_layernorm.weight", &["blk.{}.attn_norm.weight"]),
    Rename::one("model.layers.{}.post_attention_layernorm.weight", &["blk.{}.ffn_norm.weight"]),
    Rename::one("model.norm.weight", &["output_norm.weight"]),
];
