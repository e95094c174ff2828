//! Arguments of the operations that only adapters need.

use super::linear::Tail;
use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::{GroupMix, ScaledAdd};

/// See [`GroupMix`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupMixArgs<P> {
    /// `rows x (inputs * width)`, BF16 or F32; a window of columns with any offset.
    pub x: Matrix<P>,
    /// `1 x (outputs * inputs)`, F32.
    pub w: Matrix<P>,
    pub inputs: usize,
    pub width: usize,
    /// `rows x (outputs * width)`, BF16 or F32.
    pub out: Matrix<P>,
}

impl Arguments for GroupMix {
    const NAME: &'static str = "group_mix";
    type Args<G: GpuApi> = GroupMixArgs<G::Place>;
}

impl Lower for GroupMix {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&GroupMixArgs {
            x: to.view(self.x)?,
            w: to.vector(self.w)?,
            inputs: self.inputs,
            width: self.width(),
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`ScaledAdd`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaledAddArgs<P> {
    /// `rows x cols`, BF16 or F32; a window of columns with any offset.
    pub x: Matrix<P>,
    /// As `x`, with an element type of its own.
    pub add: Option<Matrix<P>>,
    /// `1 x cols`, F32.
    pub scale: Option<Matrix<P>>,
    pub tail: Tail<P>,
    /// As `x`, with an element type of its own; may be `x` or `add`.
    pub out: Matrix<P>,
}

impl Arguments for ScaledAdd {
    const NAME: &'static str = "scaled_add";
    type Args<G: GpuApi> = ScaledAddArgs<G::Place>;
}

impl Lower for ScaledAdd {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&ScaledAddArgs {
            x: to.view(self.x)?,
            add: self.add.map(|add| to.view(add)).transpose()?,
            scale: to.bias(self.scale)?,
            tail: Tail::of(self.epilogue, to)?,
            out: to.view(self.out)?,
        })
    }
}
