//! Element-wise operations and copies. All are limited by memory.

use super::matrix::{In, Out};
use super::operand::{Stored, Table, decode, encode};
use super::reference;
use super::share::for_rows;
use super::simd::{self, Kernel, Lanes, Simd};
use super::variants::How;

/// The function that combines a pair of operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pair {
    Add,
    GeluMul,
}

/// `out = f(a, b)` over n elements; out may be a or b.
struct PairRow {
    pair: Pair,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    n: usize,
}

impl Kernel for PairRow {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.n;
        // SAFETY: the operands have n elements, as the struct demands.
        unsafe {
            match self.pair {
                Pair::Add => simd::map::<S>(self.a, self.out, n, |i, a| {
                    S::add(a, simd::at::<S>(self.b, i, n))
                }),
                Pair::GeluMul => simd::map::<S>(self.a, self.out, n, |i, a| {
                    S::mul(simd::gelu_tanh::<S>(a), simd::at::<S>(self.b, i, n))
                }),
            }
        }
    }
}

/// `out = x / (1 + e^-x)` over n elements; out may be x.
struct SiluRow {
    x: *const f32,
    out: *mut f32,
    n: usize,
}

impl Kernel for SiluRow {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the operands have n elements, as the struct demands.
        unsafe { simd::map::<S>(self.x, self.out, self.n, |_, x| simd::silu::<S>(x)) }
    }
}

fn pairs(lanes: Lanes, pair: Pair, a: In, b: In, out: Out) {
    let n = out.cols();
    assert!(a.cols() == n && b.cols() == n && a.rows() == out.rows() && b.rows() == out.rows());
    for_rows(out.rows(), n, |rows| {
        for r in rows {
            let row = PairRow { pair, a: a.row_ptr(r), b: b.row_ptr(r), out: out.row_ptr(r), n };
            // SAFETY: the variant was chosen for this processor; shapes were checked above.
            unsafe { lanes.run(row) };
        }
    });
}

/// `out = a + b`
pub(crate) fn add(how: How, a: In, b: In, out: Out) {
    match how {
        How::Simd(lanes) => pairs(lanes, Pair::Add, a, b, out),
        _ => reference::add(a, b, out),
    }
}

/// `out = gelu_tanh(gate) * up`
pub(crate) fn gelu_mul(how: How, gate: In, up: In, out: Out) {
    match how {
        How::Simd(lanes) => pairs(lanes, Pair::GeluMul, gate, up, out),
        _ => reference::gelu_mul(gate, up, out),
    }
}

/// `out = x / (1 + e^-x)`
pub(crate) fn silu(how: How, x: In, out: Out) {
    let How::Simd(lanes) = how else { return reference::silu(x, out) };
    let n = out.cols();
    assert!(x.cols() == n && x.rows() == out.rows());
    for_rows(out.rows(), n, |rows| {
        for r in rows {
            // SAFETY: the variant was chosen for this processor; shapes were checked above.
            unsafe { lanes.run(SiluRow { x: x.row_ptr(r), out: out.row_ptr(r), n }) };
        }
    });
}

/// `out[r] = table[ids[r]] (+ positions[r % positions.rows])`; the ids are within the table.
pub(crate) fn embed(how: How, table: &Table, ids: &[i32], positions: Option<&Table>, out: Out) {
    if how == How::Reference {
        return reference::embed(table, ids, positions, out);
    }
    for_rows(ids.len(), out.cols(), |rows| {
        let mut position = vec![0.0; out.cols()];
        for r in rows {
            // SAFETY: the row is written by this task only.
            let row = unsafe { out.row(r) };
            table.row(ids[r] as usize, row);
            if let Some(p) = positions {
                p.row(r % p.rows(), &mut position);
                row.iter_mut().zip(&position).for_each(|(x, p)| *x += p);
            }
        }
    });
}

/// `out = x` in another element type.
pub(crate) fn cast(how: How, x: &Stored, out: &Stored) {
    if how == How::Reference {
        return reference::cast(x, out);
    }
    for_rows(x.rows(), x.cols(), |rows| {
        let mut row = vec![0.0; x.cols()];
        for r in rows {
            // SAFETY: x and out are different tensors; the row is written by this task only.
            let (from, to) = unsafe { (x.row(r), out.row_mut(r)) };
            if x.dtype() == out.dtype() {
                to.copy_from_slice(from);
            } else {
                decode(x.dtype(), from, &mut row);
                encode(out.dtype(), &row, to);
            }
        }
    });
}

/// Copies rows `from .. from + count` of each image of x to the rows from `to` on of that image of
/// out.
pub(crate) fn copy_rows(
    how: How,
    x: &Stored,
    out: &Stored,
    batch: usize,
    from: usize,
    to: usize,
    count: usize,
) {
    if how == How::Reference {
        return reference::copy_rows(x, out, batch, from, to, count);
    }
    let (x_rows, out_rows) = (x.rows() / batch, out.rows() / batch);
    for_rows(batch * count, x.cols(), |rows| {
        for i in rows {
            let (picture, i) = (i / count, i % count);
            out.copy_row(picture * out_rows + to + i, x, picture * x_rows + from + i);
        }
    });
}

/// Latent pixels to tokens; see `Op::Pack`.
pub(crate) fn pack(how: How, x: In, height: usize, width: usize, out: Out) {
    if how == How::Reference {
        return reference::pack(x, height, width, out);
    }
    for_rows(out.rows(), out.cols(), |rows| {
        for r in rows {
            // SAFETY: out's row is written by this task only; x is not written.
            let (token, pixels) =
                unsafe { (out.row(r), patch(height, width, r).map(|p| x.row(p))) };
            for (i, pixel) in pixels.into_iter().enumerate() {
                token.iter_mut().skip(i).step_by(4).zip(pixel).for_each(|(t, p)| *t = *p);
            }
        }
    });
}

/// Tokens to latent pixels, then `x * scale + shift`; see `Op::Unpack`.
pub(crate) fn unpack(
    how: How,
    x: In,
    height: usize,
    width: usize,
    scale: f32,
    shift: f32,
    out: Out,
) {
    if how == How::Reference {
        return reference::unpack(x, height, width, scale, shift, out);
    }
    for_rows(x.rows(), x.cols(), |rows| {
        for r in rows {
            // SAFETY: the four pixels belong to this token only; x is not written.
            let (token, pixels) =
                unsafe { (x.row(r), patch(height, width, r).map(|p| out.row(p))) };
            for (i, pixel) in pixels.into_iter().enumerate() {
                pixel
                    .iter_mut()
                    .zip(token.iter().skip(i).step_by(4))
                    .for_each(|(p, t)| *p = *t * scale + shift);
            }
        }
    });
}

/// The four pixels of a token, row by row.
fn patch(height: usize, width: usize, token: usize) -> [usize; 4] {
    let (across, down) = (width / 2, height / 2);
    let (picture, y, x) = (token / (across * down), token / across % down, token % across);
    let first = (picture * height + 2 * y) * width + 2 * x;
    [first, first + 1, first + width, first + width + 1]
}

/// `x += params[0] * v`, or its true CFG form; see `Op::EulerStep`.
pub(crate) fn euler_step(how: How, x: Out, v: In, params: In, cfg: bool) {
    if how == How::Reference {
        return reference::euler_step(x, v, params, cfg);
    }
    let rows = x.rows();
    // SAFETY: nothing writes to params or v.
    let (dt, s) = unsafe { (params.row(0)[0], params.row(0)[1]) };
    for_rows(rows, x.cols(), |range| {
        for r in range {
            // SAFETY: x's row is written by this task only; v is not written.
            let (x, vc) = unsafe { (x.row(r), v.row(r)) };
            if cfg {
                // SAFETY: as above.
                let vu = unsafe { v.row(rows + r) };
                for ((x, vc), vu) in x.iter_mut().zip(vc).zip(vu) {
                    *x += dt * (vu + s * (vc - vu));
                }
            } else {
                x.iter_mut().zip(vc).for_each(|(x, v)| *x += dt * v);
            }
        }
    });
}
