//! The T5 v1.1 encoder, after `T5EncoderModel` of `transformers`: RMSNorm, no biases, no softmax
//! scale, and a relative position bias that all layers share.

mod config;

pub use config::T5Config;

use crate::dtype::DType;
use crate::model::config::TensorSpec;
use crate::op::{Attention, Embed, Epilogue, GeluMul, Linear, Program, Recorder, RmsNorm};

/// Encodes `batch` prompts of `length` tokens each.
///
/// Inputs: `ids` (batch * length x 1, I32), `buckets` (2 * length - 1 x 1, I32, see
/// [`relative_buckets`]). Output: `text` (batch * length x width). Padding is not masked, as FLUX
/// expects.
pub fn encode(c: &T5Config, batch: usize, length: usize, act: DType) -> Program {
    let (rows, inner) = (batch * length, c.heads * c.head_dim);
    let mut r = Recorder::new("t5");
    let ids = r.input("ids", rows, 1, DType::I32);
    let buckets = r.input("buckets", 2 * length - 1, 1, DType::I32);
    let out = r.output("text", rows, c.width, act);
    r.scope("embed");
    let x = r.temp(rows, c.width, act);
    let table = r.weight("shared.weight", c.vocab, c.width);
    r.push("tokens", Embed { table, ids, positions: None, out: x });
    let bias = r.temp(2 * length - 1, c.heads, act);
    let table = r.weight(
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        c.buckets,
        c.heads,
    );
    r.push("bias", Embed { table, ids: buckets, positions: None, out: bias });
    for i in 0..c.layers {
        r.scope(format!("block.{i}"));
        let layer = format!("encoder.block.{i}.layer");
        let norm = r.temp(rows, c.width, act);
        let weight = r.weight(format!("{layer}.0.layer_norm.weight"), 1, c.width);
        r.push("norm1", RmsNorm { x, weight, eps: c.eps, out: norm });
        let qkv = r.temp(rows, 3 * inner, act);
        let views = [0, 1, 2].map(|j| qkv.columns(j * inner, inner));
        for (name, out) in ["q", "k", "v"].into_iter().zip(views) {
            let w = r.weight(format!("{layer}.0.SelfAttention.{name}.weight"), inner, c.width);
            r.push(
                name,
                Linear {
                    x: norm.all(),
                    w,
                    bias: None,
                    factors: None,
                    side: None,
                    epilogue: Epilogue::None,
                    out,
                },
            );
        }
        let attn = r.temp(rows, inner, act);
        let [q, k, v] = views;
        let op = Attention {
            q,
            k,
            v,
            batch,
            heads: c.heads,
            scale: 1.0,
            causal: false,
            bias: Some(bias),
            first: None,
            out: attn.all(),
        };
        r.push("attn", op);
        let add = Epilogue::Add { residual: x };
        let w = r.weight(format!("{layer}.0.SelfAttention.o.weight"), c.width, inner);
        r.push("o", Linear { epilogue: add, ..Linear::plain(attn.all(), w, x.all()) });
        let norm = r.temp(rows, c.width, act);
        let weight = r.weight(format!("{layer}.1.layer_norm.weight"), 1, c.width);
        r.push("norm2", RmsNorm { x, weight, eps: c.eps, out: norm });
        let (gate, up) = (r.temp(rows, c.ff, act), r.temp(rows, c.ff, act));
        for (name, out) in [("wi_0", gate), ("wi_1", up)] {
            let w = r.weight(format!("{layer}.1.DenseReluDense.{name}.weight"), c.ff, c.width);
            r.push(name, Linear::plain(norm.all(), w, out.all()));
        }
        r.push("gelu", GeluMul { gate, up, out: gate });
        let w = r.weight(format!("{layer}.1.DenseReluDense.wo.weight"), c.width, c.ff);
        r.push("wo", Linear { epilogue: add, ..Linear::plain(gate.all(), w, x.all()) });
    }
    r.scope("final");
    let weight = r.weight("encoder.final_layer_norm.weight", 1, c.width);
    r.push("norm", RmsNorm { x, weight, eps: c.eps, out });
    r.finish()
}

/// The bucket of every relative position `key - query`, from -(length-1) to length-1. Each sign has
/// half of the buckets. The first half of those are exact; the others are logarithmic up to
/// `max_distance`.
pub fn relative_buckets(c: &T5Config, length: usize) -> Vec<i32> {
    let half = c.buckets / 2;
    let exact = half / 2;
    (-(length as i64 - 1)..length as i64)
        .map(|relative| {
            let distance = relative.unsigned_abs() as usize;
            let sign = if relative > 0 { half } else { 0 };
            let bucket = if distance < exact {
                distance
            } else {
                // Computed in f32 like the reference, because at exact powers a rounding error
                // decides which way the truncation below goes.
                let ratio = (distance as f32 / exact as f32).ln()
                    / (c.max_distance as f64 / exact as f64).ln() as f32;
                (exact + (ratio * (half - exact) as f32) as usize).min(half - 1)
            };
            (sign + bucket) as i32
        })
        .collect()
}

/// Every tensor of the encoder, with its shape in files.
pub fn tensors(c: &T5Config) -> Vec<TensorSpec> {
    let inner = c.heads * c.head_dim;
    let mut out = vec![("shared.weight".to_string(), vec![c.vocab, c.width])];
    for i in 0..c.layers {
        let layer = format!("encoder.block.{i}.layer");
        for name in ["q", "k", "v"] {
            out.push((format!("{layer}.0.SelfAttention.{name}.weight"), vec![inner, c.width]));
        }
        out.push((format!("{layer}.0.SelfAttention.o.weight"), vec![c.width, inner]));
        if i == 0 {
            out.push((
                format!("{layer}.0.SelfAttention.relative_attention_bias.weight"),
                vec![c.buckets, c.heads],
            ));
        }
        out.push((format!("{layer}.0.layer_norm.weight"), vec![c.width]));
        for name in ["wi_0", "wi_1"] {
            out.push((format!("{layer}.1.DenseReluDense.{name}.weight"), vec![c.ff, c.width]));
        }
        out.push((format!("{layer}.1.DenseReluDense.wo.weight"), vec![c.width, c.ff]));
        out.push((format!("{layer}.1.layer_norm.weight"), vec![c.width]));
    }
    out.push(("encoder.final_layer_norm.weight".into(), vec![c.width]));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bucket boundaries of the published scheme with 32 buckets and distance 128.
    #[test]
    fn buckets_are_exact_to_seven_then_logarithmic_then_constant() {
        let b = relative_buckets(&T5Config::xxl(), 300);
        let of = |relative: i64| b[(relative + 299) as usize];
        assert_eq!((0..8).map(|d| of(-d)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(
            [of(1), of(7), of(8), of(11), of(12), of(16), of(23), of(32), of(64), of(127), of(299)],
            [17, 23, 24, 24, 25, 26, 27, 28, 30, 31, 31]
        );
        assert_eq!([of(-8), of(-12), of(-299)], [8, 9, 15]);
    }
}
