//! Operations on single rows and single elements.

use super::super::args::QkNormRopeArgs;
use super::super::matrix::{In, Out};
use super::super::operand::{Stored, Table};
use super::{at, finished, gelu_tanh, group_row, put, silu_of};
use crate::backend::cpu::gemm::finish::Tail;

/// Mean and 1 / sqrt(variance + eps) of a row.
fn moments(x: In, row: usize, eps: f32) -> (f64, f64) {
    let n = x.cols() as f64;
    let mean = (0..x.cols()).map(|c| f64::from(at(x, row, c))).sum::<f64>() / n;
    let variance =
        (0..x.cols()).map(|c| (f64::from(at(x, row, c)) - mean).powi(2)).sum::<f64>() / n;
    (mean, 1.0 / (variance + f64::from(eps)).sqrt())
}

/// `out = (1 + scale[group]) * norm(x) + shift[group]`
pub(crate) fn layer_norm_modulate(x: In, shift: In, scale: In, eps: f32, out: Out) {
    for r in 0..x.rows() {
        let (mean, inverse) = moments(x, r, eps);
        let (of_shift, of_scale) =
            (group_row(r, x.rows(), shift.rows()), group_row(r, x.rows(), scale.rows()));
        for c in 0..x.cols() {
            let norm = (f64::from(at(x, r, c)) - mean) * inverse;
            let y = (1.0 + f64::from(at(scale, of_scale, c))) * norm
                + f64::from(at(shift, of_shift, c));
            put(out, r, c, y as f32);
        }
    }
}

/// `out = norm(x) * weight + bias`
pub(crate) fn layer_norm(x: In, weight: &[f32], bias: &[f32], eps: f32, out: Out) {
    for r in 0..x.rows() {
        let (mean, inverse) = moments(x, r, eps);
        for c in 0..x.cols() {
            let norm = (f64::from(at(x, r, c)) - mean) * inverse;
            put(out, r, c, (norm * f64::from(weight[c]) + f64::from(bias[c])) as f32);
        }
    }
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`
pub(crate) fn rms_norm(x: In, weight: &[f32], eps: f32, out: Out) {
    for r in 0..x.rows() {
        let squares: f64 = (0..x.cols()).map(|c| f64::from(at(x, r, c)).powi(2)).sum();
        let inverse = 1.0 / (squares / x.cols() as f64 + f64::from(eps)).sqrt();
        for (c, w) in weight.iter().enumerate() {
            put(out, r, c, (f64::from(at(x, r, c)) * inverse * f64::from(*w)) as f32);
        }
    }
}

/// RMS norm of each head of q and k, then rotation of adjacent pairs; v is copied.
pub(crate) fn qk_norm_rope(a: &QkNormRopeArgs) {
    let dim = a.head_dim();
    let width = a.heads * dim;
    for r in 0..a.qkv.rows() {
        let (token, to) = a.place(r);
        for (base, gain) in [(0, a.q_gain), (width, a.k_gain)] {
            for head in 0..a.heads {
                let first = base + head * dim;
                let x: Vec<f64> = (0..dim).map(|d| f64::from(at(a.qkv, r, first + d))).collect();
                let squares: f64 = x.iter().map(|x| x * x).sum();
                let inverse = 1.0 / (squares / dim as f64 + f64::from(a.eps)).sqrt();
                for pair in 0..dim / 2 {
                    let (even, odd) = (2 * pair, 2 * pair + 1);
                    let x0 = x[even] * inverse * f64::from(gain[even]);
                    let x1 = x[odd] * inverse * f64::from(gain[odd]);
                    let (cos, sin) =
                        (f64::from(at(a.rope, token, even)), f64::from(at(a.rope, token, odd)));
                    put(a.out, to, first + even, (cos * x0 - sin * x1) as f32);
                    put(a.out, to, first + odd, (sin * x0 + cos * x1) as f32);
                }
            }
        }
        for c in 2 * width..3 * width {
            put(a.out, to, c, at(a.qkv, r, c));
        }
    }
}

fn each(out: Out, f: impl Fn(usize, usize) -> f64) {
    for r in 0..out.rows() {
        for c in 0..out.cols() {
            put(out, r, c, f(r, c) as f32);
        }
    }
}

/// `out = gelu_tanh(gate) * up`
pub(crate) fn gelu_mul(gate: In, up: In, out: Out) {
    each(out, |r, c| gelu_tanh(f64::from(at(gate, r, c))) * f64::from(at(up, r, c)));
}

/// `out = x / (1 + e^-x)`
pub(crate) fn silu(x: In, out: Out) {
    each(out, |r, c| silu_of(f64::from(at(x, r, c))));
}

/// `out = a + b`
pub(crate) fn add(a: In, b: In, out: Out) {
    each(out, |r, c| f64::from(at(a, r, c)) + f64::from(at(b, r, c)));
}

/// Groups of columns of x, multiplied with the small matrix w.
pub(crate) fn group_mix(x: In, w: &[f32], inputs: usize, out: Out) {
    let width = x.cols() / inputs;
    each(out, |r, c| {
        let (a, j) = (c / width, c % width);
        let product = |i| f64::from(w[a * inputs + i]) * f64::from(at(x, r, i * width + j));
        (0..inputs).map(product).sum()
    });
}

/// `out = tail(x + scale * add)`
pub(crate) fn scaled_add(x: In, add: Option<In>, scale: Option<&[f32]>, tail: Tail, out: Out) {
    each(out, |r, c| {
        let add = add.map_or(0.0, |add| f64::from(at(add, r, c)));
        let y = f64::from(at(x, r, c)) + scale.map_or(1.0, |s| f64::from(s[c])) * add;
        finished(y, tail, (r, c), out.rows())
    });
}

/// `out[r] = table[ids[r]] + positions[r % positions.rows]`; all ids are rows of the table.
pub(crate) fn embed(table: &Table, ids: &[i32], positions: Option<&Table>, out: Out) {
    let mut row = vec![0.0; out.cols()];
    let mut position = vec![0.0; out.cols()];
    for (r, &id) in ids.iter().enumerate() {
        table.row(id as usize, &mut row);
        if let Some(p) = positions {
            p.row(r % p.rows(), &mut position);
        }
        for c in 0..out.cols() {
            put(out, r, c, row[c] + position[c]);
        }
    }
}

/// Rows `from .. from + count` of each image of x become rows `to ..` of that image of out.
pub(crate) fn copy_rows(
    x: &Stored,
    out: &Stored,
    batch: usize,
    from: usize,
    to: usize,
    count: usize,
) {
    let (x_rows, out_rows) = (x.rows() / batch, out.rows() / batch);
    for image in 0..batch {
        for i in 0..count {
            out.copy_row(image * out_rows + to + i, x, image * x_rows + from + i);
        }
    }
}

/// `out = x` in another element type, rounded to nearest even.
pub(crate) fn cast(x: &Stored, out: &Stored) {
    for r in 0..x.rows() {
        for c in 0..x.cols() {
            out.put(r, c, x.get(r, c));
        }
    }
}
