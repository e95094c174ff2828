//! The Qwen3 language model as a text encoder, after `Qwen3Model` of `transformers`: RMSNorm, no
//! biases, grouped queries, norms of queries and keys, rotation of halves, SwiGLU.
//!
//! FLUX.2 reads the hidden states after some of the layers, so the layers behind the last of them
//! and the head are not needed.

mod config;

pub use config::Qwen3Config;

use crate::dtype::DType;
use crate::model::config::TensorSpec;
use crate::op::{
    Attention, Cast, CopyRows, Epilogue, Linear, Pairs, Program, QkNormRope, Recorder, RmsNorm,
    SiluMul,
};
use crate::tensor::Tensor;

/// The table of token embeddings, `vocab x width`. No program reads it: see [`encode`].
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// Encodes prompts of `length` tokens each; `real` has the number of tokens before the padding, one
/// entry for each prompt.
///
/// Inputs: `tokens` (prompts * length x width, f32), the rows of [`EMBEDDING`] for the ids: a
/// prompt has a few hundred of them, and the table is a sixth of the weights. `rope` (length x
/// head_dim, f32, see [`rope`]). Output: `text` (prompts * length x [`Qwen3Config::context`]), the
/// hidden states next to one another. Every token sees the tokens before it that are not padding,
/// as FLUX.2 expects; rows of the padding are computed, too.
///
/// # Panics
/// If a prompt has no tokens, or more than `length`.
pub fn encode(c: &Qwen3Config, real: &[usize], length: usize, act: DType) -> Program {
    assert!(real.iter().all(|n| (1..=length).contains(n)), "{real:?} tokens of {length}");
    let rows = real.len() * length;
    let mut r = Recorder::new("qwen3");
    let tokens = r.input("tokens", rows, c.width, DType::F32);
    let rope = r.input("rope", length, c.head_dim, DType::F32);
    let text = r.output("text", rows, c.context(), act);
    r.scope("embed");
    let x = r.temp(rows, c.width, act);
    r.push("tokens", Cast { x: tokens.all(), out: x.all() });
    let encoder = Encoder { c, real, length, act, rope };
    for i in 0..c.depth() {
        r.scope(format!("block.{i}"));
        encoder.attend(&mut r, i, x);
        encoder.feed_forward(&mut r, i, x);
        let Some(tap) = c.taps.iter().position(|n| *n == i + 1) else { continue };
        let mut state = x;
        if c.final_norm() && i + 1 == c.layers {
            state = r.temp(rows, c.width, act);
            let weight = r.weight("model.norm.weight", 1, c.width);
            r.push("final_norm", RmsNorm { x, weight, eps: c.eps, out: state });
        }
        let out = text.columns(tap * c.width, c.width);
        r.push("state", Cast { x: state.all(), out });
    }
    r.finish()
}

/// Sizes and inputs that all layers use.
struct Encoder<'a> {
    c: &'a Qwen3Config,
    real: &'a [usize],
    length: usize,
    act: DType,
    rope: Tensor,
}

impl Encoder<'_> {
    /// `x += o(attention(q, k, v))` of the normalised `x`.
    fn attend(&self, r: &mut Recorder, i: usize, x: Tensor) {
        let Encoder { c, real, length, act, rope } = *self;
        let (inner, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let layer = format!("model.layers.{i}");
        let norm = r.temp(x.rows, c.width, act);
        let weight = r.weight(format!("{layer}.input_layernorm.weight"), 1, c.width);
        r.push("norm1", RmsNorm { x, weight, eps: c.eps, out: norm });
        let own = r.temp(x.rows, inner + 2 * kv, act);
        for (name, col, n) in [("q", 0, inner), ("k", inner, kv), ("v", inner + kv, kv)] {
            let w = r.weight(format!("{layer}.self_attn.{name}_proj.weight"), n, c.width);
            r.push(name, Linear::plain(norm.all(), w, own.columns(col, n)));
        }
        let qkv = r.temp(x.rows, 3 * inner, act);
        let gain = |r: &mut Recorder, name: &str| {
            r.weight(format!("{layer}.self_attn.{name}_norm.weight"), 1, c.head_dim)
        };
        let op = QkNormRope {
            qkv: own,
            q_gain: gain(r, "q"),
            k_gain: gain(r, "k"),
            rope,
            pairs: Pairs::Halves,
            batch: real.len(),
            heads: c.heads,
            kv_heads: c.kv_heads,
            tokens: length,
            first: 0,
            eps: c.eps,
            out: qkv,
        };
        r.push("rope", op);
        let attn = r.temp(x.rows, inner, act);
        for prompt in 0..real.len() {
            self.attention(r, prompt, qkv, attn);
        }
        let w = r.weight(format!("{layer}.self_attn.o_proj.weight"), c.width, inner);
        let epilogue = Epilogue::Add { residual: x };
        r.push("o", Linear { epilogue, ..Linear::plain(attn.all(), w, x.all()) });
    }

    /// Attention of one prompt. Padding is never a key: tokens see those before them, and the rows
    /// of the padding, which follows, see all tokens.
    fn attention(&self, r: &mut Recorder, prompt: usize, qkv: Tensor, out: Tensor) {
        let Encoder { c, real, length, act, .. } = *self;
        let inner = c.heads * c.head_dim;
        let (first, n) = (prompt * length, real[prompt]);
        let rows = |r: &mut Recorder, label: &str, from: usize, count: usize| {
            let part = r.temp(count, qkv.cols, act);
            r.push(label, CopyRows { x: qkv, out: part, batch: 1, from, to: 0, count });
            part
        };
        let tokens = rows(r, &format!("tokens.{prompt}"), first, n);
        let mut parts = vec![("attn", tokens, first)];
        if n < length {
            let padding = rows(r, &format!("padding.{prompt}"), first + n, length - n);
            parts.push(("attn_padding", padding, first + n));
        }
        for (label, queries, to) in parts {
            let part = r.temp(queries.rows, inner, act);
            let op = Attention {
                q: queries.columns(0, inner),
                k: tokens.columns(inner, inner),
                v: tokens.columns(2 * inner, inner),
                batch: 1,
                heads: c.heads,
                scale: 1.0 / (c.head_dim as f32).sqrt(),
                causal: queries == tokens,
                bias: None,
                first: None,
                out: part.all(),
            };
            r.push(&format!("{label}.{prompt}"), op);
            let count = part.rows;
            let copy = CopyRows { x: part, out, batch: 1, from: 0, to, count };
            r.push(&format!("{label}_rows.{prompt}"), copy);
        }
    }

    /// `x += down(silu(gate) * up)` of the normalised `x`.
    fn feed_forward(&self, r: &mut Recorder, i: usize, x: Tensor) {
        let Encoder { c, act, .. } = *self;
        let layer = format!("model.layers.{i}");
        let norm = r.temp(x.rows, c.width, act);
        let weight = r.weight(format!("{layer}.post_attention_layernorm.weight"), 1, c.width);
        r.push("norm2", RmsNorm { x, weight, eps: c.eps, out: norm });
        let [gate, up] = ["gate", "up"].map(|name| {
            let out = r.temp(x.rows, c.ff, act);
            let w = r.weight(format!("{layer}.mlp.{name}_proj.weight"), c.ff, c.width);
            r.push(name, Linear::plain(norm.all(), w, out.all()));
            out.all()
        });
        r.push("silu", SiluMul { gate, up, out: gate });
        let w = r.weight(format!("{layer}.mlp.down_proj.weight"), c.width, c.ff);
        let epilogue = Epilogue::Add { residual: x };
        r.push("down", Linear { epilogue, ..Linear::plain(gate, w, x.all()) });
    }
}

/// The rotation table of `length` tokens, `length x head_dim`: columns (cos, sin) for each pair.
/// Frequencies and angles are f32, as in `transformers`.
pub fn rope(c: &Qwen3Config, length: usize) -> Vec<f32> {
    let half = c.head_dim / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| 1.0 / (c.theta as f32).powf((2 * i) as f32 / c.head_dim as f32))
        .collect();
    let angle = |position: usize| frequencies.iter().map(move |f| position as f32 * f);
    (0..length).flat_map(angle).flat_map(|a| [a.cos(), a.sin()]).collect()
}

/// Every tensor of the layers, with its shape in files. Those of layers that are not needed are in
/// the list, too: without them the file is damaged.
pub fn tensors(c: &Qwen3Config) -> Vec<TensorSpec> {
    let (inner, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let mut out = vec![(EMBEDDING.to_string(), vec![c.vocab, c.width])];
    for i in 0..c.layers {
        let layer = format!("model.layers.{i}");
        for (name, shape) in [
            ("self_attn.q_proj", vec![inner, c.width]),
            ("self_attn.k_proj", vec![kv, c.width]),
            ("self_attn.v_proj", vec![kv, c.width]),
            ("self_attn.o_proj", vec![c.width, inner]),
            ("self_attn.q_norm", vec![c.head_dim]),
            ("self_attn.k_norm", vec![c.head_dim]),
            ("mlp.gate_proj", vec![c.ff, c.width]),
            ("mlp.up_proj", vec![c.ff, c.width]),
            ("mlp.down_proj", vec![c.width, c.ff]),
            ("input_layernorm", vec![c.width]),
            ("post_attention_layernorm", vec![c.width]),
        ] {
            out.push((format!("{layer}.{name}.weight"), shape));
        }
    }
    if c.norm || c.final_norm() {
        out.push(("model.norm.weight".into(), vec![c.width]));
    }
    out
}
