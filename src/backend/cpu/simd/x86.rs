//! Vectors of AVX2 and AVX-512.

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
