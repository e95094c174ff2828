//! Arguments of `group_norm`, some variants of which need scratch memory.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::{GroupNorm, Locate};

/// See [`GroupNorm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNormArgs<P> {
    /// `pixels x channels`, BF16 or F32.
    pub x: Matrix<P>,
    /// `rows x 2*groups`, F32.
    pub statistics: Matrix<P>,
    /// Pixels of a row.
    pub width: usize,
    /// `1 x channels`, F32.
    pub weight: Matrix<P>,
    /// `1 x channels`, F32.
    pub bias: Matrix<P>,
    /// Divides the channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Has the shape of `x`, BF16 or F32; may be `x` itself.
    pub out: Matrix<P>,
    /// Scratch memory of the size that the variant requested, at a multiple of 256 bytes.
    pub scratch: Option<Matrix<P>>,
}

impl Arguments for GroupNorm {
    const NAME: &'static str = "group_norm";
    type Args<G: GpuApi> = GroupNormArgs<G::Place>;
}

impl<G: GpuBackend> Lower<G> for GroupNorm {
    fn lower(&self, to: &mut Lowering<G>) -> Result<()> {
        let args = GroupNormArgs {
            x: to.tensor(self.x)?,
            statistics: to.tensor(self.statistics)?,
            width: self.width,
            weight: to.vector(self.weight)?,
            bias: to.vector(self.bias)?,
            groups: self.groups,
            eps: self.eps,
            silu: self.silu,
            out: to.tensor(self.out)?,
            scratch: None,
        };
        to.push_with_scratch::<Self>(args, |args, scratch| args.scratch = Some(scratch))
    }
}
