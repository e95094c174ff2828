//! The kernel for any processor: plain loops over a tile of 4 x 16 sums of pairs of 16-bit
//! integers, which the compiler vectorises with the instructions of the target.

use super::{IntegerMicro, IntegerPanel, Isa, KC, pack, scale};

const MR: usize = 4;
const NR: usize = 16;

/// Products of 16-bit integers on any processor.
pub static PORTABLE: IntegerMicro = IntegerMicro {
    isa: Isa::Portable,
    per_word: 2,
    unsigned: false,
    kc: KC,
    kept_rows: usize::MAX,
    w_bytes: usize::MAX,
    tiles: false,
    tile,
    pack: pack_portable,
    pack_x: pack_portable,
    scale: scale_portable,
    floats: &super::super::PORTABLE,
};

unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut i32, start: Option<&[i32]>) {
    // SAFETY: the caller of `IntegerMicro::tile` guarantees panels of `words` words and a tile of
    // MR x NR.
    let (a, b, c) = unsafe {
        (
            std::slice::from_raw_parts(a.cast::<[[i16; 2]; MR]>(), words),
            std::slice::from_raw_parts(b.cast::<[[i16; 2]; NR]>(), words),
            &mut *c.cast::<[[i32; NR]; MR]>(),
        )
    };
    let mut sums = *c;
    if let Some(start) = start {
        (0..MR).for_each(|i| sums[i] = [start[i]; NR]);
    }
    for (a, b) in a.iter().zip(b) {
        for i in 0..MR {
            let [x, y] = a[i].map(i32::from);
            for j in 0..NR {
                sums[i][j] += x * i32::from(b[j][0]) + y * i32::from(b[j][1]);
            }
        }
    }
    *c = sums;
}

unsafe fn pack_portable(panel: IntegerPanel) {
    // SAFETY: the promise of the caller.
    unsafe { pack::<2>(panel) }
}

unsafe fn scale_portable(tile: *mut i32, width: usize, factors: &[f32]) {
    // SAFETY: the promise of the caller.
    unsafe { scale(tile, width, factors) }
}
