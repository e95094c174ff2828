//! The FLUX.2 transformer, after `flux2/model.py` of `black-forest-labs/flux2`.
//!
//! Against FLUX.1: no biases and no pooled text; one set of modulation vectors for all double
//! blocks and one for all single blocks ([`modulate()`]); SwiGLU in place of GELU; rotations with
//! four id axes, of which the last counts text tokens; and reference images, whose tokens follow
//! those of the image ([`denoise()`]), or whose keys and values are computed once
//! ([`reference_keys`]).

mod blocks;
mod config;
mod denoise;
mod modulate;
mod references;

pub use config::Flux2Config;
pub use denoise::{KEPT, denoise, reference_rope, rope};
pub use modulate::modulate;
pub use references::reference_keys;

use crate::model::config::TensorSpec;
use crate::op::{Epilogue, Linear, Recorder};
use crate::tensor::View;

/// Records a [`Linear`] with the weight `{name}.weight`, one row for every column of `out`.
fn linear(r: &mut Recorder, label: &str, x: View, name: &str, epilogue: Epilogue, out: View) {
    linear_rows(r, label, x, (name, 0), epilogue, out);
}

/// The same as [`linear`] with the rows of the weight from `first` on.
fn linear_rows(
    r: &mut Recorder,
    label: &str,
    x: View,
    (name, first): (&str, usize),
    epilogue: Epilogue,
    out: View,
) {
    let w = r.weight_rows(format!("{name}.weight"), first, out.cols, x.cols);
    r.push(label, Linear { epilogue, ..Linear::plain(x, w, out) });
}

/// Every tensor of the transformer with the shape in which BFL's files store it.
pub fn tensors(c: &Flux2Config) -> Vec<TensorSpec> {
    let (h, mlp) = (c.hidden, c.mlp_hidden);
    let mut out = Vec::new();
    let mut lin = |name: String, n: usize, k: usize| {
        out.push((format!("{name}.weight"), vec![n, k]));
    };
    lin("img_in".into(), h, c.in_channels);
    lin("txt_in".into(), h, c.context);
    for name in ["time_in", "guidance_in"].into_iter().take(1 + usize::from(c.guidance)) {
        lin(format!("{name}.in_layer"), h, c.time_dim);
        lin(format!("{name}.out_layer"), h, h);
    }
    lin("double_stream_modulation_img.lin".into(), 6 * h, h);
    lin("double_stream_modulation_txt.lin".into(), 6 * h, h);
    lin("single_stream_modulation.lin".into(), 3 * h, h);
    for i in 0..c.depth_double {
        for stream in ["img", "txt"] {
            let block = format!("double_blocks.{i}.{stream}");
            lin(format!("{block}_attn.qkv"), 3 * h, h);
            lin(format!("{block}_attn.proj"), h, h);
            lin(format!("{block}_mlp.0"), 2 * mlp, h);
            lin(format!("{block}_mlp.2"), h, mlp);
        }
    }
    for i in 0..c.depth_single {
        lin(format!("single_blocks.{i}.linear1"), 3 * h + 2 * mlp, h);
        lin(format!("single_blocks.{i}.linear2"), h, h + mlp);
    }
    lin("final_layer.linear".into(), c.out_channels, h);
    lin("final_layer.adaLN_modulation.1".into(), 2 * h, h);
    for norm in ["query_norm", "key_norm"] {
        let double = (0..c.depth_double)
            .flat_map(|i| ["img", "txt"].map(|s| format!("double_blocks.{i}.{s}_attn")));
        let single = (0..c.depth_single).map(|i| format!("single_blocks.{i}"));
        let gains = double.chain(single).map(|b| (format!("{b}.norm.{norm}.scale"), c.head_dim));
        out.extend(gains.map(|(name, n)| (name, vec![n])));
    }
    out
}
