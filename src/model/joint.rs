//! What the transformers of all FLUX families share: one attention over text and image tokens, and
//! its rotation table.

use crate::op::{Attention, Pairs, QkNormRope, Recorder};
use crate::tensor::{Tensor, View};

/// Epsilon of every norm.
pub const NORM_EPS: f32 = 1e-6;

/// One attention over the tokens of each sequence, text first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JointAttention {
    /// Sequences.
    pub batch: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Text and image tokens of one sequence.
    pub tokens: usize,
}

impl JointAttention {
    /// Norm and rotation of queries and keys with the gains `{scope}.norm`, into the rows from
    /// `first` on of every sequence in `out`.
    pub fn qk_norm_rope(
        &self,
        r: &mut Recorder,
        scope: &str,
        qkv: Tensor,
        rope: Tensor,
        first: usize,
        out: Tensor,
    ) -> QkNormRope {
        QkNormRope {
            qkv,
            q_gain: r.weight(format!("{scope}.norm.query_norm.scale"), 1, self.head_dim),
            k_gain: r.weight(format!("{scope}.norm.key_norm.scale"), 1, self.head_dim),
            rope,
            pairs: Pairs::Adjacent,
            batch: self.batch,
            heads: self.heads,
            kv_heads: self.heads,
            tokens: self.tokens,
            first,
            eps: NORM_EPS,
            out,
        }
    }

    /// Attention over the prepared `qkv`; `first` separates the text (see [`Attention::first`]).
    pub fn attention(&self, qkv: Tensor, first: Option<(usize, Tensor)>, out: View) -> Attention {
        let width = self.heads * self.head_dim;
        let [q, k, v] = [0, 1, 2].map(|i| qkv.columns(i * width, width));
        Attention {
            q,
            k,
            v,
            batch: self.batch,
            heads: self.heads,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            causal: false,
            bias: None,
            first,
            out,
        }
    }
}

/// A rotation table that is filled token by token: columns (cos, sin) per pair, axis after axis.
/// Frequencies `theta^(-2i/d)` and angles are computed in f64, as in the reference.
pub struct RopeTable<'a> {
    /// How the width of a head is divided among the id axes.
    pub axes: &'a [usize],
    /// The base of the frequencies.
    pub theta: f64,
    /// The rows so far.
    pub rows: Vec<f32>,
}

impl RopeTable<'_> {
    /// Adds the row of a token with these ids, one for each axis.
    pub fn token(&mut self, ids: &[usize]) {
        for (&dim, &id) in self.axes.iter().zip(ids) {
            for i in 0..dim / 2 {
                let angle = id as f64 * self.theta.powf(-((2 * i) as f64) / dim as f64);
                self.rows.extend([angle.cos() as f32, angle.sin() as f32]);
            }
        }
    }
}
