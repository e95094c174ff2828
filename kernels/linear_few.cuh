// Few rows of x: the weights are read once at the speed of memory, straight into registers.
//
// As in linear_tile.cuh weights are the 16-row operand of the mma, here two times 16, and rows of x the 8-column operand, up to two
// times 8. The eight warps of a block share k among them, each taking 64 neighbouring k at a time, so that a block has 16 KiB
// (16-bit weights: 32) under way and a multiprocessor two or three times that, where 10 to 20 keep its share of the memory busy.
// Nothing passes through shared memory but the warps' sums at the end, added in fixed order; x comes from L1 and L2. A byte of e4m3 is
// multiplied 16 times (8 for up to 8 rows), while an RTX 3060 has time for 35 multiply-adds: bound by memory.
#pragma once

#include "epilogue.cuh"
#include "linear_weights.cuh"

constexpr int FEW_WARPS = 8, FEW_COLS = 32, FEW_ROWS = 16;

// Zero unless `ok`. Weights are not kept in L1, where x shall stay; of their lines L2 gets the whole.
DEVICE void load_weights(uint2& d, const u8* from, bool ok) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0;"
        "@p ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];}"
        : "=&r"(d.x), "=&r"(d.y)
        : "l"(from), "r"((u32)ok));
}
DEVICE void load_weights(uint4& d, const u8* from, bool ok) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
        "@p ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];}"
        : "=&r"(d.x), "=&r"(d.y), "=&r"(d.z), "=&r"(d.w)
        : "l"(from), "r"((u32)ok));
}
DEVICE void load_rows(uint4& d, const bf16* from, bool ok) {
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %5, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;"
        "@p ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];}"
        : "=&r"(d.x), "=&r"(d.y), "=&r"(d.z), "=&r"(d.w)
        : "l"(from), "r"((u32)ok));
}

// Eight weights, as they are loaded and as pairs of bf16.
template <u32 W, int BYTES = Weights<W>::BYTES> struct Eight {
    typedef uint4 Raw;
    DEVICE static void unpack(const Raw& q, u32 (&b)[4]) {
        b[0] = Weights<W>::pair(q.x), b[1] = Weights<W>::pair(q.y), b[2] = Weights<W>::pair(q.z), b[3] = Weights<W>::pair(q.w);
    }
};
template <u32 W> struct Eight<W, 1> {
    typedef uint2 Raw;
    DEVICE static void unpack(const Raw& q, u32 (&b)[4]) {
        Weights<W>::unpack(q.x, b[0], b[1]);
        Weights<W>::unpack(q.y, b[2], b[3]);
    }
};

// grid: (n / 32, groups of 16 rows), 256 threads.
template <u32 W> DEVICE void linear_few(const bf16* x, const u8* w, const LinearOut& o, const LinearParams& p) {
    // Eight neighbouring k of a row of w; a lane has them for k = 8t .. 8t + 7 of 32, and x likewise (see linear_tile.cuh).
    typedef typename Eight<W>::Raw Raw;
    constexpr int WB = Weights<W>::BYTES, UNROLL = 2;
    // One warp's sums are rows x columns, padded so that neither the fragments nor the float4 of a row collide in the banks.
    __shared__ __align__(16) float sums[FEW_WARPS][FEW_ROWS][FEW_COLS + 4];

    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    u32 col0 = blockIdx.x * FEW_COLS, steps = (p.k - 1) / 32 + 1;
    const u8* w_row = w + ((size_t)(col0 + g) * p.w_stride + t * 8) * WB;
    size_t w_hop = (size_t)p.w_stride * 8 * WB;

    for (u32 row0 = blockIdx.y * FEW_ROWS; row0 < p.rows; row0 += gridDim.y * FEW_ROWS) {
        const bf16* x_row = x + (size_t)(row0 + g) * p.x_stride + t * 8;
        bool has[2] = {row0 + g < p.rows, row0 + g + 8 < p.rows};
        bool both = p.rows - row0 > 8;
        float acc[2][2][4] = {};
#pragma unroll 1
        for (u32 s = warp * UNROLL; s < steps; s += FEW_WARPS * UNROLL) {
            Raw q[UNROLL][4];
            uint4 b[UNROLL][2];
#pragma unroll
            for (u32 u = 0; u < UNROLL; u++) {
                u32 k = (s + u) * 32;
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    load_weights(q[u][i], w_row + i * w_hop + (size_t)k * WB, k + t * 8 < p.k && col0 + g + i * 8 < p.n);
                }
#pragma unroll
                for (u32 j = 0; j < 2; j++) load_rows(b[u][j], x_row + (size_t)j * 8 * p.x_stride + k, k + t * 8 < p.k && has[j]);
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    u32 low[4], high[4];
                    Eight<W>::unpack(q[u][2 * i], low);
                    Eight<W>::unpack(q[u][2 * i + 1], high);
                    mma_bf16(acc[i][0], {low[0], high[0], low[1], high[1]}, b[u][0].x, b[u][0].y);
                    mma_bf16(acc[i][0], {low[2], high[2], low[3], high[3]}, b[u][0].z, b[u][0].w);
                    if (both) {
                        mma_bf16(acc[i][1], {low[0], high[0], low[1], high[1]}, b[u][1].x, b[u][1].y);
                        mma_bf16(acc[i][1], {low[2], high[2], low[3], high[3]}, b[u][1].z, b[u][1].w);
                    }
                }
            }
        }
        // c[0], c[1]: column g, rows 2t and 2t + 1; c[2], c[3]: column g + 8.
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
#pragma unroll
                for (int c = 0; c < 4; c++) sums[warp][j * 8 + t * 2 + c % 2][i * 16 + g + c / 2 * 8] = acc[i][j][c];
            }
        }
        __syncthreads();
        u32 row = threadIdx.x / (FEW_COLS / 4), col = threadIdx.x % (FEW_COLS / 4) * 4;
        if (row < FEW_ROWS) {
            uint4 raw = fetch_residual(p, o, row0 + row, col0 + col);
            Columns c = load_columns(p, o, col0 + col);
            float4 y = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
            for (int i = 0; i < FEW_WARPS; i++) {
                float4 v = *reinterpret_cast<const float4*>(&sums[i][row][col]);
                y.x += v.x, y.y += v.y, y.z += v.z, y.w += v.w;
            }
            finish_row(p, o, row0 + row, c, y, raw);
        }
        __syncthreads();
    }
}
