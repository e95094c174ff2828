//! AVX2: tiles of 6 x 16 sums in 12 registers. Processors with AVX-VNNI multiply four bytes at a
//! time (`vpdpbusd`); others two integers of 16 bits (`vpmaddwd`), because sums of two products of
//! bytes, 255 x 127 x 2, do not fit into the 16 bits of `vpmaddubsw`.

use std::arch::x86_64::*;

use super::tile::vector_tile;
use super::{IntegerMicro, IntegerPanel, Isa, KC, pack, scale};

const MR: usize = 6;
const NR: usize = 16;

/// Products of 16-bit integers with AVX2.
pub static AVX2: IntegerMicro = IntegerMicro {
    isa: Isa::Avx2,
    per_word: 2,
    unsigned: false,
    kc: KC,
    kept_rows: usize::MAX,
    w_bytes: usize::MAX,
    tiles: false,
    tile,
    pack: pack_avx2::<2>,
    pack_x: pack_avx2::<2>,
    scale: scale_avx2,
    floats: &super::super::AVX2,
};

/// Products of bytes with AVX-VNNI.
static AVX_VNNI: IntegerMicro = IntegerMicro {
    per_word: 4,
    unsigned: true,
    tile: tile_vnni,
    pack: pack_avx2::<4>,
    pack_x: pack_avx2::<4>,
    ..AVX2
};

/// The kernel for AVX-VNNI, if the processor has that.
pub fn avx_vnni() -> Option<&'static IntegerMicro> {
    let has = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("avxvnni");
    has.then_some(&AVX_VNNI)
}

vector_tile!(
    tile,
    "avx2,fma,f16c",
    (_mm256_loadu_si256, _mm256_storeu_si256, _mm256_set1_epi32),
    |sum, w, x| _mm256_add_epi32(sum, _mm256_madd_epi16(w, x))
);
vector_tile!(
    tile_vnni,
    "avx2,fma,f16c,avxvnni",
    (_mm256_loadu_si256, _mm256_storeu_si256, _mm256_set1_epi32),
    |sum, w, x| _mm256_dpbusd_avx_epi32(sum, w, x)
);

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_avx2<const PER: usize>(panel: IntegerPanel) {
    // SAFETY: the promise of the caller.
    unsafe { pack::<PER>(panel) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale_avx2(tile: *mut i32, width: usize, factors: &[f32]) {
    // SAFETY: the promise of the caller.
    unsafe { scale(tile, width, factors) }
}
