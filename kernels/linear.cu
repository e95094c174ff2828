// out = tail(x . (scales * w)^T + t . b^T + bias): x rows x K in bf16, w N x K in bf16, f16, e4m3,
// e5m2 or i8 (in blocks: linear_blocks.cu), sums in f32, out rows x N in bf16 or f32; t . b^T is
// the side branch of a LoRA, which most products do not have (linear_side.cuh).
//
// linear_*_128x128: 2 x 2 warps of 64x64. A step of 32 k costs a warp 64 mma.sync, 16 vector loads
//   from shared memory and, for 8-bit weights, 3 instructions per weight and lane: 5 issue slots
//   per mma (bf16: 2), where GeForce tensor cores take 32 cycles and an A100's 8. A block reads 16
//   KiB (8-bit: 12) per 2,048 tensor cycles of a GeForce, so L2 and memory are far from their
//   limits. Two blocks share a multiprocessor (48 KiB, at most 256 registers a thread), so that one
//   multiplies while the other starts, waits or finishes.
// linear_*_64x64: 2 x 2 warps of 32x32, four blocks per multiprocessor, for outputs that are too
//   small for large tiles. Both divide k into splits if the device can run more blocks than there
//   are tiles; linear_reduce then adds the partial sums in order.
// linear_*_rows16: few rows, see linear_few.cuh.
// linear_any: any alignment and strides, element by element, for sizes that models do not have.
#include "linear_kernels.cuh"

TILED(bf16, BF16)
TILED(f16, F16)
TILED(e4m3, E4M3)
TILED(e5m2, E5M2)
TILED(i8, I8)

// Adds the splits' partial sums, each rows x n (rows padded to 4 floats), and finishes. grid: (n /
// 512, rows or fewer), 128 threads.
KERNEL(128, 4) linear_reduce_sm80(OPERANDS) {
    u32 pitch = (p.n + 3) / 4 * 4, col = (blockIdx.x * 128 + threadIdx.x) * 4;
    if (col >= p.n) return;
    Columns c = load_columns(p, OUT, col);
    size_t split = (size_t)p.rows * pitch;
    for (u32 row = blockIdx.y; row < p.rows; row += gridDim.y) {
        uint4 raw = fetch_residual(p, OUT, row, col);
        const float* from = partials + (size_t)row * pitch + col;
        float4 y = make_float4(0.f, 0.f, 0.f, 0.f);
        for (u32 s = 0; s < p.splits; s++) {
            float4 v = *reinterpret_cast<const float4*>(from + s * split);
            y.x += v.x, y.y += v.y, y.z += v.z, y.w += v.w;
        }
        finish_row(p, OUT, row, c, y, raw);
    }
}

// One weight as the bits of a bf16.
DEVICE u16 weight(const u8* w, size_t i, u32 dtype) {
    u32 first, second;
    switch (dtype) {
        case BF16: return reinterpret_cast<const u16*>(w)[i];
        case F16: return (u16)halves_to_bf16(reinterpret_cast<const u16*>(w)[i]);
        case E5M2: return (u16)halves_to_bf16((u32)w[i] << 8);
        case I8: return (u16)Weights<I8>::pair(w[i]);
        default: Weights<E4M3>::unpack(w[i], first, second); return (u16)first;
    }
}

// 64x64 like the tiles above, but every element is loaded and converted separately (weights in
// blocks by units), without a pipeline.
KERNEL(128, 4) linear_any_sm80(OPERANDS) {
    constexpr int B = 64, MJ = B / 8 / WARPS_M, NI = B / 16 / WARPS_N;
    __shared__ Table table;
    u8* shared = dynamic_shared();
    u32 base = shared_address(shared), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    TilePlace place = tile_place<B, B>(p, blockIdx.x);
    Multiply<BF16, MJ, NI> multiply(base, base + B * X_PITCH);
    float acc[NI][MJ][4] = {};
    bool blocks = p.w_dtype >= Q8_0;
    if (blocks) table.fill(p.w_dtype);
    FeedBlocks<B> feed(w, place.col, 0, p, base + B * X_PITCH);
    // First x and w, then t and b.
#pragma unroll 1
    for (u32 part = 0; part < (p.rank ? 2 : 1); part++) {
        const u16* from = part ? t : reinterpret_cast<const u16*>(x);
        const u8* weights = part ? reinterpret_cast<const u8*>(b) : w;
        u32 stride = part ? p.t_stride : p.x_stride, pitch = part ? p.b_stride : p.w_stride;
        u32 k = part ? p.rank : p.k, dtype = part ? p.b_dtype : p.w_dtype;
        if (part) scale_columns(acc, scales, place.col + warp / WARPS_M * NI * 16 + lane / 4, p.n);
#pragma unroll 1
        for (u32 k0 = 0; k0 < k; k0 += STEP) {
            __syncthreads();
            bool units = blocks && !part, inside = k0 + lane < k;
            if (units) feed.fetch(p), feed.put(0, dtype, table);
#pragma unroll 2
            for (u32 r = warp; r < B; r += THREADS / 32) {
                u32 row = place.row + r, col = place.col + r;
                u16* to = reinterpret_cast<u16*>(shared + chunk_place<X_PITCH>(r, lane / 8) + lane % 8 * 2);
                to[0] = inside && row < p.rows ? from[(size_t)row * stride + k0 + lane] : (u16)0;
                if (!units) to[B * STEP] = inside && col < p.n ? weight(weights, (size_t)col * pitch + k0 + lane, dtype) : (u16)0;
            }
            __syncthreads();
            multiply.step(acc, 0);
        }
    }
    float* stage = reinterpret_cast<float*>(shared);
    __syncthreads();
    stage_rows<B, 0, MJ>(stage, acc);
    __syncthreads();
    finish_tile<B, B, THREADS, 4>(p, OUT, stage, place.row, place.col);
}
