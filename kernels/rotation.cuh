// The rotation of rows of int8 products, and their rounding to integers, for a warp that has 256
// neighbouring values in its registers.
//
// R is block-diagonal along k. A block is the Kronecker power of H4 / 2 with `group` rows: 16, 64
// or 256; without a rotation, R is the identity. A stage of it combines four values a, b, c, d
// whose indices differ in one digit to base four:
//   s = a + b, t = c - d, u = a - b, v = c + d; (s + t) / 2, (s - t) / 2, (u + v) / 2, (v - u) / 2.
// The stages follow from the lowest digit to the highest, each sum is rounded once, and halving is
// exact. So the result has the bits that the CPU computes. They decide ties of the quantisation.
//
// A lane has two runs of four of the 256 values, so that every access fills whole sectors. The
// lowest digit is the place within a run, the next two are digits of the lane, the highest is bit 4
// of the lane and the run. An exchange between lanes costs one shuffle and one multiply-add for
// each of the two levels of a stage, because a lane may take whichever of the two sums it can
// compute from its own value with a sign: afterwards, the values are in another order, and are
// stored to their own places.
#pragma once

#include "common.cuh"

constexpr u32 CHUNK = 256;

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
    // The largest magnitude of both runs, or of one, or NaN if there is one.
    DEVICE float most(float m) const { return most_of(1, most_of(0, m)); }
    DEVICE float most_of(u32 j, float m) const {
#pragma unroll
        for (u32 e = 0; e < 4; e++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(m) : "f"(fabsf(v[j][e])));
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

// The scale of a row from the bits of its largest magnitude. A row with an infinity or a NaN gets
// the scale NaN, which makes its whole output NaN.
DEVICE float scale_of(u32 bits) {
    return bits >= 0x7f800000 ? __uint_as_float(0x7fffffff) : fmaxf(__fdiv_rn(__uint_as_float(bits), 127.f), 1e-30f);
}
