//! Arguments of the operations on latents.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::{EulerStep, Pack, Unpack};

/// See [`Pack`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PackArgs<P> {
    /// `batch*height*width x channels`, BF16 or F32.
    pub x: Matrix<P>,
    /// Height of an image in latent pixels; even.
    pub height: usize,
    /// Width of an image in latent pixels; even.
    pub width: usize,
    /// `batch*(height/2)*(width/2) x 4*channels`, BF16 or F32.
    pub out: Matrix<P>,
}

impl Arguments for Pack {
    const NAME: &'static str = "pack";
    type Args<G: GpuApi> = PackArgs<G::Place>;
}

impl Lower for Pack {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&PackArgs {
            x: to.tensor(self.x)?,
            height: self.height,
            width: self.width,
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`Unpack`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnpackArgs<P> {
    /// `batch*(height/2)*(width/2) x 4*channels`, BF16 or F32.
    pub x: Matrix<P>,
    /// Latent pixels of an image of `out`, even.
    pub height: usize,
    /// Latent pixels of an image of `out`, even.
    pub width: usize,
    pub scale: f32,
    pub shift: f32,
    /// `batch*height*width x channels`, BF16 or F32.
    pub out: Matrix<P>,
}

impl Arguments for Unpack {
    const NAME: &'static str = "unpack";
    type Args<G: GpuApi> = UnpackArgs<G::Place>;
}

impl Lower for Unpack {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&UnpackArgs {
            x: to.tensor(self.x)?,
            height: self.height,
            width: self.width,
            scale: self.scale,
            shift: self.shift,
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`EulerStep`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EulerStepArgs<P> {
    /// `rows x cols`, F32; updated in place.
    pub x: Matrix<P>,
    /// `rows x cols`, or `2*rows x cols` with `cfg`, BF16 or F32.
    pub v: Matrix<P>,
    /// `1 x 2`, F32: `t_next - t`, and the scale of true CFG.
    pub params: Matrix<P>,
    pub cfg: bool,
}

impl Arguments for EulerStep {
    const NAME: &'static str = "euler_step";
    type Args<G: GpuApi> = EulerStepArgs<G::Place>;
}

impl Lower for EulerStep {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&EulerStepArgs {
            x: to.tensor(self.x)?,
            v: to.tensor(self.v)?,
            params: to.tensor(self.params)?,
            cfg: self.cfg,
        })
    }
}
