// out = softmax(q . k^T * scale) . v for each image and head, head dimension 128, on Hopper's
// asynchronous tensor cores.
//
// q, k, v: batch*tokens x heads*128 windows in bf16, read by TMA; out: the same shape, the first
// `first` tokens of each image may be stored in another matrix. A block takes 128 queries of a head
// at a time: two consumer warpgroups own 64 rows each, scores (64 x 128) and outputs (64 x 128)
// stay in their registers, a producer brings tiles of 128 keys and values (32 KB each) through two
// rings of 2.
//
// The products of a tile are 4 x 64 x 128 x 128 multiply-adds for both warpgroups, 2048 clocks of
// the tensor cores at the full rate. Their 16384 exponentials take 1024 clocks of the special
// function units and the rest of the softmax about 500 issue slots, so it must overlap with
// products: while a warpgroup computes the softmax of tile i, its own product P(i-1).V(i-1) runs,
// and named barriers keep the two warpgroups half a turn apart. A tile takes 64 KB from L2: 5 TB/s
// over all processors at 650 TFLOP/s. Blocks are persistent: the next queries and keys load while
// results are stored. 1 block per processor, 160 KB of shared memory. Lower bound of the time: 4
// tokens^2 heads 128 / 989 TFLOP/s.
//
// The tiles of keys are processed from the last to the first, so that only the first one processed
// can be incomplete. Its missing keys have the probability zero. The rows of v that TMA reads for
// them belong to the next image or are zeros, and must be finite.
#include "hopper.cuh"

enum : u32 { QUERIES = 128, KEYS = 128, STAGES = 2 };
enum : u32 { TILE = 128 * 256, HALF = TILE / 2 };  // Bytes of a 128 x 128 tile: two boxes of 128 rows x 64 columns.
// Shared memory: queries, the rings of keys and of values, barriers.
enum : u32 { AT_K = TILE, AT_V = AT_K + STAGES * TILE, AT_BARRIERS = AT_V + STAGES * TILE };

#define MINUS_INFINITY __int_as_float(0xff800000)

struct Params {
    u32 heads, queries, tokens, first;
    u32 query_tiles, key_tiles, tiles;  // Of one head of one image (query_tiles also of all rows); of all heads and images.
    u32 out_stride, first_stride;
    float scale;  // Times log2(e).
};

struct Place {
    u32 query, head, picture;
};
DEVICE Place place(u32 tile, const Params& p) {
    u32 rest = tile / p.query_tiles;
    return {tile % p.query_tiles * QUERIES, rest % p.heads, rest / p.heads};
}

struct Barriers {
    u32 at;
    DEVICE u32 q_full() const { return at; }
    DEVICE u32 q_empty() const { return at + 8; }
    DEVICE u32 k_full(u32 slot) const { return at + 16 + 8 * slot; }
    DEVICE u32 k_empty(u32 slot) const { return at + 16 + 8 * (STAGES + slot); }
    DEVICE u32 v_full(u32 slot) const { return at + 16 + 8 * (2 * STAGES + slot); }
    DEVICE u32 v_empty(u32 slot) const { return at + 16 + 8 * (3 * STAGES + slot); }
};

DEVICE void load_tile(u32 to, const TensorMap& map, u32 head, u32 row, u32 barrier) {
    barrier_expect(barrier, TILE);
    tma_load(to, map, head * 128, row, barrier);
    tma_load(to + HALF, map, head * 128 + 64, row, barrier);
}

DEVICE void produce(u32 shared, Barriers at, const TensorMap& q, const TensorMap& k, const TensorMap& v, const Params& p) {
    Ring<1> queries;
    Ring<STAGES> keys, values;
    for (u32 tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        Place o = place(tile, p);
        u32 start = o.picture * p.tokens;
        barrier_wait(at.q_empty(), queries.parity ^ 1);
        load_tile(shared, q, o.head, o.picture * p.queries + o.query, at.q_full());
        queries.next();
        // Values are loaded one tile later than keys, because they are used later.
        for (u32 i = p.key_tiles + 1; i-- > 0;) {
            if (i > 0) {
                barrier_wait(at.k_empty(keys.slot), keys.parity ^ 1);
                load_tile(shared + AT_K + keys.slot * TILE, k, o.head, start + (i - 1) * KEYS, at.k_full(keys.slot));
                keys.next();
            }
            if (i < p.key_tiles) {
                barrier_wait(at.v_empty(values.slot), values.parity ^ 1);
                load_tile(shared + AT_V + values.slot * TILE, v, o.head, start + i * KEYS, at.v_full(values.slot));
                values.next();
            }
        }
    }
}

// s = q . k^T, committed as one group.
DEVICE void start_scores(float (&s)[64], u32 q, u32 k) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        u32 at = i / 4 * HALF;
        wgmma_bf16(s, rows_descriptor(q + at) + i % 4 * 2, rows_descriptor(k + at) + i % 4 * 2, i > 0);
    }
    wgmma_commit();
}

// o += p . v, committed as one group.
DEVICE void start_output(float (&o)[64], const u32 (&p)[8][4], u32 v) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) wgmma_bf16_columns(o, p[i], columns_descriptor(v, HALF) + i * 128, 1);
    wgmma_commit();
}

// Turns scores into probabilities relative to the greatest score so far, and rescales `sum` (this
// lane's part) to it. Returns the factors for the earlier sums, one for each of the lane's two
// rows.
DEVICE float2 softmax(float (&s)[64], float (&most)[2], float (&sum)[2], float scale) {
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = most[h];
#pragma unroll
        for (int j = 0; j < 16; j++) top = fmaxf(top, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        float shift = top * scale;
        factor[h] = exp2_fast(most[h] * scale - shift);
        most[h] = top;
        float part = 0.f;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            float a = exp2_fast(s[4 * j + 2 * h] * scale - shift), b = exp2_fast(s[4 * j + 2 * h + 1] * scale - shift);
            s[4 * j + 2 * h] = a, s[4 * j + 2 * h + 1] = b;
            part += a + b;
        }
        sum[h] = sum[h] * factor[h] + part;
    }
    return {factor[0], factor[1]};
}

// The accumulators of one product, rounded, are the A operand of the next.
DEVICE void pack(u32 (&p)[8][4], const float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; i++) p[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

DEVICE void store_rows(bf16* out, bf16* out_first, const float (&o)[64], const float (&sum)[2], Place at, u32 row, const Params& p) {
    u32 quad_lane = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = sum[h];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        float factor = 1.f / total;
        u32 token = at.query + row + 8 * h;
        bf16* to = token < p.first ? out_first + (size_t)(at.picture * p.first + token) * p.first_stride
                                   : out + (size_t)(at.picture * (p.queries - p.first) + token - p.first) * p.out_stride;
        to += at.head * 128 + 8 * quad_lane;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            u32 v[4];
#pragma unroll
            for (int j = 0; j < 4; j++) v[j] = pack_bf16(o[16 * c + 4 * j + 2 * h] * factor, o[16 * c + 4 * j + 2 * h + 1] * factor);
            quad_transpose(v, quad_lane);
            if (token < p.queries) *reinterpret_cast<uint4*>(to + 32 * c) = make_uint4(v[0], v[1], v[2], v[3]);
        }
    }
}

DEVICE void consume(u32 shared, Barriers at, bf16* out, bf16* out_first, const Params& p) {
    u32 group = warpgroup() - 1, lane = threadIdx.x % 32;
    u32 row = 64 * group + threadIdx.x % 128 / 32 * 16 + lane / 4;
    u32 q = shared + group * 64 * 128;
    auto release = [&](u32 barrier) {
        if (lane == 0) barrier_arrive(barrier);
    };
    Ring<1> queries;
    Ring<STAGES> keys, values;
    // The turns: a warpgroup starts its products when the other has started its own. The first turn
    // is warpgroup 0's.
    if (group == 1) named_arrive(1, 256);
    for (u32 tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        float s[64], o[64], most[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.f, 0.f};
        u32 probability[8][4];
        // Set to zero here and not by the predicate of the first product: ptxas serialises products
        // whose accumulators are undefined.
#pragma unroll
        for (int i = 0; i < 64; i++) o[i] = 0.f;

        barrier_wait(at.q_full(), queries.parity);
        barrier_wait(at.k_full(keys.slot), keys.parity);
        wgmma_fence();
        start_scores(s, q, shared + AT_K + keys.slot * TILE);
        wgmma_wait<0>();
        wgmma_complete(s);
        if (p.key_tiles == 1) release(at.q_empty());
        release(at.k_empty(keys.slot));
        keys.next();
        u32 valid = p.tokens - (p.key_tiles - 1) * KEYS;
        if (valid < KEYS) {
#pragma unroll
            for (int i = 0; i < 64; i++) {
                if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= valid) s[i] = MINUS_INFINITY;
            }
        }
        softmax(s, most, sum, p.scale);
        pack(probability, s);

        for (u32 i = 1; i < p.key_tiles; i++) {
            barrier_wait(at.k_full(keys.slot), keys.parity);
            named_sync(1 + group, 256);
            wgmma_fence();
            start_scores(s, q, shared + AT_K + keys.slot * TILE);
            barrier_wait(at.v_full(values.slot), values.parity);
            wgmma_fence();
            start_output(o, probability, shared + AT_V + values.slot * TILE);
            named_arrive(2 - group, 256);
            wgmma_wait<1>();
            wgmma_complete(s);
            // The next tile's queries load while this one is finished.
            if (i + 1 == p.key_tiles) release(at.q_empty());
            release(at.k_empty(keys.slot));
            keys.next();
            float2 factor = softmax(s, most, sum, p.scale);
            // Both are at least 1: the exponential of the largest score is.
            wgmma_wait_not_before(sum[0] + sum[1]);
            wgmma_wait<0>();
            wgmma_complete(o);
            release(at.v_empty(values.slot));
            values.next();
#pragma unroll
            for (int k = 0; k < 64; k++) o[k] *= k / 2 % 2 ? factor.y : factor.x;
            pack(probability, s);
        }
        queries.next();
        barrier_wait(at.v_full(values.slot), values.parity);
        wgmma_fence();
        start_output(o, probability, shared + AT_V + values.slot * TILE);
        wgmma_wait<0>();
        wgmma_complete(o);
        release(at.v_empty(values.slot));
        values.next();
        store_rows(out, out_first, o, sum, place(tile, p), row, p);
    }
    // Takes the last turn, which is not needed, so that the barrier is complete at the end.
    if (group == 0) named_sync(1, 256);
}

KERNEL(384, 1)
attention_d128_wgmma_sm90a(bf16* __restrict__ out, bf16* __restrict__ out_first, const __grid_constant__ TensorMap q,
                           const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v, const __grid_constant__ Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    u32 shared = shared_address(memory);
    Barriers at = {shared + AT_BARRIERS};
    if (threadIdx.x == 0) {
        // Eight consumer warps release a slot.
        barrier_init(at.q_full(), 1), barrier_init(at.q_empty(), 8);
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(at.k_full(i), 1), barrier_init(at.k_empty(i), 8);
            barrier_init(at.v_full(i), 1), barrier_init(at.v_empty(i), 8);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_fewer<24>();
        if (threadIdx.x == 0) produce(shared, at, q, k, v, p);
    } else {
        registers_more<240>();
        consume(shared, at, out, out_first, p);
    }
}
