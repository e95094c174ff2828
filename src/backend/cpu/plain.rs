//! Single elements, for the specification of the operations: each file of a family has a module
//! `reference` with its operations as plain single-threaded loops that follow the documentation of
//! [`Op`](crate::op::Op), with sums in f64. They are slow and written to be read. Every fast
//! variant is tested against them, and the variant `{op}_reference` runs them.

use super::gemm::finish::Tail;
use super::matrix::{In, Out};

/// Element (row, col) of a window.
pub(super) fn at(x: In, row: usize, col: usize) -> f32 {
    assert!(row < x.rows() && col < x.cols());
    // SAFETY: the element is inside the window, whose creator guarantees that it is readable; the
    // loops here are single-threaded.
    unsafe { *x.row_ptr(row).add(col) }
}

/// Sets element (row, col) of a window.
pub(super) fn put(out: Out, row: usize, col: usize, value: f32) {
    assert!(row < out.rows() && col < out.cols());
    // SAFETY: the element is inside the window, whose creator guarantees that it is writable; the
    // loops here are single-threaded.
    unsafe { *out.row_ptr(row).add(col) = value }
}

/// `y/2 (1 + tanh(sqrt(2/pi) (y + 0.044715 y^3)))`
pub(super) fn gelu_tanh(y: f64) -> f64 {
    y / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (y + 0.044715 * y * y * y)).tanh())
}

/// `y / (1 + e^-y)`
pub(super) fn silu_of(y: f64) -> f64 {
    y / (1.0 + (-y).exp())
}

/// The row that belongs to row `row` of `rows`, in a matrix with one row per group.
pub(super) fn group_row(row: usize, rows: usize, groups: usize) -> usize {
    row / (rows / groups)
}

/// `tail(y)` for the element (row, col) of an output with `rows` rows.
pub(super) fn finished(y: f64, tail: Tail, (row, col): (usize, usize), rows: usize) -> f64 {
    match tail {
        Tail::None => y,
        Tail::Silu => silu_of(y),
        Tail::GeluTanh => gelu_tanh(y),
        Tail::QuickGelu => y / (1.0 + (-1.702 * y).exp()),
        Tail::Add { residual } => f64::from(at(residual, row, col)) + y,
        Tail::GatedAdd { residual, gate } => {
            let gate = at(gate, group_row(row, rows, gate.rows()), col);
            f64::from(at(residual, row, col)) + f64::from(gate) * y
        }
    }
}

/// Sets every element of `out` to `f(row, col)`.
pub(super) fn each(out: Out, f: impl Fn(usize, usize) -> f64) {
    for r in 0..out.rows() {
        for c in 0..out.cols() {
            put(out, r, c, f(r, c) as f32);
        }
    }
}

#[cfg(test)]
mod tests;
