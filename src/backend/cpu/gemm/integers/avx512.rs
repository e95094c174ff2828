//! AVX512-VNNI (`vpdpbusd`): tiles of 14 x 32 sums in 28 registers, four k at a time.

use std::arch::x86_64::*;

use super::super::kernel_avx512::{MR, NR, pack_words};
use super::super::rows::Row;
use super::tile::vector_tile;
use super::{IntegerMicro, IntegerPanel, Isa, KC, MAX_LANES, scale};
use crate::dtype::DType;

/// Products of bytes with AVX512-VNNI.
pub static AVX512VNNI: IntegerMicro = IntegerMicro {
    isa: Isa::Avx512Vnni,
    per_word: 4,
    unsigned: true,
    kc: KC,
    kept_rows: usize::MAX,
    w_bytes: usize::MAX,
    tiles: false,
    tile,
    pack,
    pack_x: pack,
    scale: scale_avx512,
    floats: &super::super::AVX512,
};

vector_tile!(
    tile,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    (_mm512_loadu_si512, _mm512_storeu_si512, _mm512_set1_epi32),
    |sum, w, x| _mm512_dpbusd_epi32(sum, w, x)
);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn pack(panel: IntegerPanel) {
    let IntegerPanel { rows, lanes, word, words, unsigned, to } = panel;
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
pub unsafe fn scale_avx512(tile: *mut i32, width: usize, factors: &[f32]) {
    // SAFETY: the promise of the caller.
    unsafe { scale(tile, width, factors) }
}
