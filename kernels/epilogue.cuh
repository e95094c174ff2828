// The epilogue of a matrix product: out = tail(acc * scales[n] * row_scales[r] + bias[n]), for
// every kernel of the `linear` family. If the product has a side branch (linear_side.cuh), the sums
// are scaled already, and `scales` and `row_scales` are null here.
//
// A kernel stages its f32 accumulators in shared memory (rows padded so that both mma fragments and
// the float4 of a row are free of bank conflicts), and `finish_tile` reads them back row by row: a
// thread keeps four columns, whose scale and bias it loads once, and goes through the rows. So
// residual, gate and output are accessed in complete sectors for every fragment layout, and a
// kernel contains the code of the tails once instead of once per fragment.
#pragma once

#include "common.cuh"

enum Tail : u32 { TAIL_NONE = 0, TAIL_SILU = 1, TAIL_GELU_TANH = 2, TAIL_QUICK_GELU = 3, TAIL_ADD = 4, TAIL_GATED_ADD = 5 };

// Mirrored by `Params` in src/backend/cuda/linear.rs.
struct LinearParams {
    u32 rows, n, k;                // out is rows x n, x is rows x k, w is n x k
    u32 x_stride, w_stride;        // elements from row to row
    u32 out_stride, residual_stride, gate_stride;
    u32 group_rows;                // row r is multiplied with row r / group_rows of the gate
    u32 tail;                      // Tail
    u32 out_dtype;                 // BF16 or F32, of out and residual
    u32 gate_dtype;                // BF16 or F32
    u32 vector;                    // 1 if 4 divides n and every operand allows vectors of 4 columns
    u32 splits, split_steps;       // parts of k that are summed separately, and the steps of each
    u32 w_dtype;                   // DType, for kernels where it is a run-time parameter
    // The side branch: t is rows x rank in bf16, b is n x rank in bf16 or f16. rank is 0 if there
    // is none.
    u32 rank, t_stride, b_stride;
    u32 t_vector;                  // 1 if rows of t can be copied in chunks of 16 bytes; those of b always can
    u32 b_dtype;
    u32 planes[3];                 // w in blocks: bytes from the first plane of a row to the others
};

// The operands of the epilogue; null where absent.
struct LinearOut {
    const float* scales;      // n, what the rows of w were divided by
    const float* row_scales;  // rows, what the rows of x were divided by where x was quantised
    const float* bias;        // n
    const void* residual;     // rows x n, may be out itself
    const void* gate;         // groups x n
    void* out;                // rows x n
};

// Four neighbouring columns of the output, and the values that they have for all rows.
struct Columns {
    u32 col;
    float scale[4], bias[4];
};

// The operands of the side branch.
struct LinearSide {
    const u16* t;  // rows x rank
    const u16* b;  // n x rank, its rows padded with zeros to multiples of 8
};

DEVICE float load_if(const float* from, bool ok, float otherwise) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.f32 %0, [%1];}" : "+f"(otherwise) : "l"(from), "r"((u32)ok));
    return otherwise;
}
DEVICE void load_four(float (&v)[4], const float* from, bool ok) {
    asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.nc.v4.f32 {%0,%1,%2,%3}, [%4];}"
                 : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
                 : "l"(from), "r"((u32)ok));
}

DEVICE Columns load_columns(const LinearParams& p, const LinearOut& o, u32 col) {
    Columns c = {col, {1.f, 1.f, 1.f, 1.f}, {0.f, 0.f, 0.f, 0.f}};
    if (p.vector) {
        load_four(c.scale, o.scales + col, o.scales && col < p.n);
        load_four(c.bias, o.bias + col, o.bias && col < p.n);
        return c;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        c.scale[i] = load_if(o.scales + col + i, o.scales && col + i < p.n, 1.f);
        c.bias[i] = load_if(o.bias + col + i, o.bias && col + i < p.n, 0.f);
    }
    return c;
}

// Four elements in their stored form; the first is at a multiple of four.
DEVICE uint4 load_raw(const void* p, size_t at, u32 dtype) {
    const u8* from = static_cast<const u8*>(p) + at * (dtype == F32 ? 4 : 2);
    uint2 v = *reinterpret_cast<const uint2*>(from), u = make_uint2(0, 0);
    if (dtype == F32) u = *reinterpret_cast<const uint2*>(from + 8);
    return make_uint4(v.x, v.y, u.x, u.y);
}
DEVICE float4 unpack_raw(const uint4& r, u32 dtype) {
    bool f32 = dtype == F32;
    return make_float4(f32 ? __uint_as_float(r.x) : bf16_low(r.x), f32 ? __uint_as_float(r.y) : bf16_high(r.x),
                       f32 ? __uint_as_float(r.z) : bf16_low(r.y), f32 ? __uint_as_float(r.w) : bf16_high(r.y));
}

// The residual of a row, loaded long before it is used; zeros if vectors are not allowed.
DEVICE uint4 fetch_residual(const LinearParams& p, const LinearOut& o, u32 row, u32 col) {
    uint4 raw = make_uint4(0, 0, 0, 0);
    if (p.tail >= TAIL_ADD && p.vector && row < p.rows && col < p.n)
        raw = load_raw(o.residual, (size_t)row * p.residual_stride + col, p.out_dtype);
    return raw;
}

// One row of four columns: `acc` are the accumulators, `raw` is the result of `fetch_residual`.
DEVICE void finish_row(const LinearParams& p, const LinearOut& o, u32 row, const Columns& c, float4 acc, uint4 raw) {
    if (row >= p.rows || c.col >= p.n) return;
    float y[4] = {acc.x, acc.y, acc.z, acc.w};
    float row_scale = o.row_scales ? o.row_scales[row] : 1.f;
#pragma unroll
    for (int i = 0; i < 4; i++) y[i] = y[i] * row_scale * c.scale[i] + c.bias[i];

    if (p.tail == TAIL_SILU) {
#pragma unroll
        for (int i = 0; i < 4; i++) y[i] = silu(y[i]);
    } else if (p.tail == TAIL_GELU_TANH) {
#pragma unroll
        for (int i = 0; i < 4; i++) y[i] = gelu_tanh(y[i]);
    } else if (p.tail == TAIL_QUICK_GELU) {
#pragma unroll
        for (int i = 0; i < 4; i++) y[i] = quick_gelu(y[i]);
    }

    size_t to = (size_t)row * p.out_stride + c.col;
    size_t gate_at = p.tail == TAIL_GATED_ADD ? (size_t)(row / p.group_rows) * p.gate_stride + c.col : 0;
    if (p.vector) {
        if (p.tail >= TAIL_ADD) {
            float4 r = unpack_raw(raw, p.out_dtype), g = make_float4(1.f, 1.f, 1.f, 1.f);
            if (p.tail == TAIL_GATED_ADD) g = unpack_raw(load_raw(o.gate, gate_at, p.gate_dtype), p.gate_dtype);
            y[0] = r.x + g.x * y[0], y[1] = r.y + g.y * y[1], y[2] = r.z + g.z * y[2], y[3] = r.w + g.w * y[3];
        }
        if (p.out_dtype == F32) {
            *reinterpret_cast<float4*>(static_cast<float*>(o.out) + to) = make_float4(y[0], y[1], y[2], y[3]);
        } else {
            *reinterpret_cast<uint2*>(static_cast<bf16*>(o.out) + to) = make_uint2(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]));
        }
        return;
    }
    // Element by element. The loop is not unrolled, to keep the kernels short; the sums move up by
    // one in each round.
#pragma unroll 1
    for (u32 i = 0; i < 4 && c.col + i < p.n; i++) {
        float v = y[0];
        if (p.tail >= TAIL_ADD) {
            if (p.tail == TAIL_GATED_ADD) v *= load_element(o.gate, gate_at + i, p.gate_dtype);
            v += load_element(o.residual, (size_t)row * p.residual_stride + c.col + i, p.out_dtype);
        }
        store_element(o.out, to + i, p.out_dtype, v);
        y[0] = y[1], y[1] = y[2], y[2] = y[3];
    }
}

// The distance of rows of a staged tile, in floats: PAD is 8 for fragments whose pairs are
// neighbours in a row of the output, 4 for transposed products, whose pairs are neighbours in a
// column.
template <int COLUMNS, int PAD = 8> struct Stage { static constexpr int STRIDE = COLUMNS + PAD; };

// Where the pair (row, col), (row, col + 1) of a fragment goes.
template <int COLUMNS> DEVICE void stage_pair(float* stage, u32 row, u32 col, float low, float high) {
    *reinterpret_cast<float2*>(stage + row * Stage<COLUMNS>::STRIDE + col) = make_float2(low, high);
}

// A whole fragment of a transposed product (w . x^T): c[0], c[1] are (row, col), (row + 1, col),
// the others eight columns further.
template <int COLUMNS> DEVICE void stage_transposed(float* stage, u32 row, u32 col, const float (&c)[4]) {
    float* at = stage + row * Stage<COLUMNS, 4>::STRIDE + col;
    at[0] = c[0], at[Stage<COLUMNS, 4>::STRIDE] = c[1], at[8] = c[2], at[Stage<COLUMNS, 4>::STRIDE + 8] = c[3];
}

// Finishes ROWS staged rows of COLUMNS columns, which are those from (row0, col0) of the output.
// There must be a barrier between the staging and this, and another before the stage is
// overwritten.
template <int ROWS, int COLUMNS, int THREADS, int PAD = 8>
DEVICE void finish_tile(const LinearParams& p, const LinearOut& o, const float* stage, u32 row0, u32 col0) {
    constexpr int ACROSS = COLUMNS / 4, DOWN = THREADS / ACROSS;
    static_assert(THREADS % ACROSS == 0 && ROWS % DOWN == 0, "threads must cover whole rows, and the rows evenly");
    int first = threadIdx.x / ACROSS, col = threadIdx.x % ACROSS * 4;
    Columns c = load_columns(p, o, col0 + col);
    // The residuals of three rows are in flight while a row is finished; the first rounds only
    // start their loads.
    uint4 r0 = make_uint4(0, 0, 0, 0), r1 = r0, r2 = r0, r3 = r0;
#pragma unroll 1
    for (int r = first - 3 * DOWN; r < ROWS; r += DOWN) {
        r0 = r1, r1 = r2, r2 = r3;
        if (r + 3 * DOWN < ROWS) r3 = fetch_residual(p, o, row0 + r + 3 * DOWN, c.col);
        if (r < 0) continue;
        float4 acc = *reinterpret_cast<const float4*>(stage + r * Stage<COLUMNS, PAD>::STRIDE + col);
        finish_row(p, o, row0 + r, c, acc, r0);
    }
}
