// Flash attention for head dimensions up to 64 or 128: `out = softmax(scale q . k^T + bias) . v`
// for each image and head, without ever storing a score outside registers.
//
// A block takes WARPS * M * 16 query rows of one head and processes all keys in tiles of TILE. Each
// warp owns M * 16 rows: their queries stay in registers as mma fragments throughout, and so do the
// sums. K and V tiles are copied by cp.async into two stages, so there is one barrier per tile; the
// copies of a tile overlap with all the work on the tile before.
//
// Shared memory: rows of D bf16, whose 16-byte chunk c is at position c ^ (row % 8). Eight rows of
// one chunk (an 8x8 matrix of ldmatrix) are then in eight different groups of four banks, and so
// are eight neighbouring chunks of a row, which cp.async writes at a time.
//
// The softmax is online, in steps of STEP keys, and lazy: the running maximum m is raised, and the
// sums rescaled, only when a score exceeds it by more than SLACK (a factor of 2^8). Until then the
// weights exp(score - m) may be as large as 2^8, which costs no accuracy in f32 sums or bf16
// weights, and saves the rescaling of all sums and the shuffles for the maximum in almost every
// step: one vote of the warp decides.
//
// NaN: fmaxf ignores it, so m stays finite, and exp2(NaN - m) puts the NaN into the row's sum and
// outputs. Masked scores are -inf against a finite m, so their weights are 0. m begins at the most
// negative finite number, for the same reason. A weight of 0 still propagates NaN or infinity from
// V: of the keys hidden by `causal`, those in the tile of the diagonal do, to all rows of the
// block. (attention_any reads no hidden key.)
#pragma once

#include "common.cuh"

struct Params {
    u32 queries;      // rows of q of one image: as many as tokens, unless there is no bias, mask or `first`
    u32 tokens;       // rows of k and v of one image
    u32 heads;
    u32 head_dim;
    u32 q_stride, k_stride, v_stride, out_stride, first_stride, bias_stride;
    u32 first;        // this many tokens of each image are stored in `first`, the others in `out`
    u32 causal;       // 1: key j is hidden from query i < j
    u32 bias_type;    // DType
    float scale;
};

// The row of `token` in the matrix that it is stored to.
DEVICE bf16* out_row(const Params& p, bf16* out, bf16* first, u32 picture, u32 token) {
    if (token < p.first) return first + ((size_t)picture * p.first + token) * p.first_stride;
    return out + ((size_t)picture * (p.queries - p.first) + token - p.first) * p.out_stride;
}

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LEAST = -3.402823466e38f;
constexpr float SLACK = 8.f;

DEVICE float infinity() { return __uint_as_float(0x7f800000u); }

// Copies `ROWS` rows of `D` columns from `row` on; rows from `rows` and chunks from `chunks` on
// become zeros.
template <int D, int ROWS, int THREADS>
DEVICE void load_rows(u32 to, const bf16* from, u32 stride, u32 row, u32 rows, u32 chunks) {
    constexpr int CHUNKS = D / 8, PASS = THREADS / CHUNKS;
    const u32 chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS;
    const bool inside = chunk < chunks;
    const u32 column = inside ? chunk * 16 : 0;
#pragma unroll
    for (int i = 0; i < ROWS / PASS; i++) {
        const u32 r = first + i * PASS, at = row + r;
        const u32 offset = min(at, rows - 1) * (stride * 2) + column;
        copy_async(to + r * (D * 2) + ((chunk ^ r % 8) << 4), reinterpret_cast<const u8*>(from) + offset, inside && at < rows ? 16 : 0);
    }
}

// Raises the maxima m of the rows to `most`, the largest score that a lane has seen, and scales the
// sums of weights l and of outputs o to them. `unit`: the units of m in powers of two.
template <int M, int N>
DEVICE void raise_maxima(float (&m)[M][2], float (&most)[M][2], float (&l)[M][2], float (&o)[M][N][4], float unit) {
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            most[i][h] = fmaxf(most[i][h], __shfl_xor_sync(~0u, most[i][h], 1));
            most[i][h] = fmaxf(most[i][h], __shfl_xor_sync(~0u, most[i][h], 2));
            const float raised = fmaxf(m[i][h], most[i][h]);
            const float shrink = exp2_fast((m[i][h] - raised) * unit);
            m[i][h] = raised;
            l[i][h] *= shrink;
#pragma unroll
            for (int n = 0; n < N; n++) o[i][n][2 * h] *= shrink, o[i][n][2 * h + 1] *= shrink;
        }
}

// The weights of scores `s` in 16-bit elements, relative to the maxima m, which are raised if a
// score exceeds them by more than SLACK. With EXTRA, m has the units of the scores; otherwise,
// `units` are those of each row's scores in powers of two, and m counts powers of two.
template <bool EXTRA, u32 (*PACK)(float, float), int M, int STEPS, int N>
DEVICE void softmax_step(u32 (&weights)[M][STEPS][4], const float (&s)[M][STEPS * 2][4], float (&m)[M][2], float (&l)[M][2],
                         float (&o)[M][N][4], const float (&units)[M][2]) {
    float most[M][2];
    bool passed = false;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            most[i][h] = fmaxf(s[i][0][2 * h], s[i][0][2 * h + 1]);
#pragma unroll
            for (int n = 1; n < STEPS * 2; n++) most[i][h] = fmaxf(most[i][h], fmaxf(s[i][n][2 * h], s[i][n][2 * h + 1]));
            if (!EXTRA) most[i][h] *= units[i][h];
            passed |= most[i][h] > m[i][h] + (EXTRA ? SLACK / LOG2_E : SLACK);
        }
    if (__any_sync(~0u, passed)) raise_maxima(m, most, l, o, EXTRA ? LOG2_E : 1.f);
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int n = 0; n < STEPS * 2; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float w[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float x = s[i][n][2 * h + e];
                    w[e] = exp2_fast(EXTRA ? (x - m[i][h]) * LOG2_E : fmaf(x, units[i][h], -m[i][h]));
                }
                l[i][h] += w[0] + w[1];
                weights[i][n / 2][n % 2 * 2 + h] = PACK(w[0], w[1]);
            }
}

// Hides keys from `tokens` on; key0: the first of the scores' keys.
template <int M, int TILES> DEVICE void hide_missing(float (&s)[M][TILES][4], u32 key0, u32 tokens) {
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (key0 + n * 8 + threadIdx.x % 4 * 2 + e % 2 >= tokens) s[i][n][e] = -infinity();
}

// Divides the outputs o of a warp's M * 16 rows by the sums of their weights and stores them as
// bf16: `chunks` chunks of 8 columns. They pass through shared memory, so that every store is 16
// bytes. A warp writes and reads only its own rows there. row0: the block's first query.
template <int D, int M>
DEVICE void store_rows(const Params& p, u8* memory, const float (&o)[M][D / 8][4], float (&l)[M][2], bf16* first, bf16* out, u32 row0,
                       u32 chunks) {
    constexpr int PITCH = D * 2, PASS = 32 / (D / 8);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            l[i][h] += __shfl_xor_sync(~0u, l[i][h], 1);
            l[i][h] += __shfl_xor_sync(~0u, l[i][h], 2);
            const float inverse = 1.f / l[i][h];
            const u32 row = (warp * M + i) * 16 + h * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *reinterpret_cast<u32*>(memory + row * PITCH + ((n ^ row % 8) << 4) + lane % 4 * 4) =
                    pack_bf16(o[i][n][2 * h] * inverse, o[i][n][2 * h + 1] * inverse);
        }
    __syncwarp();
    const u32 chunk = lane % (D / 8);
#pragma unroll
    for (int i = 0; i < M * 16 / PASS; i++) {
        const u32 row = warp * M * 16 + i * PASS + lane / (D / 8);
        if (row0 + row < p.queries && chunk < chunks)
            *reinterpret_cast<uint4*>(out_row(p, out, first, blockIdx.z, row0 + row) + blockIdx.y * p.head_dim + chunk * 8) =
                *reinterpret_cast<const uint4*>(memory + row * PITCH + ((chunk ^ row % 8) << 4));
    }
}

template <int D, int M, int WARPS, int TILE, int STEP, bool EXTRA>
struct Flash {
    static constexpr int ROWS = WARPS * M * 16, THREADS = WARPS * 32, PITCH = D * 2, STAGE = 2 * TILE * PITCH;
    static_assert(ROWS * PITCH <= 2 * STAGE, "queries and outputs pass through the two stages");
    static constexpr int DIAGONALS = ROWS + TILE - 1;
    static_assert(!EXTRA || DIAGONALS <= THREADS, "each thread brings one bias");
    static constexpr int SHARED = 2 * STAGE + (EXTRA ? 2 * THREADS * 4 : 0);

    static DEVICE void run(const bf16* q, const bf16* k, const bf16* v, const void* bias, bf16* first, bf16* out, const Params& p) {
        extern __shared__ __align__(128) u8 memory[];
        const u32 shared = shared_address(memory);
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const u32 row0 = blockIdx.x * ROWS, chunks = p.head_dim / 8, head = blockIdx.y, picture = blockIdx.z;
        const size_t top = (size_t)picture * p.tokens;
        const u32 column = head * p.head_dim;
        q += (size_t)picture * p.queries * p.q_stride + column;
        k += top * p.k_stride + column;
        v += top * p.v_stride + column;

        // The start of a lane's row for ldmatrix in the first 16 rows and two chunks of a tile. The
        // four matrices are: for K, whose rows are the columns of an mma, both chunks of rows 0 to
        // 7, then of 8 to 15; for Q, and for V, which is transposed by the load, in the opposite
        // order. So the two registers that one mma takes from K or V are consecutive. Chunk 2 i + c
        // is found by flipping bits: the swizzle works on three bits of the chunk, and i % 4 are
        // two of them.
        const u32 corner = shared + (lane % 8 + lane / 16 * 8) * PITCH + ((lane / 8 % 2 ^ lane % 8) << 4);
        const u32 turned = shared + lane % 16 * PITCH + ((lane / 16 ^ lane % 8) << 4);

        u32 queries[M][D / 16][4];
        load_rows<D, ROWS, THREADS>(shared, q, p.q_stride, row0, p.queries, chunks);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int kk = 0; kk < D / 16; kk++)
                load_matrices(queries[i][kk], ((turned + (warp * M + i) * 16 * PITCH) ^ (kk % 4 * 32)) + kk / 4 * 128);
        __syncthreads();

        const u32 seen = EXTRA && p.causal ? min(row0 + ROWS, p.tokens) : p.tokens;
        const u32 tiles = (seen + TILE - 1) / TILE;
        float* const biases = reinterpret_cast<float*>(memory + 2 * STAGE);
        const bool biased = EXTRA && bias != nullptr;
        // Diagonal `threadIdx.x` of tile `t`, counted from that of the block's last row and the
        // tile's first key.
        auto diagonal = [&](u32 t) {
            const u32 at = t * TILE + p.tokens + threadIdx.x - row0 - ROWS;
            return at < 2 * p.tokens - 1 ? load_element(bias, (size_t)at * p.bias_stride + head, p.bias_type) : 0.f;
        };
        auto load = [&](u32 t) {
            const u32 to = shared + t % 2 * STAGE;
            load_rows<D, TILE, THREADS>(to, k, p.k_stride, t * TILE, p.tokens, chunks);
            load_rows<D, TILE, THREADS>(to + TILE * PITCH, v, p.v_stride, t * TILE, p.tokens, chunks);
            copy_commit();
        };
        load(0);
        if (biased) biases[threadIdx.x] = diagonal(0);

        // Without a bias, scores stay as the product gives them and m is in units of log2: one FFMA
        // computes the exponent of a weight. With a bias they are scaled first, and m has their
        // units, so that no finite bias overflows.
        const float unit = EXTRA ? LOG2_E : p.scale * LOG2_E;
        float o[M][D / 8][4], m[M][2], l[M][2], units[M][2];
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) m[i][h] = LEAST, l[i][h] = 0.f, units[i][h] = unit;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) o[i][n][e] = 0.f;
        }

        for (u32 t = 0; t < tiles; t++) {
            copy_wait<0>();
            __syncthreads();
            float next = 0.f;
            if (t + 1 < tiles) {
                load(t + 1);
                if (biased) next = diagonal(t + 1);
            }
            const u32 stage = t % 2 * STAGE;
#pragma unroll 1
            for (int step = 0; step < TILE / STEP; step++) {
                const u32 at = stage + step * STEP * PITCH, keys = corner + at, values = turned + at + TILE * PITCH;
                float s[M][STEP / 8][4] = {};
#pragma unroll
                for (int kk = 0; kk < D / 16; kk++)
#pragma unroll
                    for (int j = 0; j < STEP / 16; j++) {
                        u32 b[4];
                        load_matrices(b, (keys ^ (kk % 4 * 32)) + j * 16 * PITCH + kk / 4 * 128);
#pragma unroll
                        for (int i = 0; i < M; i++) {
                            mma_bf16(s[i][2 * j], queries[i][kk], b[0], b[1]);
                            mma_bf16(s[i][2 * j + 1], queries[i][kk], b[2], b[3]);
                        }
                    }

                // Element e of tile n: row + 8 for e > 1, key 8 n + 2 (lane % 4) + e % 2.
                const u32 key0 = t * TILE + step * STEP;
                if (EXTRA) {
#pragma unroll
                    for (int i = 0; i < M; i++)
#pragma unroll
                        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                            for (int e = 0; e < 4; e++) {
                                const u32 row = (warp * M + i) * 16 + e / 2 * 8 + lane / 4;
                                const u32 key = step * STEP + n * 8 + lane % 4 * 2 + e % 2;
                                const float add = biased ? biases[t % 2 * THREADS + key + ROWS - 1 - row] : 0.f;
                                s[i][n][e] = fmaf(s[i][n][e], p.scale, add);
                                if (t * TILE + key >= p.tokens || (p.causal && t * TILE + key > row0 + row)) s[i][n][e] = -infinity();
                            }
                } else if (key0 + STEP > p.tokens) {
                    hide_missing(s, key0, p.tokens);
                }
                u32 weights[M][STEP / 16][4];
                softmax_step<EXTRA, pack_bf16>(weights, s, m, l, o, units);
#pragma unroll
                for (int j = 0; j < STEP / 16; j++)
#pragma unroll
                    for (int n = 0; n < D / 16; n++) {
                        u32 b[4];
                        load_matrices_transposed(b, (values ^ (n % 4 * 32)) + j * 16 * PITCH + n / 4 * 128);
#pragma unroll
                        for (int i = 0; i < M; i++) {
                            mma_bf16(o[i][2 * n], weights[i][j], b[0], b[1]);
                            mma_bf16(o[i][2 * n + 1], weights[i][j], b[2], b[3]);
                        }
                    }
            }
            if (biased && t + 1 < tiles) biases[(t + 1) % 2 * THREADS + threadIdx.x] = next;
        }

        __syncthreads();
        store_rows<D, M>(p, memory, o, l, first, out, row0, chunks);
    }
};
