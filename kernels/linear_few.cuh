// Few rows of x: the weights are read once at the speed of memory, straight into registers.
//
// As in linear_tile.cuh weights are the 16-row operand of the mma, here two times 16, and rows of x
// the 8-column operand, up to two times 8. The eight warps of a block divide k among them, each
// taking 64 neighbouring k at a time, so that a block has 16 KiB (16-bit weights: 32) in flight and
// a multiprocessor two or three times that; 10 to 20 KiB are enough to keep its share of the memory
// busy. Only the warps' sums pass through shared memory, at the end, and are added in fixed order;
// x is read from L1 and L2. A byte of e4m3 is multiplied 16 times (8 for up to 8 rows), while an
// RTX 3060 has time for 35 multiply-adds: memory is the limit.
#pragma once

#include "linear_blocks.cuh"
#include "linear_side.cuh"

constexpr int FEW_WARPS = 8, FEW_COLS = 32, FEW_ROWS = 16;

// Zero unless `ok`. Weights are not kept in L1, so that x can stay there; L2 loads complete lines
// of them.
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

// Sixteen rows of x from `row0` on (a lane has two of them), and 32 rows of w from `col0` on (a
// lane has four of them).
struct Few {
    u32 row0, col0, g, t;
    bool both;  // more than 8 rows are left
    float acc[2][2][4];

    // Eight neighbouring elements of w and eight of x, for the four products of 16 k of which a
    // lane has a quarter.
    DEVICE void multiply(const u32 (&low)[4], const u32 (&high)[4], u32 i, const uint4 (&b)[2]) {
        mma_bf16(acc[i][0], {low[0], high[0], low[1], high[1]}, b[0].x, b[0].y);
        mma_bf16(acc[i][0], {low[2], high[2], low[3], high[3]}, b[0].z, b[0].w);
        if (both) {
            mma_bf16(acc[i][1], {low[0], high[0], low[1], high[1]}, b[1].x, b[1].y);
            mma_bf16(acc[i][1], {low[2], high[2], low[3], high[3]}, b[1].z, b[1].w);
        }
    }

    // A warp's part of x . w^T.
    template <u32 W> DEVICE void product(const bf16* x, const u8* w, const LinearParams& p) {
        // Eight neighbouring k of a row of w; a lane has them for k = 8t .. 8t + 7 of 32, and x
        // likewise (see linear_tile.cuh).
        typedef typename Eight<W>::Raw Raw;
        constexpr int WB = Weights<W>::BYTES, UNROLL = 2;
        u32 steps = (p.k - 1) / 32 + 1;
        const u8* w_row = w + ((size_t)(col0 + g) * p.w_stride + t * 8) * WB;
        size_t w_hop = (size_t)p.w_stride * 8 * WB;
        const bf16* x_row = x + (size_t)(row0 + g) * p.x_stride + t * 8;
        bool has[2] = {row0 + g < p.rows, row0 + g + 8 < p.rows};
#pragma unroll 1
        for (u32 s = threadIdx.x / 32 * UNROLL; s < steps; s += FEW_WARPS * UNROLL) {
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
                    multiply(low, high, i, b[u]);
                }
            }
        }
    }

    // The same for weights in blocks: a lane has the unit of k = 16t .. 16t + 15 of 64.
    DEVICE void product_of_blocks(const bf16* x, const u8* w, const LinearParams& p, const Table& table) {
        const u8* rows[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) rows[i] = w + (size_t)min(col0 + g + i * 8, p.n - 1) * p.w_stride;
        const bf16* x_row = x + (size_t)(row0 + g) * p.x_stride;
        bool has[2] = {row0 + g < p.rows, row0 + g + 8 < p.rows};
#pragma unroll 1
        for (u32 s = threadIdx.x / 32 * 4; s * 16 < p.k; s += FEW_WARPS * 4) {
            // Beyond k, x is zero, so any unit will do: the first of the row is read.
            bool inside = (s + t) * 16 < p.k;
            u32 unit = inside ? s + t : 0;
            Unit q[4];
            uint4 b[2][2];
            load_units<4>(q, rows, unit, p);
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
#pragma unroll
                for (u32 c = 0; c < 2; c++) load_rows(b[c][j], x_row + (size_t)j * 8 * p.x_stride + unit * 16 + c * 8, inside && has[j]);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                u32 low[8], high[8];
                unpack_unit(q[2 * i], unit, p.w_dtype, table, low);
                unpack_unit(q[2 * i + 1], unit, p.w_dtype, table, high);
                multiply({low[0], low[1], low[2], low[3]}, {high[0], high[1], high[2], high[3]}, i, b[0]);
                multiply({low[4], low[5], low[6], low[7]}, {high[4], high[5], high[6], high[7]}, i, b[1]);
            }
        }
    }

    // Scales a warp's sums and adds its part of t . b^T.
    DEVICE void side(const LinearSide& side, const float* scales, const LinearParams& p) {
        scale_columns(acc, scales, col0 + g, p.n);
#pragma unroll 1
        for (u32 k = threadIdx.x / 32 * 32 + t * 8; k - t * 8 < p.rank; k += FEW_WARPS * 32) {
            uint4 q[4], b[2];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 col = col0 + g + i * 8;
                load_rows(q[i], reinterpret_cast<const bf16*>(side.b) + (size_t)col * p.b_stride + k, k < p.rank && col < p.n);
                if (p.b_dtype == F16) q[i] = halves_to_bf16(q[i]);
            }
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                u32 row = row0 + g + j * 8;
                bool inside = k < p.rank && row < p.rows;
                const u16* from = side.t + (size_t)row * p.t_stride + k;
                if (p.t_vector) load_rows(b[j], reinterpret_cast<const bf16*>(from), inside);
                else b[j] = load_elements(from, inside ? p.rank - k : 0);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint4 &low = q[2 * i], &high = q[2 * i + 1];
                multiply({low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}, i, b);
            }
        }
    }
};

// grid: (n / 32, groups of 16 rows), 256 threads.
template <u32 W>
DEVICE void linear_few(const bf16* x, const u8* w, const float* scales, const LinearSide& side, const LinearOut& o, const LinearParams& p) {
    // One warp's sums are rows x columns, padded so that neither the fragments nor the float4 of a
    // row have bank conflicts.
    __shared__ __align__(16) float sums[FEW_WARPS][FEW_ROWS][FEW_COLS + 4];
    __shared__ Table table;
    if constexpr (W == BLOCKS) {
        table.fill(p.w_dtype);
        __syncthreads();
    }
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, col0 = blockIdx.x * FEW_COLS;
    for (u32 row0 = blockIdx.y * FEW_ROWS; row0 < p.rows; row0 += gridDim.y * FEW_ROWS) {
        Few few = {row0, col0, g, t, p.rows - row0 > 8, {}};
        if constexpr (W == BLOCKS) few.product_of_blocks(x, w, p, table);
        else few.product<W>(x, w, p);
        if (p.rank) few.side(side, scales, p);
        // c[0], c[1]: column g, rows 2t and 2t + 1; c[2], c[3]: column g + 8.
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
#pragma unroll
                for (int c = 0; c < 4; c++) sums[warp][j * 8 + t * 2 + c % 2][i * 16 + g + c / 2 * 8] = few.acc[i][j][c];
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
