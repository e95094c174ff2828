//! Arguments of `linear`, and of `scaled_add`, which ends as a `linear` does.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::{Location, Matrix};
use super::variant::{Arguments, GpuApi};
use crate::backend::form::Segment;
use crate::dtype::int8::Int8;
use crate::error::Result;
use crate::op::{Epilogue, Linear, Locate, ScaledAdd};

/// What a `linear` does before it stores; see [`Epilogue`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tail<P> {
    None,
    Silu,
    GeluTanh,
    QuickGelu,
    /// `residual`: `rows x N`, of the element type of `out`; may be `out` itself.
    Add {
        residual: Matrix<P>,
    },
    /// `out = residual + gate[group] * y`. `gate`: `groups x N` (a window of BF16 or F32); row `r`
    /// of `rows` belongs to group `r / (rows / groups)`.
    GatedAdd {
        residual: Matrix<P>,
        gate: Matrix<P>,
    },
}

impl<P: Location> Tail<P> {
    /// The operands of `epilogue`.
    pub fn of<G: GpuApi<Place = P>>(epilogue: Epilogue, to: &Lowering<G>) -> Result<Tail<P>> {
        Ok(match epilogue {
            Epilogue::None => Tail::None,
            Epilogue::Silu => Tail::Silu,
            Epilogue::GeluTanh => Tail::GeluTanh,
            Epilogue::QuickGelu => Tail::QuickGelu,
            Epilogue::Add { residual } => Tail::Add { residual: to.tensor(residual)? },
            Epilogue::GatedAdd { residual, gate } => {
                Tail::GatedAdd { residual: to.tensor(residual)?, gate: to.view(gate)? }
            }
        })
    }

    /// Its number in the kernels of `linear`.
    pub fn code(self) -> u32 {
        match self {
            Tail::None => 0,
            Tail::Silu => 1,
            Tail::GeluTanh => 2,
            Tail::QuickGelu => 3,
            Tail::Add { .. } => 4,
            Tail::GatedAdd { .. } => 5,
        }
    }

    /// The number of its activation in the kernels of `scaled_add`: as [`code`](Self::code), or 0
    /// if there is none.
    pub fn activation_code(self) -> u32 {
        if self.residual().is_some() { 0 } else { self.code() }
    }

    /// The matrix to which the result is added.
    pub fn residual(self) -> Option<Matrix<P>> {
        match self {
            Tail::Add { residual } | Tail::GatedAdd { residual, .. } => Some(residual),
            Tail::None | Tail::Silu | Tail::GeluTanh | Tail::QuickGelu => None,
        }
    }

    /// The factors of the result.
    pub fn gate(self) -> Option<Matrix<P>> {
        match self {
            Tail::GatedAdd { gate, .. } => Some(gate),
            _ => None,
        }
    }

    fn columns(self, first: usize, cols: usize) -> Tail<P> {
        match self {
            Tail::Add { residual } => Tail::Add { residual: residual.columns(first, cols) },
            Tail::GatedAdd { residual, gate } => Tail::GatedAdd {
                residual: residual.columns(first, cols),
                gate: gate.columns(first, cols),
            },
            Tail::None | Tail::Silu | Tail::GeluTanh | Tail::QuickGelu => self,
        }
    }
}

/// `out = tail(x . (scales * w)^T + side + bias)`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearArgs<P, S> {
    /// `rows x K`, of the element type of activations; a window of columns with any offset.
    pub x: Matrix<P>,
    /// `N x K` in any element type that weights have. Its rows begin at multiples of 16 bytes (the
    /// loader pads them): `stride >= cols`, and the bytes between `cols` and `stride` are zero.
    /// Block-quantised rows are stored plane by plane
    /// ([`Format::layout`](crate::dtype::blocks::Format::layout)).
    pub w: Matrix<P>,
    /// `1 x N`, F32: a factor for each row of `w`.
    pub scales: Option<Matrix<P>>,
    /// The rows of `w` are integers, rotated so, and so are those of x to be: the product is
    /// computed in integers ([`Int8`]). `scales` are those of the integers then.
    pub int8: Option<Int8>,
    /// `1 x N`, F32, only with `int8`: further factors of the product.
    pub factors: Option<Matrix<P>>,
    /// `1 x N`, F32.
    pub bias: Option<Matrix<P>>,
    /// The side branch of a LoRA.
    pub side: Option<S>,
    pub tail: Tail<P>,
    /// `rows x N`, BF16 or F32; a window of columns with any offset.
    pub out: Matrix<P>,
    /// As much as the variant asked for.
    pub scratch: Option<Matrix<P>>,
}

/// A matrix product whose weight is not chosen yet.
#[derive(Debug, Clone, Copy)]
pub struct Product<P> {
    pub x: Matrix<P>,
    pub bias: Option<Matrix<P>>,
    /// Factors of the rows of the weight, in place of those that are stored with it; see
    /// [`Linear::factors`].
    pub factors: Option<Matrix<P>>,
    pub tail: Tail<P>,
    pub out: Matrix<P>,
}

impl<P: Location> Product<P> {
    /// The operands of `op` other than weight and side.
    pub fn new<G: GpuApi<Place = P>>(op: &Linear, to: &Lowering<G>) -> Result<Product<P>> {
        Ok(Product {
            x: to.view(op.x)?,
            bias: to.bias(op.bias)?,
            factors: to.bias(op.factors)?,
            tail: Tail::of(op.epilogue, to)?,
            out: to.view(op.out)?,
        })
    }

    /// The rows `first .. first + rows` of the product. Its tail has no matrices.
    pub fn band(&self, first: usize, rows: usize) -> Product<P> {
        debug_assert!(!matches!(self.tail, Tail::Add { .. } | Tail::GatedAdd { .. }));
        Product { x: self.x.band(first, rows), out: self.out.band(first, rows), ..*self }
    }

    /// The product with the rows `first .. first + rows` of a weight, all of which are in
    /// `segment`. The weight is loaded at `place`.
    pub(in crate::backend) fn with<S>(
        &self,
        segment: &Segment,
        place: P,
        (first, rows): (usize, usize),
        side: Option<S>,
    ) -> LinearArgs<P, S> {
        let from = first - segment.first;
        let factors = self.factors.map(|factors| factors.columns(first, rows));
        let scales = |offset| Matrix::f32_row(place.after(offset + 4 * from), rows);
        LinearArgs {
            x: self.x,
            w: Matrix::of_segment(segment, place).band(from, rows),
            scales: match factors {
                Some(factors) if segment.int8.is_none() => Some(factors),
                _ => segment.scales.map(scales),
            },
            int8: segment.int8,
            factors: factors.filter(|_| segment.int8.is_some()),
            bias: self.bias.map(|b| b.columns(first, rows)),
            side,
            tail: self.tail.columns(first, rows),
            out: self.out.columns(first, rows),
            scratch: None,
        }
    }
}

impl Arguments for Linear {
    const NAME: &'static str = "linear";
    type Args<G: GpuApi> = LinearArgs<G::Place, G::Side>;
}

impl<G: GpuBackend> Lower<G> for Linear {
    fn lower(&self, to: &mut Lowering<G>) -> Result<()> {
        G::lower_linear(self, to)
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

impl<G: GpuBackend> Lower<G> for ScaledAdd {
    fn lower(&self, to: &mut Lowering<G>) -> Result<()> {
        to.push::<Self>(&ScaledAddArgs {
            x: to.view(self.x)?,
            add: self.add.map(|add| to.view(add)).transpose()?,
            scale: to.bias(self.scale)?,
            tail: Tail::of(self.epilogue, to)?,
            out: to.view(self.out)?,
        })
    }
}
