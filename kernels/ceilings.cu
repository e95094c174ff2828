// The two rates that every other kernel is compared with, measured on the device in use: how fast
// its tensor cores multiply when nothing else limits them, and how fast its memory copies. They are
// measured, not taken from a data sheet: they include clocks, power limits and the halved
// accumulation rates of consumer cards.
#include "common.cuh"

struct CeilingParams {
    u32 rounds;   // multiplications of each warp, in units of 16
    u32 vectors;  // 16-byte vectors to copy
};

// out: one float for each thread, so that the work is not removed. Sixteen independent accumulators
// hide the latency of an mma; operands never change, so the tensor cores are fed from registers
// alone. Work: blocks * 8 warps * rounds * 16 * 4096 flop.
KERNEL(256, 1) ceiling_mma_bf16(float* __restrict__ out, const CeilingParams p) {
    u32 a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = pack_bf16(1.f + threadIdx.x % 3, .5f);
#pragma unroll
    for (int i = 0; i < 2; i++) b[i] = pack_bf16(.25f, 1.f + threadIdx.x % 5);
    float c[16][4];
#pragma unroll
    for (int i = 0; i < 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) c[i][j] = 0.f;
    for (u32 r = 0; r < p.rounds; r++) {
#pragma unroll
        for (int i = 0; i < 16; i++) mma_bf16(c[i], a, b[0], b[1]);
    }
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 16; i++) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
    out[(size_t)blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// to[i] = from[i], 16 bytes a thread and step, four steps in flight. Bytes moved: 32 * vectors.
KERNEL(256, 4) ceiling_copy(const uint4* __restrict__ from, uint4* __restrict__ to, const CeilingParams p) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < p.vectors; i += 4 * stride) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
        for (int j = 0; j < 4; j++) __stcs(to + i + j * stride, v[j]);
    }
    for (; i < p.vectors; i += stride) to[i] = from[i];
}
