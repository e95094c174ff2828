//! Softmax attention.

use super::matrix::{In, Out};
use super::reference;
use super::variants::How;

/// What attention works on; see `Op::Attention`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    pub q: In,
    pub k: In,
    pub v: In,
    pub batch: usize,
    pub heads: usize,
    pub scale: f32,
    pub causal: bool,
    pub bias: Option<In>,
    /// Rows of the first tokens of each picture, when they go elsewhere.
    pub first: Option<Out>,
    pub out: Out,
}

impl Attention {
    pub(crate) fn tokens(&self) -> usize {
        self.q.rows() / self.batch
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.q.cols() / self.heads
    }

    /// Where the result for `token` of `picture` goes: the window and its row.
    pub(crate) fn place(&self, picture: usize, token: usize) -> (Out, usize) {
        let head = self.first.map_or(0, |f| f.rows() / self.batch);
        match self.first {
            Some(first) if token < head => (first, picture * head + token),
            _ => (self.out, picture * (self.tokens() - head) + token - head),
        }
    }
}

/// Bytes of scratch that `attention` needs on `threads` threads.
pub(crate) fn scratch_bytes(_how: How, _tokens: usize, _head_dim: usize, _threads: usize) -> usize {
    0
}

/// `softmax(q . k^T * scale + bias) . v` for each picture and head.
pub(crate) fn attention(_how: How, a: &Attention, _scratch: &mut [u8]) {
    reference::attention(a);
}
