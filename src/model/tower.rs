//! The tensors of the towers of CLIP and SigLIP, whose layers are alike.

use super::config::{TensorSpec, push_affine};

/// Adds the tensors of `layers` layers of `tower`. Tokens have `width` values, and `ff` within
/// MLPs.
pub(super) fn push_layers(
    out: &mut Vec<TensorSpec>,
    tower: &str,
    layers: usize,
    (width, ff): (usize, usize),
) {
    for i in 0..layers {
        let layer = format!("{tower}.encoder.layers.{i}");
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            push_affine(out, format!("{layer}.self_attn.{name}"), vec![width, width]);
        }
        push_affine(out, format!("{layer}.mlp.fc1"), vec![ff, width]);
        push_affine(out, format!("{layer}.mlp.fc2"), vec![width, ff]);
        push_affine(out, format!("{layer}.layer_norm1"), vec![width]);
        push_affine(out, format!("{layer}.layer_norm2"), vec![width]);
    }
}
