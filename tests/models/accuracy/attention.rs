//! How much attention in 8-bit integers loses: on random numbers, and on q, k and v of the embedded
//! model.

use std::sync::{Arc, Mutex};

use flux_fast::backend::{Backend, Places};
use flux_fast::dtype::DType;
use flux_fast::dtype::int8::attention as int8;
use flux_fast::error::Result;
use flux_fast::op::{Attention, Step};
use flux_fast::pipeline::request::Request;
use flux_fast::tensor::View;

use super::{Changed, PROMPTS, changed, normal};
use crate::common::{exact_attention, relative_error};

/// The q, k and v of a single head, and the scale of its scores.
type Head = ([Vec<f32>; 3], f32);

/// Heads that were recorded.
pub type Heads = Arc<Mutex<Vec<Head>>>;

impl Changed {
    /// The columns of `head` in `view`, for each image.
    fn head(&mut self, view: View, head: usize, op: &Attention, at: &Places) -> Result<Vec<f32>> {
        let (dim, cols) = (view.cols / op.heads, view.tensor.cols);
        let bytes = self.tensor(&view.tensor, at)?;
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| DType::F32.decode(b)).collect();
        let from = view.col + head * dim;
        Ok(values.chunks(cols).flat_map(|row| row[from..from + dim].to_vec()).collect())
    }

    /// Attention in integers in place of `op`, which has one image; or as it is, recorded.
    pub(super) fn attention(&mut self, step: &Step, op: &Attention, places: &Places) -> Result<()> {
        assert_eq!(op.batch, 1, "{}", step.label);
        let dim = op.q.cols / op.heads;
        for head in 0..op.heads {
            let [q, k, v] = [op.q, op.k, op.v].map(|view| self.head(view, head, op, places));
            let operands = [q?, k?, v?];
            if self.scheme.is_none() {
                self.heads.lock().unwrap().push((operands, op.scale));
                continue;
            }
            let [q, k, v] = &operands;
            let result = int8::attention(q, k, v, dim, op.scale);
            let first = op.first.map_or(0, |(n, _)| n);
            for (token, row) in result.chunks(dim).enumerate() {
                let (to, row_of, col) = match op.first {
                    Some((n, t)) if token < n => (t, token, 0),
                    _ => (op.out.tensor, token - first, op.out.col),
                };
                let at = places.of(&to) + 4 * (row_of * to.cols + col + head * dim);
                let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
                self.inner.write(at, &bytes)?;
            }
        }
        if self.scheme.is_none() { self.inner.run(step, places) } else { Ok(()) }
    }
}

/// The relative error of attention in integers for each head.
fn attention_errors(heads: &[Head], dim: usize) -> Vec<f64> {
    let error = |([q, k, v], scale): &Head| {
        let exact = exact_attention(q, k, v, dim, *scale);
        relative_error(&int8::attention(q, k, v, dim, *scale), &exact)
    };
    heads.iter().map(error).collect()
}

/// q, k and v of the second step of the first prompt: two heads in each block.
fn recorded_heads() -> Vec<Head> {
    let (mut engine, _, heads) = changed(None);
    engine.generate(&Request::new(PROMPTS[0]).steps(2)).unwrap();
    let all = std::mem::take(&mut *heads.lock().unwrap());
    let half = all.len() / 2;
    all.into_iter().skip(half).collect()
}

/// A head of 128 columns with normally distributed numbers; `columns` of q and k are `size` times as
/// large, and all keys share a part that is as large. Scores have a standard deviation of about 1.
fn random_head(tokens: usize, columns: usize, size: f32) -> Head {
    let [mut q, mut k, v] = [3, 4, 5].map(|seed| normal(seed, tokens * 128));
    let shared = normal(6, 128);
    for row in q.chunks_mut(128).chain(k.chunks_mut(128)) {
        (0..columns).for_each(|i| row[i * 41 % 128] *= size);
    }
    let common = if columns > 0 { size } else { 0.0 };
    for row in k.chunks_mut(128) {
        row.iter_mut().zip(&shared).for_each(|(k, s)| *k += common * s);
    }
    let scores = 128.0 + columns as f32 * (size.powi(4) - 1.0);
    ([q, k, v], 1.0 / scores.sqrt())
}

#[test]
fn attention_in_int8_loses_at_most_one_and_a_half_percent() {
    let random = [random_head(512, 0, 1.0), random_head(512, 3, 4.0), random_head(300, 6, 2.0)];
    let random = attention_errors(&random, 128);
    let heads = recorded_heads();
    assert_eq!(heads.len(), 2 * 6, "two heads in each of six blocks");
    let recorded = attention_errors(&heads, 128);
    let (operands, scale) = random_head(512, 0, 1.0);
    let larger = attention_errors(&[(operands, 3.0 * scale)], 128);
    println!("attention in int8: random {random:.4?}, recorded {recorded:.4?}");
    println!("with three times as large scores: {larger:.4?}");
    assert!(random.iter().chain(&recorded).all(|error| *error <= 0.015));
}
