// The side branch of a product (the second half of a LoRA): out = tail(scales * (x . w^T) + t . b^T
// + bias), in the tiled kernels of mma.sync.
//
// t: rows x rank in bf16, b: n x rank in bf16 or f16; rank is a few steps, k about a hundred. After
// the loop over k the sums in registers are multiplied with the scales of their columns, and the
// same products continue over rank, whose end is filled with zeros. The memory of the pipeline is
// free then, so three steps (rank 96) are loaded at once: the cost is one round trip to L2 and two
// or three barriers per tile. If k is divided into parts that are summed separately, the last part
// adds the side branch, and all of them scale. Without a side branch, all of this is one branch
// instruction after the loop.
//
// A LoRA file may have any rank: if rows of t do not begin at multiples of 16 bytes, their elements
// are loaded one by one.
#pragma once

#include "epilogue.cuh"
#include "linear_weights.cuh"

// Multiplies sums with the scales of their columns; `col` is the lane's first column; the others
// follow from the layout of `mma` and the tiles.
template <int NI, int MJ> DEVICE void scale_columns(float (&acc)[NI][MJ][4], const float* scales, u32 col, u32 n) {
    if (!scales) return;
#pragma unroll
    for (int i = 0; i < NI; i++) {
        float low = load_if(scales + col + i * 16, col + i * 16 < n, 1.f), high = load_if(scales + col + i * 16 + 8, col + i * 16 + 8 < n, 1.f);
#pragma unroll
        for (int j = 0; j < MJ; j++) acc[i][j][0] *= low, acc[i][j][1] *= low, acc[i][j][2] *= high, acc[i][j][3] *= high;
    }
}

// `count` elements from `from`, then zeros up to eight. This is slow, but rarely used.
DEVICE uint4 load_elements(const u16* from, u32 count) {
    uint4 v = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (u32 e = 0; e < 8; e++) {
        // Elements move down by one in each round.
        v.x = __funnelshift_r(v.x, v.y, 16), v.y = __funnelshift_r(v.y, v.z, 16), v.z = __funnelshift_r(v.z, v.w, 16);
        v.w = v.w >> 16 | (e < count ? (u32)from[e] << 16 : 0);
    }
    return v;
}

// Columns k .. k + 31 of ROWS rows of t or b to a tile of 64 bytes a row; PLACE(row, chunk) is
// where a chunk of 16 bytes goes.
template <int ROWS, int BLOCK, u32 (*PLACE)(u32, u32)>
DEVICE void copy_side(const u16* from, u32 row0, u32 rows, u32 stride, u32 k, u32 rank, bool vector, u32 to) {
    u32 chunk = threadIdx.x % 4;
    k += chunk * 8;
#pragma unroll 1
    for (u32 r = threadIdx.x / 4; r < ROWS; r += BLOCK / 4) {
        bool inside = row0 + r < rows && k < rank;
        const u16* at = inside ? from + (size_t)(row0 + r) * stride + k : from;
        if (vector) copy_async(to + PLACE(r, chunk), at, inside ? 16 : 0);
        else store_shared_16(to + PLACE(r, chunk), load_elements(at, inside ? rank - k : 0));
    }
}

// Converts what this thread's `copy_side` copied from f16 to bf16.
template <int ROWS, int BLOCK, u32 (*PLACE)(u32, u32)> DEVICE void narrow_side(u32 to) {
#pragma unroll 1
    for (u32 r = threadIdx.x / 4; r < ROWS; r += BLOCK / 4) {
        u32 at = to + PLACE(r, threadIdx.x % 4);
        store_shared_16(at, halves_to_bf16(load_shared_16(at)));
    }
}

// Copies FIT steps of t and of b, in each step t first, to `base`. Once all threads are here, no
// thread reads from there any more.
template <int FIT, int BM, int BN, int BLOCK, u32 (*PLACE)(u32, u32)>
DEVICE void fetch_side(const LinearParams& p, const LinearSide& side, u32 row, u32 col, u32 k, u32 base) {
    __syncthreads();
#pragma unroll 1
    for (u32 s = 0; s < FIT && k + s * 32 < p.rank; s++) {
        u32 to = base + s * (BM + BN) * 64;
        copy_side<BM, BLOCK, PLACE>(side.t, row, p.rows, p.t_stride, k + s * 32, p.rank, p.t_vector, to);
        copy_side<BN, BLOCK, PLACE>(side.b, col, p.n, p.b_stride, k + s * 32, p.rank, true, to + BM * 64);
    }
    copy_commit();
    copy_wait<0>();
    if (p.b_dtype == F16) {
#pragma unroll 1
        for (u32 s = 0; s < FIT && k + s * 32 < p.rank; s++) narrow_side<BN, BLOCK, PLACE>(base + s * (BM + BN) * 64 + BM * 64);
    }
    __syncthreads();
}
