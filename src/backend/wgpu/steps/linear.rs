//! `Linear`: a matrix product for each run of rows of one stored type, and the products of a side.
//!
//! A side `t . b^T` has few numbers to add up (a LoRA's rank), and would cost next to nothing within the main product; but a shader that does both needs two
//! buffers more, and may bind eight. So it is a product of its own, bound by what it writes. Behind an epilogue that only adds, it is added to what the main
//! product has left. An activation wants the whole sum: there the side comes first, in f32 scratch, some rows at a time, so that scratch stays small.

use super::{Finder, matrix};
use crate::backend::form::{Form, Segment};
use crate::backend::wgpu::args::{LinearArgs, Tail};
use crate::backend::wgpu::choice::Choice;
use crate::backend::wgpu::launch::{Dispatch, Matrix};
use crate::backend::wgpu::steps::Spot;
use crate::dtype::DType;
use crate::error::Result;
use crate::op::{Epilogue, Side, Use};
use crate::tensor::{View, Weight};

/// Bytes of a side's product at a time, unless 128 rows have more.
const SIDE_BYTES: usize = 32 << 20;
/// Rows at a time are multiples of this: whole tiles.
const SIDE_ROWS: usize = 128;

/// Operands other than weights.
#[derive(Clone, Copy)]
struct Operands {
    x: Matrix,
    bias: Option<Matrix>,
    side: Option<Matrix>,
    tail: Tail,
    out: Matrix,
}

impl Operands {
    /// Those of rows `first .. first + rows`, without residual and gate.
    fn rows(self, first: usize, rows: usize) -> Operands {
        Operands { x: self.x.rows(first, rows), out: self.out.rows(first, rows), ..self }
    }

    /// The product with the rows of w that `s` has.
    fn with(&self, s: &Segment, spot: Spot) -> LinearArgs {
        let columns = |m: Matrix| m.columns(s.first, s.rows);
        LinearArgs {
            x: self.x,
            w: matrix(s, spot),
            scales: s.scales.map(|offset| spot.after(offset).matrix(1, s.rows, s.rows, DType::F32)),
            bias: self.bias.map(columns),
            side: self.side.map(columns),
            tail: match self.tail {
                Tail::Add { residual } => Tail::Add { residual: columns(residual) },
                Tail::GatedAdd { residual, gate } => {
                    Tail::GatedAdd { residual: columns(residual), gate: columns(gate) }
                }
                other => other,
            },
            out: columns(self.out),
        }
    }
}

/// Bytes of scratch for the side of a `Linear` that writes `out`, and how many rows at a time they are for: a matter of shapes alone, whatever variant runs.
pub(super) fn scratch(side: Option<Side>, epilogue: Epilogue, out: View) -> (usize, usize) {
    let activation = matches!(epilogue, Epilogue::Silu | Epilogue::GeluTanh | Epilogue::QuickGelu);
    let most = (SIDE_BYTES / (4 * out.cols.max(1)) / SIDE_ROWS).max(1) * SIDE_ROWS;
    let rows = most.min(out.rows());
    (if activation && side.is_some() { 4 * rows * out.cols } else { 0 }, rows)
}

/// Scratch in bytes and dispatches.
#[allow(clippy::too_many_arguments, reason = "the operation's fields")]
pub(super) fn make(
    choice: &Choice,
    find: &Finder,
    x: View,
    w: Weight,
    bias: Option<Weight>,
    side: Option<Side>,
    epilogue: Epilogue,
    out: View,
) -> Result<(usize, Vec<Dispatch>)> {
    let tail = match epilogue {
        Epilogue::None => Tail::None,
        Epilogue::Silu => Tail::Silu,
        Epilogue::GeluTanh => Tail::GeluTanh,
        Epilogue::QuickGelu => Tail::QuickGelu,
        Epilogue::Add { residual } => Tail::Add { residual: find.tensor(residual)? },
        Epilogue::GatedAdd { residual, gate } => {
            Tail::GatedAdd { residual: find.tensor(residual)?, gate: find.view(gate)? }
        }
    };
    let (bytes, most) = scratch(side, epilogue, out);
    let main = Operands {
        x: find.view(x)?,
        bias: find.bias(bias)?,
        side: None,
        tail,
        out: find.view(out)?,
    };
    let w = (find.weight)(w, Use::Matrix)?;
    let mut all = Vec::new();
    let product = |o: Operands, (form, spot): &(Form, Spot), all: &mut Vec<Dispatch>| {
        form.segments.iter().try_for_each(|s| {
            let args = o.with(s, *spot);
            choice.linear(&args).map(|v| all.extend((v.dispatches)(&args, &choice.device)))
        })
    };
    let Some(side) = side else {
        product(main, &w, &mut all)?;
        return Ok((0, all));
    };
    let (t, b) = (find.tensor(side.t)?, (find.weight)(side.b, Use::Matrix)?);
    // Whatever is forced or allowed for the main product: this one has another shape, and is too small to gain from products in f16.
    let device = choice.for_sides();
    let product_of_side = |o: Operands, all: &mut Vec<Dispatch>| {
        b.0.segments.iter().try_for_each(|s| {
            let args = o.with(s, b.1);
            choice
                .linear_of_side(&args, &device)
                .map(|v| all.extend((v.dispatches)(&args, &device)))
        })
    };
    let of_side = Operands { x: t, bias: None, ..main };
    if bytes == 0 {
        product(main, &w, &mut all)?;
        let tail = match tail {
            Tail::GatedAdd { gate, .. } => Tail::GatedAdd { residual: main.out, gate },
            _ => Tail::Add { residual: main.out },
        };
        product_of_side(Operands { tail, ..of_side }, &mut all)?;
        return Ok((0, all));
    }
    let (rows, n) = (main.out.rows, main.out.cols);
    let scratch = (find.scratch)(bytes)?;
    for first in (0..rows).step_by(most) {
        let count = most.min(rows - first);
        let sums = scratch.matrix(count, n, n, DType::F32);
        product_of_side(
            Operands { tail: Tail::None, out: sums, ..of_side.rows(first, count) },
            &mut all,
        )?;
        product(Operands { side: Some(sums), ..main.rows(first, count) }, &w, &mut all)?;
    }
    Ok((bytes, all))
}
