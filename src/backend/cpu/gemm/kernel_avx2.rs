//! f32 with AVX2 and FMA: tiles of 6 x 16 sums in 12 registers, two more for w and one for x.

use std::arch::x86_64::*;

use super::super::isa::Isa;
use super::dot::{Dot, dot_f32};
use super::finish::{Finish, finish};
use super::kernel_portable::pack_f32;
use super::rows::{self, Expanded, Row};
use super::{Blocking, Micro};
use crate::dtype::DType;

/// F32 products with AVX2 and FMA.
pub static AVX2: Micro = Micro {
    isa: Isa::Avx2,
    mr: MR,
    nr: NR,
    per_word: 1,
    blocking: Blocking::VECTORS,
    tiles: false,
    tile,
    pack: pack_avx2,
    pack_x: pack_avx2,
    expand: expand_avx2,
    finish: finish_avx2,
    dot: dot_avx2,
    turn: None,
};

const MR: usize = 6;
const NR: usize = 16;

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut f32, more: bool) {
    let mut sums = [[_mm256_setzero_ps(); 2]; MR];
    // SAFETY: the caller of `Micro::tile` guarantees panels of `words` words and a tile of MR x NR.
    unsafe {
        if more {
            for (i, s) in sums.iter_mut().enumerate() {
                *s = [_mm256_loadu_ps(c.add(i * NR)), _mm256_loadu_ps(c.add(i * NR + 8))];
            }
        }
        for k in 0..words {
            let b0 = _mm256_loadu_ps(b.add(k * NR).cast());
            let b1 = _mm256_loadu_ps(b.add(k * NR + 8).cast());
            for (i, s) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(a.add(k * MR + i).cast::<f32>().read());
                s[0] = _mm256_fmadd_ps(x, b0, s[0]);
                s[1] = _mm256_fmadd_ps(x, b1, s[1]);
            }
        }
        for (i, s) in sums.iter().enumerate() {
            _mm256_storeu_ps(c.add(i * NR), s[0]);
            _mm256_storeu_ps(c.add(i * NR + 8), s[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn finish_avx2(tile: *const f32, width: usize, f: Finish) {
    // SAFETY: as above.
    unsafe { finish::<true>(tile, width, f) }
}

/// `rows::decode`, with eight elements at a time where the type allows it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode(row: Row, k: usize, out: &mut [f32]) {
    let whole = if row.ptr.is_null() { 0 } else { out.len() / 8 * 8 };
    for at in (0..whole).step_by(8) {
        let from = row.at(k + at);
        // SAFETY: the row and `out` have eight more elements.
        unsafe {
            let v = match row.dtype {
                DType::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                DType::F8E5M2 => {
                    let q = _mm_cvtepu8_epi16(_mm_loadl_epi64(from.cast()));
                    _mm256_cvtph_ps(_mm_slli_epi16::<8>(q))
                }
                DType::F8E4M3 => {
                    // As in the AVX-512 kernel: moves the bits to their places, and multiplies by
                    // 2^120 for the exponent's bias.
                    let q = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
                    let magnitude = _mm256_and_si256(q, _mm256_set1_epi32(0x7f));
                    let small = _mm256_castsi256_ps(_mm256_slli_epi32::<20>(magnitude));
                    let value =
                        _mm256_mul_ps(small, _mm256_set1_ps(f32::from_bits((127 + 120) << 23)));
                    let nan =
                        _mm256_castsi256_ps(_mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f)));
                    let sign =
                        _mm256_slli_epi32::<24>(_mm256_and_si256(q, _mm256_set1_epi32(0x80)));
                    _mm256_or_ps(_mm256_or_ps(value, nan), _mm256_castsi256_ps(sign))
                }
                DType::BF16 => {
                    let v = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v))
                }
                DType::F32 | DType::I32 => _mm256_loadu_ps(from.cast()),
                _ => unreachable!("expanded before it is packed"),
            };
            _mm256_storeu_ps(out.as_mut_ptr().add(at), v);
        }
    }
    // SAFETY: as above for the rest.
    unsafe { rows::decode(row, k + whole, &mut out[whole..]) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_avx2(rows: &[Row], lanes: usize, k: usize, count: usize, to: *mut u32) {
    // SAFETY: as above.
    unsafe { pack_f32(rows, lanes, k, count, to, |row, k, out| decode(row, k, out)) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn expand_avx2(row: &Expanded, k: usize, out: &mut [f32]) {
    row.expand(k, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_avx2(d: Dot) {
    // SAFETY: as above.
    unsafe { dot_f32::<true>(d, |row, k, out| decode(row, k, out)) }
}
