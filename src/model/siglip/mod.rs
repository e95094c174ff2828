//! The vision tower of SigLIP, after `SiglipVisionModel` of `transformers`: pre-norm, learned
//! positions, no class token. Redux reads the tokens after the last norm; the head that pools them
//! is not used.

mod config;

pub use config::SiglipConfig;

use crate::dtype::DType;
use crate::model::config::{TensorSpec, push_affine};
use crate::model::tower::push_layers;
use crate::op::{Attention, Embed, Epilogue, LayerNorm, Linear, Program, Recorder};
use crate::tensor::{Tensor, View};

/// Encodes one image.
///
/// Inputs: `patches` (tokens x patch_values, see [`patches`]), `places` (tokens x 1, I32: 0, 1,
/// 2 ...). Output: `hidden` (tokens x width), after the last norm.
pub fn encode(c: &SiglipConfig, act: DType) -> Program {
    let (rows, w) = (c.tokens(), c.width);
    let mut r = Recorder::new("siglip");
    let patches = r.input("patches", rows, c.patch_values(), act);
    let ids = r.input("places", rows, 1, DType::I32);
    let out = r.output("hidden", rows, w, act);
    r.scope("embed");
    let x = r.temp(rows, w, act);
    let table = r.weight("vision_model.embeddings.position_embedding.weight", rows, w);
    r.push("positions", Embed { table, ids, positions: None, out: x });
    let add = Epilogue::Add { residual: x };
    let name = "vision_model.embeddings.patch_embedding";
    linear(&mut r, "patches", patches.all(), name, add, x.all());
    for i in 0..c.layers {
        layer(&mut r, c, i, x, act);
    }
    r.scope("final");
    norm(&mut r, c, "norm", "vision_model.post_layernorm", x, out);
    r.finish()
}

/// Layer `i`, in place.
fn layer(r: &mut Recorder, c: &SiglipConfig, i: usize, x: Tensor, act: DType) {
    let (rows, w) = (x.rows, x.cols);
    r.scope(format!("layer.{i}"));
    let name = format!("vision_model.encoder.layers.{i}");
    let add = Epilogue::Add { residual: x };
    let normed = r.temp(rows, w, act);
    norm(r, c, "norm1", &format!("{name}.layer_norm1"), x, normed);
    let qkv = r.temp(rows, 3 * w, act);
    let views = [0, 1, 2].map(|j| qkv.columns(j * w, w));
    for (label, out) in ["q_proj", "k_proj", "v_proj"].into_iter().zip(views) {
        let weight = format!("{name}.self_attn.{label}");
        linear(r, label, normed.all(), &weight, Epilogue::None, out);
    }
    let attn = r.temp(rows, w, act);
    let [q, k, v] = views;
    let op = Attention {
        q,
        k,
        v,
        batch: 1,
        heads: c.heads,
        scale: 1.0 / ((w / c.heads) as f32).sqrt(),
        causal: false,
        bias: None,
        first: None,
        out: attn.all(),
    };
    r.push("attn", op);
    linear(r, "out_proj", attn.all(), &format!("{name}.self_attn.out_proj"), add, x.all());
    let normed = r.temp(rows, w, act);
    norm(r, c, "norm2", &format!("{name}.layer_norm2"), x, normed);
    let hidden = r.temp(rows, c.ff, act);
    let fc1 = format!("{name}.mlp.fc1");
    linear(r, "fc1", normed.all(), &fc1, Epilogue::GeluTanh, hidden.all());
    linear(r, "fc2", hidden.all(), &format!("{name}.mlp.fc2"), add, x.all());
}

fn linear(r: &mut Recorder, label: &str, x: View, name: &str, epilogue: Epilogue, out: View) {
    let w = r.weight(format!("{name}.weight"), out.cols, x.cols);
    let bias = Some(r.weight(format!("{name}.bias"), 1, out.cols));
    r.push(label, Linear { bias, epilogue, ..Linear::plain(x, w, out) });
}

fn norm(r: &mut Recorder, c: &SiglipConfig, label: &str, name: &str, x: Tensor, out: Tensor) {
    let weight = r.weight(format!("{name}.weight"), 1, c.width);
    let bias = r.weight(format!("{name}.bias"), 1, c.width);
    r.push(label, LayerNorm { x, weight, bias, eps: c.eps, out });
}

/// The patches of a square RGB image of `c.image` pixels a side as the rows of a matrix: `tokens x
/// patch_values`, channel slowest, then row, then column, as the weight of the convolution that
/// reads them. Values are from -1 to 1.
pub fn patches(c: &SiglipConfig, rgb: &[u8]) -> Vec<f32> {
    let (grid, patch) = (c.grid(), c.patch);
    let mut out = Vec::with_capacity(c.tokens() * c.patch_values());
    for token in 0..c.tokens() {
        let (top, left) = (token / grid * patch, token % grid * patch);
        for channel in 0..3 {
            for y in top..top + patch {
                let pixel = |x: usize| rgb[3 * (y * c.image + x) + channel];
                // Rescaled and then normalised, as by `SiglipImageProcessor`.
                let value = |x| (f32::from(pixel(x)) / 255.0 - 0.5) / 0.5;
                out.extend((left..left + patch).map(value));
            }
        }
    }
    out
}

/// Every tensor of the tower, with its shape in files.
pub fn tensors(c: &SiglipConfig) -> Vec<TensorSpec> {
    let (w, p) = (c.width, c.patch);
    let positions = "vision_model.embeddings.position_embedding.weight".to_string();
    let mut out = vec![(positions, vec![c.tokens(), w])];
    push_affine(&mut out, "vision_model.embeddings.patch_embedding", vec![w, 3, p, p]);
    push_layers(&mut out, "vision_model", c.layers, (w, c.ff));
    push_affine(&mut out, "vision_model.post_layernorm", vec![w]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_have_the_order_of_the_weights_of_a_convolution() {
        // 2 x 2 patches of 2 pixels; the last row and column of pixels are not read.
        let c = SiglipConfig { image: 5, patch: 2, ..SiglipConfig::so400m() };
        let rgb: Vec<u8> = (0..75).map(|i| 3 * i).collect();
        let values: Vec<usize> =
            patches(&c, &rgb).iter().map(|v| ((v + 1.0) * 127.5 / 3.0).round() as usize).collect();
        assert_eq!(values.len(), 48);
        assert_eq!(values[..12], [0, 3, 15, 18, 1, 4, 16, 19, 2, 5, 17, 20]);
        assert_eq!(values[12..16], [6, 9, 21, 24]);
        assert_eq!(values[36..40], [36, 39, 51, 54]);
        assert_eq!((patches(&c, &[0; 75])[0], patches(&c, &[255; 75])[0]), (-1.0, 1.0));
    }
}
