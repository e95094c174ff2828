//! AVX2: tiles of 6 x 16 sums in 12 registers. Processors with AVX-VNNI multiply four bytes at a
//! time (`vpdpbusd`); others two integers of 16 bits (`vpmaddwd`), because sums of two products of
//! bytes, 255 x 127 x 2, do not fit into the 16 bits of `vpmaddubsw`.

use std::arch::x86_64::*;

use super::{IntegerMicro, Isa, pack, scale};

const MR: usize = 6;
const NR: usize = 16;

/// Products of 16-bit integers with AVX2.
pub static AVX2: IntegerMicro = IntegerMicro {
    isa: Isa::Avx2,
    per_word: 2,
    unsigned: false,
    tile,
    pack: pack_avx2::<2>,
    scale: scale_avx2,
    floats: &super::super::AVX2,
};

/// Products of bytes with AVX-VNNI.
static AVX_VNNI: IntegerMicro =
    IntegerMicro { per_word: 4, unsigned: true, tile: tile_vnni, pack: pack_avx2::<4>, ..AVX2 };

/// The kernel for AVX-VNNI, if the processor has that.
pub fn avx_vnni() -> Option<&'static IntegerMicro> {
    let has = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("avxvnni");
    has.then_some(&AVX_VNNI)
}

/// The sums that a tile begins with.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn begin(c: *const i32, start: Option<&[i32]>) -> [[__m256i; 2]; MR] {
    let mut sums = [[_mm256_setzero_si256(); 2]; MR];
    for (i, s) in sums.iter_mut().enumerate() {
        // SAFETY: the tile is MR x NR, and there are MR starts.
        *s = match start {
            Some(start) => [_mm256_set1_epi32(start[i]); 2],
            None => unsafe {
                let row = c.add(i * NR);
                [_mm256_loadu_si256(row.cast()), _mm256_loadu_si256(row.add(8).cast())]
            },
        };
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn end(c: *mut i32, sums: &[[__m256i; 2]; MR]) {
    for (i, s) in sums.iter().enumerate() {
        // SAFETY: the tile is MR x NR.
        unsafe {
            _mm256_storeu_si256(c.add(i * NR).cast(), s[0]);
            _mm256_storeu_si256(c.add(i * NR + 8).cast(), s[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile(words: usize, a: *const u32, b: *const u32, c: *mut i32, start: Option<&[i32]>) {
    // SAFETY: the caller of `IntegerMicro::tile` guarantees panels of `words` words, and what
    // `begin` and `end` need.
    unsafe {
        let mut sums = begin(c, start);
        for k in 0..words {
            let b0 = _mm256_loadu_si256(b.add(k * NR).cast());
            let b1 = _mm256_loadu_si256(b.add(k * NR + 8).cast());
            for (i, s) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_epi32(a.add(k * MR + i).cast::<i32>().read());
                s[0] = _mm256_add_epi32(s[0], _mm256_madd_epi16(b0, x));
                s[1] = _mm256_add_epi32(s[1], _mm256_madd_epi16(b1, x));
            }
        }
        end(c, &sums);
    }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn tile_vnni(
    words: usize,
    a: *const u32,
    b: *const u32,
    c: *mut i32,
    start: Option<&[i32]>,
) {
    // SAFETY: as above.
    unsafe {
        let mut sums = begin(c, start);
        for k in 0..words {
            let b0 = _mm256_loadu_si256(b.add(k * NR).cast());
            let b1 = _mm256_loadu_si256(b.add(k * NR + 8).cast());
            for (i, s) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_epi32(a.add(k * MR + i).cast::<i32>().read());
                s[0] = _mm256_dpbusd_avx_epi32(s[0], b0, x);
                s[1] = _mm256_dpbusd_avx_epi32(s[1], b1, x);
            }
        }
        end(c, &sums);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_avx2<const PER: usize>(
    rows: &[*const i8],
    lanes: usize,
    word: usize,
    words: usize,
    unsigned: bool,
    to: *mut u32,
) {
    // SAFETY: the promise of the caller.
    unsafe { pack::<PER>(rows, lanes, word, words, unsigned, to) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale_avx2(tile: *mut i32, width: usize, factors: &[f32]) {
    // SAFETY: the promise of the caller.
    unsafe { scale(tile, width, factors) }
}
