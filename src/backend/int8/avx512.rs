//! Rows of integers with AVX-512. The factors of 1/2 of all stages are left out and belong to the
//! scale, and a quotient is computed without a division, which would take most of the time. Neither
//! changes a bit.

use std::arch::x86_64::*;

use crate::backend::cpu::gemm::{BF16, F8E4M3, F8E5M2, F16, F32, load_f32};
use crate::dtype::DType;
use crate::dtype::int8::{Int8, Rotation, scale_of};

/// Added to a number between -2^22 and 2^22, this leaves the nearest integer (ties to even) in the
/// low bits.
const ROUND: f32 = 12_582_912.0;

/// Whether [`quantise`] takes rows of `cols` columns.
pub fn suits(int8: Int8, cols: usize) -> bool {
    cols.is_multiple_of(16) && int8.rotation.is_none_or(Rotation::has_kernels)
}

/// As [`Int8::quantise`], for rows that are a whole number of vectors and groups of 16, 64 or 256
/// columns. The values are those at `from`, which may be the row itself, times `factor`.
///
/// # Safety
/// As many values as the row has must be readable at `from`, stored as `dtype`: F32, BF16, F16 or
/// FP8.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn quantise(
    int8: Int8,
    (from, dtype, factor): (*const u8, DType, f32),
    row: &mut [f32],
    out: &mut [i8],
) -> f32 {
    // SAFETY: the promise of the caller.
    unsafe {
        match dtype {
            DType::BF16 => quantise_as::<BF16>(int8, (from, 2), factor, row, out),
            DType::F16 => quantise_as::<F16>(int8, (from, 2), factor, row, out),
            DType::F8E4M3 => quantise_as::<F8E4M3>(int8, (from, 1), factor, row, out),
            DType::F8E5M2 => quantise_as::<F8E5M2>(int8, (from, 1), factor, row, out),
            _ => quantise_as::<F32>(int8, (from, 4), factor, row, out),
        }
    }
}

/// 16 values that are stored as `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load<const T: u8>(at: *const u8) -> __m512 {
    // SAFETY: the promise of the caller.
    unsafe { load_f32::<T>(at, u32::MAX, DType::F32) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quantise_as<const T: u8>(
    int8: Int8,
    (from, size): (*const u8, usize),
    factor: f32,
    row: &mut [f32],
    out: &mut [i8],
) -> f32 {
    let stages = int8.rotation.map_or(0, |r| r.group().trailing_zeros() / 2);
    let group = int8.rotation.map_or(16, Rotation::group);
    assert!(row.len().is_multiple_of(group) && row.len().is_multiple_of(16));
    assert!(row.len() == out.len() && matches!(stages, 0 | 2 | 3 | 4));
    let factor = _mm512_set1_ps(factor);
    let mut bits = _mm512_setzero_si512();
    // SAFETY: the row is a whole number of groups, and the groups are whole vectors. A group is
    // read before it is written.
    unsafe {
        for first in (0..row.len()).step_by(group) {
            let (at, from) = (row.as_mut_ptr().add(first), from.add(first * size));
            bits = _mm512_max_epu32(
                bits,
                match stages {
                    0 => {
                        let v = _mm512_mul_ps(load::<T>(from), factor);
                        _mm512_storeu_ps(at, v);
                        magnitude(v)
                    }
                    2 => {
                        let v = within(_mm512_mul_ps(load::<T>(from), factor));
                        _mm512_storeu_ps(at, v);
                        magnitude(v)
                    }
                    3 => {
                        let v = rotate_64::<T>((from, size), factor);
                        (0..4).for_each(|i| _mm512_storeu_ps(at.add(16 * i), v[i]));
                        largest(&v)
                    }
                    _ => rotate_256::<T>((from, size), factor, at),
                },
            );
        }
    }
    let larger = (1 << stages) as f32;
    let largest = f32::from_bits(_mm512_reduce_max_epu32(bits));
    let scale = scale_of(largest / larger);
    // SAFETY: both have the same number of whole vectors.
    unsafe { quotients(row, scale * larger, out) };
    scale
}

/// Writes `row / divisor` to `out`, rounded. With `r` the rounded reciprocal, `q = v r` is close to
/// the quotient; `q + (v - q d) r`, where the difference is exact, is the correctly rounded
/// quotient once `q` is one of its two neighbours, which it is after one such step.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn quotients(row: &[f32], divisor: f32, out: &mut [i8]) {
    let d = _mm512_set1_ps(divisor);
    let r = _mm512_set1_ps(1.0 / divisor);
    let round = _mm512_set1_ps(ROUND);
    for (v, q) in row.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
        // SAFETY: both are 16 elements.
        unsafe {
            let v = _mm512_loadu_ps(v.as_ptr());
            let near = _mm512_mul_ps(v, r);
            let near = _mm512_fmadd_ps(_mm512_fnmadd_ps(near, d, v), r, near);
            let near = _mm512_fmadd_ps(_mm512_fnmadd_ps(near, d, v), r, near);
            let rounded = _mm512_castps_si512(_mm512_add_ps(near, round));
            _mm_storeu_si128(q.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(rounded));
        }
    }
}

/// The bits of the magnitudes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn magnitude(v: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fff_ffff))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn largest(v: &[__m512; 4]) -> __m512i {
    let [a, b, c, d] = v.map(|v| magnitude(v));
    _mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d))
}

/// The stages of strides 1 and 4; see `within` of the parent module.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn within(v: __m512) -> __m512 {
    let p = _mm512_permute_ps::<0b10_11_00_01>(v);
    let (x, y) = (_mm512_add_ps(v, p), _mm512_sub_ps(v, p));
    let v = _mm512_add_ps(x, _mm512_permute_ps::<0b01_00_11_10>(y));
    let p = _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v);
    let (x, y) = (_mm512_add_ps(v, p), _mm512_sub_ps(v, p));
    _mm512_add_ps(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(y, y))
}

/// A stage across four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn across([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    let (s, t) = (_mm512_add_ps(a, b), _mm512_sub_ps(c, d));
    let (u, v) = (_mm512_sub_ps(a, b), _mm512_add_ps(c, d));
    [_mm512_add_ps(s, t), _mm512_sub_ps(s, t), _mm512_add_ps(u, v), _mm512_sub_ps(v, u)]
}

/// The first three stages of 64 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rotate_64<const T: u8>((from, size): (*const u8, usize), factor: __m512) -> [__m512; 4] {
    let mut v = [_mm512_setzero_ps(); 4];
    for (i, v) in v.iter_mut().enumerate() {
        // SAFETY: the caller gives 64 elements.
        *v = within(_mm512_mul_ps(unsafe { load::<T>(from.add(16 * size * i)) }, factor));
    }
    across(v)
}

/// Rotates 256 columns, and returns the bits of the largest magnitudes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rotate_256<const T: u8>(
    (from, size): (*const u8, usize),
    factor: __m512,
    at: *mut f32,
) -> __m512i {
    let mut rows = [[_mm512_setzero_ps(); 4]; 4];
    let mut bits = _mm512_setzero_si512();
    // SAFETY: the caller gives 256 elements.
    unsafe {
        for (i, row) in rows.iter_mut().enumerate() {
            *row = rotate_64::<T>((from.add(64 * size * i), size), factor);
        }
        #[allow(clippy::needless_range_loop, reason = "it is a column of all four rows")]
        for i in 0..4 {
            let column = across([rows[0][i], rows[1][i], rows[2][i], rows[3][i]]);
            for (j, v) in column.iter().enumerate() {
                _mm512_storeu_ps(at.add(64 * j + 16 * i), *v);
            }
            bits = _mm512_max_epu32(bits, largest(&column));
        }
    }
    bits
}
