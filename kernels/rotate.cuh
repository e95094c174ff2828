// Rotates and quantises activations for int8 products: rows of bf16 to int8 with one f32 scale a
// row, x R = scale * q.
//
// A block per row; a warp takes 256 neighbouring values at a time (rotation.cuh).
//
// Rows of up to 16384 values stay in registers until their maximum is known, so that x is read
// once. About 26 instructions and 5 shuffles a value: memory is the limit, with 3 bytes a value.
#pragma once

#include "rotation.cuh"

struct RotateParams {
    u32 k, x_stride;
    u32 pitch;   // Bytes from row to row of the result, k rounded up to 16; the bytes beyond k become zeros.
    u32 group;   // 16, 64, 256; or 1: no rotation.
    u32 vector;  // 1 if x can be read in vectors of 16 bytes and 8 divides k.
};

constexpr u32 ROTATE_WARPS = 8;

// The runs of a chunk as they are stored, zeros beyond the row.
struct RawRuns {
    uint2 raw[2];

    DEVICE void load(const bf16* row, u32 chunk, const RotateParams& p) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            u32 at = chunk * CHUNK + 4 * (threadIdx.x % 32 + 32 * j);
            raw[j] = make_uint2(0, 0);
            if (at < p.k) raw[j] = *reinterpret_cast<const uint2*>(row + at);
        }
    }
    DEVICE void load_any(const bf16* row, u32 chunk, const RotateParams& p) {
        const u16* from = reinterpret_cast<const u16*>(row);
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            u32 at = chunk * CHUNK + 4 * (threadIdx.x % 32 + 32 * j), v[2] = {0, 0};
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                if (at + e < p.k) v[e / 2] |= (u32)from[at + e] << e % 2 * 16;
            }
            raw[j] = make_uint2(v[0], v[1]);
        }
    }
    DEVICE Runs unpack() const {
        return {{{bf16_low(raw[0].x), bf16_high(raw[0].x), bf16_low(raw[0].y), bf16_high(raw[0].y)},
                 {bf16_low(raw[1].x), bf16_high(raw[1].x), bf16_low(raw[1].y), bf16_high(raw[1].y)}}};
    }
};

// The scale of a row from the largest magnitude of each warp.
DEVICE float scale_of_row(float most, float* scales) {
    __shared__ u32 warp_most[ROTATE_WARPS];
    // Magnitudes have the same order as their bits, with infinities and NaN above all numbers.
    u32 bits = __reduce_max_sync(~0u, __float_as_uint(most));
    if (threadIdx.x % 32 == 0) warp_most[threadIdx.x / 32] = bits;
    __syncthreads();
    bits = 0;
#pragma unroll
    for (u32 i = 0; i < ROTATE_WARPS; i++) bits = max(bits, warp_most[i]);
    float scale = scale_of(bits);
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    return scale;
}

// HELD: chunks of a warp. Rows have at most HELD * 2048 values and can be read in vectors.
template <u32 HELD>
DEVICE void rotate_held(const bf16* x, u8* q, float* scales, const RotateParams& p) {
    const bf16* row = x + (size_t)blockIdx.x * p.x_stride;
    u32 warp = threadIdx.x / 32, chunks = (p.k + CHUNK - 1) / CHUNK;
    RotateLane l(p.group);
    RawRuns raw[HELD];
    Runs runs[HELD];
#pragma unroll
    for (u32 h = 0; h < HELD; h++) raw[h].load(row, warp + h * ROTATE_WARPS, p);
    float most = 0.f;
#pragma unroll
    for (u32 h = 0; h < HELD; h++) {
        if (warp + h * ROTATE_WARPS >= chunks) continue;
        runs[h] = raw[h].unpack();
        runs[h].rotate(l, p.group);
        most = runs[h].most(most);
    }
    Divisor scale(scale_of_row(most, scales));
    u8* to = q + (size_t)blockIdx.x * p.pitch;
#pragma unroll
    for (u32 h = 0; h < HELD; h++) {
        if (warp + h * ROTATE_WARPS < chunks) runs[h].store(to, warp + h * ROTATE_WARPS, l, scale, p.pitch);
    }
}

KERNEL(256, 4)
rotate_quantise_4096_sm80(const bf16* __restrict__ x, u8* __restrict__ q, float* __restrict__ scales,
                          const __grid_constant__ RotateParams p) {
    rotate_held<2>(x, q, scales, p);
}
KERNEL(256, 2)
rotate_quantise_16384_sm80(const bf16* __restrict__ x, u8* __restrict__ q, float* __restrict__ scales,
                           const __grid_constant__ RotateParams p) {
    rotate_held<8>(x, q, scales, p);
}

// Any length and any window: rows are rotated twice.
KERNEL(256, 4)
rotate_quantise_any_sm80(const bf16* __restrict__ x, u8* __restrict__ q, float* __restrict__ scales,
                         const __grid_constant__ RotateParams p) {
    const bf16* row = x + (size_t)blockIdx.x * p.x_stride;
    u32 warp = threadIdx.x / 32, chunks = (p.pitch + CHUNK - 1) / CHUNK;
    RotateLane l(p.group);
    auto rotated = [&](u32 chunk) {
        RawRuns raw;
        if (p.vector) raw.load(row, chunk, p);
        else raw.load_any(row, chunk, p);
        Runs runs = raw.unpack();
        runs.rotate(l, p.group);
        return runs;
    };
    float most = 0.f;
#pragma unroll 1
    for (u32 chunk = warp; chunk < chunks; chunk += ROTATE_WARPS) most = rotated(chunk).most(most);
    Divisor scale(scale_of_row(most, scales));
    u8* to = q + (size_t)blockIdx.x * p.pitch;
#pragma unroll 1
    for (u32 chunk = warp; chunk < chunks; chunk += ROTATE_WARPS) rotated(chunk).store(to, chunk, l, scale, p.pitch);
}
