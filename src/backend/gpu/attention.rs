//! Arguments of `attention`.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::Attention;

/// See [`Attention`]. `k` and `v` are windows of `batch*tokens x heads*head_dim` in the element
/// type of activations, `q` of `batch*queries` rows; `out` has `batch*(queries - first)` rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionArgs<P> {
    pub q: Matrix<P>,
    pub k: Matrix<P>,
    pub v: Matrix<P>,
    pub batch: usize,
    pub heads: usize,
    pub scale: f32,
    pub causal: bool,
    /// `(2*tokens - 1) x heads`, BF16 or F32.
    pub bias: Option<Matrix<P>>,
    /// The first n tokens of each sequence are written to this matrix, `batch*n x heads*head_dim`.
    pub first: Option<(usize, Matrix<P>)>,
    pub out: Matrix<P>,
}

impl<P> AttentionArgs<P> {
    /// Queries of one sequence.
    pub fn queries(&self) -> usize {
        self.q.rows / self.batch.max(1)
    }

    /// Keys of one sequence: as many as queries, unless only some rows of an image are computed.
    pub fn tokens(&self) -> usize {
        self.k.rows / self.batch.max(1)
    }

    /// Columns of one head.
    pub fn head_dim(&self) -> usize {
        self.q.cols / self.heads.max(1)
    }
}

impl Arguments for Attention {
    const NAME: &'static str = "attention";
    type Args<G: GpuApi> = AttentionArgs<G::Place>;
}

impl Lower for Attention {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        let first = match self.first {
            Some((tokens, tensor)) => Some((tokens, to.tensor(tensor)?)),
            None => None,
        };
        to.push::<Self>(&AttentionArgs {
            q: to.view(self.q)?,
            k: to.view(self.k)?,
            v: to.view(self.v)?,
            batch: self.batch,
            heads: self.heads,
            scale: self.scale,
            causal: self.causal,
            bias: to.optional(self.bias)?,
            first,
            out: to.view(self.out)?,
        })
    }
}
