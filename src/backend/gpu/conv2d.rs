//! Arguments of `conv2d`.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::{Conv2d, ConvShape, Use};

/// See [`Conv2d`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv2dArgs<P> {
    /// `batch*height*width x in_channels`, of the element type of activations; dense.
    pub x: Matrix<P>,
    /// `out_channels x (kernel*kernel*in_channels)`, BF16 or F32: the loader has sorted the
    /// elements by taps row by row, then by input channel. Rows begin at multiples of 16 bytes and
    /// are padded with zeros.
    pub w: Matrix<P>,
    /// `1 x out_channels`, F32.
    pub bias: Option<Matrix<P>>,
    pub shape: ConvShape,
    /// Of the shape and type of `out`; may be `out` itself.
    pub residual: Option<Matrix<P>>,
    /// `batch*out_height*out_width x out_channels`, BF16 or F32; dense.
    pub out: Matrix<P>,
}

impl Arguments for Conv2d {
    const NAME: &'static str = "conv2d";
    type Args<G: GpuApi> = Conv2dArgs<G::Place>;
}

impl Lower for Conv2d {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&Conv2dArgs {
            x: to.tensor(self.x)?,
            w: to.matrix(self.w, Use::Kernel { taps: self.shape.kernel * self.shape.kernel })?,
            bias: to.bias(self.bias)?,
            shape: self.shape,
            residual: to.optional(self.residual)?,
            out: to.tensor(self.out)?,
        })
    }
}
