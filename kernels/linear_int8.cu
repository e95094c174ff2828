// out = tail(x_scales * scales * (q . w^T) + t . b^T + bias) with x and w in int8, sums in 32 bits.
// The side branch t . b^T, if there is one, is multiplied in bf16 (linear_side.cuh): its fragments
// have the same layout in bytes.
//
// x: rows x k in bf16, which `rotate_quantise` (rotate.cuh) turns into q, int8 with one scale a
// row; w: n x k in int8 with one scale a row, quantised and rotated alike when it was loaded. Sums
// are exact: k is at most 2^17. So the result depends neither on the tile nor on the order of the
// sum.
//
// Product: a block of four warps computes a 128 x 128 tile (64 x 64: small), 64 bytes along k a
// step, three steps of cp.async in flight (48 KB), two blocks (four) a processor. A warp of the
// large tile reads 4 KB of shared memory for 64 x 64 x 32 multiply-adds, 32 clocks of bandwidth of
// the 128 that four warps have for it (1024 multiply-adds a clock and processor on GeForce), so the
// tensor cores are the limit: the lower bound of the time is 2 rows n k / (3060: 102, 4060: 121,
// 4070: 233 TOP/s). A block reads 16 KB from L2 per 2048 clocks.
#include "epilogue.cuh"
#include "linear_side.cuh"
#include "rotate.cuh"

enum : u32 { STEP = 64, STAGES = 3, THREADS = 128 };

// Rows of 64 bytes: two share 128 bytes, so the chunk changes with every second row, and eight rows
// of one chunk use no bank twice.
DEVICE u32 swizzled(u32 row, u32 chunk) { return row * STEP + ((chunk ^ (row >> 1 & 3)) << 4); }

// Eight tiles of rows go through all columns together, so that their x stays in L2 while w is read
// once.
DEVICE uint2 tile_of_block(u32 block, u32 row_tiles, u32 column_tiles) {
    u32 group = block / (8 * column_tiles), within = block % (8 * column_tiles);
    u32 height = min(8u, row_tiles - 8 * group);
    return make_uint2(8 * group + within % height, within / height);
}

// A tile of TILE x TILE as 2 x 2 warps of I x 16 rows and J x 8 columns.
template <u32 TILE> struct Int8Tile {
    static constexpr u32 OPERAND = TILE * STEP, STAGE = 2 * OPERAND, SIDE = TILE / 2, I = SIDE / 16, J = SIDE / 8, COPIES = TILE / 32;
    u32 shared, row0, col0, warp_row, warp_col;

    DEVICE Int8Tile(const LinearParams& p, u8* memory) : shared(shared_address(memory)) {
        uint2 tile = tile_of_block(blockIdx.x, (p.rows + TILE - 1) / TILE, (p.n + TILE - 1) / TILE);
        row0 = tile.x * TILE, col0 = tile.y * TILE;
        warp_row = threadIdx.x / 32 % 2 * SIDE, warp_col = threadIdx.x / 64 * SIDE;
    }
    // The start of a lane's rows of the fragments. Sixteen rows further the swizzle is the same;
    // the other half of a step flips bit 5.
    DEVICE u32 x_place() const { return swizzled(warp_row + threadIdx.x % 16, threadIdx.x / 16 % 2); }
    DEVICE u32 w_place() const {
        u32 lane = threadIdx.x % 32;
        return OPERAND + swizzled(warp_col + lane % 8 + lane / 16 * 8, lane / 8 % 2);
    }
    // The products of half a step of 64 bytes, at the shared addresses of a lane's fragments.
    template <typename Sum, void (*MMA)(Sum (&)[4], const u32 (&)[4], u32, u32)>
    DEVICE static void multiply(Sum (&acc)[I][J][4], u32 x_at, u32 w_at) {
        u32 b[J / 2][4];
#pragma unroll
        for (u32 j = 0; j < J / 2; j++) load_matrices(b[j], w_at + j * (16 * STEP));
#pragma unroll
        for (u32 i = 0; i < I; i++) {
            u32 a[4];
            load_matrices(a, x_at + i * (16 * STEP));
#pragma unroll
            for (u32 j = 0; j < J; j++) MMA(acc[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
    // acc = q . w^T.
    DEVICE void product(int (&acc)[I][J][4], const u8* x, const u8* w, const LinearParams& p) const {
        // A thread copies chunk thread % 4 of every 32nd row from thread / 4 on; positions count
        // chunks of 16 bytes. In place of missing rows the last row is copied, and its results are
        // not stored; chunks beyond k are zeros.
        u32 row = threadIdx.x / 4, chunk = threadIdx.x % 4, copy_to = shared + swizzled(row, chunk);
        u32 x_from[COPIES], w_from[COPIES];
#pragma unroll
        for (u32 i = 0; i < COPIES; i++) {
            x_from[i] = min(row0 + row + i * 32, p.rows - 1) * (p.x_stride / 16);
            w_from[i] = min(col0 + row + i * 32, p.n - 1) * (p.w_stride / 16);
        }
        auto copy = [&](u32 stage) {
            u32 bytes = chunk * 16 < p.k ? 16 : 0, along = bytes ? chunk : 0, to = copy_to + stage * STAGE;
#pragma unroll
            for (u32 i = 0; i < COPIES; i++) {
                copy_async(to + i * (32 * STEP), x + (size_t)(x_from[i] + along) * 16, bytes);
                copy_async(to + OPERAND + i * (32 * STEP), w + (size_t)(w_from[i] + along) * 16, bytes);
            }
            copy_commit();
            chunk += STEP / 16;
        };
        u32 x_at = shared + x_place(), w_at = shared + w_place(), steps = (p.k + STEP - 1) / STEP, stage = 0;
        copy(0);
        copy(1);
#pragma unroll 1
        for (u32 step = 0; step < steps; step++) {
            copy_wait<1>();
            __syncthreads();
            copy(stage == 0 ? 2 : stage - 1);
            u32 at = stage * STAGE;
#pragma unroll
            for (u32 half = 0; half < 2; half++) multiply<int, mma_s8>(acc, (x_at ^ half * 32) + at, (w_at ^ half * 32) + at);
            stage = stage == 2 ? 0 : stage + 1;
        }
        copy_wait<0>();
    }
    // Scales the sums and adds the side branch.
    DEVICE void add_side(float (&sums)[I][J][4], const float* x_scales, const float* scales, const LinearSide& side,
                         const LinearParams& p) const {
        u32 lane = threadIdx.x % 32;
        float columns[J][2];
#pragma unroll
        for (u32 j = 0; j < J; j++) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                u32 col = col0 + warp_col + j * 8 + lane % 4 * 2 + e;
                columns[j][e] = load_if(scales + col, scales && col < p.n, 1.f);
            }
        }
#pragma unroll
        for (u32 i = 0; i < I; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                u32 row = row0 + warp_row + i * 16 + lane / 4 + e / 2 * 8;
                float scale = load_if(x_scales + row, row < p.rows, 0.f);
#pragma unroll
                for (u32 j = 0; j < J; j++) sums[i][j][e] *= scale * columns[j][e % 2];
            }
        }
        u32 x_at = shared + x_place(), w_at = shared + w_place();
#pragma unroll 1
        for (u32 k = 0; k < p.rank; k += STAGES * 32) {
            fetch_side<STAGES, TILE, TILE, THREADS, swizzled>(p, side, row0, col0, k, shared);
#pragma unroll 1
            for (u32 h = 0; h < STAGES * 2 && k + h * 16 < p.rank; h++) {
                u32 at = h / 2 * STAGE, half = h % 2;
                multiply<float, mma_bf16>(sums, (x_at ^ half * 32) + at, (w_at ^ half * 32) + at);
            }
        }
    }
};

// x: rows x k in int8 with x_stride bytes from row to row and zeros up to a multiple of 16;
// x_scales: rows f32.
template <u32 TILE>
DEVICE void linear_int8(const u8* x, const float* x_scales, const u8* w, const float* scales, const LinearSide& side, LinearOut o,
                        const LinearParams& p) {
    extern __shared__ __align__(128) u8 memory[];
    typedef Int8Tile<TILE> T;
    T tile(p, memory);
    int acc[T::I][T::J][4] = {};
    tile.product(acc, x, w, p);
    float sums[T::I][T::J][4];
#pragma unroll
    for (u32 i = 0; i < T::I; i++) {
#pragma unroll
        for (u32 j = 0; j < T::J; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) sums[i][j][e] = __int2float_rn(acc[i][j][e]);
        }
    }
    o.scales = p.rank ? nullptr : scales, o.row_scales = p.rank ? nullptr : x_scales;
    if (p.rank) tile.add_side(sums, x_scales, scales, side, p);

    // The upper and the lower half of the rows are finished one after the other: the staged tile
    // has room for one of them.
    float* staged = reinterpret_cast<float*>(memory);
    u32 lane = threadIdx.x % 32;
#pragma unroll 1
    for (u32 half = 0; half < 2; half++) {
        __syncthreads();
        if (tile.warp_row == half * T::SIDE) {
#pragma unroll
            for (u32 i = 0; i < T::I; i++) {
#pragma unroll
                for (u32 j = 0; j < T::J; j++) {
                    u32 row = i * 16 + lane / 4, col = tile.warp_col + j * 8 + lane % 4 * 2;
                    stage_pair<TILE>(staged, row, col, sums[i][j][0], sums[i][j][1]);
                    stage_pair<TILE>(staged, row + 8, col, sums[i][j][2], sums[i][j][3]);
                }
            }
        }
        __syncthreads();
        finish_tile<T::SIDE, TILE, THREADS>(p, o, staged, tile.row0 + half * T::SIDE, tile.col0);
    }
}

#define LINEAR_INT8(tile, blocks)                                                                                                       \
    KERNEL(128, blocks)                                                                                                                 \
    linear_int8_##tile##x##tile##_sm80(const u8* __restrict__ x, const float* __restrict__ x_scales, const u8* __restrict__ w,          \
                                       const float* __restrict__ scales, const float* __restrict__ bias, const void* residual,          \
                                       const void* __restrict__ gate, void* out, const u16* __restrict__ t, const u16* __restrict__ b,  \
                                       const __grid_constant__ LinearParams p) {                                                        \
        linear_int8<tile>(x, x_scales, w, scales, {t, b}, {nullptr, nullptr, bias, residual, gate, out}, p);                            \
    }
LINEAR_INT8(128, 2)
LINEAR_INT8(64, 4)

struct FactorParams {
    u32 n;
};

// scales[i] * factors[i]: for weights whose product has factors next to the scales of its integers
// (DoRA).
KERNEL(128, 8)
multiply_scales_sm80(const float* __restrict__ scales, const float* __restrict__ factors, float* __restrict__ out,
                     const __grid_constant__ FactorParams p) {
    u32 i = blockIdx.x * 128 + threadIdx.x;
    if (i < p.n) out[i] = scales[i] * factors[i];
}
