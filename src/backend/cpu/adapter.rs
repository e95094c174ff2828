//! Operations that only adapters need.

use super::gemm::finish::Tail;
use super::kernels::{How, Kernels, kernels};
use super::matrix::{In, Out};
use super::share::for_rows;
use super::simd::{self, Kernel, Simd};
use super::step::{CpuOperation, CpuStep};
use crate::error::Result;
use crate::op::{GroupMix, ScaledAdd};

/// `out = sum over i of w[i] * x[i * n ..][.. n]`, over n elements.
struct MixRow<'a> {
    x: *const f32,
    w: &'a [f32],
    out: *mut f32,
    n: usize,
}

impl Kernel for MixRow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.n;
        // SAFETY: x has a group of n elements for each element of w, out has n.
        unsafe {
            simd::map::<S>(self.x, self.out, n, |at, _| {
                let mut sum = S::splat(0.0);
                for (i, w) in self.w.iter().enumerate() {
                    sum = S::fma(S::splat(*w), simd::at::<S>(self.x.add(i * n), at, n), sum);
                }
                sum
            });
        }
    }
}

/// See [`GroupMix`].
pub(crate) fn group_mix(how: How, x: In, w: &[f32], inputs: usize, out: Out) {
    let How::Simd(lanes) = how else { return reference::group_mix(x, w, inputs, out) };
    let n = x.cols() / inputs;
    let outputs = w.len() / inputs;
    assert!(x.rows() == out.rows() && x.cols() == inputs * n && out.cols() == outputs * n);
    for_rows(out.rows(), out.cols() * inputs, |rows| {
        for r in rows {
            for (a, w) in w.chunks_exact(inputs).enumerate() {
                // SAFETY: the groups are inside the rows, as was checked above.
                let out = unsafe { out.row_ptr(r).add(a * n) };
                // SAFETY: the variant was chosen for this processor; x and out are different
                // tensors, and only this task writes the row.
                unsafe { lanes.run(MixRow { x: x.row_ptr(r), w, out, n }) };
            }
        }
    });
}

/// The function that a [`ScaledRow`] applies to the sum.
#[derive(Clone, Copy)]
enum Activation {
    None,
    Silu,
    GeluTanh,
    QuickGelu,
}

/// `out = residual + gate * f(x + scale * add)` over n elements, where operands may be absent.
struct ScaledRow {
    x: *const f32,
    add: Option<*const f32>,
    scale: Option<*const f32>,
    activation: Activation,
    residual: Option<*const f32>,
    gate: Option<*const f32>,
    out: *mut f32,
    n: usize,
}

impl Kernel for ScaledRow {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.n;
        // SAFETY: the operands have n elements, as the struct requires.
        unsafe {
            simd::map::<S>(self.x, self.out, n, |i, x| {
                let at = |operand: *const f32| simd::at::<S>(operand, i, n);
                let y = match (self.add, self.scale) {
                    (None, _) => x,
                    (Some(add), None) => S::add(x, at(add)),
                    (Some(add), Some(scale)) => S::fma(at(scale), at(add), x),
                };
                let y = match self.activation {
                    Activation::None => y,
                    Activation::Silu => simd::silu::<S>(y),
                    Activation::GeluTanh => simd::gelu_tanh::<S>(y),
                    Activation::QuickGelu => {
                        let wide = simd::silu::<S>(S::mul(y, S::splat(1.702)));
                        S::mul(wide, S::splat(1.0 / 1.702))
                    }
                };
                match (self.residual, self.gate) {
                    (None, _) => y,
                    (Some(residual), None) => S::add(at(residual), y),
                    (Some(residual), Some(gate)) => S::fma(at(gate), y, at(residual)),
                }
            });
        }
    }
}

/// See [`ScaledAdd`].
pub(crate) fn scaled_add(
    how: How,
    x: In,
    add: Option<In>,
    scale: Option<&[f32]>,
    tail: Tail,
    out: Out,
) {
    let How::Simd(lanes) = how else { return reference::scaled_add(x, add, scale, tail, out) };
    let n = out.cols();
    let fits = |m: In| (m.rows(), m.cols()) == (out.rows(), n);
    assert!(fits(x) && add.is_none_or(fits) && scale.is_none_or(|s| s.len() == n));
    tail.check(out);
    let (activation, residual, gate) = match tail {
        Tail::None => (Activation::None, None, None),
        Tail::Silu => (Activation::Silu, None, None),
        Tail::GeluTanh => (Activation::GeluTanh, None, None),
        Tail::QuickGelu => (Activation::QuickGelu, None, None),
        Tail::Add { residual } => (Activation::None, Some(residual), None),
        Tail::GatedAdd { residual, gate } => (Activation::None, Some(residual), Some(gate)),
    };
    for_rows(out.rows(), n, |rows| {
        for r in rows {
            let row = ScaledRow {
                x: x.row_ptr(r),
                add: add.map(|m| m.row_ptr(r)),
                scale: scale.map(<[f32]>::as_ptr),
                activation,
                residual: residual.map(|m| m.row_ptr(r)),
                gate: gate.map(|m| m.row_ptr(r / (out.rows() / m.rows()))),
                out: out.row_ptr(r),
                n,
            };
            // SAFETY: the variant was chosen for this processor; shapes were checked above; an
            // operand that is also the output is read before it is written.
            unsafe { lanes.run(row) };
        }
    });
}

impl CpuOperation for GroupMix {
    const KERNELS: Kernels = kernels!(f32 "group_mix");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (x, w, out) = (step.view(self.x)?, step.vector(self.w)?, step.out(self.out)?);
        group_mix(step.how(), x, w, self.inputs, out);
        Ok(())
    }
}

impl CpuOperation for ScaledAdd {
    const KERNELS: Kernels = kernels!(f32 "scaled_add");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let add = self.add.map(|add| step.view(add)).transpose()?;
        let (x, scale) = (step.view(self.x)?, step.bias(self.scale)?);
        let tail = step.tail(self.epilogue)?;
        scaled_add(step.how(), x, add, scale, tail, step.view_out(self.out)?);
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::gemm::finish::Tail;
    use crate::backend::cpu::matrix::{In, Out};
    use crate::backend::cpu::plain::{at, each, finished};

    /// Groups of columns of x, multiplied with the small matrix w.
    pub(crate) fn group_mix(x: In, w: &[f32], inputs: usize, out: Out) {
        let width = x.cols() / inputs;
        each(out, |r, c| {
            let (a, j) = (c / width, c % width);
            let product = |i| f64::from(w[a * inputs + i]) * f64::from(at(x, r, i * width + j));
            (0..inputs).map(product).sum()
        });
    }

    /// `out = tail(x + scale * add)`
    pub(crate) fn scaled_add(x: In, add: Option<In>, scale: Option<&[f32]>, tail: Tail, out: Out) {
        each(out, |r, c| {
            let add = add.map_or(0.0, |add| f64::from(at(add, r, c)));
            let y = f64::from(at(x, r, c)) + scale.map_or(1.0, |s| f64::from(s[c])) * add;
            finished(y, tail, (r, c), out.rows())
        });
    }
}
