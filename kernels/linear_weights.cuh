// How weights of each element type become pairs of bf16 in registers, for mma.sync.
#pragma once

#include "common.cuh"

DEVICE u32 permute_bytes(u32 a, u32 b, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}
// Volatile, so that the loads stay between the barriers.
DEVICE uint4 load_shared_16(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}
DEVICE uint2 load_shared_8(u32 address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return v;
}

DEVICE void store_shared_16(u32 address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// Two f16 to two bf16, rounded to nearest even; exact for what an e5m2 can hold, infinities and NaN
// included.
DEVICE u32 halves_to_bf16(u32 pair) {
    float low, high;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(low), "=f"(high) : "r"(pair));
    return pack_bf16(low, high);
}

DEVICE uint4 halves_to_bf16(uint4 v) {
    return make_uint4(halves_to_bf16(v.x), halves_to_bf16(v.y), halves_to_bf16(v.z), halves_to_bf16(v.w));
}

// Weights of 16 bits: `pair` makes a pair of bf16 of a pair. Weights of 8 bits: `unpack` makes two
// pairs of four.
template <u32 W> struct Weights;
template <> struct Weights<BF16> {
    static constexpr int BYTES = 2;
    DEVICE static u32 pair(u32 q) { return q; }
};
template <> struct Weights<F16> {
    static constexpr int BYTES = 2;
    DEVICE static u32 pair(u32 q) { return halves_to_bf16(q); }
};
template <> struct Weights<E4M3> {
    static constexpr int BYTES = 1;
    // Exact for all 256 codes.
    //
    // With exponent and mantissa moved to the low end of bf16's exponent field, a code stands for
    // 2^-120 of its value, subnormals included, and one fma.rn.bf16x2, which keeps subnormals,
    // restores it: the product has 4 significant bits. The sign comes from the byte that prmt fills
    // with it. The two NaN codes are the only ones that carry into bit 7 when 1 is added to their
    // lower seven bits; prmt makes 0xffff of that bit, a NaN, and the fma adds it; for all others
    // it adds 0.
    DEVICE static void unpack(u32 q, u32& first, u32& second) {
        u32 nan = (q & 0x7f7f7f7fu) + 0x01010101u;
        u32 a = (permute_bytes(q, 0, 0x9180) << 4) & 0x87f087f0u, b = (permute_bytes(q, 0, 0xb3a2) << 4) & 0x87f087f0u;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(first) : "r"(a), "r"(0x7b807b80u), "r"(permute_bytes(nan, 0, 0x9988)));
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(second) : "r"(b), "r"(0x7b807b80u), "r"(permute_bytes(nan, 0, 0xbbaa)));
    }
};
template <> struct Weights<E5M2> {
    static constexpr int BYTES = 1;
    // An e5m2 is the upper byte of an f16.
    DEVICE static void unpack(u32 q, u32& first, u32& second) {
        first = halves_to_bf16(permute_bytes(q, 0, 0x1404)), second = halves_to_bf16(permute_bytes(q, 0, 0x3424));
    }
};
template <> struct Weights<I8> {
    static constexpr int BYTES = 1;
    // Exact. Prefixed with 0x43, the lower seven bits stand for 128 plus themselves; 128 is
    // subtracted, or 256 if the sign is set.
    DEVICE static u32 pair(u32 q) {
        u32 value;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(value) : "r"((q & 0x007f007fu) | 0x43004300u), "r"(0x3f803f80u), "r"((q & 0x00800080u) | 0xc300c300u));
        return value;
    }
    DEVICE static void unpack(u32 q, u32& first, u32& second) {
        first = pair(permute_bytes(q, 0, 0x4140)), second = pair(permute_bytes(q, 0, 0x4342));
    }
};
// Stored in blocks: linear_blocks.cuh converts them to bf16 before they get here.
template <> struct Weights<BLOCKS> {
    static constexpr int BYTES = 2;
    DEVICE static u32 pair(u32 q) { return q; }
};
