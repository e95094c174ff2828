//! bf16 products with f32 sums (`vdpbf16ps`): tiles of 14 x 32, two k at a time. `vdpbf16ps` treats
//! subnormals as zero, so 8-bit floats are converted to normal bf16 numbers first (all of their
//! values are normal in bf16).

use std::arch::x86_64::*;

use super::super::isa::Isa;
use super::dot::Dot;
use super::kernel_avx512::{
    BF16, F8E4M3, F8E5M2, F16, F32, MIXED, MR, NR, common_type, expand_avx512, finish_avx512,
    low_bits, pack_words,
};
use super::rows::Row;
use super::{Blocking, FEW, Micro, NC};
use crate::dtype::DType;

/// BF16 products with AVX-512 BF16.
pub static AVX512BF16: Micro = Micro {
    isa: Isa::Avx512Bf16,
    mr: MR,
    nr: NR,
    per_word: 2,
    blocking: Blocking::VECTORS,
    tiles: false,
    tile,
    pack: pack_bf16,
    pack_x: pack_bf16,
    expand: expand_avx512,
    finish: finish_avx512,
    dot: dot_bf16,
    turn: None,
};

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_add(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits of plain data.
    unsafe {
        _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512i, __m512bh>(a),
            std::mem::transmute::<__m512i, __m512bh>(b),
        )
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut f32, more: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    // SAFETY: the caller of `Micro::tile` guarantees panels of `words` words and a tile of MR x NR.
    unsafe {
        if more {
            for (i, s) in sums.iter_mut().enumerate() {
                *s = [_mm512_loadu_ps(c.add(i * NR)), _mm512_loadu_ps(c.add(i * NR + 16))];
            }
        }
        for k in 0..words {
            let b0 = _mm512_loadu_si512(b.add(k * NR).cast());
            let b1 = _mm512_loadu_si512(b.add(k * NR + 16).cast());
            for (i, s) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(a.add(k * MR + i).cast::<i32>().read());
                s[0] = multiply_add(s[0], b0, x);
                s[1] = multiply_add(s[1], b1, x);
            }
        }
        for (i, s) in sums.iter().enumerate() {
            _mm512_storeu_ps(c.add(i * NR), s[0]);
            _mm512_storeu_ps(c.add(i * NR + 16), s[1]);
        }
    }
}

/// Low and high bytes of the bf16 of every e4m3 magnitude.
static E4M3_LOW: [u8; 128] = e4m3_bytes(0);
static E4M3_HIGH: [u8; 128] = e4m3_bytes(1);

const fn e4m3_bytes(byte: usize) -> [u8; 128] {
    let mut bytes = [0; 128];
    let mut q = 0;
    while q < 128 {
        // The bits of the bf16. Subnormals m * 2^-9 are normal in bf16; 0x7f is NaN.
        let bits: u16 = match q {
            0 => 0,
            1..8 => {
                let top = (q as u16).ilog2();
                let exponent = 127 - 9 + top as u16;
                (exponent << 7) | (((q as u16) << (7 - top)) & 0x7f)
            }
            127 => 0x7fc0,
            _ => ((q as u16) << 4) + (120 << 7),
        };
        bytes[q] = bits.to_le_bytes()[byte];
        q += 1;
    }
    bytes
}

/// 32 elements at `at` as bf16; zeros where the bit of `mask` is 0.
///
/// # Safety
/// The elements whose bit is set must be readable and stored as `T`, or as `mixed` if T is `MIXED`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
pub unsafe fn load_bf16<const T: u8>(at: *const u8, mask: u32, mixed: DType) -> __m512i {
    // SAFETY: masked loads read no element whose bit is 0; vectors of bf16 are 512 bits.
    unsafe {
        let round = |low: __m512, high: __m512| std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        let from_f16 = |v: __m512i| -> __m512i {
            let low = _mm512_cvtph_ps(_mm512_castsi512_si256(v));
            let high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(v));
            round(low, high)
        };
        match T {
            F32 => {
                let low = _mm512_maskz_loadu_ps(mask as __mmask16, at.cast());
                let high =
                    _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, at.wrapping_add(64).cast());
                round(low, high)
            }
            BF16 => _mm512_maskz_loadu_epi16(mask, at.cast()),
            F16 => from_f16(_mm512_maskz_loadu_epi16(mask, at.cast())),
            F8E4M3 => {
                // Duplicate every byte, then look both up in a table of 128 bytes (which ignores
                // the sign bit).
                let q = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(mask, at.cast()));
                let twice = _mm512_permutexvar_epi8(_mm512_loadu_si512(TWICE.as_ptr().cast()), q);
                let look_up = |table: &[u8; 128]| {
                    let table = table.as_ptr();
                    let (first, second) = (
                        _mm512_loadu_si512(table.cast()),
                        _mm512_loadu_si512(table.add(64).cast()),
                    );
                    _mm512_permutex2var_epi8(first, twice, second)
                };
                let odd_bytes = 0xaaaa_aaaa_aaaa_aaaa;
                let magnitude =
                    _mm512_mask_blend_epi8(odd_bytes, look_up(&E4M3_LOW), look_up(&E4M3_HIGH));
                let sign = _mm512_set1_epi16(i16::MIN);
                // magnitude | (twice & sign)
                _mm512_ternarylogic_epi32::<0b1111_1000>(magnitude, twice, sign)
            }
            F8E5M2 => {
                let q = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, at.cast()));
                from_f16(_mm512_slli_epi16::<8>(q))
            }
            _ => match mixed {
                DType::F32 | DType::I32 => load_bf16::<F32>(at, mask, mixed),
                DType::BF16 => load_bf16::<BF16>(at, mask, mixed),
                DType::F16 => load_bf16::<F16>(at, mask, mixed),
                DType::F8E4M3 => load_bf16::<F8E4M3>(at, mask, mixed),
                DType::F8E5M2 => load_bf16::<F8E5M2>(at, mask, mixed),
                _ => unreachable!("expanded before it is packed"),
            },
        }
    }
}

/// 0, 0, 1, 1, ... 31, 31
static TWICE: [u8; 64] = {
    let mut t = [0; 64];
    let mut i = 0;
    while i < 64 {
        t[i] = (i / 2) as u8;
        i += 1;
    }
    t
};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
pub unsafe fn pack_bf16(rows: &[Row], lanes: usize, k: usize, count: usize, to: *mut u32) {
    // SAFETY: as above; `load_bf16::<T>` fits rows of type T.
    unsafe {
        match common_type(rows) {
            F32 => pack_words::<2>(rows, lanes, k, count, to, |at, mask, t| {
                load_bf16::<F32>(at, mask, t)
            }),
            BF16 => pack_words::<2>(rows, lanes, k, count, to, |at, mask, t| {
                load_bf16::<BF16>(at, mask, t)
            }),
            F16 => pack_words::<2>(rows, lanes, k, count, to, |at, mask, t| {
                load_bf16::<F16>(at, mask, t)
            }),
            F8E4M3 => pack_words::<2>(rows, lanes, k, count, to, |at, mask, t| {
                load_bf16::<F8E4M3>(at, mask, t)
            }),
            F8E5M2 => pack_words::<2>(rows, lanes, k, count, to, |at, mask, t| {
                load_bf16::<F8E5M2>(at, mask, t)
            }),
            _ => pack_words::<2>(rows, lanes, k, count, to, |at, mask, t| {
                load_bf16::<MIXED>(at, mask, t)
            }),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
pub unsafe fn dot_bf16(d: Dot) {
    // SAFETY: as above.
    unsafe {
        match common_type(d.w) {
            F32 => dot_rows::<F32>(d),
            BF16 => dot_rows::<BF16>(d),
            F16 => dot_rows::<F16>(d),
            F8E4M3 => dot_rows::<F8E4M3>(d),
            F8E5M2 => dot_rows::<F8E5M2>(d),
            _ => dot_rows::<MIXED>(d),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn dot_rows<const T: u8>(d: Dot) {
    // SAFETY: as above.
    unsafe {
        match d.rows {
            1 => dot_at_most::<T, 1, 4>(d),
            2 => dot_at_most::<T, 2, 4>(d),
            3 | 4 => dot_at_most::<T, 4, 4>(d),
            _ => dot_at_most::<T, FEW, 2>(d),
        }
    }
}

/// How many bytes ahead of its use a weight is prefetched. Rows follow one another, so this reaches
/// into the next rows.
const AHEAD: usize = 4096;

/// `Dot` for at most `M` rows of x. Rows of w are read one after another, because memory delivers a
/// single long stream fastest. `SIDE` steps of k have separate sums, so that no multiply-add waits
/// for the one before.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn dot_at_most<const T: u8, const M: usize, const SIDE: usize>(d: Dot) {
    let mut x = [d.x; M];
    for (m, x) in x.iter_mut().enumerate() {
        // If there are fewer rows, the last row is used in place of the missing ones, and its extra
        // sums are discarded.
        *x = d.x.wrapping_add(m.min(d.rows - 1) * d.stride);
    }
    for (j, w) in d.w.iter().enumerate() {
        let mut sums = [[_mm512_setzero_ps(); M]; SIDE];
        let step = 32 * SIDE;
        let whole = d.k / step * step;
        // SAFETY: k elements of w are readable; x has `stride` words a row, zeros after k; `sums`
        // has FEW rows of NC.
        unsafe {
            for k in (0..whole).step_by(step) {
                for line in (0..step * w.dtype.size()).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(w.at(k).wrapping_add(AHEAD + line).cast());
                }
                for (side, sums) in sums.iter_mut().enumerate() {
                    let k = k + 32 * side;
                    let w = load_bf16::<T>(w.at(k), u32::MAX, w.dtype);
                    for (x, sum) in x.iter().zip(sums) {
                        *sum = multiply_add(*sum, w, _mm512_loadu_si512(x.add(k / 2).cast()));
                    }
                }
            }
            for k in (whole..d.k).step_by(32) {
                let w = load_bf16::<T>(w.at(k), low_bits(d.k - k), w.dtype);
                for (x, sum) in x.iter().zip(&mut sums[0]) {
                    *sum = multiply_add(*sum, w, _mm512_loadu_si512(x.add(k / 2).cast()));
                }
            }
            for m in 0..d.rows {
                let sum = sums.iter().map(|s| s[m]).reduce(|a, b| _mm512_add_ps(a, b));
                d.sums
                    .add(m * NC + j)
                    .write(_mm512_reduce_add_ps(sum.unwrap_or(_mm512_setzero_ps())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::dtype::f8e4m3_to_f32;

    #[test]
    fn the_e4m3_table_is_exact() {
        for q in 0..128u8 {
            let got =
                bf16::from_le_bytes([E4M3_LOW[usize::from(q)], E4M3_HIGH[usize::from(q)]]).to_f32();
            let want = f8e4m3_to_f32(q);
            assert!(got == want || got.is_nan() && want.is_nan(), "{q:#x}: {got} is not {want}");
        }
    }
}
