//! Preparation of joint attention: query and key norms, and rotary position embedding.

use super::rule::rule;
use super::{Locate, Located, Operation, Use, Visitor};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::{Tensor, Weight};

/// Which columns of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// Pair `i` is the columns `2 i` and `2 i + 1` (FLUX).
    Adjacent,
    /// Pair `i` is the columns `i` and `i + head_dim / 2` (language models).
    Halves,
}

/// Prepares joint attention. Splits `qkv`, applies an RMS norm over each head of q and k, rotates
/// pairs of columns of q and k by `rope`, and copies v.
///
/// Where k and v have fewer heads than q (grouped queries), each of their heads is written as often
/// as queries share it, so that `out` has as many heads of k and v as of q.
///
/// Row `t` of the `n` rows of an image becomes row `first + t` of that image's `tokens` rows of
/// `out`; other rows of `out` keep their values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNormRope<T = Tensor, W = Weight> {
    /// `batch*n x (heads + 2*kv_heads)*head_dim`, columns in the order (q k v, head, element).
    pub qkv: T,
    /// Gain of the norm of q, `1 x head_dim`.
    pub q_gain: W,
    /// Gain of the norm of k, `1 x head_dim`.
    pub k_gain: W,
    /// `tokens x head_dim` f32, columns (cos, sin) for each pair:
    /// `y0 = cos x0 - sin x1`, `y1 = sin x0 + cos x1`.
    pub rope: T,
    /// The columns of each pair.
    pub pairs: Pairs,
    /// Number of images.
    pub batch: usize,
    /// Number of heads of q.
    pub heads: usize,
    /// Number of heads of k and of v, by which `heads` can be divided. Query head `i` belongs to
    /// their head `i / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Rows of each image in `out`.
    pub tokens: usize,
    /// The first of them that is written.
    pub first: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// `batch*tokens x 3*heads*head_dim`; may be `qkv` itself if `n == tokens`, adjacent pairs are
    /// rotated and there are as many heads of k and v as of q.
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
        let QkNormRope { qkv, q_gain, k_gain, rope, pairs, batch, heads, .. } = *self;
        let QkNormRope { kv_heads, tokens, first, out, .. } = *self;
        rule!(
            batch > 0 && qkv.rows % batch == 0 && out.rows == batch * tokens,
            "qkv {qkv}, out {out}"
        );
        let rows = qkv.rows / batch;
        rule!(first + rows <= tokens, "{rows} rows at {first} of {tokens}");
        rule!(heads > 0 && out.cols % (3 * heads) == 0, "out {out}, {heads} heads");
        rule!(kv_heads > 0 && heads % kv_heads == 0, "{heads} heads of q, {kv_heads} of k and v");
        let dim = out.cols / (3 * heads);
        rule!(
            qkv.cols == (heads + 2 * kv_heads) * dim,
            "qkv {qkv}, {heads} and {kv_heads} heads of {dim}"
        );
        rule!(dim % 2 == 0 && (rope.rows, rope.cols) == (tokens, dim), "rope {rope}");
        rule!(rope.dtype == DType::F32, "rope must be f32");
        for gain in [q_gain, k_gain] {
            rule!((gain.rows, gain.cols) == (1, dim), "gains are not 1 x {dim}");
        }
        let in_place = qkv.rows == out.rows && kv_heads == heads && pairs == Pairs::Adjacent;
        rule!(
            out.slot != qkv.slot || in_place,
            "in place needs all tokens, all heads and adjacent pairs"
        );
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
            pairs: self.pairs,
            batch: self.batch,
            heads: self.heads,
            kv_heads: self.kv_heads,
            tokens: self.tokens,
            first: self.first,
            eps: self.eps,
            out: find.tensor(self.out)?,
        })
    }
}
