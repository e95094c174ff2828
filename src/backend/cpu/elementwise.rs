//! Operations on single elements, and copies of rows. All are limited by memory.

use super::kernels::{How, Kernels, kernels};
use super::matrix::{In, Out};
use super::operand::{Stored, decode, encode};
use super::share::for_rows;
use super::simd::{self, Kernel, Lanes, Simd};
use super::step::{CpuOperation, CpuStep};
use crate::error::Result;
use crate::op::{Add, Cast, CopyRows, GeluMul, Silu, SiluMul};

/// A function of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pair {
    Add,
    GeluMul,
    SiluMul,
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
        // SAFETY: the operands have n elements, as the struct requires.
        unsafe {
            match self.pair {
                Pair::Add => simd::map::<S>(self.a, self.out, n, |i, a| {
                    S::add(a, simd::at::<S>(self.b, i, n))
                }),
                Pair::GeluMul => simd::map::<S>(self.a, self.out, n, |i, a| {
                    S::mul(simd::gelu_tanh::<S>(a), simd::at::<S>(self.b, i, n))
                }),
                Pair::SiluMul => simd::map::<S>(self.a, self.out, n, |i, a| {
                    S::mul(simd::silu::<S>(a), simd::at::<S>(self.b, i, n))
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
        // SAFETY: the operands have n elements, as the struct requires.
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

/// `out = silu(gate) * up`
pub(crate) fn silu_mul(how: How, gate: In, up: In, out: Out) {
    match how {
        How::Simd(lanes) => pairs(lanes, Pair::SiluMul, gate, up, out),
        _ => reference::silu_mul(gate, up, out),
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

/// `out = x` in another element type.
pub(crate) fn cast(how: How, x: &Stored, out: &Stored) {
    if how == How::Reference {
        return reference::cast(x, out);
    }
    for_rows(x.rows(), x.cols(), |rows| {
        let mut row = vec![0.0; x.cols()];
        for r in rows {
            // SAFETY: x and out are different tensors; only this task writes the row.
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

/// See [`CopyRows`].
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
            let (image, i) = (i / count, i % count);
            out.copy_row(image * out_rows + to + i, x, image * x_rows + from + i);
        }
    });
}

impl CpuOperation for GeluMul {
    const KERNELS: Kernels = kernels!(f32 "gelu_mul");

    fn run(&self, step: &CpuStep) -> Result<()> {
        gelu_mul(step.how(), step.tensor(self.gate)?, step.tensor(self.up)?, step.out(self.out)?);
        Ok(())
    }
}

impl CpuOperation for SiluMul {
    const KERNELS: Kernels = kernels!(f32 "silu_mul");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let out = step.view_out(self.out)?;
        silu_mul(step.how(), step.view(self.gate)?, step.view(self.up)?, out);
        Ok(())
    }
}

impl CpuOperation for Silu {
    const KERNELS: Kernels = kernels!(f32 "silu");

    fn run(&self, step: &CpuStep) -> Result<()> {
        silu(step.how(), step.tensor(self.x)?, step.out(self.out)?);
        Ok(())
    }
}

impl CpuOperation for Add {
    const KERNELS: Kernels = kernels!(f32 "add");

    fn run(&self, step: &CpuStep) -> Result<()> {
        add(step.how(), step.tensor(self.a)?, step.tensor(self.b)?, step.out(self.out)?);
        Ok(())
    }
}

impl CpuOperation for Cast {
    const KERNELS: Kernels = kernels!(plain "cast");

    fn run(&self, step: &CpuStep) -> Result<()> {
        cast(step.how(), &step.stored(self.x)?, &step.stored(self.out)?);
        Ok(())
    }
}

impl CpuOperation for CopyRows {
    const KERNELS: Kernels = kernels!(plain "copy_rows");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let CopyRows { x, out, batch, from, to, count } = *self;
        let (x, out) = (step.stored(x.all())?, step.stored(out.all())?);
        copy_rows(step.how(), &x, &out, batch, from, to, count);
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::matrix::{In, Out};
    use crate::backend::cpu::operand::Stored;
    use crate::backend::cpu::plain::{at, each, gelu_tanh, silu_of};

    /// `out = gelu_tanh(gate) * up`
    pub(crate) fn gelu_mul(gate: In, up: In, out: Out) {
        each(out, |r, c| gelu_tanh(f64::from(at(gate, r, c))) * f64::from(at(up, r, c)));
    }

    /// `out = silu(gate) * up`
    pub(crate) fn silu_mul(gate: In, up: In, out: Out) {
        each(out, |r, c| silu_of(f64::from(at(gate, r, c))) * f64::from(at(up, r, c)));
    }

    /// `out = x / (1 + e^-x)`
    pub(crate) fn silu(x: In, out: Out) {
        each(out, |r, c| silu_of(f64::from(at(x, r, c))));
    }

    /// `out = a + b`
    pub(crate) fn add(a: In, b: In, out: Out) {
        each(out, |r, c| f64::from(at(a, r, c)) + f64::from(at(b, r, c)));
    }

    /// Rows `from .. from + count` of each image of x become rows `to ..` of that image of out.
    pub(crate) fn copy_rows(
        x: &Stored,
        out: &Stored,
        batch: usize,
        from: usize,
        to: usize,
        count: usize,
    ) {
        let (x_rows, out_rows) = (x.rows() / batch, out.rows() / batch);
        for image in 0..batch {
            for i in 0..count {
                out.copy_row(image * out_rows + to + i, x, image * x_rows + from + i);
            }
        }
    }

    /// `out = x` in another element type, rounded to nearest even.
    pub(crate) fn cast(x: &Stored, out: &Stored) {
        for r in 0..x.rows() {
            for c in 0..x.cols() {
                out.put(r, c, x.get(r, c));
            }
        }
    }
}
