//! One set of vector operations for every instruction set, so that a kernel is written once and
//! compiled for each.
//!
//! A kernel is a struct with its operands and an `impl Kernel`. `Lanes::run` compiles its body for
//! the chosen instruction set (the body is `#[inline(always)]`, and is inlined into a function with
//! the features enabled). `exp`, `exp2`, `silu` and `gelu_tanh` are here because most kernels
//! compute one of them; all are accurate to about 1e-6, and NaN stays NaN.

mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

pub(crate) use portable::Four;

/// Vectors of f32. `min` and `max` return the second operand if either is NaN, so a clamp that is
/// written as `max(low, x)` keeps NaN.
pub(crate) trait Simd: Copy {
    type V: Copy;
    const LANES: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// Loads the first `n < LANES` lanes. The others are zero, and their memory is not read.
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V;
    unsafe fn store_first(to: *mut f32, v: Self::V, n: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once if the hardware can do that.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `a * 2^n` for integers `n` up to 128. Below -127 the result is zero or nearly zero.
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;
    unsafe fn max_lane(a: Self::V) -> f32;
    /// Rotates each adjacent pair of `x` by the (cos, sin) pair of `cs`: `(c x0 - s x1, s x0 + c
    /// x1)`.
    unsafe fn rotate(x: Self::V, cs: Self::V) -> Self::V;
}

/// `e^x`, with a relative error below 1e-6 while the result is a normal number. 0 far below that,
/// infinity above 88.7.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller runs with the features of S.
    unsafe {
        let x = S::min(S::splat(89.0), S::max(S::splat(-110.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts; the first has few enough bits that n times it is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        S::scale2(exp_small::<S>(r), n)
    }
}

/// `2^x` for `x` up to 128; 0 below about -150.
#[inline(always)]
pub(crate) unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller runs with the features of S.
    unsafe {
        let x = S::min(S::splat(128.0), S::max(S::splat(-160.0), x));
        let n = S::round(x);
        S::scale2(exp_small::<S>(S::mul(S::sub(x, n), S::splat(std::f32::consts::LN_2))), n)
    }
}

/// `e^r` for |r| <= ln(2)/2: the polynomial of degree 6 that starts with 1 + r and has the smallest
/// maximum relative error (3.1e-9).
#[inline(always)]
unsafe fn exp_small<S: Simd>(r: S::V) -> S::V {
    // SAFETY: the caller runs with the features of S.
    unsafe {
        let mut p = S::splat(0.001_381_454);
        for c in [0.008_368_745, 0.041_668_39, 0.166_665_21, 0.499_999_94, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        p
    }
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller runs with the features of S.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(x, S::add(S::splat(1.0), e))
    }
}

/// `x/2 (1 + tanh(u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, computed as the equal `x / (1 +
/// e^(-2u))`.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller runs with the features of S.
    unsafe {
        let cubic = S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0));
        let minus_2u = S::mul(S::mul(x, S::splat(-2.0 * 0.797_884_6)), cubic);
        S::div(x, S::add(S::splat(1.0), exp::<S>(minus_2u)))
    }
}

/// Applies `f` to every vector of `n` elements. The last vector is padded with zeros. `to` may
/// equal `from`.
///
/// `f` is called at one place only: a closure that is called at two places is compiled on its own,
/// without the caller's instruction set, and every vector operation in it becomes a call.
#[inline(always)]
pub(crate) unsafe fn map<S: Simd>(
    from: *const f32,
    to: *mut f32,
    n: usize,
    f: impl Fn(usize, S::V) -> S::V,
) {
    let mut i = 0;
    // SAFETY: the caller gives n readable and n writable elements; each vector is read before it is
    // written.
    unsafe {
        while i < n {
            let y = f(i, at::<S>(from, i, n));
            if i + S::LANES <= n {
                S::store(to.add(i), y);
            } else {
                S::store_first(to.add(i), y, n - i);
            }
            i += S::LANES;
        }
    }
}

/// The vector at `i` of an operand of `n` elements; zeros after the end.
#[inline(always)]
pub(crate) unsafe fn at<S: Simd>(from: *const f32, i: usize, n: usize) -> S::V {
    // SAFETY: the caller passes n readable elements and i < n.
    unsafe {
        if i + S::LANES <= n { S::load(from.add(i)) } else { S::load_first(from.add(i), n - i) }
    }
}

/// Code that can be compiled for any instruction set.
pub(crate) trait Kernel {
    /// Runs the code.
    ///
    /// # Safety
    /// The processor must have the features of `S`, and the operands must be as the implementing
    /// struct requires.
    unsafe fn run<S: Simd>(self);
}

/// The instruction set for which a kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lanes {
    /// Four lanes of plain Rust, which compilers vectorise for any target.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
}

impl Lanes {
    /// Runs `kernel` with this instruction set.
    ///
    /// # Safety
    /// The processor must have it, and the operands must be as the kernel requires.
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            match self {
                Lanes::Portable => kernel.run::<Four>(),
                #[cfg(target_arch = "x86_64")]
                Lanes::Avx2 => x86::run_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Lanes::Avx512 => x86::run_avx512(kernel),
                #[cfg(not(target_arch = "x86_64"))]
                _ => kernel.run::<Four>(),
            }
        }
    }
}
