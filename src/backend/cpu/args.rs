//! Operands of the operations that have many: pointers into the arena, f32 vectors, and sizes.

use super::matrix::{In, Out};
use crate::op::Pairs;

/// The operands of [`Attention`](crate::op::Attention).
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionArgs {
    pub q: In,
    pub k: In,
    pub v: In,
    pub batch: usize,
    pub heads: usize,
    pub scale: f32,
    pub causal: bool,
    pub bias: Option<In>,
    /// Receives the rows of the first tokens of each image, if they are separated.
    pub first: Option<Out>,
    pub out: Out,
}

impl AttentionArgs {
    /// Queries of each image.
    pub(crate) fn queries(&self) -> usize {
        self.q.rows() / self.batch
    }

    /// Keys of each image.
    pub(crate) fn tokens(&self) -> usize {
        self.k.rows() / self.batch
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.q.cols() / self.heads
    }

    /// The window that receives the result for `token` of `image`, and the row in it.
    pub(crate) fn place(&self, image: usize, token: usize) -> (Out, usize) {
        let head = self.first.map_or(0, |f| f.rows() / self.batch);
        match self.first {
            Some(first) if token < head => (first, image * head + token),
            _ => (self.out, image * (self.queries() - head) + token - head),
        }
    }
}

/// The operands of [`QkNormRope`](crate::op::QkNormRope).
#[derive(Debug, Clone, Copy)]
pub(crate) struct QkNormRopeArgs<'a> {
    pub qkv: In,
    pub q_gain: &'a [f32],
    pub k_gain: &'a [f32],
    pub rope: In,
    pub pairs: Pairs,
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub tokens: usize,
    pub first: usize,
    pub eps: f32,
    pub out: Out,
}

impl QkNormRopeArgs<'_> {
    pub(crate) fn head_dim(&self) -> usize {
        self.out.cols() / (3 * self.heads)
    }

    /// For a head of `out`: the head of `qkv` from which it is made.
    pub(crate) fn source(&self, head: usize) -> usize {
        let (which, i) = (head / self.heads, head % self.heads);
        match which {
            0 => head,
            _ => self.heads + (which - 1) * self.kv_heads + i / (self.heads / self.kv_heads),
        }
    }

    /// The two columns of a pair of a head.
    pub(crate) fn pair(&self, pair: usize) -> (usize, usize) {
        match self.pairs {
            Pairs::Adjacent => (2 * pair, 2 * pair + 1),
            Pairs::Halves => (pair, pair + self.head_dim() / 2),
        }
    }

    /// For a row of `qkv`: its token within the image, and its row in `out`.
    pub(crate) fn place(&self, row: usize) -> (usize, usize) {
        let n = self.qkv.rows() / self.batch;
        let token = self.first + row % n;
        (token, row / n * self.tokens + token)
    }
}

/// The operands of [`GroupStatistics`](crate::op::GroupStatistics).
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupStatisticsArgs {
    pub x: In,
    pub width: usize,
    pub groups: usize,
    pub out: Out,
}

/// The operands of [`GroupNorm`](crate::op::GroupNorm). `weight` and `bias` have as many elements
/// as `x` has columns; `out` may be `x`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNormArgs<'a> {
    pub x: In,
    pub statistics: In,
    pub width: usize,
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub groups: usize,
    pub eps: f32,
    pub silu: bool,
    pub out: Out,
}
