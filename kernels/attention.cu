// attention: out = softmax(scale q . k^T + bias) . v, for each image and head; bf16 in and out, f32
// sums, sm_80.
//
// k, v are windows of `batch*tokens` rows and `heads*head_dim` columns, q and out of
// `batch*queries`; the rows of the first n tokens of each image may be stored in another matrix
// than the others. bias: `(2*tokens - 1) x heads`, row j - i + tokens - 1 is added to query i, key
// j.
//
// attention_d128   FLUX: 4608 tokens, 24 heads of 128. Up to 128 columns a head, neither bias nor
//     causal. 128 query rows, 4 warps of 32; tiles of 32 keys. With 32 KB of shared memory and at
//     most 255 registers, two blocks share a multiprocessor: each of its quarters has one warp of
//     each block, and one multiplies while the other computes softmax weights. A tile is 128 mma in
//     a warp, some 285 other instructions, and 32 ldmatrix (128 wavefronts). GeForce takes 32
//     cycles per mma with f32 sums, 8192 for the two warps of a quarter: it could issue ten times
//     the instructions, and shared memory is busy for a sixth of that time, so the tensor cores
//     alone are the limit: 0.26 TFLOP in 10.2 ms on a 3060 (25.5 TFLOPS). An A100 takes 8 cycles,
//     2048 in all: there shared memory is busy for 1280, and would be for 2304 with 16 rows a warp,
//     because a fragment of K or V is then multiplied with one fragment of Q or of the weights
//     instead of two. A block reads 16 KB per tile from L2: 4 bytes a cycle and multiprocessor on
//     GeForce.
// attention_d128_masked   Qwen3 (up to 512 tokens, causal): up to 128 columns a head, with a bias or
//     a causal mask. 64 query rows, 4 warps of 16, tiles of 32 keys.
// attention_d64    CLIP (77 tokens, causal) and T5 (up to 512, bias): up to 64 columns, 64 query
//     rows, so that short texts give enough blocks, 4 warps of 16, tiles of 64 keys. A tile needs
//     the biases of 127 diagonals: one per thread.
// attention_d512   the VAE's mid block; see attention_wide.cuh.
// attention_any    everything else, one warp a row, without tensor cores.
#include "attention_flash.cuh"
#include "attention_wide.cuh"

KERNEL(128, 2)
attention_d128(const bf16* q, const bf16* k, const bf16* v, const void* bias, bf16* first, bf16* out, const Params p) {
    Flash<128, 2, 4, 32, 32, false>::run(q, k, v, bias, first, out, p);
}

// With a bias or a causal mask, as language models have it.
KERNEL(128, 2)
attention_d128_masked(const bf16* q, const bf16* k, const bf16* v, const void* bias, bf16* first, bf16* out, const Params p) {
    Flash<128, 1, 4, 32, 32, true>::run(q, k, v, bias, first, out, p);
}

KERNEL(128, 2)
attention_d64(const bf16* q, const bf16* k, const bf16* v, const void* bias, bf16* first, bf16* out, const Params p) {
    Flash<64, 1, 4, 64, 64, true>::run(q, k, v, bias, first, out, p);
}

KERNEL(256, 1)
attention_d512(const bf16* q, const bf16* k, const bf16* v, const void* bias, bf16* first, bf16* out, const Params p) {
    Wide::run(q, k, v, first, out, p);
}

// A warp computes one row of one head. Lane l owns columns l, l + 32, ... of the query and of the
// sums, which are in shared memory because there may be many of them (up to 1024). No lane reads
// the columns of another. Keys are taken eight at a time: a query value is read once for eight
// products, and the sums are rescaled once for eight keys. grid.x counts groups of WARPS tokens
// fastest, then heads, then images.
KERNEL(128, 4)
attention_any(const bf16* q, const bf16* k, const bf16* v, const void* bias, bf16* first, bf16* out, const Params p) {
    constexpr u32 WARPS = 4, COLUMNS = 1024, KEYS = 8;
    __shared__ float queries[WARPS][COLUMNS], sums[WARPS][COLUMNS];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 groups = (p.queries + WARPS - 1) / WARPS;
    const u32 token = blockIdx.x % groups * WARPS + warp, head = blockIdx.x / groups % p.heads, picture = blockIdx.x / groups / p.heads;
    if (token >= p.queries) return;
    const size_t top = (size_t)picture * p.tokens, column = (size_t)head * p.head_dim;
    q += ((size_t)picture * p.queries + token) * p.q_stride + column;
    k += top * p.k_stride + column;
    v += top * p.v_stride + column;
    for (u32 d = lane; d < p.head_dim; d += 32) {
        queries[warp][d] = __bfloat162float(q[d]);
        sums[warp][d] = 0.f;
    }

    const u32 visible = p.causal ? token + 1 : p.tokens;
    float m = LEAST, l = 0.f;
    for (u32 key0 = 0; key0 < visible; key0 += KEYS) {
        // In place of keys after the last visible one, that key is read, with the weight 0.
        u32 key[KEYS];
        float s[KEYS] = {};
#pragma unroll
        for (u32 j = 0; j < KEYS; j++) key[j] = min(key0 + j, visible - 1);
        for (u32 d = lane; d < p.head_dim; d += 32)
#pragma unroll
            for (u32 j = 0; j < KEYS; j++) s[j] = fmaf(queries[warp][d], __bfloat162float(k[(size_t)key[j] * p.k_stride + d]), s[j]);
        float raised = m;
#pragma unroll
        for (u32 j = 0; j < KEYS; j++) {
            const size_t diagonal = (size_t)key[j] + p.tokens - 1 - token;
            const float add = bias ? load_element(bias, diagonal * p.bias_stride + head, p.bias_type) : 0.f;
            s[j] = fmaf(warp_sum(s[j]), p.scale, add);
            if (key0 + j >= visible) s[j] = -infinity();
            raised = fmaxf(raised, s[j]);
        }
        const float shrink = exp2_fast((m - raised) * LOG2_E);
        m = raised;
        l *= shrink;
#pragma unroll
        for (u32 j = 0; j < KEYS; j++) {
            s[j] = exp2_fast((s[j] - m) * LOG2_E);
            l += s[j];
        }
        for (u32 d = lane; d < p.head_dim; d += 32) {
            float sum = sums[warp][d] * shrink;
#pragma unroll
            for (u32 j = 0; j < KEYS; j++) sum = fmaf(s[j], __bfloat162float(v[(size_t)key[j] * p.v_stride + d]), sum);
            sums[warp][d] = sum;
        }
    }
    bf16* const row = out_row(p, out, first, picture, token) + column;
    for (u32 d = lane; d < p.head_dim; d += 32) row[d] = __float2bfloat16_rn(sums[warp][d] / l);
}
