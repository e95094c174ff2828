// attention in 8-bit integers: out = softmax(scale q . k^T) . v for each image and head of 128
// columns; bf16 in and out. The scores are products of integers, the weights are multiplied with v
// in f16. After SageAttention (arXiv 2410.02367, 2411.10958), with the rotation of int8 products;
// `src/dtype/int8/attention.rs` defines the arithmetic.
//
// q, k, v, out and `first` as in attention.cu. Three launches:
//
// attention_int8_means     The mean of up to 256 evenly spaced keys of each image and head. It is
//     subtracted from every key, which adds the same number to all scores of a query and leaves the
//     softmax as it is; without it, what all keys have in common takes most of the integers.
// attention_int8_prepare   Rows of q and of k - mean are rotated in groups of 64 columns and
//     quantised with one scale a row, as x is for int8 products (rotation.cuh); 64 rows of v become
//     f16 below 2 times a power of two. Memory is the limit: 2 bytes read and 1 (q, k) or 2 (v)
//     written an element.
// attention_d128_int8      128 query rows, 4 warps of 32; tiles of 64 keys in two halves of 32.
//
// For each image and head, scratch memory has the rows of q (up to a multiple of 128), of k and of
// v (of 64), 128 columns each, the missing rows as zeros: no copy needs a check. Scales follow.
//
// A half is 32 mma of integers and 64 of f16 in a warp, 16 cycles each on GeForce (f16 sums have
// twice the rate of f32 sums there), 3072 for the two warps of a quarter of a multiprocessor, where
// bf16 takes 8192. f16 sums have the 32 products of a half, and are then added to sums in f32 with
// the factor of v's tile. The sums of the integers begin at 1.5 * 2^23 as a float has it: below
// 127^2 * 128 < 2^21 in magnitude, they are then floats of that number plus the sum, and need no
// conversion. A half has 623 instructions in sm_86's machine code, 96 of them mma: the two warps of
// a quarter issue for 45 % of the 3072 cycles (tile's copies included), shared memory is busy for
// 33 %, exponentials take 19 %. 50 KB of shared memory and at most 255 registers: two blocks share
// a multiprocessor. A block reads 24 KB per tile from L2: 8 bytes a cycle and multiprocessor.
#include "attention_flash.cuh"
#include "rotation.cuh"

enum : u32 { HEAD = 128, QUERIES = 128, KEYS = 64, SAMPLES = 256 };

struct PrepareParams {
    u32 queries, tokens, heads;
    u32 q_stride, k_stride, v_stride;
};

// Rows of one image and head in scratch memory.
DEVICE u32 query_rows(u32 queries) { return (queries + QUERIES - 1) / QUERIES * QUERIES; }
DEVICE u32 key_rows(u32 tokens) { return (tokens + KEYS - 1) / KEYS * KEYS; }

// Four neighbouring columns of a row, 4 * lane and on.
DEVICE uint2 load_run(const bf16* row, u32 lane) { return reinterpret_cast<const uint2*>(row)[lane]; }
DEVICE float4 unpack_run(uint2 v) { return make_float4(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)); }

// grid: heads, images. Warp w sums samples w, w + 8, ...
KERNEL(256, 2)
attention_int8_means_sm80(const bf16* __restrict__ k, float* __restrict__ means, const __grid_constant__ PrepareParams p) {
    __shared__ float4 parts[8][32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.x, picture = blockIdx.y;
    const u32 step = (p.tokens + SAMPLES - 1) / SAMPLES, samples = (p.tokens + step - 1) / step;
    k += (size_t)picture * p.tokens * p.k_stride + head * HEAD;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (u32 i = warp; i < samples; i += 8) {
        const float4 x = unpack_run(load_run(k + (size_t)(i * step) * p.k_stride, lane));
        sum.x = __fadd_rn(sum.x, x.x), sum.y = __fadd_rn(sum.y, x.y), sum.z = __fadd_rn(sum.z, x.z), sum.w = __fadd_rn(sum.w, x.w);
    }
    parts[warp][lane] = sum;
    __syncthreads();
    if (threadIdx.x >= HEAD) return;
    float total = 0.f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) total = __fadd_rn(total, reinterpret_cast<const float*>(parts[i])[threadIdx.x]);
    means[(picture * p.heads + head) * HEAD + threadIdx.x] = __fdiv_rn(total, (float)samples);
}

// The rows of a warp: eight, as they are stored, zeros from `rows` on.
DEVICE void load_eight_rows(uint2 (&raw)[8], const bf16* from, u32 stride, u32 row, u32 rows) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        raw[i] = make_uint2(0, 0);
        if (row + i < rows) raw[i] = load_run(from + (size_t)(row + i) * stride, threadIdx.x % 32);
    }
}

// Eight rows of q or k as integers with their scales. `mean` is subtracted from rows before `rows`.
DEVICE void quantise_rows(const uint2 (&raw)[8], u8* to, float* scales, float4 mean, u32 row, u32 rows) {
    const u32 lane = threadIdx.x % 32;
    const RotateLane l(64);
#pragma unroll
    for (u32 i = 0; i < 8; i += 2) {
        Runs runs;
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            const float4 x = unpack_run(raw[i + j]);
            const float inside = row + i + j < rows ? 1.f : 0.f;
            runs.v[j][0] = __fmaf_rn(-inside, mean.x, x.x), runs.v[j][1] = __fmaf_rn(-inside, mean.y, x.y);
            runs.v[j][2] = __fmaf_rn(-inside, mean.z, x.z), runs.v[j][3] = __fmaf_rn(-inside, mean.w, x.w);
        }
        runs.rotate(l, 64);
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            const float scale = scale_of(__reduce_max_sync(~0u, __float_as_uint(runs.most_of(j, 0.f))));
            *reinterpret_cast<u32*>(to + (row + i) * HEAD + l.place[j]) = runs.quantised(j, Divisor(scale));
            if (lane == 0) scales[row + i + j] = scale;
        }
    }
}

// Rows of v in f16, divided by the power of two that is below their largest magnitude.
DEVICE void narrow_rows(const uint2 (&raw)[8], u8* to, float* scale, u32 row) {
    __shared__ u32 warp_most[8];
    const u32 lane = threadIdx.x % 32;
    // The magnitudes of bf16 have the same order as integers, with infinities and NaN above all
    // numbers.
    u32 most = 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 words[2] = {raw[i].x, raw[i].y};
#pragma unroll
        for (u32 w : words) most = max(most, max(w & 0x7fff, w >> 16 & 0x7fff));
    }
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) warp_most[threadIdx.x / 32] = most;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < 8; i++) most = max(most, warp_most[i]);
    // Both the power and its reciprocal are normal numbers.
    const u32 exponent = min(max(most >> 7, 1u), 252u);
    const float by = __uint_as_float((254 - exponent) << 23);
    if (threadIdx.x == 0) *scale = most >= 0x7f80 ? __uint_as_float(0x7fffffff) : __uint_as_float(exponent << 23);
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const float4 x = unpack_run(raw[i]);
        reinterpret_cast<uint2*>(to + (row + i) * (HEAD * 2))[lane] =
            make_uint2(pack_f16(x.x * by, x.y * by), pack_f16(x.z * by, x.w * by));
    }
}

// grid: tiles of 64 rows, heads, three times the images: q, k, v. k8 and v16 have as many rows.
KERNEL(256, 2)
attention_int8_prepare_sm80(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                            const float* __restrict__ means, u8* __restrict__ q8, u8* __restrict__ k8, u8* __restrict__ v16,
                            float* __restrict__ q_scales, float* __restrict__ k_scales, float* __restrict__ v_scales,
                            const __grid_constant__ PrepareParams p) {
    const u32 lane = threadIdx.x % 32, head = blockIdx.y, picture = blockIdx.z / 3, which = blockIdx.z % 3;
    const u32 row = blockIdx.x * KEYS + threadIdx.x / 32 * 8, place = picture * p.heads + head;
    const u32 rows = which == 0 ? p.queries : p.tokens, padded = which == 0 ? query_rows(rows) : key_rows(rows);
    const u32 stride = which == 0 ? p.q_stride : which == 1 ? p.k_stride : p.v_stride;
    if (blockIdx.x * KEYS >= padded) return;
    const bf16* from = which == 0 ? q : which == 1 ? k : v;
    uint2 raw[8];
    load_eight_rows(raw, from + (size_t)picture * rows * stride + head * HEAD, stride, row, rows);
    if (which == 2) {
        narrow_rows(raw, v16 + (size_t)place * padded * (HEAD * 2), v_scales + place * (padded / KEYS) + blockIdx.x, row);
        return;
    }
    float4 mean = make_float4(0.f, 0.f, 0.f, 0.f);
    if (which == 1) mean = reinterpret_cast<const float4*>(means + place * HEAD)[lane];
    quantise_rows(raw, (which == 0 ? q8 : k8) + (size_t)place * padded * HEAD, (which == 0 ? q_scales : k_scales) + (size_t)place * padded,
                  mean, row, rows);
}

struct Int8Attention {
    static constexpr int M = 2, WARPS = 4, THREADS = 128, HALF = 32;
    static constexpr u32 K_BYTES = KEYS * HEAD, V_BYTES = KEYS * HEAD * 2, STAGE = K_BYTES + V_BYTES + KEYS * 4;
    static constexpr float MAGIC = 12582912.f;  // 1.5 * 2^23

    // Copies `ROWS` rows of `CHUNKS` chunks of 16 bytes that are stored without gaps. Chunk c of a
    // row goes to position c ^ (row % 8), as in attention_flash.cuh.
    template <int ROWS, int CHUNKS>
    static DEVICE void load_tile(u32 to, const u8* from) {
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
            const u32 at = threadIdx.x + i * THREADS, row = at / CHUNKS, chunk = at % CHUNKS;
            copy_async(to + row * (CHUNKS * 16) + ((chunk ^ row % 8) << 4), from + at * 16, 16);
        }
    }

    // s = q . k^T + 1.5 * 2^23 for 32 keys.
    static DEVICE void scores(float (&s)[M][4][4], const u32 (&queries)[M][4][4], u32 keys) {
        int sums[M][4][4];
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[i][n][e] = 0x4b400000;
#pragma unroll
        for (int kk = 0; kk < 4; kk++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 b[4];
                load_matrices(b, (keys ^ kk * 32) + j * 16 * HEAD);
#pragma unroll
                for (int i = 0; i < M; i++) {
                    mma_s8(sums[i][2 * j], queries[i][kk], b[0], b[1]);
                    mma_s8(sums[i][2 * j + 1], queries[i][kk], b[2], b[3]);
                }
            }
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[i][n][e] = __int_as_float(sums[i][n][e]);
    }

    // o += factor * weights . v for 32 keys.
    static DEVICE void add_values(float (&o)[M][16][4], const u32 (&weights)[M][2][4], u32 values, float factor) {
#pragma unroll
        for (int n = 0; n < 8; n++) {
            u32 sums[M][2][2] = {};
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 b[4];
                load_matrices_transposed(b, (values ^ (n % 4 * 32)) + j * 16 * (HEAD * 2) + n / 4 * 128);
#pragma unroll
                for (int i = 0; i < M; i++) {
                    mma_f16(sums[i][0], weights[i][j], b[0], b[1]);
                    mma_f16(sums[i][1], weights[i][j], b[2], b[3]);
                }
            }
#pragma unroll
            for (int i = 0; i < M; i++)
#pragma unroll
                for (int c = 0; c < 2; c++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const float2 part = unpack_f16(sums[i][c][h]);
                        float(&to)[4] = o[i][2 * n + c];
                        to[2 * h] = fmaf(part.x, factor, to[2 * h]), to[2 * h + 1] = fmaf(part.y, factor, to[2 * h + 1]);
                    }
        }
    }

    static DEVICE void run(const u8* q, const u8* k, const u8* v, const float* q_scales, const float* k_scales, const float* v_scales,
                           bf16* first, bf16* out, const Params& p) {
        extern __shared__ __align__(128) u8 memory[];
        const u32 shared = shared_address(memory);
        const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = blockIdx.x * QUERIES;
        const u32 place = blockIdx.z * p.heads + blockIdx.y, rows = key_rows(p.tokens), tiles = rows / KEYS;
        q += ((size_t)place * query_rows(p.queries) + row0) * HEAD;
        q_scales += (size_t)place * query_rows(p.queries) + row0;
        k += (size_t)place * rows * HEAD;
        v += (size_t)place * rows * (HEAD * 2);
        k_scales += (size_t)place * rows;
        v_scales += (size_t)place * tiles;

        // As in attention_flash.cuh, with 128 bytes a row of q and k.
        const u32 corner = shared + (lane % 8 + lane / 16 * 8) * HEAD + ((lane / 8 % 2 ^ lane % 8) << 4);
        const u32 turned = (lane / 16 ^ lane % 8) << 4;

        u32 queries[M][4][4];
        load_tile<QUERIES, 8>(shared, q);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int kk = 0; kk < 4; kk++)
                load_matrices(queries[i][kk], (shared + ((warp * M + i) * 16 + lane % 16) * HEAD + turned) ^ kk * 32);
        __syncthreads();

        auto load = [&](u32 t) {
            const u32 to = shared + t % 2 * STAGE;
            load_tile<KEYS, 8>(to, k + (size_t)t * K_BYTES);
            load_tile<KEYS, 16>(to + K_BYTES, v + (size_t)t * V_BYTES);
            if (threadIdx.x < KEYS / 4) copy_async(to + K_BYTES + V_BYTES + threadIdx.x * 16, k_scales + t * KEYS + threadIdx.x * 4, 16);
            copy_commit();
        };
        load(0);

        // Scores are sums of products times the key's scale; m is in units of log2.
        float o[M][16][4], m[M][2], l[M][2], unit[M][2];
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                m[i][h] = LEAST, l[i][h] = 0.f;
                // A unit of 0 would not keep the scores of missing keys, which are -inf.
                unit[i][h] = q_scales[(warp * M + i) * 16 + h * 8 + lane / 4] * p.scale * LOG2_E;
                asm("max.NaN.f32 %0, %0, %1;" : "+f"(unit[i][h]) : "f"(1e-37f));
            }
#pragma unroll
            for (int n = 0; n < 16; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) o[i][n][e] = 0.f;
        }

#pragma unroll 1
        for (u32 t = 0; t < tiles; t++) {
            copy_wait<0>();
            __syncthreads();
            if (t + 1 < tiles) load(t + 1);
            const float factor = v_scales[t];
#pragma unroll 1
            for (u32 half = 0; half < 2; half++) {
                const u32 stage = t % 2 * STAGE, key0 = t * KEYS + half * HALF;
                float s[M][4][4];
                scores(s, queries, corner + stage + half * (HALF * HEAD));
                const float* scales = reinterpret_cast<const float*>(memory + stage + K_BYTES + V_BYTES) + half * HALF + lane % 4 * 2;
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const float2 scale = *reinterpret_cast<const float2*>(scales + n * 8);
                    const float less[2] = {-MAGIC * scale.x, -MAGIC * scale.y};
#pragma unroll
                    for (int i = 0; i < M; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++) s[i][n][e] = fmaf(s[i][n][e], e % 2 ? scale.y : scale.x, less[e % 2]);
                }
                if (key0 + HALF > p.tokens) hide_missing(s, key0, p.tokens);
                u32 weights[M][2][4];
                softmax_step<false, pack_f16>(weights, s, m, l, o, unit);
                add_values(o, weights, shared + turned + stage + K_BYTES + (half * HALF + lane % 16) * (HEAD * 2), factor);
            }
        }
        __syncthreads();
        store_rows<HEAD, M>(p, memory, o, l, first, out, row0, HEAD / 8);
    }
};

KERNEL(128, 2)
attention_d128_int8_sm80(const u8* __restrict__ q, const u8* __restrict__ k, const u8* __restrict__ v,
                         const float* __restrict__ q_scales, const float* __restrict__ k_scales, const float* __restrict__ v_scales,
                         bf16* first, bf16* out, const __grid_constant__ Params p) {
    Int8Attention::run(q, k, v, q_scales, k_scales, v_scales, first, out, p);
}
