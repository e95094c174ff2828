//! AVX512-VNNI (`vpdpbusd`): tiles of 14 x 32 sums in 28 registers, four k at a time.

use std::arch::x86_64::*;

use super::super::kernel_avx512::{MR, NR, pack_words};
use super::super::rows::Row;
use super::{IntegerMicro, Isa, MAX_LANES, scale};
use crate::dtype::DType;

/// Products of bytes with AVX512-VNNI.
pub static AVX512VNNI: IntegerMicro = IntegerMicro {
    isa: Isa::Avx512Vnni,
    per_word: 4,
    unsigned: true,
    tile,
    pack,
    scale: scale_avx512,
    floats: &super::super::AVX512,
};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut i32, start: Option<&[i32]>) {
    let mut sums = [[_mm512_setzero_si512(); 2]; MR];
    // SAFETY: the caller of `IntegerMicro::tile` guarantees panels of `words` words, a tile of MR x
    // NR, and MR starts.
    unsafe {
        match start {
            Some(start) => {
                for (s, start) in sums.iter_mut().zip(start) {
                    *s = [_mm512_set1_epi32(*start); 2];
                }
            }
            None => {
                for (i, s) in sums.iter_mut().enumerate() {
                    let row = c.add(i * NR);
                    *s = [_mm512_loadu_si512(row.cast()), _mm512_loadu_si512(row.add(16).cast())];
                }
            }
        }
        for k in 0..words {
            let b0 = _mm512_loadu_si512(b.add(k * NR).cast());
            let b1 = _mm512_loadu_si512(b.add(k * NR + 16).cast());
            for (i, s) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(a.add(k * MR + i).cast::<i32>().read());
                s[0] = _mm512_dpbusd_epi32(s[0], b0, x);
                s[1] = _mm512_dpbusd_epi32(s[1], b1, x);
            }
        }
        for (i, s) in sums.iter().enumerate() {
            _mm512_storeu_si512(c.add(i * NR).cast(), s[0]);
            _mm512_storeu_si512(c.add(i * NR + 16).cast(), s[1]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack(
    rows: &[*const i8],
    lanes: usize,
    word: usize,
    words: usize,
    unsigned: bool,
    to: *mut u32,
) {
    let flip = _mm512_set1_epi32(if unsigned { 0x8080_8080_u32 as i32 } else { 0 });
    let mut all = [Row::ZEROS; MAX_LANES];
    for (row, from) in all.iter_mut().zip(rows) {
        *row = Row { ptr: from.cast(), dtype: DType::F32 };
    }
    // SAFETY: the promise of the caller; a word of four bytes is read as that of an f32.
    unsafe {
        pack_words::<1>(&all[..rows.len()], lanes, word, words, to, |at, mask, _| {
            let v = _mm512_maskz_loadu_epi32(mask as __mmask16, at.cast());
            _mm512_xor_si512(v, flip)
        });
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn scale_avx512(tile: *mut i32, width: usize, factors: &[f32]) {
    // SAFETY: the promise of the caller.
    unsafe { scale(tile, width, factors) }
}
