//! Preparation of joint attention: query and key norms, and rotary position embedding.

use super::rule::rule;
use super::{Locate, Located, Operation, Use, Visitor};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::{Tensor, Weight};

/// Prepares joint attention. Splits `qkv`, applies an RMS norm over each head of q and k, rotates
/// adjacent pairs of columns of q and k by `rope`, and copies v.
///
/// Row `t` of the `n` rows of an image becomes row `first + t` of that image's `tokens` rows of
/// `out`; other rows of `out` keep their values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNormRope<T = Tensor, W = Weight> {
    /// `batch*n x 3*heads*head_dim`, columns in the order (q k v, head, element).
    pub qkv: T,
    /// Gain of the norm of q, `1 x head_dim`.
    pub q_gain: W,
    /// Gain of the norm of k, `1 x head_dim`.
    pub k_gain: W,
    /// `tokens x head_dim` f32, columns (cos, sin) for each pair:
    /// `y0 = cos x0 - sin x1`, `y1 = sin x0 + cos x1`.
    pub rope: T,
    /// Number of images.
    pub batch: usize,
    /// Number of heads.
    pub heads: usize,
    /// Rows of each image in `out`.
    pub tokens: usize,
    /// The first of them that is written.
    pub first: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// `batch*tokens x 3*heads*head_dim`; may be `qkv` itself if `n == tokens`.
    pub out: T,
}

impl Operation for QkNormRope {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.qkv);
        v.read(&mut self.rope);
        v.weight(&mut self.q_gain, Use::Vector);
        v.weight(&mut self.k_gain, Use::Vector);
        v.write_part(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let QkNormRope { qkv, q_gain, k_gain, rope, batch, heads, tokens, first, out, .. } = *self;
        rule!(
            batch > 0 && qkv.rows % batch == 0 && out.rows == batch * tokens,
            "qkv {qkv}, out {out}"
        );
        let rows = qkv.rows / batch;
        rule!(first + rows <= tokens, "{rows} rows at {first} of {tokens}");
        rule!(
            qkv.cols == out.cols && heads > 0 && qkv.cols % (3 * heads) == 0,
            "qkv {qkv}, {heads} heads"
        );
        let dim = qkv.cols / (3 * heads);
        rule!(dim % 2 == 0 && (rope.rows, rope.cols) == (tokens, dim), "rope {rope}");
        rule!(rope.dtype == DType::F32, "rope must be f32");
        for gain in [q_gain, k_gain] {
            rule!((gain.rows, gain.cols) == (1, dim), "gains are not 1 x {dim}");
        }
        rule!(out.slot != qkv.slot || qkv.rows == out.rows, "in place needs all tokens");
        Ok(())
    }
}

impl Located for QkNormRope {
    const NAME: &'static str = "qk_norm_rope";
    type On<M: Copy> = QkNormRope<M, M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(QkNormRope {
            qkv: find.tensor(self.qkv)?,
            q_gain: find.vector(self.q_gain)?,
            k_gain: find.vector(self.k_gain)?,
            rope: find.tensor(self.rope)?,
            batch: self.batch,
            heads: self.heads,
            tokens: self.tokens,
            first: self.first,
            eps: self.eps,
            out: find.tensor(self.out)?,
        })
    }
}
