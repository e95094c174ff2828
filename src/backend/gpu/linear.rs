//! Arguments of `linear`.

use super::lower::{GpuBackend, Lower};
use super::lowering::Lowering;
use super::matrix::{Location, Matrix};
use super::variant::{Arguments, GpuApi};
use crate::backend::form::Segment;
use crate::error::Result;
use crate::op::{Epilogue, Linear};

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
    /// Factors of the rows of the weight, in place of those that are stored with it.
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
        let scales = |offset| Matrix::f32_row(place.after(offset + 4 * from), rows);
        LinearArgs {
            x: self.x,
            w: Matrix::of_segment(segment, place).band(from, rows),
            scales: match self.factors {
                Some(factors) => Some(factors.columns(first, rows)),
                None => segment.scales.map(scales),
            },
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

impl Lower for Linear {
    fn lower<G: GpuBackend>(&self, to: &mut Lowering<G>) -> Result<()> {
        G::lower_linear(self, to)
    }
}
