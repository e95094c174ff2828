//! Arguments of the operations that go element by element.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::Matrix;
use super::variant::{Arguments, GpuApi};
use crate::error::Result;
use crate::op::{Add, Cast, CopyRows, GeluMul, Silu};

/// See [`GeluMul`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GeluMulArgs<P> {
    /// `rows x cols`, BF16 or F32.
    pub gate: Matrix<P>,
    /// As `gate`, with an element type of its own.
    pub up: Matrix<P>,
    /// `rows x cols`, BF16 or F32; may be `gate` or `up`.
    pub out: Matrix<P>,
}

impl Arguments for GeluMul {
    const NAME: &'static str = "gelu_mul";
    type Args<G: GpuApi> = GeluMulArgs<G::Place>;
}

impl Lower for GeluMul {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&GeluMulArgs {
            gate: to.tensor(self.gate)?,
            up: to.tensor(self.up)?,
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`Silu`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SiluArgs<P> {
    /// `rows x cols`, BF16 or F32.
    pub x: Matrix<P>,
    /// `rows x cols`, BF16 or F32; may be `x`.
    pub out: Matrix<P>,
}

impl Arguments for Silu {
    const NAME: &'static str = "silu";
    type Args<G: GpuApi> = SiluArgs<G::Place>;
}

impl Lower for Silu {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&SiluArgs { x: to.tensor(self.x)?, out: to.tensor(self.out)? })
    }
}

/// See [`Add`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AddArgs<P> {
    /// `rows x cols`, BF16 or F32.
    pub a: Matrix<P>,
    /// As `a`, with an element type of its own.
    pub b: Matrix<P>,
    /// `rows x cols`, BF16 or F32; may be `a` or `b`.
    pub out: Matrix<P>,
}

impl Arguments for Add {
    const NAME: &'static str = "add";
    type Args<G: GpuApi> = AddArgs<G::Place>;
}

impl Lower for Add {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&AddArgs {
            a: to.tensor(self.a)?,
            b: to.tensor(self.b)?,
            out: to.tensor(self.out)?,
        })
    }
}

/// See [`Cast`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CastArgs<P> {
    /// `rows x cols`, BF16 or F32; a window of columns with any offset.
    pub x: Matrix<P>,
    /// As `x`, with an element type of its own.
    pub out: Matrix<P>,
}

impl Arguments for Cast {
    const NAME: &'static str = "cast";
    type Args<G: GpuApi> = CastArgs<G::Place>;
}

impl Lower for Cast {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&CastArgs { x: to.view(self.x)?, out: to.view(self.out)? })
    }
}

/// See [`CopyRows`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CopyRowsArgs<P> {
    /// `batch*n x cols`, of any type of 2 or 4 bytes.
    pub x: Matrix<P>,
    pub batch: usize,
    pub from: usize,
    pub to: usize,
    pub count: usize,
    /// `batch*m x cols`, of the type of `x`.
    pub out: Matrix<P>,
}

impl Arguments for CopyRows {
    const NAME: &'static str = "copy_rows";
    type Args<G: GpuApi> = CopyRowsArgs<G::Place>;
}

impl Lower for CopyRows {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&CopyRowsArgs {
            x: to.tensor(self.x)?,
            batch: self.batch,
            from: self.from,
            to: self.to,
            count: self.count,
            out: to.tensor(self.out)?,
        })
    }
}
