//! Arguments of the normalisations over rows.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::{LayerNorm, LayerNormModulate, QkNormRope, RmsNorm};

/// See [`LayerNormModulate`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormModulateArgs<P> {
    /// `rows x cols`, BF16 or F32.
    pub x: Matrix<P>,
    /// `groups x cols`, BF16 or F32; a window of columns with any offset.
    pub shift: Matrix<P>,
    /// As `shift`, with its own number of groups.
    pub scale: Matrix<P>,
    pub eps: f32,
    /// `rows x cols`, BF16 or F32; may be `x` itself.
    pub out: Matrix<P>,
}

impl Arguments for LayerNormModulate {
    const NAME: &'static str = "layer_norm_modulate";
    type Args<G: GpuApi> = LayerNormModulateArgs<G::Place>;
}

impl Lower for LayerNormModulate {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&LayerNormModulateArgs {
            x: to.tensor(self.x)?,
            shift: to.view(self.shift)?,
            scale: to.view(self.scale)?,
            eps: self.eps,
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`LayerNorm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormArgs<P> {
    /// `rows x cols`, BF16 or F32.
    pub x: Matrix<P>,
    /// `1 x cols`, F32.
    pub weight: Matrix<P>,
    /// `1 x cols`, F32.
    pub bias: Matrix<P>,
    pub eps: f32,
    /// `rows x cols`, BF16 or F32; may be `x` itself.
    pub out: Matrix<P>,
}

impl Arguments for LayerNorm {
    const NAME: &'static str = "layer_norm";
    type Args<G: GpuApi> = LayerNormArgs<G::Place>;
}

impl Lower for LayerNorm {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&LayerNormArgs {
            x: to.tensor(self.x)?,
            weight: to.vector(self.weight)?,
            bias: to.vector(self.bias)?,
            eps: self.eps,
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`RmsNorm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNormArgs<P> {
    /// `rows x cols`, BF16 or F32.
    pub x: Matrix<P>,
    /// `1 x cols`, F32.
    pub weight: Matrix<P>,
    pub eps: f32,
    /// `rows x cols`, BF16 or F32; may be `x` itself.
    pub out: Matrix<P>,
}

impl Arguments for RmsNorm {
    const NAME: &'static str = "rms_norm";
    type Args<G: GpuApi> = RmsNormArgs<G::Place>;
}

impl Lower for RmsNorm {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&RmsNormArgs {
            x: to.tensor(self.x)?,
            weight: to.vector(self.weight)?,
            eps: self.eps,
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`QkNormRope`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNormRopeArgs<P> {
    /// `batch*n x 3*heads*head_dim`, BF16 or F32.
    pub qkv: Matrix<P>,
    /// `1 x head_dim`, F32.
    pub q_gain: Matrix<P>,
    /// `1 x head_dim`, F32.
    pub k_gain: Matrix<P>,
    /// `tokens x head_dim`, F32.
    pub rope: Matrix<P>,
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    pub first: usize,
    pub eps: f32,
    /// `batch*tokens x 3*heads*head_dim`, BF16 or F32; may be `qkv` itself when `n == tokens`.
    pub out: Matrix<P>,
}

impl<P: PartialEq> QkNormRopeArgs<P> {
    /// Columns of one head.
    pub fn head_dim(&self) -> usize {
        self.qkv.cols / (3 * self.heads)
    }

    /// Heads of a row to work on: the values stay where they are when the result replaces the
    /// input.
    pub fn row_heads(&self) -> usize {
        let (from, to) = (&self.qkv, &self.out);
        let in_place = from.place == to.place && (from.stride, from.dtype) == (to.stride, to.dtype);
        if in_place { 2 * self.heads } else { 3 * self.heads }
    }
}

impl Arguments for QkNormRope {
    const NAME: &'static str = "qk_norm_rope";
    type Args<G: GpuApi> = QkNormRopeArgs<G::Place>;
}

impl Lower for QkNormRope {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&QkNormRopeArgs {
            qkv: to.tensor(self.qkv)?,
            q_gain: to.vector(self.q_gain)?,
            k_gain: to.vector(self.k_gain)?,
            rope: to.tensor(self.rope)?,
            batch: self.batch,
            heads: self.heads,
            tokens: self.tokens,
            first: self.first,
            eps: self.eps,
            out: to.tensor(self.out)?,
        })
    }
}
