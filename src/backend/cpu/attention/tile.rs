//! The inner kernel of attention: a register tile of a matrix product, with f32 or with pairs of
//! bf16.

use super::super::simd::Simd;
use super::flash::KEYS;

/// How products are computed. Operands are words of 32 bits: one f32, or two bf16 that are
/// neighbours along the summed dimension. So both use the same loops and the same layouts.
pub(super) trait Arith {
    type S: Simd;
    /// A vector of words.
    type Words: Copy;
    /// Elements of a word.
    const PER_WORD: usize;

    /// One word in each lane: `first`, or `first` and `second` if a word has two elements.
    unsafe fn pair(first: <Self::S as Simd>::V, second: <Self::S as Simd>::V) -> Self::Words;
    unsafe fn broadcast(from: *const u32) -> Self::Words;
    unsafe fn load(from: *const u32) -> Self::Words;
    unsafe fn store_words(to: *mut u32, words: Self::Words);
    /// `sum + a . b` in each lane, accumulated in f32.
    unsafe fn dot(
        sum: <Self::S as Simd>::V,
        a: Self::Words,
        b: Self::Words,
    ) -> <Self::S as Simd>::V;
    /// Stores the elements `at ..` of a row of words that starts at `row`; `at` is a multiple of
    /// `LANES`.
    unsafe fn store(row: *mut f32, at: usize, v: <Self::S as Simd>::V);

    /// The place of word `word` of query `row` in a panel of `MR` queries.
    #[inline(always)]
    fn query_at<const MR: usize>(row: usize, word: usize) -> usize {
        word * MR + row
    }

    /// The scores of `MR` queries for a panel of keys. Rows of scores are `KEYS` apart.
    #[inline(always)]
    unsafe fn scores<const MR: usize>(
        words: usize,
        queries: *const u32,
        keys: *const u32,
        scores: *mut f32,
    ) where
        Self: Sized,
    {
        // SAFETY: the caller passes panels of `words` words and runs with the features of Self.
        unsafe { tile::<Self, MR, 1, MR>(words, queries, keys, None, scores, KEYS) }
    }

    /// Multiplies sums with `keep` for each row, and adds the values of a panel of columns times
    /// their weights. Rows of weights are `KEYS` words apart, those of sums `pitch`.
    #[inline(always)]
    unsafe fn values<const MR: usize>(
        words: usize,
        weights: *const u32,
        values: *const u32,
        keep: *const f32,
        sums: *mut f32,
        pitch: usize,
    ) where
        Self: Sized,
    {
        // SAFETY: as above.
        unsafe { tile::<Self, MR, KEYS, 1>(words, weights, values, Some(keep), sums, pitch) }
    }
}

/// Products in f32 with the vectors of `S`.
pub(super) struct F32<S>(std::marker::PhantomData<S>);

impl<S: Simd> Arith for F32<S> {
    type S = S;
    type Words = S::V;
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn pair(first: S::V, _second: S::V) -> S::V {
        first
    }
    #[inline(always)]
    unsafe fn broadcast(from: *const u32) -> S::V {
        // SAFETY: the caller passes a readable word and runs with the features of S.
        unsafe { S::splat(*from.cast::<f32>()) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> S::V {
        // SAFETY: the caller passes readable words for a vector.
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u32, words: S::V) {
        // SAFETY: the caller passes writable words for a vector.
        unsafe { S::store(to.cast(), words) }
    }
    #[inline(always)]
    unsafe fn dot(sum: S::V, a: S::V, b: S::V) -> S::V {
        // SAFETY: the caller runs with the features of S.
        unsafe { S::fma(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn store(row: *mut f32, at: usize, v: S::V) {
        // SAFETY: the caller passes a writable row.
        unsafe { S::store(row.add(at), v) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use bf16::Bf16;

#[cfg(target_arch = "x86_64")]
mod bf16 {
    use super::super::super::amx::{Rows, STEP, SUMS, sums_of_bf16};
    use super::super::super::simd::x86::Avx512;
    use super::{Arith, KEYS, tile};
    use std::arch::x86_64::*;

    /// Products of bf16 pairs, AVX512-BF16; with `TILES` in the tiles of AMX, where panels have 32
    /// queries as `[step][query][word]`.
    pub(in super::super) struct Bf16<const TILES: bool>;

    impl<const TILES: bool> Arith for Bf16<TILES> {
        type S = Avx512;
        type Words = __m512bh;
        const PER_WORD: usize = 2;

        #[inline(always)]
        unsafe fn pair(first: __m512, second: __m512) -> __m512bh {
            // SAFETY: the caller runs with AVX512-BF16; both vector types have 512 bits.
            unsafe {
                let low = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(
                    _mm512_cvtneps_pbh(first),
                ));
                let high = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(
                    _mm512_cvtneps_pbh(second),
                ));
                std::mem::transmute(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high)))
            }
        }
        #[inline(always)]
        unsafe fn broadcast(from: *const u32) -> __m512bh {
            // SAFETY: the caller passes a readable word and runs with AVX-512.
            unsafe { std::mem::transmute(_mm512_set1_epi32(*from as i32)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const u32) -> __m512bh {
            // SAFETY: the caller passes sixteen readable words.
            unsafe { from.cast::<__m512bh>().read_unaligned() }
        }
        #[inline(always)]
        unsafe fn store_words(to: *mut u32, words: __m512bh) {
            // SAFETY: the caller passes sixteen writable words.
            unsafe { to.cast::<__m512bh>().write_unaligned(words) }
        }
        #[inline(always)]
        unsafe fn dot(sum: __m512, a: __m512bh, b: __m512bh) -> __m512 {
            // SAFETY: the caller runs with AVX512-BF16.
            unsafe { _mm512_dpbf16_ps(sum, a, b) }
        }
        #[inline(always)]
        unsafe fn store(row: *mut f32, at: usize, v: __m512) {
            // SAFETY: the caller passes a writable row; both vector types have 512 bits.
            unsafe {
                let halves = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
                _mm256_storeu_si256(row.cast::<u16>().add(at).cast(), halves);
            }
        }
        #[inline(always)]
        fn query_at<const MR: usize>(row: usize, word: usize) -> usize {
            match TILES {
                true => (word / STEP * MR + row) * STEP + word % STEP,
                false => word * MR + row,
            }
        }
        #[inline(always)]
        unsafe fn scores<const MR: usize>(
            words: usize,
            queries: *const u32,
            keys: *const u32,
            scores: *mut f32,
        ) {
            const { assert!(!TILES || MR == SUMS) };
            // SAFETY: the caller passes panels of `words` words; with `TILES`, it configured tiles,
            // and these are whole steps, which `Sizes` ensures.
            unsafe {
                if !TILES {
                    return tile::<Self, MR, 1, MR>(words, queries, keys, None, scores, KEYS);
                }
                let queries = Rows::packed(queries);
                sums_of_bf16(words / STEP, queries, keys, scores.cast(), KEYS, false);
            }
        }
        #[inline(always)]
        unsafe fn values<const MR: usize>(
            words: usize,
            weights: *const u32,
            values: *const u32,
            keep: *const f32,
            sums: *mut f32,
            pitch: usize,
        ) {
            // SAFETY: as above; sums have MR rows, and weights rows that are `KEYS` words apart.
            unsafe {
                if !TILES {
                    let keep = Some(keep);
                    return tile::<Self, MR, KEYS, 1>(words, weights, values, keep, sums, pitch);
                }
                for i in 0..MR {
                    let factor = *keep.add(i);
                    // Most maxima stay the same after the first blocks.
                    if factor != 1.0 {
                        for at in [0, 16] {
                            let sum = sums.add(i * pitch + at);
                            let kept = _mm512_mul_ps(_mm512_loadu_ps(sum), _mm512_set1_ps(factor));
                            _mm512_storeu_ps(sum, kept);
                        }
                    }
                }
                let weights = Rows { at: weights, row: KEYS, step: STEP };
                sums_of_bf16(words / STEP, weights, values, sums.cast(), pitch, true);
            }
        }
    }
}

/// Adds `a . b` to a tile of c with `MR` rows and two vectors of columns. Before that, each row of
/// c is multiplied by `keep[row]`, or set to zero without `keep`.
///
/// Word (i, w) of a is at `i * ROW + w * STEP`, word (w, column) of b at `w * 2 * LANES + column`;
/// rows of c are `pitch` apart. 12 x 2 vectors of 16 leave 8 of 32 registers free: each loaded
/// vector of b is used 12 times, each broadcast twice.
#[inline(always)]
pub(super) unsafe fn tile<A: Arith, const MR: usize, const ROW: usize, const STEP: usize>(
    words: usize,
    a: *const u32,
    b: *const u32,
    keep: Option<*const f32>,
    c: *mut f32,
    pitch: usize,
) {
    let lanes = A::S::LANES;
    // SAFETY: the caller passes operands of the described sizes and runs with the features of A.
    unsafe {
        let zero = A::S::splat(0.0);
        let mut sums = [[zero; 2]; MR];
        if let Some(keep) = keep {
            for (i, [left, right]) in sums.iter_mut().enumerate() {
                let (row, factor) = (c.add(i * pitch), A::S::splat(*keep.add(i)));
                *left = A::S::mul(A::S::load(row), factor);
                *right = A::S::mul(A::S::load(row.add(lanes)), factor);
            }
        }
        let (mut a, mut b) = (a, b);
        for _ in 0..words {
            let (b0, b1) = (A::load(b), A::load(b.add(lanes)));
            for (i, [left, right]) in sums.iter_mut().enumerate() {
                let x = A::broadcast(a.add(i * ROW));
                *left = A::dot(*left, x, b0);
                *right = A::dot(*right, x, b1);
            }
            a = a.add(STEP);
            b = b.add(2 * lanes);
        }
        for (i, [left, right]) in sums.into_iter().enumerate() {
            A::S::store(c.add(i * pitch), left);
            A::S::store(c.add(i * pitch + lanes), right);
        }
    }
}
