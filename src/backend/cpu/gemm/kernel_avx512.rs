//! f32 with AVX-512: tiles of 14 x 32 sums in 28 registers, two more for w and one for x. The
//! packing (16 x 16 transposes of words) is used by the bf16 kernel too.

use std::arch::x86_64::*;

use super::super::isa::Isa;
use super::dot::{Dot, dot_f32};
use super::finish::{Finish, finish};
use super::rows::{Expanded, Row};
use super::{Blocking, Micro};
use crate::dtype::DType;

/// F32 products with AVX-512.
pub static AVX512: Micro = Micro {
    isa: Isa::Avx512,
    mr: MR,
    nr: NR,
    per_word: 1,
    blocking: Blocking::VECTORS,
    tiles: false,
    tile,
    pack: pack_avx512,
    pack_x: pack_avx512,
    expand: expand_avx512,
    finish: finish_avx512,
    dot: dot_avx512,
    turn: None,
};

/// The same with the tiles of AMX, for the sides of its products of integers.
pub static AVX512_LARGE: Micro = Micro { mr: LARGE, tile: large_tile, ..AVX512 };

pub const MR: usize = 14;
pub const NR: usize = 32;
const LARGE: usize = 32;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn large_tile(words: usize, a: *const u32, b: *const u32, c: *mut f32, more: bool) {
    for row in (0..LARGE).step_by(8) {
        // SAFETY: the caller of `Micro::tile` guarantees panels of `words` words and a tile of
        // LARGE x NR.
        unsafe { rows_tile::<8, LARGE>(words, a.add(row), b, c.add(row * NR), more) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut f32, more: bool) {
    // SAFETY: the caller of `Micro::tile` guarantees panels of `words` words and a tile of MR x NR.
    unsafe { rows_tile::<MR, MR>(words, a, b, c, more) }
}

/// `ROWS` rows of a tile, with `LANES` words from one word of a row of x to the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn rows_tile<const ROWS: usize, const LANES: usize>(
    words: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    more: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: the caller guarantees panels of `words` words and ROWS x NR sums.
    unsafe {
        if more {
            for (i, s) in sums.iter_mut().enumerate() {
                *s = [_mm512_loadu_ps(c.add(i * NR)), _mm512_loadu_ps(c.add(i * NR + 16))];
            }
        }
        for k in 0..words {
            let b0 = _mm512_loadu_ps(b.add(k * NR).cast());
            let b1 = _mm512_loadu_ps(b.add(k * NR + 16).cast());
            for (i, s) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(a.add(k * LANES + i).cast::<f32>().read());
                s[0] = _mm512_fmadd_ps(x, b0, s[0]);
                s[1] = _mm512_fmadd_ps(x, b1, s[1]);
            }
        }
        for (i, s) in sums.iter().enumerate() {
            _mm512_storeu_ps(c.add(i * NR), s[0]);
            _mm512_storeu_ps(c.add(i * NR + 16), s[1]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn finish_avx512(tile: *const f32, width: usize, f: Finish) {
    // SAFETY: as above.
    unsafe { finish::<true>(tile, width, f) }
}

// The stored types as constant parameters, so that a loader is compiled for each type.

/// All rows are [`DType::F32`].
pub const F32: u8 = DType::F32 as u8;
/// All rows are [`DType::BF16`].
pub const BF16: u8 = DType::BF16 as u8;
/// All rows are [`DType::F16`].
pub const F16: u8 = DType::F16 as u8;
/// All rows are [`DType::F8E4M3`].
pub const F8E4M3: u8 = DType::F8E4M3 as u8;
/// All rows are [`DType::F8E5M2`].
pub const F8E5M2: u8 = DType::F8E5M2 as u8;
/// The rows have several types.
pub const MIXED: u8 = u8::MAX;

/// The type of all rows, or `MIXED`.
pub fn common_type(rows: &[Row]) -> u8 {
    let mut types = rows.iter().filter(|r| !r.ptr.is_null()).map(|r| r.dtype as u8);
    let first = types.next().unwrap_or(F32);
    if types.all(|t| t == first) { first } else { MIXED }
}

/// A mask of the lowest `n` bits, or of all bits if there are fewer than `n`.
#[inline(always)]
pub fn low_bits(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1 << n) - 1 }
}

/// 16 elements at `at` as f32; zeros where the bit of `mask` is 0.
///
/// # Safety
/// The elements whose bit is set must be readable and stored as `T`, or as `mixed` if T is `MIXED`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn load_f32<const T: u8>(at: *const u8, mask: u32, mixed: DType) -> __m512 {
    let mask = mask as __mmask16;
    // SAFETY: masked loads read no element whose bit is 0.
    unsafe {
        match T {
            F32 => _mm512_maskz_loadu_ps(mask, at.cast()),
            BF16 => {
                let v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))
            }
            F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast())),
            F8E4M3 => {
                // Puts exponent and mantissa at their places in an f32 whose exponent is 120 too
                // small. The product corrects that and is exact for subnormals too. 0x7f is NaN.
                let q = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, at.cast()));
                let magnitude = _mm512_and_si512(q, _mm512_set1_epi32(0x7f));
                let small = _mm512_castsi512_ps(_mm512_slli_epi32::<20>(magnitude));
                let value = _mm512_mul_ps(small, _mm512_set1_ps(f32::from_bits((127 + 120) << 23)));
                let nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
                let value = _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(f32::NAN));
                let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(q, _mm512_set1_epi32(0x80)));
                _mm512_or_ps(value, _mm512_castsi512_ps(sign))
            }
            F8E5M2 => {
                let q = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(mask, at.cast()));
                _mm512_cvtph_ps(_mm256_slli_epi16::<8>(q))
            }
            _ => match mixed {
                DType::F32 | DType::I32 => load_f32::<F32>(at, mask.into(), mixed),
                DType::BF16 => load_f32::<BF16>(at, mask.into(), mixed),
                DType::F16 => load_f32::<F16>(at, mask.into(), mixed),
                DType::F8E4M3 => load_f32::<F8E4M3>(at, mask.into(), mixed),
                DType::F8E5M2 => load_f32::<F8E5M2>(at, mask.into(), mixed),
                _ => unreachable!("expanded before it is packed"),
            },
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn expand_avx512(row: &Expanded, k: usize, out: &mut [f32]) {
    row.expand(k, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_avx512(rows: &[Row], lanes: usize, k: usize, count: usize, to: *mut u32) {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn words<const T: u8>(at: *const u8, mask: u32, mixed: DType) -> __m512i {
        // SAFETY: as above.
        _mm512_castps_si512(unsafe { load_f32::<T>(at, mask, mixed) })
    }
    // SAFETY: as above; `words::<T>` fits rows of type T.
    unsafe {
        match common_type(rows) {
            F32 => {
                pack_words::<1>(rows, lanes, k, count, to, |at, mask, t| words::<F32>(at, mask, t))
            }
            BF16 => {
                pack_words::<1>(rows, lanes, k, count, to, |at, mask, t| words::<BF16>(at, mask, t))
            }
            F16 => {
                pack_words::<1>(rows, lanes, k, count, to, |at, mask, t| words::<F16>(at, mask, t))
            }
            F8E4M3 => pack_words::<1>(rows, lanes, k, count, to, |at, mask, t| {
                words::<F8E4M3>(at, mask, t)
            }),
            F8E5M2 => pack_words::<1>(rows, lanes, k, count, to, |at, mask, t| {
                words::<F8E5M2>(at, mask, t)
            }),
            _ => pack_words::<1>(rows, lanes, k, count, to, |at, mask, t| {
                words::<MIXED>(at, mask, t)
            }),
        }
    }
}

/// A lane of a group of rows: the address of its elements, and the size of one. Lanes without a row
/// read zeros and do not advance.
#[derive(Clone, Copy)]
struct Lane {
    at: *const u8,
    size: usize,
    dtype: DType,
}

/// Zeros for one load of the largest type.
static NOTHING: [u8; 128] = [0; 128];

/// `Micro::pack` for words of `PER` elements: 16 rows x 16 words at a time, transposed in
/// registers. `load(at, mask, type)` returns 16 words from an address, with zeros for the elements
/// whose bit in the mask is 0.
///
/// # Safety
/// `to` must have space for the words of `count` elements times `lanes`, and `load` must
/// be able to read elements `k .. k + count` of the rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn pack_words<const PER: usize>(
    rows: &[Row],
    lanes: usize,
    k: usize,
    count: usize,
    to: *mut u32,
    load: impl Fn(*const u8, u32, DType) -> __m512i,
) {
    let words = count.div_ceil(PER);
    for first in (0..lanes).step_by(16) {
        let mask = low_bits(lanes - first) as __mmask16;
        let group: [Lane; 16] = std::array::from_fn(|i| match rows.get(first + i) {
            Some(row) if !row.ptr.is_null() => {
                Lane { at: row.at(k), size: row.dtype.size(), dtype: row.dtype }
            }
            _ => Lane { at: NOTHING.as_ptr(), size: 0, dtype: DType::F32 },
        });
        for word in (0..words).step_by(16) {
            let at = word * PER;
            let valid = low_bits(count - at);
            let mut v = [_mm512_setzero_si512(); 16];
            for (v, lane) in v.iter_mut().zip(&group) {
                *v = load(lane.at.wrapping_add(at * lane.size), valid, lane.dtype);
            }
            let v = transpose(v);
            let to = to.wrapping_add(word * lanes + first);
            if words - word >= 16 {
                // With a constant length, the words stay in registers.
                for (i, v) in v.iter().enumerate() {
                    // SAFETY: word `word + i` exists, and the mask selects only its lanes.
                    unsafe { _mm512_mask_storeu_epi32(to.add(i * lanes).cast(), mask, *v) };
                }
            } else {
                for (i, v) in v.iter().enumerate().take(words - word) {
                    // SAFETY: word `word + i` exists, and the mask selects only its lanes.
                    unsafe { _mm512_mask_storeu_epi32(to.add(i * lanes).cast(), mask, *v) };
                }
            }
        }
    }
}

/// Transposes 16 x 16 words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn transpose(v: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut a, mut b) = ([zero; 16], [zero; 16]);
    // Within each 128-bit quarter, transpose 4 x 4 words: a[4g + j] has word j of rows 4g .. 4g +
    // 4, of every quarter.
    for g in 0..4 {
        let r = &v[4 * g..4 * g + 4];
        let (lo01, hi01) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
        let (lo23, hi23) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
        a[4 * g] = _mm512_unpacklo_epi64(lo01, lo23);
        a[4 * g + 1] = _mm512_unpackhi_epi64(lo01, lo23);
        a[4 * g + 2] = _mm512_unpacklo_epi64(hi01, hi23);
        a[4 * g + 3] = _mm512_unpackhi_epi64(hi01, hi23);
    }
    // Then transpose 4 x 4 quarters: b[4q + j] has word j of quarter q, of all rows.
    for j in 0..4 {
        let (x, y) = (a[j], a[4 + j]);
        let (z, w) = (a[8 + j], a[12 + j]);
        let (xy02, xy13) = (
            _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y),
        );
        let (zw02, zw13) = (
            _mm512_shuffle_i32x4::<0b10_00_10_00>(z, w),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(z, w),
        );
        b[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(xy02, zw02);
        b[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(xy02, zw02);
        b[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(xy13, zw13);
        b[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(xy13, zw13);
    }
    b
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn dot_avx512(d: Dot) {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn decode<const T: u8>(row: Row, k: usize, out: &mut [f32]) {
        let whole = out.len() / 16 * 16;
        // SAFETY: the elements exist, and the masked store writes only inside `out`. Whole vectors
        // are stored without a mask, because a masked store cannot be forwarded to the loads that
        // follow.
        unsafe {
            for at in (0..whole).step_by(16) {
                let v = load_f32::<T>(row.at(k + at), u32::MAX, row.dtype);
                _mm512_storeu_ps(out.as_mut_ptr().add(at), v);
            }
            if whole < out.len() {
                let mask = low_bits(out.len() - whole);
                let v = load_f32::<T>(row.at(k + whole), mask, row.dtype);
                _mm512_mask_storeu_ps(out.as_mut_ptr().add(whole), mask as __mmask16, v);
            }
        }
    }
    // SAFETY: as above.
    unsafe {
        match common_type(d.w) {
            F32 => dot_f32::<true>(d, |r, k, out| decode::<F32>(r, k, out)),
            BF16 => dot_f32::<true>(d, |r, k, out| decode::<BF16>(r, k, out)),
            F16 => dot_f32::<true>(d, |r, k, out| decode::<F16>(r, k, out)),
            F8E4M3 => dot_f32::<true>(d, |r, k, out| decode::<F8E4M3>(r, k, out)),
            F8E5M2 => dot_f32::<true>(d, |r, k, out| decode::<F8E5M2>(r, k, out)),
            _ => dot_f32::<true>(d, |r, k, out| decode::<MIXED>(r, k, out)),
        }
    }
}
