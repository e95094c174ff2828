// Quantises activations for FP8 products: rows of bf16 to e4m3 with one f32 scale a row, x = scale
// * q.
//
// A block per row: scale = amax / 448, q = x / scale rounded to nearest even. The second pass finds
// the row in L1. Memory is the limit: 3 bytes per element.
#pragma once

#include "common.cuh"

struct QuantiseParams {
    u32 k, x_stride;
    u32 pitch;   // Bytes from row to row of the result, k rounded up to 16; the bytes beyond k become zeros.
    u32 vector;  // 1 if x can be read in vectors of 16 bytes and 8 divides k.
};

// Elements 8i .. 8i + 7 of a row in their stored form, zeros beyond the row.
DEVICE uint4 load_eight(const bf16* row, u32 i, const QuantiseParams& p) {
    if (p.vector) return i * 8 < p.k ? reinterpret_cast<const uint4*>(row)[i] : make_uint4(0, 0, 0, 0);
    u32 v[4] = {0, 0, 0, 0};
    const u16* from = reinterpret_cast<const u16*>(row);
#pragma unroll
    for (u32 e = 0; e < 8; e++) {
        if (i * 8 + e < p.k) v[e / 2] |= (u32)from[i * 8 + e] << e % 2 * 16;
    }
    return make_uint4(v[0], v[1], v[2], v[3]);
}

DEVICE u32 pack_e4m3(float a, float b, float c, float d) {
    u16 low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return low | (u32)high << 16;
}

KERNEL(128, 8)
quantise_rows_e4m3_sm89(const bf16* __restrict__ x, u8* __restrict__ q, float* __restrict__ scales,
                        const __grid_constant__ QuantiseParams p) {
    __shared__ u32 warp_most[4];
    const bf16* row = x + (size_t)blockIdx.x * p.x_stride;
    // The magnitudes of bf16 have the same order as integers, with infinities and NaN above all
    // numbers.
    u32 most = 0;
    for (u32 i = threadIdx.x; i < p.pitch / 8; i += 128) {
        uint4 v = load_eight(row, i, p);
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 w : words) most = max(most, max(w & 0x7fff, w >> 16 & 0x7fff));
    }
    most = __reduce_max_sync(~0u, most);
    if (threadIdx.x % 32 == 0) warp_most[threadIdx.x / 32] = most;
    __syncthreads();
    most = max(max(warp_most[0], warp_most[1]), max(warp_most[2], warp_most[3]));
    // A row with an infinity or a NaN gets the scale NaN, which makes its whole output NaN. The
    // lower bound keeps 1 / scale finite.
    float scale = most == 0        ? 1.f
                  : most >= 0x7f80 ? __uint_as_float(0x7fffffff)
                                   : fmaxf(__uint_as_float(most << 16) * (1.f / 448.f), 1e-37f);
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    float factor = 1.f / scale;
    u8* to = q + (size_t)blockIdx.x * p.pitch;
    for (u32 i = threadIdx.x; i < p.pitch / 8; i += 128) {
        uint4 v = load_eight(row, i, p);
        u32 low = pack_e4m3(bf16_low(v.x) * factor, bf16_high(v.x) * factor, bf16_low(v.y) * factor, bf16_high(v.y) * factor);
        u32 high = pack_e4m3(bf16_low(v.z) * factor, bf16_high(v.z) * factor, bf16_low(v.w) * factor, bf16_high(v.w) * factor);
        reinterpret_cast<uint2*>(to)[i] = make_uint2(low, high);
    }
}
