// Flash attention for head dimensions up to 512: one head of the VAE's mid block.
//
// A row's queries and sums are 4 times as long as in a transformer, too long for the registers of
// one warp. Therefore two warps share 16 query rows, each with 256 of the 512 columns: a warp
// multiplies its columns of Q and K, passes the partial scores to its partner through shared
// memory, adds those of the partner, and multiplies the weights with its columns of V. Only the
// softmax is computed twice. Both warps add the same two numbers, so both have bitwise the same
// scores.
//
// A block has 64 query rows: 8 warps = 4 row groups x 2 halves. Tiles are of 16 keys: 16 KB for K
// and 16 KB for V, each in two stages, and 16 KB for the exchange (two stages too) are 80 KB,
// within the 99 KB of sm_86. The loop is skewed, so that one barrier per tile serves both the
// copies and the exchange: while the weights of tile t are computed, the scores of tile t + 1 are
// multiplied.
//
// Roofline: 64 rows x 16 keys x 512 take 64 mma in each warp for 32 KB that are read from L2; at 32
// cycles per mma and quarter (GeForce, f32 sums) 4096 cycles per tile, 8 bytes per cycle and
// multiprocessor.
#pragma once

#include "attention_flash.cuh"

struct Wide {
    static constexpr int D = 512, HALF = 256, WARPS = 8, THREADS = 256, ROWS = 64, TILE = 16, PITCH = D * 2;
    static constexpr int STAGE = TILE * PITCH, VALUES = 2 * STAGE, EXCHANGE = 4 * STAGE, SCORES = WARPS * 32 * 8;
    static constexpr int SHARED = EXCHANGE + 2 * SCORES * 4;
    static_assert(ROWS * PITCH <= EXCHANGE, "queries and outputs pass through the stages");

    static DEVICE void run(const bf16* q, const bf16* k, const bf16* v, bf16* first, bf16* out, const Params& p) {
        extern __shared__ __align__(128) u8 memory[];
        const u32 shared = shared_address(memory);
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 2, half = warp % 2;
        const u32 row0 = blockIdx.x * ROWS, chunks = p.head_dim / 8, head = blockIdx.y, picture = blockIdx.z;
        const size_t top = (size_t)picture * p.tokens;
        const u32 column = head * p.head_dim;
        q += (size_t)picture * p.queries * p.q_stride + column;
        k += top * p.k_stride + column;
        v += top * p.v_stride + column;

        const u32 columns = shared + half * (HALF * 2);
        const u32 corner = columns + (lane % 8 + lane / 16 * 8) * PITCH + ((lane / 8 % 2 ^ lane % 8) << 4);
        const u32 turned = columns + lane % 16 * PITCH + ((lane / 16 ^ lane % 8) << 4);

        u32 queries[HALF / 16][4];
        load_rows<D, ROWS, THREADS>(shared, q, p.q_stride, row0, p.queries, chunks);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < HALF / 16; kk++)
            load_matrices(queries[kk], ((turned + group * 16 * PITCH) ^ (kk % 4 * 32)) + kk / 4 * 128);
        __syncthreads();

        const u32 tiles = (p.tokens + TILE - 1) / TILE;
        auto load_keys = [&](u32 t) {
            if (t < tiles) load_rows<D, TILE, THREADS>(shared + t % 2 * STAGE, k, p.k_stride, t * TILE, p.tokens, chunks);
        };
        auto load_values = [&](u32 t) {
            if (t < tiles) load_rows<D, TILE, THREADS>(shared + VALUES + t % 2 * STAGE, v, p.v_stride, t * TILE, p.tokens, chunks);
        };
        // Scores of tile t from this warp's columns, also stored for the partner.
        float4* const exchange = reinterpret_cast<float4*>(memory + EXCHANGE);
        auto multiply = [&](float (&s)[2][4], u32 t) {
            const u32 keys = corner + t % 2 * STAGE;
#pragma unroll
            for (int kk = 0; kk < HALF / 16; kk++) {
                u32 b[4];
                load_matrices(b, (keys ^ (kk % 4 * 32)) + kk / 4 * 128);
                mma_bf16(s[0], queries[kk], b[0], b[1]);
                mma_bf16(s[1], queries[kk], b[2], b[3]);
            }
#pragma unroll
            for (int n = 0; n < 2; n++)
                exchange[t % 2 * (SCORES / 4) + warp * 64 + n * 32 + lane] = make_float4(s[n][0], s[n][1], s[n][2], s[n][3]);
        };

        load_keys(0);
        copy_commit();
        load_keys(1);
        load_values(0);
        copy_commit();
        copy_wait<1>();
        __syncthreads();

        const float unit = p.scale * LOG2_E;
        float o[HALF / 8][4], m[2] = {LEAST, LEAST}, l[2] = {};
#pragma unroll
        for (int n = 0; n < HALF / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[n][e] = 0.f;
        float ahead[2][4] = {};
        multiply(ahead, 0);

        for (u32 t = 0; t < tiles; t++) {
            copy_wait<0>();
            __syncthreads();
            load_keys(t + 2);
            load_values(t + 1);
            copy_commit();

            float s[2][4];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float4 other = exchange[t % 2 * (SCORES / 4) + (warp ^ 1) * 64 + n * 32 + lane];
                s[n][0] = ahead[n][0] + other.x, s[n][1] = ahead[n][1] + other.y;
                s[n][2] = ahead[n][2] + other.z, s[n][3] = ahead[n][3] + other.w;
#pragma unroll
                for (int e = 0; e < 4; e++) ahead[n][e] = 0.f;
            }
            if (t * TILE + TILE > p.tokens) {
#pragma unroll
                for (int n = 0; n < 2; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (t * TILE + n * 8 + lane % 4 * 2 + e % 2 >= p.tokens) s[n][e] = -infinity();
            }
            float most[2];
            bool passed = false;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                most[h] = unit * fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1]));
                passed |= most[h] > m[h] + SLACK;
            }
            if (__any_sync(~0u, passed)) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 1));
                    most[h] = fmaxf(most[h], __shfl_xor_sync(~0u, most[h], 2));
                    const float raised = fmaxf(m[h], most[h]), shrink = exp2_fast(m[h] - raised);
                    m[h] = raised;
                    l[h] *= shrink;
#pragma unroll
                    for (int n = 0; n < HALF / 8; n++) o[n][2 * h] *= shrink, o[n][2 * h + 1] *= shrink;
                }
            }
            if (t + 1 < tiles) multiply(ahead, t + 1);

            u32 weights[4];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const float a = exp2_fast(fmaf(s[n][2 * h], unit, -m[h])), b = exp2_fast(fmaf(s[n][2 * h + 1], unit, -m[h]));
                    l[h] += a + b;
                    weights[n * 2 + h] = pack_bf16(a, b);
                }
            const u32 values = turned + VALUES + t % 2 * STAGE;
#pragma unroll
            for (int n = 0; n < HALF / 16; n++) {
                u32 b[4];
                load_matrices_transposed(b, (values ^ (n % 4 * 32)) + n / 4 * 128);
                mma_bf16(o[2 * n], weights, b[0], b[1]);
                mma_bf16(o[2 * n + 1], weights, b[2], b[3]);
            }
        }

        __syncthreads();
#pragma unroll
        for (int h = 0; h < 2; h++) {
            l[h] += __shfl_xor_sync(~0u, l[h], 1);
            l[h] += __shfl_xor_sync(~0u, l[h], 2);
            const float inverse = 1.f / l[h];
            const u32 row = group * 16 + h * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < HALF / 8; n++)
                *reinterpret_cast<u32*>(memory + row * PITCH + half * (HALF * 2) + ((n ^ row % 8) << 4) + lane % 4 * 4) =
                    pack_bf16(o[n][2 * h] * inverse, o[n][2 * h + 1] * inverse);
        }
        __syncwarp();
        const u32 chunk = half * (HALF / 8) + lane;
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const u32 row = group * 16 + i;
            if (row0 + row < p.queries && chunk < chunks)
                *reinterpret_cast<uint4*>(out_row(p, out, first, picture, row0 + row) + column + chunk * 8) =
                    *reinterpret_cast<const uint4*>(memory + row * PITCH + ((chunk ^ row % 8) << 4));
        }
    }
};
