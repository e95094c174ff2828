// Rotates and quantises activations for int8 products: rows of bf16 to int8 with one f32 scale a
// row, x R = scale * q.
//
// R is block-diagonal along k. A block is the Kronecker power of H4 / 2 with `group` rows: 16, 64 or
// 256; without a rotation, R is the identity. A stage of it combines four values a, b, c, d whose
// indices differ in one digit to base four:
//   s = a + b, t = c - d, u = a - b, v = c + d; (s + t) / 2, (s - t) / 2, (u + v) / 2, (v - u) / 2.
// The stages follow from the lowest digit to the highest, each sum is rounded once, and halving is
// exact. So the result has the bits that the CPU computes. They decide ties of the quantisation.
//
// A block per row; a warp takes 256 neighbouring values at a time, of which a lane has two runs of
// four, so that every access fills whole sectors. The lowest digit is the place within a run, the
// next two are digits of the lane, the highest is bit 4 of the lane and the run. An exchange between
// lanes costs one shuffle and one multiply-add for each of the two levels of a stage, because a lane
// may take whichever of the two sums it can compute from its own value with a sign: afterwards, the
// values are in another order, and are stored to their own places.
//
// Rows of up to 16384 values stay in registers until their maximum is known, so that x is read once.
// About 26 instructions and 5 shuffles a value: memory is the limit, with 3 bytes a value.
#pragma once

#include "common.cuh"

struct RotateParams {
    u32 k, x_stride;
    u32 pitch;   // Bytes from row to row of the result, k rounded up to 16; the bytes beyond k become zeros.
    u32 group;   // 16, 64, 256; or 1: no rotation.
    u32 vector;  // 1 if x can be read in vectors of 16 bytes and 8 divides k.
};

constexpr u32 ROTATE_WARPS = 8, CHUNK = 256;

// A lane's part of the signs of an exchange between lanes whose digit is `digit`: the same at both
// levels.
DEVICE float exchange_sign(u32 digit) { return digit == 0 || digit == 3 ? 1.f : -1.f; }
// Which value of a stage a lane with `digit` has after it.
DEVICE u32 digit_after(u32 digit) { return 0x2031 >> digit * 4 & 3; }

// own * sign + the value of lane ^ mask. The product is exact, so the sum is rounded once.
DEVICE float exchange(float own, float sign, u32 mask) { return __fmaf_rn(own, sign, __shfl_xor_sync(~0u, own, mask)); }

// What a lane knows about its place in a chunk.
struct RotateLane {
    float low, high, top;  // signs of the exchanges of digits 1, 2 and 3
    u32 place[2];          // where its runs of the result begin

    DEVICE RotateLane(u32 group) {
        u32 lane = threadIdx.x % 32, d1 = lane % 4, d2 = lane / 4 % 4;
        low = exchange_sign(d1), high = exchange_sign(d2), top = lane < 16 ? 1.f : -1.f;
        if (group >= 16) d1 = digit_after(d1);
        if (group >= 64) d2 = digit_after(d2);
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            u32 d3 = group < 256 ? lane / 16 + 2 * j : lane < 16 ? j : 3 - j;
            place[j] = 4 * (d1 + 4 * d2 + 16 * d3);
        }
    }
};

// Divides many numbers by one, each with a single rounding: a quotient with an error below one unit
// of its last place, which takes a reciprocal with 48 bits, and its correction by the remainder
// (Markstein). That is 4 instructions in place of 10 and a branch.
struct Divisor {
    float by, high, low;

    DEVICE explicit Divisor(float d) : by(d), high(__fdiv_rn(1.f, d)) { low = __fmul_rn(__fmaf_rn(-high, d, 1.f), high); }
    DEVICE float divide(float v) const {
        float q = __fmaf_rn(v, high, __fmul_rn(v, low));
        return __fmaf_rn(__fmaf_rn(-q, by, v), high, q);
    }
};

// The runs of a lane in a chunk, v[j]: the values 4 (lane + 32 j) .. + 3.
struct Runs {
    float v[2][4];

    // Two lanes' values of the digit with `mask` and `2 mask`.
    DEVICE void stage_of_lanes(float sign, u32 mask) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                float x = exchange(v[j][e], sign, mask);
                v[j][e] = __fmul_rn(exchange(x, sign, mask * 2), .5f);
            }
        }
    }
    DEVICE void rotate(const RotateLane& l, u32 group) {
        if (group < 16) return;
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            float s = __fadd_rn(v[j][0], v[j][1]), t = __fsub_rn(v[j][2], v[j][3]);
            float u = __fsub_rn(v[j][0], v[j][1]), w = __fadd_rn(v[j][2], v[j][3]);
            v[j][0] = __fmul_rn(__fadd_rn(s, t), .5f), v[j][1] = __fmul_rn(__fsub_rn(s, t), .5f);
            v[j][2] = __fmul_rn(__fadd_rn(u, w), .5f), v[j][3] = __fmul_rn(__fsub_rn(w, u), .5f);
        }
        stage_of_lanes(l.low, 1);
        if (group < 64) return;
        stage_of_lanes(l.high, 4);
        if (group < 256) return;
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            // Lanes below 16 have s and -t, the others u and v.
            float x = exchange(v[0][e], l.top, 16), y = exchange(v[1][e], -l.top, 16);
            v[0][e] = __fmul_rn(__fsub_rn(x, y), .5f * l.top), v[1][e] = __fmul_rn(__fadd_rn(x, y), .5f);
        }
    }
    // The largest magnitude, or NaN if there is one.
    DEVICE float most(float m) const {
#pragma unroll
        for (u32 i = 0; i < 8; i++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(m) : "f"(fabsf(v[i / 4][i % 4])));
        return m;
    }
    // 1.5 * 2^23 makes the sum an integer, rounded to nearest even, in its lowest bits.
    DEVICE u32 quantised(u32 j, const Divisor& scale) const {
        u32 q[4];
#pragma unroll
        for (u32 e = 0; e < 4; e++) q[e] = __float_as_uint(__fadd_rn(scale.divide(v[j][e]), 12582912.f));
        return __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
    }
    DEVICE void store(u8* row, u32 chunk, const RotateLane& l, const Divisor& scale, u32 pitch) const {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            u32 at = chunk * CHUNK + l.place[j];
            if (at < pitch) *reinterpret_cast<u32*>(row + at) = quantised(j, scale);
        }
    }
};

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

// The scale of a row from the largest magnitude of each warp. A row with an infinity or a NaN gets
// the scale NaN, which makes its whole output NaN.
DEVICE float scale_of_row(float most, float* scales) {
    __shared__ u32 warp_most[ROTATE_WARPS];
    // Magnitudes have the same order as their bits, with infinities and NaN above all numbers.
    u32 bits = __reduce_max_sync(~0u, __float_as_uint(most));
    if (threadIdx.x % 32 == 0) warp_most[threadIdx.x / 32] = bits;
    __syncthreads();
    bits = 0;
#pragma unroll
    for (u32 i = 0; i < ROTATE_WARPS; i++) bits = max(bits, warp_most[i]);
    float scale = bits >= 0x7f800000 ? __uint_as_float(0x7fffffff) : fmaxf(__fdiv_rn(__uint_as_float(bits), 127.f), 1e-30f);
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
