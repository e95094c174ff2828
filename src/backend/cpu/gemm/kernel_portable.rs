//! The kernel for any processor: plain loops over a tile of 4 x 16 sums, which the compiler
//! vectorises with the instructions of the target.

use super::super::isa::Isa;
use super::dot::dot_portable;
use super::finish::{Finish, finish};
use super::rows::{Expanded, Row, decode};
use super::{Blocking, Micro};

/// F32 products on any processor.
pub static PORTABLE: Micro = Micro {
    isa: Isa::Portable,
    mr: MR,
    nr: NR,
    per_word: 1,
    blocking: Blocking::VECTORS,
    tiles: false,
    tile,
    pack: pack_portable,
    pack_x: pack_portable,
    expand: expand_portable,
    finish: finish_portable,
    dot: dot_portable,
    turn: None,
};

const MR: usize = 4;
const NR: usize = 16;

unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut f32, more: bool) {
    // SAFETY: the caller of `Micro::tile` guarantees panels of `words` words and a tile of MR x NR.
    let (a, b, c) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<[f32; MR]>(), words),
            std::slice::from_raw_parts(b.cast::<[f32; NR]>(), words),
            &mut *c.cast::<[[f32; NR]; MR]>(),
        )
    };
    let mut sums = if more { *c } else { [[0.0; NR]; MR] };
    for (a, b) in a.iter().zip(b) {
        for i in 0..MR {
            for j in 0..NR {
                sums[i][j] += a[i] * b[j];
            }
        }
    }
    *c = sums;
}

unsafe fn pack_portable(rows: &[Row], lanes: usize, k: usize, count: usize, to: *mut u32) {
    // SAFETY: as above.
    unsafe { pack_f32(rows, lanes, k, count, to, |row, k, out| decode(row, k, out)) }
}

unsafe fn expand_portable(row: &Expanded, k: usize, out: &mut [f32]) {
    row.expand(k, out);
}

unsafe fn finish_portable(tile: *const f32, width: usize, f: Finish) {
    // SAFETY: as above.
    unsafe { finish::<false>(tile, width, f) }
}

/// `Micro::pack` for f32 words: decodes some elements of a row, then scatters them to its lane.
///
/// # Safety
/// `to` must have `count * lanes` words, and `decode` must be able to read elements `k ..
/// k + count` of the rows.
#[inline(always)]
pub unsafe fn pack_f32(
    rows: &[Row],
    lanes: usize,
    k: usize,
    count: usize,
    to: *mut u32,
    decode: impl Fn(Row, usize, &mut [f32]),
) {
    const CHUNK: usize = 64;
    let mut at = 0;
    while at < count {
        let n = CHUNK.min(count - at);
        for lane in 0..lanes {
            let mut buffer = [0f32; CHUNK];
            decode(rows.get(lane).copied().unwrap_or(Row::ZEROS), k + at, &mut buffer[..n]);
            for (i, v) in buffer[..n].iter().enumerate() {
                // SAFETY: `(at + i) < count` and `lane < lanes`.
                unsafe { to.add((at + i) * lanes + lane).write(v.to_bits()) };
            }
        }
        at += n;
    }
}
