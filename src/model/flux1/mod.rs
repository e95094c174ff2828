//! The FLUX.1 transformer (MMDiT), after `flux/model.py` and `flux/modules/layers.py`.
//!
//! [`modulate()`] computes the shift, scale and gate vectors of every block for every step at once:
//! they depend only on timestep, guidance and pooled text, and their weights are 27 % of the
//! model's. [`denoise()`] is one step of everything else, in three segments: head, blocks and tail.

mod config;
pub mod control;
mod denoise;
mod modulate;

pub use config::FluxConfig;
pub use control::ControlConfig;
pub use denoise::{DenoiseShape, denoise, denoise_with, rope};
pub use modulate::modulate;

use crate::model::config::TensorSpec;
use crate::op::{Epilogue, Linear, Recorder};
use crate::tensor::View;

/// Records a [`Linear`] with the weight `{name}.weight` and the bias `{name}.bias`, one row for
/// every column of `out`.
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
    let n = out.cols;
    let w = r.weight_rows(format!("{name}.weight"), first, n, x.cols);
    let bias = Some(r.weight_rows(format!("{name}.bias"), first, 1, n));
    r.push(label, Linear { x, w, bias, factors: None, side: None, epilogue, out });
}

/// Every tensor of the transformer with the shape in which BFL's files store it.
pub fn tensors(c: &FluxConfig) -> Vec<TensorSpec> {
    let h = c.hidden;
    let mut out = Vec::new();
    let mut lin = |name: String, n: usize, k: usize| {
        out.push((format!("{name}.weight"), vec![n, k]));
        out.push((format!("{name}.bias"), vec![n]));
    };
    lin("img_in".into(), h, c.in_channels);
    lin("txt_in".into(), h, c.context);
    let embedders = [("time_in", c.time_dim), ("guidance_in", c.time_dim), ("vector_in", c.pooled)];
    for (name, k) in embedders.into_iter().filter(|(name, _)| c.guidance || *name != "guidance_in")
    {
        lin(format!("{name}.in_layer"), h, k);
        lin(format!("{name}.out_layer"), h, h);
    }
    for i in 0..c.depth_double {
        for stream in ["img", "txt"] {
            let block = format!("double_blocks.{i}.{stream}");
            lin(format!("{block}_mod.lin"), 6 * h, h);
            lin(format!("{block}_attn.qkv"), 3 * h, h);
            lin(format!("{block}_attn.proj"), h, h);
            lin(format!("{block}_mlp.0"), c.mlp_hidden, h);
            lin(format!("{block}_mlp.2"), h, c.mlp_hidden);
        }
    }
    for i in 0..c.depth_single {
        let block = format!("single_blocks.{i}");
        lin(format!("{block}.modulation.lin"), 3 * h, h);
        lin(format!("{block}.linear1"), 3 * h + c.mlp_hidden, h);
        lin(format!("{block}.linear2"), h, h + c.mlp_hidden);
    }
    lin("final_layer.linear".into(), c.out_channels, h);
    lin("final_layer.adaLN_modulation.1".into(), 2 * h, h);
    for norm in ["query_norm", "key_norm"] {
        for i in 0..c.depth_double {
            for stream in ["img", "txt"] {
                out.push((
                    format!("double_blocks.{i}.{stream}_attn.norm.{norm}.scale"),
                    vec![c.head_dim],
                ));
            }
        }
        out.extend(
            (0..c.depth_single)
                .map(|i| (format!("single_blocks.{i}.norm.{norm}.scale"), vec![c.head_dim])),
        );
    }
    out
}
