//! The text model of CLIP, after `CLIPTextModel` of `transformers`: pre-norm, causal, learned
//! positions.

mod config;

pub use config::ClipConfig;

use crate::dtype::DType;
use crate::model::config::{TensorSpec, push_affine};
use crate::model::tower::push_layers;
use crate::op::{Attention, Embed, Epilogue, LayerNorm, Linear, Program, Recorder};

/// Encodes `batch` prompts of `positions` tokens each.
///
/// Input: `ids` (batch * positions x 1, I32). Output: `hidden` (batch * positions x width), after
/// the final norm. The pooled embedding is the row of `hidden` at the first end token: the
/// attention is causal, so later rows do not affect it.
pub fn encode(c: &ClipConfig, batch: usize, act: DType) -> Program {
    let rows = batch * c.positions;
    let mut r = Recorder::new("clip");
    let ids = r.input("ids", rows, 1, DType::I32);
    let out = r.output("hidden", rows, c.width, act);
    r.scope("embed");
    let x = r.temp(rows, c.width, act);
    let table = r.weight("text_model.embeddings.token_embedding.weight", c.vocab, c.width);
    let positions =
        Some(r.weight("text_model.embeddings.position_embedding.weight", c.positions, c.width));
    r.push("tokens", Embed { table, ids, positions, out: x });
    let act_fn = if c.quick_gelu { Epilogue::QuickGelu } else { Epilogue::GeluTanh };
    for i in 0..c.layers {
        r.scope(format!("layer.{i}"));
        let layer = format!("text_model.encoder.layers.{i}");
        let linear =
            |r: &mut Recorder, label: &str, x, name: &str, n: usize, k: usize, epilogue, out| {
                let w = r.weight(format!("{layer}.{name}.weight"), n, k);
                let bias = Some(r.weight(format!("{layer}.{name}.bias"), 1, n));
                r.push(label, Linear { x, w, bias, factors: None, side: None, epilogue, out });
            };
        let norm = |r: &mut Recorder, name: &str| {
            let out = r.temp(rows, c.width, act);
            let weight = r.weight(format!("{layer}.{name}.weight"), 1, c.width);
            let bias = r.weight(format!("{layer}.{name}.bias"), 1, c.width);
            r.push(name, LayerNorm { x, weight, bias, eps: c.eps, out });
            out
        };
        let normed = norm(&mut r, "layer_norm1");
        let qkv = r.temp(rows, 3 * c.width, act);
        let views = [0, 1, 2].map(|j| qkv.columns(j * c.width, c.width));
        for (name, out) in ["q_proj", "k_proj", "v_proj"].into_iter().zip(views) {
            linear(
                &mut r,
                name,
                normed.all(),
                &format!("self_attn.{name}"),
                c.width,
                c.width,
                Epilogue::None,
                out,
            );
        }
        let attn = r.temp(rows, c.width, act);
        let [q, k, v] = views;
        let scale = 1.0 / ((c.width / c.heads) as f32).sqrt();
        r.push(
            "attn",
            Attention {
                q,
                k,
                v,
                batch,
                heads: c.heads,
                scale,
                causal: true,
                bias: None,
                first: None,
                out: attn.all(),
            },
        );
        let add = Epilogue::Add { residual: x };
        linear(
            &mut r,
            "out_proj",
            attn.all(),
            "self_attn.out_proj",
            c.width,
            c.width,
            add,
            x.all(),
        );
        let normed = norm(&mut r, "layer_norm2");
        let hidden = r.temp(rows, c.ff, act);
        linear(&mut r, "fc1", normed.all(), "mlp.fc1", c.ff, c.width, act_fn, hidden.all());
        linear(&mut r, "fc2", hidden.all(), "mlp.fc2", c.width, c.ff, add, x.all());
    }
    r.scope("final");
    let weight = r.weight("text_model.final_layer_norm.weight", 1, c.width);
    let bias = r.weight("text_model.final_layer_norm.bias", 1, c.width);
    r.push("norm", LayerNorm { x, weight, bias, eps: c.eps, out });
    r.finish()
}

/// Every tensor of the text model, with its shape in files.
pub fn tensors(c: &ClipConfig) -> Vec<TensorSpec> {
    let w = c.width;
    let mut out = vec![
        ("text_model.embeddings.token_embedding.weight".to_string(), vec![c.vocab, w]),
        ("text_model.embeddings.position_embedding.weight".to_string(), vec![c.positions, w]),
    ];
    push_layers(&mut out, "text_model", c.layers, (w, c.ff));
    push_affine(&mut out, "text_model.final_layer_norm", vec![w]);
    out
}
