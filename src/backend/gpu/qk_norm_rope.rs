//! Sizes that variants of `qk_norm_rope` compute with.

use super::matrix::Matrix;
use crate::op::{Pairs, QkNormRope};

/// [`QkNormRope`] with its operands in device memory.
pub type QkNormRopeArgs<P> = QkNormRope<Matrix<P>, Matrix<P>>;

impl<P: PartialEq> QkNormRopeArgs<P> {
    /// Columns of one head.
    pub fn head_dim(&self) -> usize {
        self.out.cols / (3 * self.heads)
    }

    /// Checks that k and v have as many heads as q, and that adjacent pairs are rotated.
    pub fn is_joint(&self) -> Result<(), &'static str> {
        (self.kv_heads == self.heads).then_some(()).ok_or("k and v have fewer heads than q")?;
        (self.pairs == Pairs::Adjacent).then_some(()).ok_or("pairs are not adjacent columns")
    }

    /// Heads of a row to work on: the values stay where they are when the result replaces the
    /// input.
    pub fn row_heads(&self) -> usize {
        let (from, to) = (&self.qkv, &self.out);
        let in_place = from.place == to.place && (from.stride, from.dtype) == (to.stride, to.dtype);
        if in_place { 2 * self.heads } else { 3 * self.heads }
    }
}
