//! Linear and attention.

use super::super::args::AttentionArgs;
use super::super::gemm::finish::Tail;
use super::super::matrix::{In, Out};
use super::{at, finished, put};
use crate::tensor::HostWeight;

/// `out[r] = tail(x[r] . w^T + t[r] . b^T + bias)` with `side` as (t, b)
pub(crate) fn linear(
    x: In,
    w: &HostWeight,
    bias: Option<&[f32]>,
    side: Option<(In, &HostWeight)>,
    tail: Tail,
    out: Out,
) {
    let side = side.map(|(t, b)| (t, b.to_f32()));
    let mut n = 0;
    for part in &w.parts {
        let mut w = vec![0.0; part.cols];
        for (row, stored) in part.bytes().chunks_exact(part.row_bytes()).enumerate() {
            part.decode_row(row, stored, &mut w);
            for r in 0..x.rows() {
                let sum: f64 =
                    (0..x.cols()).map(|c| f64::from(at(x, r, c)) * f64::from(w[c])).sum();
                let more = side.as_ref().map_or(0.0, |(t, b)| {
                    let b = &b[n * t.cols()..(n + 1) * t.cols()];
                    b.iter().enumerate().map(|(c, b)| f64::from(at(*t, r, c)) * f64::from(*b)).sum()
                });
                let y = sum + more + bias.map_or(0.0, |b| f64::from(b[n]));
                put(out, r, n, finished(y, tail, (r, n), x.rows()) as f32);
            }
            n += 1;
        }
    }
}

/// `softmax(q . k^T * scale + bias) . v` for each image and head.
pub(crate) fn attention(a: &AttentionArgs) {
    let (queries, tokens, dim) = (a.queries(), a.tokens(), a.head_dim());
    for image in 0..a.batch {
        let row = |token: usize| image * tokens + token;
        for head in 0..a.heads {
            let col = |d: usize| head * dim + d;
            for i in 0..queries {
                let visible = if a.causal { i + 1 } else { tokens };
                let scores: Vec<f64> = (0..visible)
                    .map(|j| {
                        let dot: f64 = (0..dim)
                            .map(|d| {
                                f64::from(at(a.q, image * queries + i, col(d)))
                                    * f64::from(at(a.k, row(j), col(d)))
                            })
                            .sum();
                        let bias =
                            a.bias.map_or(0.0, |b| f64::from(at(b, j + tokens - 1 - i, head)));
                        dot * f64::from(a.scale) + bias
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                let (window, place) = a.place(image, i);
                for d in 0..dim {
                    let sum: f64 =
                        (0..visible).map(|j| weights[j] * f64::from(at(a.v, row(j), col(d)))).sum();
                    put(window, place, col(d), (sum / total) as f32);
                }
            }
        }
    }
}
