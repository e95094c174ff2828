//! Sizes that variants of `attention` compute with.

use super::matrix::Matrix;
use crate::op::Attention;

/// [`Attention`] with its operands in device memory.
pub type AttentionArgs<P> = Attention<Matrix<P>, Matrix<P>>;

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
