//! Arguments of `group_norm`.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::GroupNorm;

/// See [`GroupNorm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNormArgs<P> {
    /// `batch*pixels x channels`, BF16 or F32.
    pub x: Matrix<P>,
    /// `1 x channels`, F32.
    pub weight: Matrix<P>,
    /// `1 x channels`, F32.
    pub bias: Matrix<P>,
    /// Images.
    pub batch: usize,
    /// Divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// SiLU follows.
    pub silu: bool,
    /// Of the shape of `x`, BF16 or F32; may be `x` itself.
    pub out: Matrix<P>,
    /// As much as the variant asked for, beginning at a multiple of 256 bytes.
    pub scratch: Option<Matrix<P>>,
}

impl<P> GroupNormArgs<P> {
    /// Rows of one image.
    pub fn pixels(&self) -> usize {
        self.x.rows / self.batch
    }
}

impl Arguments for GroupNorm {
    const NAME: &'static str = "group_norm";
    type Args<G: GpuApi> = GroupNormArgs<G::Place>;
}

impl Lower for GroupNorm {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        let args = GroupNormArgs {
            x: to.tensor(self.x)?,
            weight: to.vector(self.weight)?,
            bias: to.vector(self.bias)?,
            batch: self.batch,
            groups: self.groups,
            eps: self.eps,
            silu: self.silu,
            out: to.tensor(self.out)?,
            scratch: None,
        };
        to.push_with_scratch::<Self>(args, |args, scratch| args.scratch = Some(scratch))
    }
}
