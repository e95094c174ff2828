//! The norms and the rotation of queries and keys.

use super::args::QkNormRopeArgs;
use super::kernels::{How, Kernels, kernels};
use super::norm::sum;
use super::share::for_rows;
use super::simd::{self, Kernel, Simd};
use super::step::{CpuOperation, CpuStep};
use crate::error::Result;
use crate::op::{Pairs, QkNormRope};

/// All heads of one row's q, then k: norm, gain, rotation; v is copied. x and out: 3 * heads * dim;
/// out may be x.
struct QkRow<'a> {
    x: *const f32,
    gains: [&'a [f32]; 2],
    rope: *const f32,
    heads: usize,
    dim: usize,
    eps: f32,
    out: *mut f32,
}

impl Kernel for QkRow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (dim, width) = (self.dim, self.heads * self.dim);
        // SAFETY: the operands have the lengths that the struct requires.
        unsafe {
            for (which, gain) in self.gains.iter().enumerate() {
                for head in 0..self.heads {
                    let at = which * width + head * dim;
                    let x = self.x.add(at);
                    let inverse =
                        S::splat(1.0 / (sum::<S, 2>(x, dim, 0.0) / dim as f32 + self.eps).sqrt());
                    // The width of a head is even, so that a vector never splits a pair.
                    simd::map::<S>(x, self.out.add(at), dim, |i, x| {
                        let x = S::mul(S::mul(x, inverse), simd::at::<S>(gain.as_ptr(), i, dim));
                        S::rotate(x, simd::at::<S>(self.rope, i, dim))
                    });
                }
            }
            std::ptr::copy(self.x.add(2 * width), self.out.add(2 * width), width);
        }
    }
}

/// See [`QkNormRope`]; `out` may be `qkv` if that has all tokens.
pub(crate) fn qk_norm_rope(how: How, a: &QkNormRopeArgs) {
    let How::Simd(lanes) = how else { return reference::qk_norm_rope(a) };
    let dim = a.head_dim();
    assert!(
        a.q_gain.len() == dim
            && a.k_gain.len() == dim
            && a.rope.cols() == dim
            && dim.is_multiple_of(2)
    );
    for_rows(a.qkv.rows(), a.qkv.cols(), |rows| {
        for r in rows {
            if a.pairs != Pairs::Adjacent || a.kv_heads != a.heads {
                // A language model's rows: few, and a small part of its work.
                reference::qk_norm_rope_row(a, r);
                continue;
            }
            let (token, to) = a.place(r);
            let row = QkRow {
                x: a.qkv.row_ptr(r),
                gains: [a.q_gain, a.k_gain],
                rope: a.rope.row_ptr(token),
                heads: a.heads,
                dim,
                eps: a.eps,
                out: a.out.row_ptr(to),
            };
            // SAFETY: the variant was chosen for this processor; the shapes were checked when the
            // step was recorded and above.
            unsafe { lanes.run(row) };
        }
    });
}

impl CpuOperation for QkNormRope {
    const KERNELS: Kernels = kernels!(f32 "qk_norm_rope");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let args = QkNormRopeArgs {
            qkv: step.tensor(self.qkv)?,
            q_gain: step.vector(self.q_gain)?,
            k_gain: step.vector(self.k_gain)?,
            rope: step.tensor(self.rope)?,
            pairs: self.pairs,
            batch: self.batch,
            heads: self.heads,
            kv_heads: self.kv_heads,
            tokens: self.tokens,
            first: self.first,
            eps: self.eps,
            out: step.out(self.out)?,
        };
        qk_norm_rope(step.how(), &args);
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::args::QkNormRopeArgs;
    use crate::backend::cpu::plain::{at, put};

    /// RMS norm of each head of q and k, then rotation of pairs; v is copied.
    pub(crate) fn qk_norm_rope(a: &QkNormRopeArgs) {
        (0..a.qkv.rows()).for_each(|r| qk_norm_rope_row(a, r));
    }

    /// Row `r` of [`qk_norm_rope`].
    pub(crate) fn qk_norm_rope_row(a: &QkNormRopeArgs, r: usize) {
        let dim = a.head_dim();
        let (token, to) = a.place(r);
        for head in 0..3 * a.heads {
            let (from, first) = (a.source(head) * dim, head * dim);
            let x: Vec<f64> = (0..dim).map(|d| f64::from(at(a.qkv, r, from + d))).collect();
            let gain = match head / a.heads {
                0 => a.q_gain,
                1 => a.k_gain,
                _ => {
                    (0..dim).for_each(|d| put(a.out, to, first + d, x[d] as f32));
                    continue;
                }
            };
            let squares: f64 = x.iter().map(|x| x * x).sum();
            let inverse = 1.0 / (squares / dim as f64 + f64::from(a.eps)).sqrt();
            for pair in 0..dim / 2 {
                let (one, two) = a.pair(pair);
                let x0 = x[one] * inverse * f64::from(gain[one]);
                let x1 = x[two] * inverse * f64::from(gain[two]);
                let turn = |c| f64::from(at(a.rope, token, 2 * pair + c));
                let (cos, sin) = (turn(0), turn(1));
                put(a.out, to, first + one, (cos * x0 - sin * x1) as f32);
                put(a.out, to, first + two, (sin * x0 + cos * x1) as f32);
            }
        }
    }
}
