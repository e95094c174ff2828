// Weights stored in blocks that share scales (GGUF's types, NF4, FP4, mxfp8, nvfp4, FP8 in blocks),
// from their planes in memory to pairs of bf16.
//
// A row of w is stored plane by plane: the quants of all its blocks, then their further bits if the
// format has any, then their scales; each plane begins at a multiple of 16 bytes, p.planes bytes
// after the first (src/dtype/blocks.rs has the table). All kernels read weights in units of 16
// neighbouring elements, half a group of 32: no format changes its scale within a unit, and if a
// byte holds bits of several groups, the units of one group are neighbouring chunks of 16 bytes:
// two lanes read one complete sector.
//
// `load_units` loads the data of a unit into registers, `unpack_unit` makes 8 pairs of it:
// arithmetic in f32, with the same operations as the decoders in src/dtype, rounded to bf16 once.
// The format is a run-time parameter: all branches are uniform. Formats of integers only put their
// codes into the bytes of four words, value = scale * (code - zero) + shift, and share the
// arithmetic: 16 x (prmt, add, fma, half a cvt), and 8 to 46 instructions for the format.
#pragma once

#include "epilogue.cuh"
#include "linear_weights.cuh"

// The data of a unit.
struct Unit {
    uint4 quants, more, header;
};

template <typename T> DEVICE T fetch(const u8* from) { return __ldg(reinterpret_cast<const T*>(from)); }

// Unit `u` of each of N rows.
template <int N> DEVICE void load_units(Unit (&q)[N], const u8* const (&rows)[N], u32 u, const LinearParams& p) {
    // Formats of 256 elements: the block, the unit in it, the unit's group (0 .. 7) and its half of
    // the group.
    u32 block = u / 16, within = u % 16, group = within / 2, half = u % 2;
    u32 second = p.planes[0], third = p.planes[1], fourth = p.planes[2];
    auto each = [&](auto load) {
#pragma unroll
        for (int n = 0; n < N; n++) load(q[n], rows[n]);
    };
    switch (p.w_dtype) {
        // 32 bytes | d
        case Q8_0:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + u * 16);
                q.header.x = fetch<u16>(row + second + u / 2 * 2);
            });
        // 16 bytes | d
        case Q4_0:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + u / 2 * 16);
                q.header.x = fetch<u16>(row + second + u / 2 * 2);
            });
        // 16 bytes | d, m
        case Q4_1:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + u / 2 * 16);
                q.header.x = fetch<u32>(row + second + u / 2 * 4);
            });
        // 16 bytes | 32 fifth bits | d
        case Q5_0:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + u / 2 * 16);
                q.more.x = fetch<u32>(row + second + u / 2 * 4);
                q.header.x = fetch<u16>(row + third + u / 2 * 2);
            });
        // 16 bytes | 32 fifth bits | d, m
        case Q5_1:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + u / 2 * 16);
                q.more.x = fetch<u32>(row + second + u / 2 * 4);
                q.header.x = fetch<u32>(row + third + u / 2 * 4);
            });
        // 64 bytes | 16 bytes of scale and minimum, one for each unit | d, dmin
        case Q2_K:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + block * 64 + group / 4 * 32 + half * 16);
                q.header.x = fetch<u32>(row + third + block * 4);
                q.header.y = fetch<u8>(row + second + u);
            });
        // 64 bytes | 32 bytes of third bits | 12 bytes of scales | d
        case Q3_K:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + block * 64 + group / 4 * 32 + half * 16);
                q.more = fetch<uint4>(row + second + block * 32 + half * 16);
                q.header.x = fetch<u16>(row + fourth + block * 2);
                q.header.y = fetch<u8>(row + third + block * 12 + within % 8);
                q.header.z = fetch<u8>(row + third + block * 12 + 8 + within % 4);
            });
        // 128 bytes | d, dmin, 12 bytes of scales and minima
        case Q4_K:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + block * 128 + group / 2 * 32 + half * 16);
                q.header = fetch<uint4>(row + second + block * 16);
            });
        // 128 bytes | 32 bytes of fifth bits | d, dmin, 12 bytes of scales and minima
        case Q5_K:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + block * 128 + group / 2 * 32 + half * 16);
                q.more = fetch<uint4>(row + second + block * 32 + half * 16);
                q.header = fetch<uint4>(row + third + block * 16);
            });
        // 128 bytes of low bits | 64 bytes of high bits | 16 scales, one for each unit | d
        case Q6_K:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + block * 128 + group / 4 * 64 + group % 2 * 32 + half * 16);
                q.more = fetch<uint4>(row + second + block * 64 + group / 4 * 32 + half * 16);
                q.header.x = fetch<u16>(row + fourth + block * 2);
                q.header.y = fetch<u8>(row + third + u);
            });
        // 32 bytes for 64 elements | f32
        case NF4:
        case FP4:
            return each([&](Unit& q, const u8* row) {
                uint2 v = fetch<uint2>(row + u * 8);
                q.quants.x = v.x, q.quants.y = v.y;
                q.header.x = fetch<u32>(row + second + u / 4 * 4);
            });
        // 32 bytes | e8m0
        case MXFP8:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + u * 16);
                q.header.x = fetch<u8>(row + second + u / 2);
            });
        // 128 bytes | f32
        case FP8_BLOCK:
            return each([&](Unit& q, const u8* row) {
                q.quants = fetch<uint4>(row + u * 16);
                q.header.x = fetch<u32>(row + second + u / 8 * 4);
            });
        // NVFP4: 8 bytes for 16 elements | e4m3
        default:
            return each([&](Unit& q, const u8* row) {
                uint2 v = fetch<uint2>(row + u * 8);
                q.quants.x = v.x, q.quants.y = v.y;
                q.header.x = fetch<u8>(row + second + u);
            });
    }
}

// The halves of a word as f32.
DEVICE float half_low(u32 pair) {
    float v;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(v) : "r"(pair));
    return v;
}
DEVICE float half_high(u32 pair) { return half_low(pair >> 16); }
// Rotates bits to the right; a negative distance rotates to the left.
DEVICE u32 rotate(u32 v, int by) { return __funnelshift_r(v, v, by); }

// Sixteen codes of at most 8 bits in their order, one to a byte: value = scale * (code - zero) +
// shift.
struct Codes {
    u32 words[4];
    float scale, zero, shift;
};

// The words of a vector, one after the other.
DEVICE u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// d q: 8 bits, signed.
DEVICE Codes codes_q8_0(const Unit& q) {
    const uint4& v = q.quants;
    u32 flip = 0x80808080u;
    return {{v.x ^ flip, v.y ^ flip, v.z ^ flip, v.w ^ flip}, half_low(q.header.x), 128.f, 0.f};
}
// Element j of a group of 32 is the low half of byte j, element 16 + j the high one.
DEVICE void nibbles(u32 (&words)[4], const uint4& v, u32 high) {
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = word(v, i) >> high * 4 & 0x0f0f0f0fu;
}
// Sets the fifth bits of 16 codes to the lower 16 of `bits`: a product puts four of them 7
// positions apart, so that each is at its byte.
DEVICE void fifth_bits(u32 (&words)[4], u32 bits) {
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] |= (bits >> 4 * i & 15) * 0x02040810u & 0x10101010u;
}
// d (q - 8).
DEVICE Codes codes_q4_0(const Unit& q, u32 half) {
    Codes c = {{}, half_low(q.header.x), 8.f, 0.f};
    nibbles(c.words, q.quants, half);
    return c;
}
// d q + m.
DEVICE Codes codes_q4_1(const Unit& q, u32 half) {
    Codes c = {{}, half_low(q.header.x), 0.f, half_high(q.header.x)};
    nibbles(c.words, q.quants, half);
    return c;
}
// d (q - 16).
DEVICE Codes codes_q5_0(const Unit& q, u32 half) {
    Codes c = {{}, half_low(q.header.x), 16.f, 0.f};
    nibbles(c.words, q.quants, half);
    fifth_bits(c.words, q.more.x >> half * 16);
    return c;
}
// d q + m.
DEVICE Codes codes_q5_1(const Unit& q, u32 half) {
    Codes c = {{}, half_low(q.header.x), 0.f, half_high(q.header.x)};
    nibbles(c.words, q.quants, half);
    fifth_bits(c.words, q.more.x >> half * 16);
    return c;
}
// (d s) q - dmin m: 2 bits; s and m are the halves of a byte.
DEVICE Codes codes_q2_k(const Unit& q, u32 group) {
    Codes c = {{}, half_low(q.header.x) * (float)(q.header.y & 15), 0.f, -(half_high(q.header.x) * (float)(q.header.y >> 4))};
#pragma unroll
    for (int i = 0; i < 4; i++) c.words[i] = word(q.quants, i) >> group % 4 * 2 & 0x03030303u;
    return c;
}
// (d (s - 32)) (q - 4): 2 bits and bit `group` of the third ones; s has 4 bits in one byte and 2 in
// another.
DEVICE Codes codes_q3_k(const Unit& q, u32 within) {
    u32 group = within / 2, low = q.header.y >> within / 8 * 4 & 15, high = q.header.z >> within / 4 * 2 & 3;
    Codes c = {{}, half_low(q.header.x) * (float)((int)(low | high << 4) - 32), 4.f, 0.f};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        c.words[i] = (word(q.quants, i) >> group % 4 * 2 & 0x03030303u) | (rotate(word(q.more, i), (int)group - 2) & 0x04040404u);
    }
    return c;
}
// (d s) q - dmin m: 4 bits; s and m have 6 bits, those of the last four groups in two places.
DEVICE Codes codes_q4_k(const Unit& q, u32 group) {
    u32 at = group % 4 * 8, a = q.header.y >> at, b = q.header.z >> at, c = q.header.w >> at;
    u32 scale = group < 4 ? a & 63 : (c & 15) | (a >> 2 & 48), minimum = group < 4 ? b & 63 : (c >> 4 & 15) | (b >> 2 & 48);
    Codes codes = {{}, half_low(q.header.x) * (float)scale, 0.f, -(half_high(q.header.x) * (float)minimum)};
    nibbles(codes.words, q.quants, group % 2);
    return codes;
}
// The same with bit `group` of the fifth ones.
DEVICE Codes codes_q5_k(const Unit& q, u32 group) {
    Codes c = codes_q4_k(q, group);
#pragma unroll
    for (int i = 0; i < 4; i++) c.words[i] |= rotate(word(q.more, i), (int)group - 4) & 0x10101010u;
    return c;
}
// (d s) (q - 32): 4 bits and 2 more, s is signed.
DEVICE Codes codes_q6_k(const Unit& q, u32 group) {
    Codes c = {{}, half_low(q.header.x) * (float)(signed char)q.header.y, 32.f, 0.f};
    nibbles(c.words, q.quants, group % 4 / 2);
#pragma unroll
    for (int i = 0; i < 4; i++) c.words[i] |= rotate(word(q.more, i), (int)(group % 4 * 2) - 4) & 0x30303030u;
    return c;
}

// Prefixed with 0x47, a code in the second byte stands for 32768 plus itself: the difference is
// exact.
DEVICE void values(const Codes& c, u32 (&pairs)[8]) {
    float zero = 32768.f + c.zero;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 w = c.words[i / 2];
        float low = __uint_as_float(permute_bytes(w, 0x47000000u, i % 2 ? 0x7524 : 0x7504)) - zero;
        float high = __uint_as_float(permute_bytes(w, 0x47000000u, i % 2 ? 0x7534 : 0x7514)) - zero;
        pairs[i] = pack_bf16(fmaf(c.scale, low, c.shift), fmaf(c.scale, high, c.shift));
    }
}

// The sixteen values of 4-bit floats, in shared memory, where sixteen words are in sixteen banks.
struct Table {
    float values[16];

    // Written by the first 16 threads; a barrier must follow. e2m1 has 1, 2 and 1 bits; the others
    // are bitsandbytes' tables.
    DEVICE void fill(u32 dtype) {
        const float nf4[16] = {-1.f,         -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.f,
                               0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.f};
        const float fp4[8] = {0.f, 0.0052083333f, 0.6666667f, 1.f, 0.33333334f, 0.5f, 0.16666667f, 0.25f};
        const float e2m1[8] = {0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f};
#pragma unroll
        for (u32 i = 0; i < 16; i++) {
            float other = dtype == FP4 ? fp4[i % 8] : e2m1[i % 8];
            if (threadIdx.x == i) values[i] = dtype == NF4 ? nf4[i] : i < 8 ? other : -other;
        }
    }
};

// Two elements to a byte, the first in the high half.
DEVICE void looked_up(const Unit& q, float scale, const Table& table, u32 (&pairs)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 byte = word(q.quants, i / 4) >> i % 4 * 8;
        pairs[i] = pack_bf16(table.values[byte >> 4 & 15] * scale, table.values[byte & 15] * scale);
    }
}

// Unit `u` of its row as pairs of bf16, in the order of k.
DEVICE void unpack_unit(const Unit& q, u32 u, u32 dtype, const Table& table, u32 (&pairs)[8]) {
    u32 within = u % 16, group = within / 2, half = u % 2;
    Codes c;
    switch (dtype) {
        case Q8_0: c = codes_q8_0(q); break;
        case Q4_0: c = codes_q4_0(q, half); break;
        case Q4_1: c = codes_q4_1(q, half); break;
        case Q5_0: c = codes_q5_0(q, half); break;
        case Q5_1: c = codes_q5_1(q, half); break;
        case Q2_K: c = codes_q2_k(q, group); break;
        case Q3_K: c = codes_q3_k(q, within); break;
        case Q4_K: c = codes_q4_k(q, group); break;
        case Q5_K: c = codes_q5_k(q, group); break;
        case Q6_K: c = codes_q6_k(q, group); break;
        case NF4:
        case FP4: looked_up(q, __uint_as_float(q.header.x), table, pairs); return;
        case NVFP4: {
            u32 scale, none;
            Weights<E4M3>::unpack(q.header.x, scale, none);
            looked_up(q, bf16_low(scale), table, pairs);
            return;
        }
        default: {
            // MXFP8: e4m3 times 2^(byte - 127), where 0 is subnormal and 255 is NaN. FP8_BLOCK: the
            // scale is an f32.
            u32 byte = q.header.x, first, second;
            u32 power = byte == 0 ? 1u << 22 : byte == 255 ? 0x7fffffffu : byte << 23;
            float scale = __uint_as_float(dtype == FP8_BLOCK ? byte : power);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                Weights<E4M3>::unpack(word(q.quants, i), first, second);
                pairs[2 * i] = pack_bf16(bf16_low(first) * scale, bf16_high(first) * scale);
                pairs[2 * i + 1] = pack_bf16(bf16_low(second) * scale, bf16_high(second) * scale);
            }
            return;
        }
    }
    values(c, pairs);
}
