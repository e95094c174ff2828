//! One set of vector operations for every instruction set, so that a kernel is written once and
//! compiled for each.
//!
//! A kernel is a struct with its operands and an `impl Kernel`. `Lanes::run` compiles its body for
//! the chosen instruction set (the body is `#[inline(always)]`, and is inlined into a function with
//! the features enabled). `exp`, `sigmoid`, `silu` and `gelu_tanh` are here because most kernels
//! end with one of them; all are accurate to about 1e-6, and NaN stays NaN.

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

/// Four lanes of plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Four;

macro_rules! lanewise {
    ($a:expr, $b:expr, $f:expr) => {{
        let (a, b, f) = ($a, $b, $f);
        [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
    }};
}

impl Simd for Four {
    type V = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller passes four readable elements.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller passes four writable elements.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; 4];
        for (i, lane) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller passes n readable elements.
            *lane = unsafe { *from.add(i) };
        }
        v
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: Self::V, n: usize) {
        for (i, lane) in v.iter().enumerate().take(n) {
            // SAFETY: the caller passes n writable elements.
            unsafe { *to.add(i) = *lane };
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // A real fma would be a library call on a target without it.
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1], a[2] * b[2] + c[2], a[3] * b[3] + c[3]]
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanewise!(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 leaves no fraction bits. Exact for |a| < 2^22; exponents are far
        // smaller.
        const MAGIC: f32 = 12_582_912.0;
        lanewise!(a, a, |a: f32, _| (a + MAGIC) - MAGIC)
    }
    #[inline(always)]
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V {
        lanewise!(a, n, |a: f32, n: f32| a * f32::from_bits(
            ((n.max(-127.0) as i32 + 127) as u32) << 23
        ))
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        (a[0] + a[1]) + (a[2] + a[3])
    }
    #[inline(always)]
    unsafe fn max_lane(a: Self::V) -> f32 {
        a[0].max(a[1]).max(a[2].max(a[3]))
    }
    #[inline(always)]
    unsafe fn rotate(x: Self::V, cs: Self::V) -> Self::V {
        [
            cs[0] * x[0] - cs[1] * x[1],
            cs[1] * x[0] + cs[0] * x[1],
            cs[2] * x[2] - cs[3] * x[3],
            cs[3] * x[2] + cs[2] * x[3],
        ]
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::{Kernel, Simd};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) {
        // SAFETY: the features are enabled here; the caller guarantees the rest.
        unsafe { kernel.run::<Avx2>() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) {
        // SAFETY: the features are enabled here; the caller guarantees the rest.
        unsafe { kernel.run::<Avx512>() }
    }

    /// Eight lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    /// Sixteen lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    #[inline(always)]
    unsafe fn mask8(n: usize) -> __m256i {
        const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: n <= 8, so the eight entries from 8 - n are within ONES.
        unsafe { _mm256_loadu_si256(ONES.as_ptr().add(8 - n).cast()) }
    }

    /// Implements [`Simd`] with the intrinsics of an instruction set.
    macro_rules! wrap {
        ($(
            $(#[$meta:meta])*
            fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? $body:block
        )*) => {
            $(
                $(#[$meta])*
                #[inline(always)]
                unsafe fn $name($($arg: $ty),*) $(-> $out)? {
                    // SAFETY: the caller runs with the features of the set and passes valid
                    // pointers.
                    unsafe { $body }
                }
            )*
        };
    }

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        wrap! {
            fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
            fn load(from: *const f32) -> __m256 { _mm256_loadu_ps(from) }
            fn store(to: *mut f32, v: __m256) { _mm256_storeu_ps(to, v) }
            fn load_first(from: *const f32, n: usize) -> __m256 {
                _mm256_maskload_ps(from, mask8(n))
            }
            fn store_first(to: *mut f32, v: __m256, n: usize) {
                _mm256_maskstore_ps(to, mask8(n), v)
            }
            fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
            fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
            fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
            fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
            fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
            fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
            fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
            fn round(a: __m256) -> __m256 {
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
            }
            fn scale2(a: __m256, n: __m256) -> __m256 {
                let n = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_set1_ps(-127.0), n));
                let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)));
                _mm256_mul_ps(a, _mm256_castsi256_ps(power))
            }
            fn sum(a: __m256) -> f32 {
                let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
                _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
            }
            fn max_lane(a: __m256) -> f32 {
                let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
                _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
            }
            fn rotate(x: __m256, cs: __m256) -> __m256 {
                let swapped = _mm256_permute_ps::<0b10_11_00_01>(x);
                let crossed = _mm256_mul_ps(_mm256_movehdup_ps(cs), swapped);
                _mm256_fmaddsub_ps(_mm256_moveldup_ps(cs), x, crossed)
            }
        }
    }

    #[inline(always)]
    fn mask16(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        wrap! {
            fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
            fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
            fn store(to: *mut f32, v: __m512) { _mm512_storeu_ps(to, v) }
            fn load_first(from: *const f32, n: usize) -> __m512 {
                _mm512_maskz_loadu_ps(mask16(n), from)
            }
            fn store_first(to: *mut f32, v: __m512, n: usize) {
                _mm512_mask_storeu_ps(to, mask16(n), v)
            }
            fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
            fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
            fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
            fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
            fn round(a: __m512) -> __m512 { _mm512_roundscale_ps::<0>(a) }
            fn scale2(a: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(a, n) }
            fn sum(a: __m512) -> f32 { _mm512_reduce_add_ps(a) }
            fn max_lane(a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
            fn rotate(x: __m512, cs: __m512) -> __m512 {
                let swapped = _mm512_permute_ps::<0b10_11_00_01>(x);
                let crossed = _mm512_mul_ps(_mm512_movehdup_ps(cs), swapped);
                _mm512_fmaddsub_ps(_mm512_moveldup_ps(cs), x, crossed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function that a test evaluates lane by lane.
    struct Eval<'a> {
        x: &'a [f32],
        out: &'a mut [f32],
        which: usize,
    }

    impl Kernel for Eval<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let n = self.x.len();
            assert_eq!(n, self.out.len());
            // SAFETY: both slices have n elements.
            unsafe {
                map::<S>(self.x.as_ptr(), self.out.as_mut_ptr(), n, |_, x| match self.which {
                    0 => exp::<S>(x),
                    1 => exp2::<S>(x),
                    2 => silu::<S>(x),
                    _ => gelu_tanh::<S>(x),
                })
            }
        }
    }

    fn available() -> Vec<Lanes> {
        #[allow(unused_mut)]
        let mut lanes = vec![Lanes::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                lanes.push(Lanes::Avx2);
            }
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                lanes.push(Lanes::Avx512);
            }
        }
        lanes
    }

    fn eval(lanes: Lanes, which: usize, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        // SAFETY: `available` returns only sets that the processor has.
        unsafe { lanes.run(Eval { x, out: &mut out, which }) };
        out
    }

    #[test]
    fn the_functions_match_f64_over_their_range() {
        let x: Vec<f32> = (-870_001..=870_001).step_by(7).map(|i| i as f32 * 1e-4).collect();
        for lanes in available() {
            for which in 0..4 {
                let worst = x
                    .iter()
                    .zip(eval(lanes, which, &x))
                    .map(|(&x, y)| {
                        let x = f64::from(x);
                        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                        let exact = match which {
                            0 => x.exp(),
                            1 => x.exp2(),
                            2 => x / (1.0 + (-x).exp()),
                            _ => x / (1.0 + (-2.0 * u).exp()),
                        };
                        // Far on the negative side, the activations are tiny numbers, and their
                        // exponent multiplies the rounding of the argument.
                        let scale = if which < 2 { exact } else { exact.abs().max(1e-2) };
                        ((f64::from(y) - exact) / scale).abs()
                    })
                    .fold(0.0, f64::max);
                assert!(worst < 1e-6, "{lanes:?} function {which}: {worst:e}");
            }
        }
    }

    #[test]
    fn the_limits_are_zero_infinity_and_nan() {
        for lanes in available() {
            let x = [f32::NEG_INFINITY, -1e30, -200.0, 89.0, 1e30, f32::INFINITY, f32::NAN];
            for which in 0..2 {
                let y = eval(lanes, which, &x);
                assert_eq!(&y[..3], &[0.0; 3], "{lanes:?} {which}");
                assert!(y[6].is_nan());
                assert_eq!(&y[4..6], &[f32::INFINITY; 2], "{lanes:?} {which}");
            }
            for which in 2..4 {
                let y = eval(lanes, which, &x[1..]);
                assert!(y[0].abs() < 1e-20 && y[1].abs() < 1e-20, "{lanes:?} {which}: {y:?}");
                assert_eq!(y[2], 89.0);
                assert!(y[5].is_nan());
            }
        }
    }
}
