// out[pixel][o] = bias[o] + residual[pixel][o] + sum over taps and input channels of
// x[source(pixel, tap)][c] * w[o][tap][c]
//
// A convolution over channels-last images as an implicit matrix product: rows are output pixels
// (batch x height x width, stacked), columns are output channels, and the inner dimension is (tap,
// input channel). The im2col matrix exists only as tiles in shared memory: cp.async gathers 16
// bytes (8 channels of a pixel) at a time, and fills with zeros where a tap is in the padding.
// Upsampling by two is a right shift of the source coordinates.
//
// Tiles: 128 pixels x 128 channels x 32 input channels of one tap. A row of a tile is 64 bytes, so
// every gather reads complete 32-byte sectors, and three stages take 48 KiB: two blocks fit into
// the 100 KiB of a GeForce multiprocessor. Four warps of 64 x 64 hold 128 accumulators a thread,
// and each reads 8 KiB of shared memory for 64 mma.sync: the four take 256 clocks of shared memory
// in the 2048 that the matrix units of a GeForce need (512 on an A100). The work of a gather is
// hoisted: the start of a pixel's window is computed once, its address for a tap and whether it is
// inside the image once per tap, and a step of 32 channels only adds 64 bytes to the addresses.
//
// Roofline: a step moves 16 KiB from L2 for 1.05 MFLOP. At 25 TFLOP/s (RTX 3060) that is .4 TB/s,
// at 58 (RTX 4070) .9: the matrix units are the limit. From memory an image is read about 1.3 times
// (the rows above and below a wave of tiles), the weight once per wave; blocks that differ only in
// their output channels are neighbours in the grid and share the pixels in L2. The tiles of 64 and
// 16 channels serve layers with few output channels (the last convolution of the autoencoder has
// 3).
#include "common.cuh"

struct Params {
    u32 pixels;                 // batch * out_height * out_width
    u32 height, width;          // of a stored input image
    u32 out_height, out_width;  // of an output image
    u32 channels, outputs;      // input and output channels
    u32 kernel, stride, pad;    // taps along a side, step, zeros above and left
    u32 up;                     // 1 if the input is upsampled by two
    u32 x_stride, w_stride, residual_stride, out_stride;
    u32 dtype;                  // of out and residual
    u32 vector;                 // out, residual and bias can be accessed four channels at a time
    u32 columns;                // tiles along the output channels
};

enum { THREADS = 128 };
enum { OUTSIDE = -(1 << 30) };  // a window's origin from which every tap is outside the image

// A tile's row has four 16-byte chunks. With this permutation eight consecutive rows of one chunk
// are in 32 different banks, and so are two complete rows: neither ldmatrix nor cp.async has bank
// conflicts.
DEVICE u32 swizzle(u32 row, u32 chunk) { return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4); }

// Where the window of an output pixel begins in the (enlarged) image, and the first pixel of that
// image in x.
DEVICE void locate(u32 m, const Params& p, int& y, int& x, u32& picture) {
    const u32 line = m / p.out_width, image = line / p.out_height;
    y = m < p.pixels ? (int)((line - image * p.out_height) * p.stride) - (int)p.pad : OUTSIDE;
    x = (int)((m - line * p.out_width) * p.stride) - (int)p.pad;
    picture = image * p.height * p.width;
}

// acc += a . b^T for a warp's WM x WN part of a tile, over 32 input channels. `a` and `b` are the
// addresses of this lane's first rows for ldmatrix: of a, rows lane % 16 and chunk lane / 16; of b,
// rows lane % 8 and chunk lane / 8.
template <int WM, int WN> DEVICE void multiply(float (&acc)[WM / 16][WN / 8][4], u32 a, u32 b) {
    u32 fa[2][WM / 16][4];
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int i = 0; i < WM / 16; i++) load_matrices(fa[k][i], (a ^ (k * 32)) + i * 1024);
#pragma unroll
    for (int j = 0; j < WN / 8; j++) {
        u32 fb[4];
        load_matrices(fb, b + j * 512);
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
            for (int i = 0; i < WM / 16; i++) mma_bf16(acc[i][j], fa[k][i], fb[2 * k], fb[2 * k + 1]);
    }
}

// Four channels of a row of out or residual, in one access; as bits at first, so that several loads
// can be in flight.
DEVICE uint4 load_four(const void* from, size_t at, u32 dtype) {
    if (dtype == F32) return *reinterpret_cast<const uint4*>(static_cast<const float*>(from) + at);
    const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const bf16*>(from) + at);
    return make_uint4(v.x, v.y, 0, 0);
}
DEVICE float4 as_four(uint4 v, u32 dtype) {
    if (dtype == F32) return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
    return make_float4(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y));
}
DEVICE void store_four(void* to, size_t at, u32 dtype, float4 v) {
    if (dtype == F32) *reinterpret_cast<float4*>(static_cast<float*>(to) + at) = v;
    else *reinterpret_cast<uint2*>(static_cast<bf16*>(to) + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
}
DEVICE float4 add_four(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// Stores a warp's part, whose first pixel is m0 and first channel n0. 16 rows at a time pass
// through the warp's own slab of shared memory (16 rows of WN + 8 floats), so that complete rows
// are stored; the values stay f32 until bias and residual are added.
template <int WM, int WN>
DEVICE void finish(const float (&acc)[WM / 16][WN / 8][4], float* slab, u32 m0, u32 n0, const float* bias, const void* residual,
                   void* out, const Params& p) {
    constexpr int PITCH = WN + 8, LANES = WN / 4, ROWS = 32 / LANES, PASSES = 16 / ROWS, GROUP = PASSES < 4 ? PASSES : 4;
    const u32 lane = threadIdx.x % 32, column = lane % LANES * 4, n = n0 + column;
    const bool mine = p.vector && n < p.outputs;
    const float4 add = mine && bias ? *reinterpret_cast<const float4*>(bias + n) : make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int i = 0; i < WM / 16; i++) {
#pragma unroll
        for (int j = 0; j < WN / 8; j++) {
            float* to = slab + lane / 4 * PITCH + j * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(to) = make_float2(acc[i][j][0], acc[i][j][1]);
            *reinterpret_cast<float2*>(to + 8 * PITCH) = make_float2(acc[i][j][2], acc[i][j][3]);
        }
        __syncwarp();
#pragma unroll 1
        for (int first = 0; mine && first < PASSES; first += GROUP) {
            // All loads of a group before its stores: out may be the residual, so the compiler
            // cannot move them.
            const u32 row = first * ROWS + lane / LANES, m = m0 + i * 16 + row;
            uint4 v[GROUP] = {};
#pragma unroll
            for (int g = 0; g < GROUP; g++)
                if (residual && m + g * ROWS < p.pixels)
                    v[g] = load_four(residual, (size_t)(m + g * ROWS) * p.residual_stride + n, p.dtype);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                const float4 y = *reinterpret_cast<const float4*>(slab + (row + g * ROWS) * PITCH + column);
                const float4 sum = add_four(add_four(y, add), as_four(v[g], p.dtype));
                if (m + g * ROWS < p.pixels) store_four(out, (size_t)(m + g * ROWS) * p.out_stride + n, p.dtype, sum);
            }
        }
#pragma unroll 1
        for (u32 e = lane; !p.vector && e < 16 * WN; e += 32) {
            const u32 row = e / WN, c = e % WN, m = m0 + i * 16 + row;
            if (m < p.pixels && n0 + c < p.outputs) {
                float y = bias ? bias[n0 + c] : 0.f;
                if (residual) y += load_element(residual, (size_t)m * p.residual_stride + n0 + c, p.dtype);
                store_element(out, (size_t)m * p.out_stride + n0 + c, p.dtype, slab[row * PITCH + c] + y);
            }
        }
        __syncwarp();
    }
}

// BM x BN tiles by four warps of WM x WN. Needs complete 16-byte chunks: input channels a multiple
// of 8, x and its rows at multiples of 16 bytes.
template <int BM, int BN, int WM, int WN, int STAGES>
DEVICE void convolve(const bf16* x, const bf16* w, const float* bias, const void* residual, void* out, const Params& p) {
    static_assert(BM / WM * (BN / WN) * 32 == THREADS && BM % 32 == 0, "four warps cover the tile");
    static_assert(STAGES * (BM + BN) * 64 >= 4 * 16 * (WN + 8) * 4, "the slabs reuse the stages");
    constexpr int PIXELS = BM / 32, FILTERS = (BN + 31) / 32;  // rows of a tile that a thread copies
    constexpr u32 STAGE = (BM + BN) * 64;
    extern __shared__ __align__(128) u8 memory[];
    const u32 tile = blockIdx.x / p.columns, m0 = tile * BM, n0 = (blockIdx.x - tile * p.columns) * BN;

    // A thread copies chunk `threadIdx.x % 4` of rows `threadIdx.x / 4 + 32 i`.
    const u32 row = threadIdx.x / 4, chunk = threadIdx.x % 4, base = shared_address(memory), to = base + swizzle(row, chunk);
    const int tall = (int)(p.height << p.up), wide = (int)(p.width << p.up);
    int y0[PIXELS], x0[PIXELS];
    u32 picture[PIXELS];
#pragma unroll
    for (int i = 0; i < PIXELS; i++) locate(m0 + row + 32 * i, p, y0[i], x0[i], picture[i]);

    const bf16* pixel[PIXELS];  // of this tap, at the next step's channels
    bool inside[PIXELS];
    const bf16* filter = w + (n0 + row < p.outputs ? (size_t)(n0 + row) * p.w_stride : 0) + chunk * 8;
    u32 channel = 0;
    int ty = 0, tx = 0;
    auto enter_tap = [&]() {
#pragma unroll
        for (int i = 0; i < PIXELS; i++) {
            const int y = y0[i] + ty, xx = x0[i] + tx;
            inside[i] = (u32)y < (u32)tall && (u32)xx < (u32)wide;
            const u32 source = picture[i] + (u32)(y >> p.up) * p.width + (u32)(xx >> p.up);
            pixel[i] = x + (inside[i] ? (size_t)source * p.x_stride : 0) + chunk * 8;
        }
    };
    // Copies the next 32 channels of the tap to the stage at `stage`, and advances.
    auto load = [&](u32 stage) {
        const bool some = channel + chunk * 8 < p.channels;
#pragma unroll
        for (int i = 0; i < PIXELS; i++) {
            const bool there = some && inside[i];
            copy_async(to + stage + i * 2048, there ? pixel[i] : x, there ? 16 : 0);
            pixel[i] += 32;
        }
        if (BN >= 32 || row < BN) {
#pragma unroll
            for (int i = 0; i < FILTERS; i++) {
                const bool there = some && n0 + row + 32 * i < p.outputs;
                copy_async(to + stage + BM * 64 + i * 2048, there ? filter + (size_t)(32 * i) * p.w_stride : w, there ? 16 : 0);
            }
        }
        channel += 32;
        filter += 32;
        if (channel >= p.channels) {
            filter -= channel - p.channels;
            channel = 0;
            if (++tx == (int)p.kernel) tx = 0, ty++;
            enter_tap();
        }
    };
    enter_tap();

    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    const u32 a = base + swizzle(wm + lane % 16, lane / 16), b = base + BM * 64 + swizzle(wn + lane % 8, lane / 8);
    float acc[WM / 16][WN / 8][4];
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[i][j][e] = 0.f;

    const int steps = (int)(p.kernel * p.kernel * ((p.channels + 31) / 32));
    u32 fill = 0, use = 0;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(fill);
        copy_commit();
        fill += STAGE;
    }
    for (int step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        // The stage that is filled now is the one that all warps had read before the barrier.
        if (step + STAGES - 1 < steps) load(fill);
        copy_commit();
        multiply<WM, WN>(acc, a + use, b + use);
        fill = fill == (STAGES - 1) * STAGE ? 0 : fill + STAGE;
        use = use == (STAGES - 1) * STAGE ? 0 : use + STAGE;
    }
    copy_wait<0>();
    __syncthreads();
    finish<WM, WN>(acc, reinterpret_cast<float*>(memory) + warp * 16 * (WN + 8), m0 + wm, n0 + wn, bias, residual, out, p);
}

KERNEL(THREADS, 2)
conv2d_bf16_128x128(const bf16* x, const bf16* w, const float* bias, const void* residual, void* out, const __grid_constant__ Params p) {
    convolve<128, 128, 64, 64, 3>(x, w, bias, residual, out, p);
}
KERNEL(THREADS, 2)
conv2d_bf16_128x64(const bf16* x, const bf16* w, const float* bias, const void* residual, void* out, const __grid_constant__ Params p) {
    convolve<128, 64, 64, 32, 4>(x, w, bias, residual, out, p);
}
// The limit is the gather, which reads each pixel nine times from L2: three small blocks keep many
// copies in flight.
KERNEL(THREADS, 3)
conv2d_bf16_128x16(const bf16* x, const bf16* w, const float* bias, const void* residual, void* out, const __grid_constant__ Params p) {
    convolve<128, 16, 32, 16, 3>(x, w, bias, residual, out, p);
}

// Any number of channels at any alignment: 64 pixels x 64 channels by four warps of 32 x 32; the
// inner dimension is the flat row of w, 32 at a time, so that 3 input channels with 9 taps are one
// step. Each element is loaded separately, and its tap is computed by division: for the first
// convolution of the encoder, and for shapes that no model has.
KERNEL(THREADS, 4)
conv2d_any(const bf16* x, const bf16* w, const float* bias, const void* residual, void* out, const __grid_constant__ Params p) {
    // 64 rows of pixels and 64 of filters, 64 bytes each; the slabs reuse them and need 10 KiB.
    __shared__ __align__(128) u8 memory[4 * 16 * (32 + 8) * 4];
    __shared__ int window_y[64], window_x[64];
    __shared__ u32 pictures[64];
    const u32 tile = blockIdx.x / p.columns, m0 = tile * 64, n0 = (blockIdx.x - tile * p.columns) * 64;
    if (threadIdx.x < 64) locate(m0 + threadIdx.x, p, window_y[threadIdx.x], window_x[threadIdx.x], pictures[threadIdx.x]);
    __syncthreads();

    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp / 2 * 32, wn = warp % 2 * 32, base = shared_address(memory);
    const u32 a = base + swizzle(wm + lane % 16, lane / 16), b = base + 4096 + swizzle(wn + lane % 8, lane / 8);
    float acc[2][4][4] = {};
    // A thread loads elements 2 * pair and 2 * pair + 1 of rows first + 8 i.
    const u32 pair = threadIdx.x % 16, first = threadIdx.x / 16, depth = p.kernel * p.kernel * p.channels;
    const u16 *xs = reinterpret_cast<const u16*>(x), *ws = reinterpret_cast<const u16*>(w);
    const int tall = (int)(p.height << p.up), wide = (int)(p.width << p.up);
    for (u32 k0 = 0; k0 < depth; k0 += 32) {
        int ty[2], tx[2];
        u32 channel[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const u32 tap = (k0 + pair * 2 + e) / p.channels;
            channel[e] = k0 + pair * 2 + e - tap * p.channels;
            ty[e] = tap / p.kernel;
            tx[e] = tap - ty[e] * p.kernel;
        }
#pragma unroll 4
        for (u32 r = first; r < 64; r += 8) {
            u32 xv = 0, wv = 0;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const u32 k = k0 + pair * 2 + e;
                if (k < depth) {
                    const int y = window_y[r] + ty[e], xx = window_x[r] + tx[e];
                    const u32 source = pictures[r] + (u32)(y >> p.up) * p.width + (u32)(xx >> p.up);
                    if ((u32)y < (u32)tall && (u32)xx < (u32)wide) xv |= (u32)xs[(size_t)source * p.x_stride + channel[e]] << (16 * e);
                    if (n0 + r < p.outputs) wv |= (u32)ws[(size_t)(n0 + r) * p.w_stride + k] << (16 * e);
                }
            }
            const u32 at = swizzle(r, pair / 4) + pair % 4 * 4;
            *reinterpret_cast<u32*>(memory + at) = xv;
            *reinterpret_cast<u32*>(memory + 4096 + at) = wv;
        }
        __syncthreads();
        multiply<32, 32>(acc, a, b);
        __syncthreads();
    }
    finish<32, 32>(acc, reinterpret_cast<float*>(memory) + warp * 16 * 40, m0 + wm, n0 + wn, bias, residual, out, p);
}
