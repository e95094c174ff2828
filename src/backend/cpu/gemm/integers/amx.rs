//! AMX (`tdpbssd`): 32 x 32 sums, 64 k at a time.

use std::arch::x86_64::*;

use super::super::super::amx::{Rows, STEP, SUMS, sums_of_i8};
use super::avx512::{pack, scale_avx512};
use super::{IntegerMicro, IntegerPanel, Isa};

/// Products of bytes with AMX. Both have signs, so that nothing is added to w.
///
/// A task keeps its rows of w packed over all of k. As for bf16, blocks of 128 words let x stay in
/// L1 with w streaming through it, and the sums of 512 rows stay in L2 (of 32 rows: a fifth slower
/// with weights in int8).
pub static AMX: IntegerMicro = IntegerMicro {
    isa: Isa::Amx,
    per_word: 4,
    unsigned: false,
    kc: 128,
    kept_rows: 512,
    w_bytes: 3 << 18,
    tiles: true,
    tile,
    pack,
    pack_x,
    scale: scale_avx512,
    floats: &super::super::AVX512_LARGE,
};

unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut i32, start: Option<&[i32]>) {
    // All starts are zero, since bytes of w have signs.
    // SAFETY: the caller of `IntegerMicro::tile` guarantees panels of whole steps, since rows are
    // padded to them, a tile of 32 x 32, and that tiles are configured.
    unsafe { sums_of_i8(words / STEP, Rows::packed(a), b, c.cast(), SUMS, start.is_none()) }
}

/// Packs rows of x as `[step][row][word]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pack_x(panel: IntegerPanel) {
    let IntegerPanel { rows, lanes, word, words, unsigned, to } = panel;
    debug_assert!(rows.len() == lanes && words.is_multiple_of(STEP) && !unsigned);
    for (lane, row) in rows.iter().enumerate() {
        for step in 0..words / STEP {
            // SAFETY: the rows have these words, and `to` has `words * lanes`.
            unsafe {
                let v = _mm512_loadu_si512(row.add((word + step * STEP) * 4).cast());
                _mm512_storeu_si512(to.add((step * lanes + lane) * STEP).cast(), v);
            }
        }
    }
}
