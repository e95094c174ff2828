// out = tail(x . (scales * w)^T + t . b^T + bias) on Hopper's asynchronous tensor cores (sm_90a). t
// . b^T is the side branch, which most products do not have: t (rows x rank) and b (n x rank) in
// bf16 pass through the same rings after the last slot of k, 64 of rank at a time.
//
// linear_bf16_wgmma: x and w in bf16. linear_e4m3_w8a8_wgmma: both in e4m3, x by `quantise_rows`.
// linear_e4m3_wgmma: x in bf16, w in e4m3, which the consumers convert to bf16 in registers.
//
// A block computes out^T: 128 columns of out (rows of w, the A operand) x ROWS rows of x (the B
// operand: 256, or 192 or 128 if the last round of tiles would leave many processors idle). Rows of
// w are A because only A can be read from registers, where 8-bit weights can be converted. Two
// consumer warpgroups have 64 columns each, a producer loads both operands by TMA through rings of
// 4 (128 bytes along k a slot: 32 KB of x, 16 KB of w). Blocks are persistent, so the first slots
// of the next tile load while results are stored.
//
// A slot of the large tile is 1024 clocks of the tensor cores (128 x 256 x 64 multiply-adds in
// bf16, 128 x 256 x 128 in FP8) for 48 KB from L2 (40 KB where only w has 8 bits): 800 TFLOP/s in
// bf16 would need 9 TB/s from L2 over all processors, which is probably the limit; clusters of two
// blocks that share w would need 6. Shared memory is read at 80 of its 128 bytes a clock in bf16
// (m64n256k16: 10 KB in 128 clocks), at 96 in FP8. Lower bounds of the time: 2 rows n k / 989
// TFLOP/s, 1979 in FP8.
//
// FP8 sums keep about 14 bits on the tensor cores of Hopper, so the sums of 128 products are added
// to f32 registers. That needs registers for the partial sums, so they are computed for 96 or 128
// rows at a time. While one warpgroup adds, the other multiplies.
#include "epilogue.cuh"
#include "hopper.cuh"
#include "linear_hopper_finish.cuh"
#include "linear_weights.cuh"
#include "quantise.cuh"

enum Operands { WEIGHTS_BF16, BOTH_E4M3, WEIGHTS_E4M3 };

enum : u32 { COLUMNS = 128, W_SLOT = COLUMNS * 128 };
// Elements along the rank in a slot of either operand of the side branch.
enum : u32 { SIDE_STEP = 64 };
template <Operands KIND, u32 ROWS> struct Layout {
    enum : u32 {
        // Elements along k in a slot of x and in a slot of w.
        X_STEP = KIND == BOTH_E4M3 ? 128 : 64,
        W_STEP = KIND == WEIGHTS_BF16 ? 64 : 128,
        X_PER_W = W_STEP / X_STEP,
        X_SLOT = ROWS * 128,
        X_SLOTS = ROWS == 128 ? 6 : 4,
        W_SLOTS = X_PER_W == 2 ? X_SLOTS / 2 + 1 : X_SLOTS,
        // The number of rows whose FP8 sums are computed at a time.
        SUM_ROWS = ROWS == 192 ? 96 : 128,
        // Offsets in shared memory: slots of x, slots of w, stages, then the barriers full and
        // empty of each slot of x, then of w.
        W = X_SLOTS * X_SLOT,
        STAGES = W + W_SLOTS * W_SLOT,
        BARRIERS = STAGES + 4 * STAGED * 4,
        BYTES = BARRIERS + 16 * (X_SLOTS + W_SLOTS),
    };
};

struct Slots {
    u32 x_full, x_empty, w_full, w_empty;
};
template <Operands KIND, u32 ROWS> DEVICE Slots slots(u32 shared) {
    typedef Layout<KIND, ROWS> L;
    u32 at = shared + L::BARRIERS;
    return {at, at + 8 * L::X_SLOTS, at + 16 * L::X_SLOTS, at + 16 * L::X_SLOTS + 8 * L::W_SLOTS};
}

// Eight tiles of rows go through all columns together, so that their x stays in L2 while w is read
// once.
template <u32 ROWS> DEVICE u32 tiles(const LinearParams& p) { return ((p.rows - 1) / ROWS + 1) * ((p.n - 1) / COLUMNS + 1); }
template <u32 ROWS> DEVICE Tile tile_at(u32 index, const LinearParams& p) {
    u32 down = (p.rows - 1) / ROWS + 1, across = (p.n - 1) / COLUMNS + 1;
    u32 group = index / (8 * across), within = index % (8 * across), height = min(8u, down - 8 * group);
    return {(8 * group + within % height) * ROWS, within / height * COLUMNS};
}

// Slots of w for all of k. If a slot of w has two slots of x, the second may be beyond k: zeros.
template <Operands KIND, u32 ROWS> DEVICE u32 w_steps(const LinearParams& p) { return (p.k - 1) / Layout<KIND, ROWS>::W_STEP + 1; }

template <Operands KIND, u32 ROWS>
DEVICE void produce(u32 shared, const TensorMap& x, const TensorMap& w, const TensorMap& t, const TensorMap& b, const LinearParams& p) {
    typedef Layout<KIND, ROWS> L;
    Slots at = slots<KIND, ROWS>(shared);
    Ring<L::X_SLOTS> xs;
    Ring<L::W_SLOTS> ws;
    u32 steps = w_steps<KIND, ROWS>(p);
    for (u32 i = blockIdx.x; i < tiles<ROWS>(p); i += gridDim.x) {
        Tile tile = tile_at<ROWS>(i, p);
        for (u32 step = 0; step < steps; step++) {
            barrier_wait(at.w_empty + 8 * ws.slot, ws.parity ^ 1);
            barrier_expect(at.w_full + 8 * ws.slot, W_SLOT);
            tma_load(shared + L::W + ws.slot * W_SLOT, w, step * L::W_STEP, tile.col, at.w_full + 8 * ws.slot);
            ws.next();
            for (u32 part = 0; part < L::X_PER_W; part++) {
                barrier_wait(at.x_empty + 8 * xs.slot, xs.parity ^ 1);
                barrier_expect(at.x_full + 8 * xs.slot, L::X_SLOT);
                tma_load(shared + xs.slot * L::X_SLOT, x, step * L::W_STEP + part * L::X_STEP, tile.row, at.x_full + 8 * xs.slot);
                xs.next();
            }
        }
        for (u32 k = 0; k < p.rank; k += SIDE_STEP) {
            barrier_wait(at.w_empty + 8 * ws.slot, ws.parity ^ 1);
            barrier_expect(at.w_full + 8 * ws.slot, W_SLOT);
            tma_load(shared + L::W + ws.slot * W_SLOT, b, k, tile.col, at.w_full + 8 * ws.slot);
            ws.next();
            barrier_wait(at.x_empty + 8 * xs.slot, xs.parity ^ 1);
            barrier_expect(at.x_full + 8 * xs.slot, L::X_SLOT);
            tma_load(shared + xs.slot * L::X_SLOT, t, k, tile.row, at.x_full + 8 * xs.slot);
            xs.next();
        }
    }
}

DEVICE u32 load_u16(u32 address) {
    u16 v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address) : "memory");
    return v;
}

// A operands of four products (64 of k) from a slot of e4m3: `row` is the address of the lane's
// pair in its row's chunk 0, swizzled, `part` says which half of the slot. A lane's pairs are 8
// bytes and 8 rows apart. The eight rows of a load are in different groups of four banks.
DEVICE void load_weights(u32 (&a)[4][4], u32 row, u32 part) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 at = row ^ (part * 4 + i) << 4;
        Weights<E4M3>::unpack(load_u16(at) | load_u16(at + 8) << 16, a[i][0], a[i][2]);
        Weights<E4M3>::unpack(load_u16(at + 1024) | load_u16(at + 1032) << 16, a[i][1], a[i][3]);
    }
}

// The sums of one tile for a warpgroup's 64 columns. `xs` and `ws` are the positions of the rings.
template <Operands KIND, u32 ROWS, int XS, int WS>
DEVICE void multiply(float (&acc)[ROWS / 2], u32 shared, u32 steps, u32 group, Ring<XS>& xs, Ring<WS>& ws) {
    typedef Layout<KIND, ROWS> L;
    Slots at = slots<KIND, ROWS>(shared);
    u32 lane = threadIdx.x % 32;
    // Lane 0 of each of the eight consumer warps releases a slot.
    auto release = [&](u32 barrier) {
        if (lane == 0) barrier_arrive(barrier);
    };
    auto x_at = [&] { return shared + xs.slot * L::X_SLOT; };
    auto w_at = [&] { return shared + L::W + ws.slot * W_SLOT + group * (64 * 128); };
#pragma unroll
    for (u32 i = 0; i < ROWS / 2; i++) acc[i] = 0.f;

    if constexpr (KIND == WEIGHTS_BF16) {
        // The products of a step are in flight while the next step is started.
        u32 x_before = 0, w_before = 0;
        for (u32 step = 0; step < steps; step++) {
            barrier_wait(at.w_full + 8 * ws.slot, ws.parity);
            barrier_wait(at.x_full + 8 * xs.slot, xs.parity);
            wgmma_fence();
            u64 a = rows_descriptor(w_at()), b = rows_descriptor(x_at());
#pragma unroll
            for (u32 i = 0; i < 4; i++) wgmma_bf16(acc, a + 2 * i, b + 2 * i, 1);
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0) release(x_before), release(w_before);
            x_before = at.x_empty + 8 * xs.slot, w_before = at.w_empty + 8 * ws.slot;
            xs.next(), ws.next();
        }
        wgmma_wait<0>();
        wgmma_complete(acc);
        release(x_before), release(w_before);
    } else if constexpr (KIND == BOTH_E4M3) {
        for (u32 step = 0; step < steps; step++) {
            barrier_wait(at.w_full + 8 * ws.slot, ws.parity);
            barrier_wait(at.x_full + 8 * xs.slot, xs.parity);
            u64 a = rows_descriptor(w_at()), b = rows_descriptor(x_at());
#pragma unroll
            for (u32 part = 0; part < ROWS / L::SUM_ROWS; part++) {
                float sum[L::SUM_ROWS / 2];
                wgmma_fence();
#pragma unroll
                for (u32 i = 0; i < 4; i++) wgmma_e4m3(sum, a + 2 * i, b + part * (L::SUM_ROWS * 128 / 16) + 2 * i, i > 0);
                wgmma_commit();
                wgmma_wait<0>();
                wgmma_complete(sum);
                if (part == ROWS / L::SUM_ROWS - 1) {
                    release(at.x_empty + 8 * xs.slot), release(at.w_empty + 8 * ws.slot);
                }
#pragma unroll
                for (u32 i = 0; i < L::SUM_ROWS / 2; i++) acc[part * (L::SUM_ROWS / 2) + i] += sum[i];
            }
            xs.next(), ws.next();
        }
    } else {
        // Weights are converted one part ahead, while the products of the previous part run.
        u32 weights[2][4][4];
        u32 row = threadIdx.x % 128 / 32 * 16 + lane / 4, within = row * 128 + (lane / 4 << 4) + lane % 4 * 2;
        auto start = [&](u32 part) {
            barrier_wait(at.x_full + 8 * xs.slot, xs.parity);
            wgmma_fence();
            u64 b = rows_descriptor(x_at());
#pragma unroll
            for (u32 i = 0; i < 4; i++) wgmma_bf16(acc, weights[part][i], b + 2 * i, 1);
            wgmma_commit();
            wgmma_wait<1>();
        };
        u32 x_before = 0;
        barrier_wait(at.w_full + 8 * ws.slot, ws.parity);
        load_weights(weights[0], w_at() + within, 0);
        for (u32 step = 0; step < steps; step++) {
            start(0);
            if (step > 0) release(x_before);
            x_before = at.x_empty + 8 * xs.slot;
            xs.next();
            load_weights(weights[1], w_at() + within, 1);
            __syncwarp();
            release(at.w_empty + 8 * ws.slot);
            ws.next();
            start(1);
            release(x_before);
            x_before = at.x_empty + 8 * xs.slot;
            xs.next();
            if (step + 1 < steps) {
                barrier_wait(at.w_full + 8 * ws.slot, ws.parity);
                load_weights(weights[0], w_at() + within, 0);
            }
        }
        wgmma_wait<0>();
        wgmma_complete(acc);
        release(x_before);
    }
}

// Scales a warpgroup's sums and adds its part of the side branch.
template <Operands KIND, u32 ROWS, int XS, int WS>
DEVICE void add_side(float (&acc)[ROWS / 2], u32 shared, Tile tile, u32 group, Ring<XS>& xs, Ring<WS>& ws, const LinearParams& p,
                     const float* scales, const float* row_scales) {
    typedef Layout<KIND, ROWS> L;
    Slots at = slots<KIND, ROWS>(shared);
    u32 lane = threadIdx.x % 32, col = tile.col + group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4, row = tile.row + lane % 4 * 2;
    float low = load_if(scales + col, scales && col < p.n, 1.f), high = load_if(scales + col + 8, scales && col + 8 < p.n, 1.f);
#pragma unroll
    for (u32 i = 0; i < ROWS / 2; i += 4) {
        float first = low, second = low, third = high, fourth = high;
        if (KIND == BOTH_E4M3) {
            u32 r = row + i / 4 * 8;
            float even = load_if(row_scales + r, r < p.rows, 0.f), odd = load_if(row_scales + r + 1, r + 1 < p.rows, 0.f);
            first *= even, second *= odd, third *= even, fourth *= odd;
        }
        acc[i] *= first, acc[i + 1] *= second, acc[i + 2] *= third, acc[i + 3] *= fourth;
    }
    for (u32 k = 0; k < p.rank; k += SIDE_STEP) {
        barrier_wait(at.w_full + 8 * ws.slot, ws.parity);
        barrier_wait(at.x_full + 8 * xs.slot, xs.parity);
        wgmma_fence();
        u64 a = rows_descriptor(shared + L::W + ws.slot * W_SLOT + group * (64 * 128)), b = rows_descriptor(shared + xs.slot * L::X_SLOT);
#pragma unroll
        for (u32 i = 0; i < 4; i++) wgmma_bf16(acc, a + 2 * i, b + 2 * i, 1);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_complete(acc);
        if (lane == 0) barrier_arrive(at.x_empty + 8 * xs.slot), barrier_arrive(at.w_empty + 8 * ws.slot);
        xs.next(), ws.next();
    }
}

template <Operands KIND, u32 ROWS>
DEVICE void linear(const TensorMap& x, const TensorMap& w, const TensorMap& t, const TensorMap& b, const LinearParams& p, const float* scales,
                   const float* row_scales, const LinearOut& o) {
    typedef Layout<KIND, ROWS> L;
    extern __shared__ __align__(1024) u8 memory[];
    u32 shared = shared_address(memory);
    if (threadIdx.x == 0) {
        Slots at = slots<KIND, ROWS>(shared);
        for (u32 i = 0; i < L::X_SLOTS; i++) barrier_init(at.x_full + 8 * i, 1), barrier_init(at.x_empty + 8 * i, 8);
        for (u32 i = 0; i < L::W_SLOTS; i++) barrier_init(at.w_full + 8 * i, 1), barrier_init(at.w_empty + 8 * i, 8);
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_fewer<40>();
        if (threadIdx.x == 0) produce<KIND, ROWS>(shared, x, w, t, b, p);
    } else {
        registers_more<232>();
        u32 group = warpgroup() - 1;
        float* staged = reinterpret_cast<float*>(memory + L::STAGES) + group * (2 * STAGED);
        Ring<L::X_SLOTS> xs;
        Ring<L::W_SLOTS> ws;
        for (u32 i = blockIdx.x; i < tiles<ROWS>(p); i += gridDim.x) {
            float acc[ROWS / 2];
            Tile tile = tile_at<ROWS>(i, p);
            multiply<KIND, ROWS>(acc, shared, w_steps<KIND, ROWS>(p), group, xs, ws);
            if (p.rank) add_side<KIND, ROWS>(acc, shared, tile, group, xs, ws, p, scales, row_scales);
            finish<ROWS>(acc, staged, tile, group, p, o);
        }
    }
}

// The buffers are those of all `linear` kernels; x, w, t, b are read through their descriptors, and
// the eighth buffer contains the scales of quantised rows of x. With a side branch, the sums are
// scaled before it is added.
#define LINEAR(name, kind, rows)                                                                                                  \
    KERNEL(384, 1)                                                                                                                \
    linear_##name##_sm90a(const void*, const void*, const float* __restrict__ scales, const float* __restrict__ bias,             \
                          const void* residual, const void* __restrict__ gate, void* out, const float* __restrict__ x_scales,     \
                          const void*, const void*, const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,     \
                          const __grid_constant__ TensorMap t, const __grid_constant__ TensorMap b,                               \
                          const __grid_constant__ LinearParams p) {                                                               \
        const float* row_scales = kind == BOTH_E4M3 ? x_scales : nullptr;                                                         \
        LinearOut o = {p.rank ? nullptr : scales, p.rank ? nullptr : row_scales, bias, residual, gate, out};                      \
        linear<kind, rows>(x, w, t, b, p, scales, row_scales, o);                                                                 \
    }

#define LINEARS(name, kind)           \
    LINEAR(name##_128x128, kind, 128) \
    LINEAR(name##_192x128, kind, 192) \
    LINEAR(name##_256x128, kind, 256)

LINEARS(bf16_wgmma, WEIGHTS_BF16)
LINEARS(e4m3_w8a8_wgmma, BOTH_E4M3)
LINEARS(e4m3_wgmma, WEIGHTS_E4M3)
