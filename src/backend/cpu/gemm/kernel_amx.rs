//! bf16 products with f32 sums in AMX tiles (`tdpbf16ps`): 32 x 32 sums, 32 k at a time. Operands
//! are rounded like those of AVX512-BF16, and few rows are multiplied by its `dot`.
//!
//! Here w is the left operand of the instruction and x the right one: rows of w are packed as they
//! are, and only those of x, which are far fewer elements, are transposed. So a tile of sums has a
//! row for each row of w, and is turned before the epilogue (`Micro::turn`).
//!
//! A step of 32 k needs 4 KiB of panels in 64 cycles. Those of x stay in L1, with those of w
//! streaming through it from L2: blocks of 128 words measured faster than 64 or 192. Random numbers
//! multiply at four fifths of the rate of zeros: the power of the processor is the limit.

use std::arch::x86_64::*;

use super::super::amx::{Rows, STEP, SUMS, sums_of_bf16};
use super::super::isa::Isa;
use super::kernel_avx512::{
    BF16, F8E4M3, F8E5M2, F16, F32, MIXED, common_type, expand_avx512, finish_avx512, low_bits,
    transpose,
};
use super::kernel_avx512bf16::{dot_bf16, load_bf16, pack_bf16};
use super::panels::{Cache, fetch};
use super::rows::Row;
use super::{Blocking, Micro};

/// BF16 products with AMX.
pub static AMX: Micro = Micro {
    isa: Isa::Amx,
    mr: SUMS,
    nr: SUMS,
    per_word: 2,
    blocking: Blocking { step: STEP, kc: 128, rows: 512 },
    tiles: true,
    tile,
    pack,
    pack_x,
    expand: expand_avx512,
    finish: finish_avx512,
    dot: dot_bf16,
    turn: Some(turn),
};

unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut f32, more: bool) {
    // SAFETY: the caller of `Micro::tile` guarantees panels of whole steps, a tile of 32 x 32, and
    // that tiles are configured.
    unsafe { sums_of_bf16(words / STEP, Rows::packed(b), a, c.cast(), SUMS, more) }
}

/// As `pack_bf16`, with zeros up to the end of the last step.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn pack_x(rows: &[Row], lanes: usize, k: usize, count: usize, to: *mut u32) {
    // SAFETY: the promise of the caller; the panel has whole steps.
    unsafe {
        pack_bf16(rows, lanes, k, count, to);
        let words = count.div_ceil(2);
        let missing = words.next_multiple_of(STEP) - words;
        to.add(words * lanes).write_bytes(0, missing * lanes);
    }
}

/// Packs rows as `[step][row][word]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn pack(rows: &[Row], lanes: usize, k: usize, count: usize, to: *mut u32) {
    // SAFETY: the promise of the caller; `load_bf16::<T>` fits rows of type T.
    unsafe {
        match common_type(rows) {
            F32 => steps::<F32>(rows, lanes, k, count, to),
            BF16 => steps::<BF16>(rows, lanes, k, count, to),
            F16 => steps::<F16>(rows, lanes, k, count, to),
            F8E4M3 => steps::<F8E4M3>(rows, lanes, k, count, to),
            F8E5M2 => steps::<F8E5M2>(rows, lanes, k, count, to),
            _ => steps::<MIXED>(rows, lanes, k, count, to),
        }
    }
}

/// How many rows ahead of its use a row is prefetched: a block has only a few cache lines of each.
const AHEAD: usize = 4;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
unsafe fn steps<const T: u8>(rows: &[Row], lanes: usize, k: usize, count: usize, to: *mut u32) {
    for lane in 0..lanes {
        if let Some(next) = rows.get(lane + AHEAD).filter(|row| !row.ptr.is_null()) {
            fetch(Cache::L1, next.at(k).cast(), (count * next.dtype.size()).div_ceil(4));
        }
        let row = rows.get(lane).filter(|row| !row.ptr.is_null());
        for (step, at) in (0..count).step_by(2 * STEP).enumerate() {
            // SAFETY: elements `k .. k + count` of the row can be read, and no others are; the
            // panel has `lanes` rows of a step for each step.
            unsafe {
                let v = row.map_or(_mm512_setzero_si512(), |row| {
                    load_bf16::<T>(row.at(k + at), low_bits(count - at), row.dtype)
                });
                _mm512_storeu_si512(to.add((step * lanes + lane) * STEP).cast(), v);
            }
        }
    }
}

/// Exchanges rows and columns of a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn turn(tile: *mut f32) {
    const HALF: usize = SUMS / 2;
    let at = |row: usize, col: usize| tile.wrapping_add(row * SUMS + col);
    // SAFETY: all rows and columns are within the tile.
    unsafe {
        let read = |row: usize, col: usize| {
            transpose(std::array::from_fn(|i| _mm512_loadu_si512(at(row + i, col).cast())))
        };
        let write = |row: usize, col: usize, block: [__m512i; HALF]| {
            for (i, v) in block.into_iter().enumerate() {
                _mm512_storeu_si512(at(row + i, col).cast(), v);
            }
        };
        write(0, 0, read(0, 0));
        write(HALF, HALF, read(HALF, HALF));
        let (right, below) = (read(0, HALF), read(HALF, 0));
        write(0, HALF, below);
        write(HALF, 0, right);
    }
}
