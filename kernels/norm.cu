// Normalisations of rows, and the operations that are fused with them:
//
//   layer_norm_modulate   out = (1 + scale[group]) * (x - mean) / sqrt(variance + eps) +
//   shift[group]
//   layer_norm            out = (x - mean) / sqrt(variance + eps) * weight + bias
//   rms_norm              out = x / sqrt(mean(x^2) + eps) * weight
//   qk_norm_rope          rms_norm over each head of q and k, then a rotation of pairs; v is copied
//
// x, out: rows x cols; shift, scale: groups x cols; weight, bias, gains: f32. `out` may be `x`, so
// nothing is `__restrict__`.
//
// Roofline: about ten operations per element and 4 bytes moved in bf16, so memory is the limit
// everywhere; 4608 x 3072 is 57 MB, 17 us on an H100 and 160 us on an RTX 3060. The `_bf16` kernels
// therefore read and write each element once, 16 bytes at a time, and keep the row in registers in
// between. A block of 128 threads has one row: with 4 vectors of 8 elements a thread that is up to
// 4096 columns (T5), and FLUX's 3072 columns are exactly 3 vectors for each thread. A row waits for
// its loads and two barriers, but 8 or more blocks share a multiprocessor with 48 KB in flight, and
// 15 KB hide the latency of an H100. One row per warp would need no barrier, but 64 registers for
// the row alone and an unrolled copy of the code for each width.
//
// The variance is computed in a second pass over the registers: E[x^2] - E[x]^2 loses precision if
// the mean is large. Sums run in a fixed order, so results are bitwise the same in every run.
//
// The `_any` kernels accept every width, alignment and mix of bf16 and f32, one element at a time.

#include "common.cuh"

// A thread holds VECTORS vectors of 8 elements: rows of up to 4096 columns.
enum : u32 { THREADS = 128, WARPS = THREADS / 32, VECTORS = 4 };

struct NormParams {
    u32 cols;
    u32 x_stride, out_stride, shift_stride, scale_stride;
    // Rows of x for each row of shift and of scale.
    u32 shift_rows, scale_rows;
    u32 x_type, out_type, shift_type, scale_type;
    float eps;
    // 1 / cols
    float inverse_cols;
};

DEVICE void unpack(const uint4& v, float (&f)[8]) {
    f[0] = bf16_low(v.x), f[1] = bf16_high(v.x);
    f[2] = bf16_low(v.y), f[3] = bf16_high(v.y);
    f[4] = bf16_low(v.z), f[5] = bf16_high(v.z);
    f[6] = bf16_low(v.w), f[7] = bf16_high(v.w);
}
DEVICE uint4 pack(const float (&f)[8]) {
    return make_uint4(pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]), pack_bf16(f[4], f[5]), pack_bf16(f[6], f[7]));
}
// Eight f32 from an address that is a multiple of 16. A warp's two loads use the same sectors; the
// second finds them in L1, where gains and rotations, a few kilobytes for all rows, stay anyway.
DEVICE void load_f32(const float* p, float (&f)[8]) {
    const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    f[0] = a.x, f[1] = a.y, f[2] = a.z, f[3] = a.w;
    f[4] = b.x, f[5] = b.y, f[6] = b.z, f[7] = b.w;
}

// The sum over the block, for all of its threads. `partial` must not have been used before: then
// one barrier is enough.
DEVICE float block_sum(float v, float (&partial)[WARPS]) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = partial[0];
#pragma unroll
    for (u32 i = 1; i < WARPS; i++) sum += partial[i];
    return sum;
}

// The operation after a norm: `vector` changes the 8 elements from `column` on, `element` the one
// at `column`.

struct Modulation {
    const bf16 *shift, *scale;
    DEVICE void vector(u32 column, float (&y)[8]) const {
        float a[8], b[8];
        unpack(*reinterpret_cast<const uint4*>(scale + column), a);
        unpack(*reinterpret_cast<const uint4*>(shift + column), b);
#pragma unroll
        for (u32 i = 0; i < 8; i++) y[i] = (1.f + a[i]) * y[i] + b[i];
    }
};

struct ModulationAny {
    const void *shift, *scale;
    size_t shift_at, scale_at;
    u32 shift_type, scale_type;
    DEVICE float element(u32 column, float y) const {
        return (1.f + load_element(scale, scale_at + column, scale_type)) * y + load_element(shift, shift_at + column, shift_type);
    }
};

struct Affine {
    const float *weight, *bias;
    DEVICE void vector(u32 column, float (&y)[8]) const {
        float a[8], b[8];
        load_f32(weight + column, a);
        load_f32(bias + column, b);
#pragma unroll
        for (u32 i = 0; i < 8; i++) y[i] = y[i] * a[i] + b[i];
    }
    DEVICE float element(u32 column, float y) const { return y * weight[column] + bias[column]; }
};

struct Gain {
    const float* weight;
    DEVICE void vector(u32 column, float (&y)[8]) const {
        float a[8];
        load_f32(weight + column, a);
#pragma unroll
        for (u32 i = 0; i < 8; i++) y[i] *= a[i];
    }
    DEVICE float element(u32 column, float y) const { return y * weight[column]; }
};

// Row blockIdx.x by the whole block, held in registers. `CENTRED`: subtract the mean (layer norm),
// or not (RMS norm).
template <bool CENTRED, class Then> DEVICE void norm_bf16(const bf16* x, bf16* out, const NormParams& p, const Then& then) {
    __shared__ float partial[2][WARPS];
    const bf16* from = x + (size_t)blockIdx.x * p.x_stride;
    bf16* to = out + (size_t)blockIdx.x * p.out_stride;

    uint4 held[VECTORS];
    float sum = 0.f, mean = 0.f;
#pragma unroll
    for (u32 j = 0; j < VECTORS; j++) {
        const u32 column = (j * THREADS + threadIdx.x) * 8;
        held[j] = column < p.cols ? *reinterpret_cast<const uint4*>(from + column) : make_uint4(0, 0, 0, 0);
    }
    if (CENTRED) {
#pragma unroll
        for (u32 j = 0; j < VECTORS; j++) {
            float f[8];
            unpack(held[j], f);
            sum += ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
        }
        mean = block_sum(sum, partial[0]) * p.inverse_cols;
    }
    float squares = 0.f;
#pragma unroll
    for (u32 j = 0; j < VECTORS; j++) {
        // The zeros beyond the row are not added: their difference from the mean is not zero.
        if ((j * THREADS + threadIdx.x) * 8 < p.cols) {
            float f[8];
            unpack(held[j], f);
#pragma unroll
            for (u32 i = 0; i < 8; i++) squares += (f[i] - mean) * (f[i] - mean);
        }
    }
    const float inverse = rsqrtf(block_sum(squares, partial[1]) * p.inverse_cols + p.eps);
#pragma unroll
    for (u32 j = 0; j < VECTORS; j++) {
        const u32 column = (j * THREADS + threadIdx.x) * 8;
        if (column < p.cols) {
            float f[8];
            unpack(held[j], f);
#pragma unroll
            for (u32 i = 0; i < 8; i++) f[i] = (f[i] - mean) * inverse;
            then.vector(column, f);
            *reinterpret_cast<uint4*>(to + column) = pack(f);
        }
    }
}

// The same for every type, width and alignment; the row is read once for each pass.
template <bool CENTRED, class Then> DEVICE void norm_any(const void* x, void* out, const NormParams& p, const Then& then) {
    __shared__ float partial[2][WARPS];
    const size_t from = (size_t)blockIdx.x * p.x_stride, to = (size_t)blockIdx.x * p.out_stride;
    float mean = 0.f;
    if (CENTRED) {
        float sum = 0.f;
        for (u32 c = threadIdx.x; c < p.cols; c += THREADS) sum += load_element(x, from + c, p.x_type);
        mean = block_sum(sum, partial[0]) * p.inverse_cols;
    }
    float squares = 0.f;
    for (u32 c = threadIdx.x; c < p.cols; c += THREADS) {
        const float d = load_element(x, from + c, p.x_type) - mean;
        squares += d * d;
    }
    const float inverse = rsqrtf(block_sum(squares, partial[1]) * p.inverse_cols + p.eps);
    // In place, this thread overwrites only elements that no other thread still reads: the barrier
    // ended the other passes.
    for (u32 c = threadIdx.x; c < p.cols; c += THREADS) {
        const float y = (load_element(x, from + c, p.x_type) - mean) * inverse;
        store_element(out, to + c, p.out_type, then.element(c, y));
    }
}

KERNEL(THREADS, 8) layer_norm_modulate_bf16_sm80(const bf16* x, const bf16* shift, const bf16* scale, bf16* out, NormParams p) {
    const Modulation then = {shift + (size_t)(blockIdx.x / p.shift_rows) * p.shift_stride,
                             scale + (size_t)(blockIdx.x / p.scale_rows) * p.scale_stride};
    norm_bf16<true>(x, out, p, then);
}
KERNEL(THREADS, 8) layer_norm_modulate_any_sm80(const void* x, const void* shift, const void* scale, void* out, NormParams p) {
    const ModulationAny then = {shift, scale, (size_t)(blockIdx.x / p.shift_rows) * p.shift_stride,
                                (size_t)(blockIdx.x / p.scale_rows) * p.scale_stride, p.shift_type, p.scale_type};
    norm_any<true>(x, out, p, then);
}
KERNEL(THREADS, 8) layer_norm_bf16_sm80(const bf16* x, const float* weight, const float* bias, bf16* out, NormParams p) {
    norm_bf16<true>(x, out, p, Affine{weight, bias});
}
KERNEL(THREADS, 8) layer_norm_any_sm80(const void* x, const float* weight, const float* bias, void* out, NormParams p) {
    norm_any<true>(x, out, p, Affine{weight, bias});
}
KERNEL(THREADS, 8) rms_norm_bf16_sm80(const bf16* x, const float* weight, bf16* out, NormParams p) {
    norm_bf16<false>(x, out, p, Gain{weight});
}
KERNEL(THREADS, 8) rms_norm_any_sm80(const void* x, const float* weight, void* out, NormParams p) {
    norm_any<false>(x, out, p, Gain{weight});
}

struct QkNormRopeParams {
    // Rows of qkv, and how many of them belong to one image.
    u32 rows, count;
    // Row t of an image's `count` becomes row first + t of its `tokens` rows of out.
    u32 tokens, first;
    u32 heads, head_dim;
    // Heads of k and of v in qkv; out has `heads` of each. 1 if pair c is columns c and c +
    // head_dim / 2.
    u32 kv_heads, halves;
    // Columns of out to work on: 3 * heads * head_dim, or a third less in place, where v is
    // unchanged.
    u32 cols;
    u32 qkv_stride, rope_stride, out_stride;
    u32 qkv_type, out_type;
    float eps;
    // 1 / head_dim
    float inverse_dim;
};

// One row of qkv by a block; kv_heads == heads, adjacent pairs. head_dim / 8 neighbouring lanes
// hold a head, 8 elements each (four pairs); that must be a power of two up to 32, so that a lane
// has the same pairs of every head and keeps their cosines and sines. Three vectors are requested
// before the first is used: 384 vectors are FLUX's q (24 heads of 128), then k, then v.
KERNEL(THREADS, 8) qk_norm_rope_bf16_sm80(const bf16* qkv, const float* q_gain, const float* k_gain, const float* rope, bf16* out,
                                          QkNormRopeParams p) {
    constexpr u32 AT_ONCE = 3;
    const u32 token = p.first + blockIdx.x % p.count;
    const bf16* from = qkv + (size_t)blockIdx.x * p.qkv_stride;
    bf16* to = out + ((size_t)(blockIdx.x / p.count) * p.tokens + token) * p.out_stride;
    const u32 lanes = p.head_dim / 8, first = (threadIdx.x & (lanes - 1)) * 8, width = p.heads * p.head_dim;
    float turn[8];
    load_f32(rope + (size_t)token * p.rope_stride + first, turn);

    for (u32 start = 0; start < p.cols; start += AT_ONCE * THREADS * 8) {
        uint4 held[AT_ONCE];
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            const u32 column = start + (j * THREADS + threadIdx.x) * 8;
            held[j] = column < p.cols ? *reinterpret_cast<const uint4*>(from + column) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j++) {
            const u32 column = start + (j * THREADS + threadIdx.x) * 8;
            float f[8], gain[8];
            unpack(held[j], f);
            float squares = 0.f;
#pragma unroll
            for (u32 i = 0; i < 8; i++) squares += f[i] * f[i];
            // All lanes take part; lanes beyond the last column have zeros.
            for (u32 o = lanes / 2; o; o /= 2) squares += __shfl_xor_sync(~0u, squares, o);
            if (column >= p.cols) continue;
            if (column < 2 * width) {
                const float inverse = rsqrtf(squares * p.inverse_dim + p.eps);
                load_f32((column < width ? q_gain : k_gain) + first, gain);
#pragma unroll
                for (u32 i = 0; i < 8; i += 2) {
                    const float a = f[i] * inverse * gain[i], b = f[i + 1] * inverse * gain[i + 1];
                    f[i] = turn[i] * a - turn[i + 1] * b;
                    f[i + 1] = turn[i + 1] * a + turn[i] * b;
                }
                held[j] = pack(f);
            }
            *reinterpret_cast<uint4*>(to + column) = held[j];
        }
    }
}

// The head of qkv from which head `head` of out is made: k and v may have fewer heads than q.
DEVICE u32 source_head(u32 head, const QkNormRopeParams& p) {
    if (head < p.heads) return head;
    const u32 which = head / p.heads, i = head - which * p.heads;
    return p.heads + (which - 1) * p.kv_heads + i / (p.heads / p.kv_heads);
}

// One head of q, k or v of one row of out by a warp; a lane has every 32nd pair.
KERNEL(THREADS, 8) qk_norm_rope_any_sm80(const void* qkv, const float* q_gain, const float* k_gain, const float* rope, void* out,
                                         QkNormRopeParams p) {
    const u32 lane = threadIdx.x % 32, heads = p.cols / p.head_dim;
    const u64 task = (u64)blockIdx.x * WARPS + threadIdx.x / 32;
    const u64 row = task / heads;
    if (row >= p.rows) return;
    const u32 head = (u32)(task - row * heads);
    const u32 token = p.first + (u32)row % p.count;
    const size_t from = (size_t)row * p.qkv_stride + source_head(head, p) * p.head_dim;
    const size_t to = ((size_t)((u32)row / p.count) * p.tokens + token) * p.out_stride + head * p.head_dim;
    if (head >= 2 * p.heads) {
        for (u32 c = lane; c < p.head_dim; c += 32) store_element(out, to + c, p.out_type, load_element(qkv, from + c, p.qkv_type));
        return;
    }
    float squares = 0.f;
    for (u32 c = lane * 2; c < p.head_dim; c += 64) {
        const float a = load_element(qkv, from + c, p.qkv_type), b = load_element(qkv, from + c + 1, p.qkv_type);
        squares += a * a + b * b;
    }
    const float inverse = rsqrtf(warp_sum(squares) * p.inverse_dim + p.eps);
    const float* gain = head < p.heads ? q_gain : k_gain;
    const float* turn = rope + (size_t)token * p.rope_stride;
    for (u32 c = lane * 2; c < p.head_dim; c += 64) {
        // The columns of pair c / 2.
        const u32 one = p.halves ? c / 2 : c, two = p.halves ? (c + p.head_dim) / 2 : c + 1;
        const float a = load_element(qkv, from + one, p.qkv_type) * inverse * gain[one];
        const float b = load_element(qkv, from + two, p.qkv_type) * inverse * gain[two];
        store_element(out, to + one, p.out_type, turn[c] * a - turn[c + 1] * b);
        store_element(out, to + two, p.out_type, turn[c + 1] * a + turn[c] * b);
    }
}
