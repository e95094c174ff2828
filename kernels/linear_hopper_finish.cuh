// How the sums of linear_hopper.cu get from the registers of a warpgroup through shared memory into
// rows of out.
#pragma once

#include "epilogue.cuh"
#include "hopper.cuh"

// Rows of out staged at a time, 64 columns of one warpgroup: 4 floats of padding make the writes,
// where a warp's lanes hold eight columns of every second row, free of conflicts. Each warpgroup
// has two such stages.
enum : u32 { STAGED_ROWS = 32, STAGED_STRIDE = 64 + 4, STAGED = STAGED_ROWS * STAGED_STRIDE };

// The start of a tile of out.
struct Tile {
    u32 row, col;
};

// Puts 32 rows of the sums (a part that is known at compile time, because registers have no
// addresses) where all threads of the warpgroup can read them.
template <u32 ROWS> DEVICE void stage(const float (&acc)[ROWS / 2], float* put, u32 part) {
#pragma unroll
    for (u32 known = 0; known < ROWS / STAGED_ROWS; known++) {
        if (known != part) continue;
#pragma unroll
        for (u32 i = 0; i < 16; i++) put[(i / 4 * 8 + i % 2) * STAGED_STRIDE + i / 2 % 2 * 8] = acc[known * 16 + i];
    }
}

// Eight columns of bf16 that are accessed as one vector, as in most outputs of a model. A lane goes
// down the rows.
struct Eight {
    float scale[8], bias[8], gate[8];
    u32 col, group_end = 0;

    DEVICE static void unpack(float (&to)[8], uint4 v) {
        const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) to[2 * i] = bf16_low(words[i]), to[2 * i + 1] = bf16_high(words[i]);
    }
    DEVICE Eight(const LinearParams& p, const LinearOut& o, u32 col) : col(col) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            scale[i] = load_if(o.scales + col + i, o.scales && col < p.n, 1.f);
            bias[i] = load_if(o.bias + col + i, o.bias && col < p.n, 0.f);
        }
    }
    // Whether out, residual and gate can be accessed like this.
    DEVICE static bool suits(const LinearParams& p, const LinearOut& o) {
        u32 at = (u32)(u64)o.out | p.out_stride * 2 | p.n * 2;
        if (p.tail >= TAIL_ADD) at |= (u32)(u64)o.residual | p.residual_stride * 2;
        if (p.tail == TAIL_GATED_ADD) at |= (u32)(u64)o.gate | p.gate_stride * 2;
        return at % 16 == 0 && p.out_dtype == BF16 && (p.tail != TAIL_GATED_ADD || p.gate_dtype == BF16);
    }
    // The residual of a row, whose load starts long before it is used.
    DEVICE uint4 fetch(const LinearParams& p, const LinearOut& o, u32 row) const {
        uint4 raw = make_uint4(0, 0, 0, 0);
        if (p.tail >= TAIL_ADD && row < p.rows && col < p.n) {
            raw = *reinterpret_cast<const uint4*>(static_cast<const bf16*>(o.residual) + (size_t)row * p.residual_stride + col);
        }
        return raw;
    }
    // The scale of a row, too: it is read from L2, and otherwise the rows would wait for their
    // scales one after the other.
    DEVICE float fetch_scale(const LinearParams& p, const LinearOut& o, u32 row) const {
        return load_if(o.row_scales + row, o.row_scales && row < p.rows, 1.f);
    }
    DEVICE void finish(const LinearParams& p, const LinearOut& o, u32 row, float4 low, float4 high, uint4 raw, float row_scale) {
        if (row >= p.rows || col >= p.n) return;
        float y[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (u32 i = 0; i < 8; i++) y[i] = y[i] * (row_scale * scale[i]) + bias[i];
        if (p.tail == TAIL_SILU) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) y[i] = silu(y[i]);
        } else if (p.tail == TAIL_GELU_TANH) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) y[i] = gelu_tanh(y[i]);
        } else if (p.tail == TAIL_QUICK_GELU) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) y[i] = quick_gelu(y[i]);
        } else if (p.tail >= TAIL_ADD) {
            float r[8];
            unpack(r, raw);
            if (p.tail == TAIL_GATED_ADD && row >= group_end) {
                u32 group = row / p.group_rows;
                group_end = (group + 1) * p.group_rows;
                unpack(gate, *reinterpret_cast<const uint4*>(static_cast<const bf16*>(o.gate) + (size_t)group * p.gate_stride + col));
            }
#pragma unroll
            for (u32 i = 0; i < 8; i++) y[i] = r[i] + (p.tail == TAIL_GATED_ADD ? gate[i] : 1.f) * y[i];
        }
        *reinterpret_cast<uint4*>(static_cast<bf16*>(o.out) + (size_t)row * p.out_stride + col) =
            make_uint4(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]), pack_bf16(y[4], y[5]), pack_bf16(y[6], y[7]));
    }
};

// Moves the sums through shared memory into rows of out, 32 rows of 64 columns at a time. In the
// right 32 columns, neighbouring groups of four are exchanged in the stage: so the lanes of a row
// can read eight columns each, in two loads, without conflicts.
//
// Two stages alternate: when one is written again, all threads have passed the barrier of the
// other, so they have read the first one. The number of parts is even, so that this holds from tile
// to tile.
template <u32 ROWS>
DEVICE void finish(const float (&acc)[ROWS / 2], float* staged, Tile tile, u32 group, const LinearParams& p, const LinearOut& o) {
    constexpr u32 PARTS = ROWS / STAGED_ROWS;
    static_assert(PARTS % 2 == 0, "the stages take turns across tiles");
    u32 thread = threadIdx.x % 128, lane = thread % 32, col0 = tile.col + group * 64;
    float* put = staged + lane % 4 * 2 * STAGED_STRIDE + ((thread / 32 * 16 + lane / 4) ^ thread / 64 * 4);
    if (Eight::suits(p, o)) {
        u32 row = tile.row + thread / 8, eight = thread % 8 * 8, swap = thread % 8 / 4 * 4;
        const float* get = staged + thread / 8 * STAGED_STRIDE + eight;
        Eight columns(p, o, col0 + eight);
        uint4 upper = columns.fetch(p, o, row), lower = columns.fetch(p, o, row + 16);
        float upper_scale = columns.fetch_scale(p, o, row), lower_scale = columns.fetch_scale(p, o, row + 16);
#pragma unroll 1
        for (u32 part = 0; part < PARTS; part++, row += STAGED_ROWS) {
            // The residuals of the next part are in flight while this part is finished.
            u32 upper_row = part + 1 < PARTS ? row + 32 : p.rows, lower_row = part + 1 < PARTS ? row + 48 : p.rows;
            uint4 upper_next = columns.fetch(p, o, upper_row), lower_next = columns.fetch(p, o, lower_row);
            float upper_scale_next = columns.fetch_scale(p, o, upper_row), lower_scale_next = columns.fetch_scale(p, o, lower_row);
            u32 turn = part % 2 * STAGED;
            stage<ROWS>(acc, put + turn, part);
            named_sync(1 + group, 128);
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const float* from = get + turn + i * 16 * STAGED_STRIDE;
                float4 low = *reinterpret_cast<const float4*>(from + swap), high = *reinterpret_cast<const float4*>(from + (swap ^ 4));
                columns.finish(p, o, row + 16 * i, low, high, i ? lower : upper, i ? lower_scale : upper_scale);
            }
            upper = upper_next, lower = lower_next;
            upper_scale = upper_scale_next, lower_scale = lower_scale_next;
        }
    } else {
        u32 row = tile.row + thread / 16, four = thread % 16 * 4;
        const float* get = staged + thread / 16 * STAGED_STRIDE + (four ^ four / 32 * 4);
        Columns columns = load_columns(p, o, col0 + four);
#pragma unroll 1
        for (u32 part = 0; part < PARTS; part++, row += STAGED_ROWS) {
            u32 turn = part % 2 * STAGED;
            stage<ROWS>(acc, put + turn, part);
            named_sync(1 + group, 128);
#pragma unroll 1
            for (u32 i = 0; i < STAGED_ROWS; i += 8) {
                float4 y = *reinterpret_cast<const float4*>(get + turn + i * STAGED_STRIDE);
                finish_row(p, o, row + i, columns, y, fetch_residual(p, o, row + i, columns.col));
            }
        }
    }
}
