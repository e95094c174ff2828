// out = tail(x . (scales * w)^T + t . b^T + bias) with x and w in e4m3 (W8A8), for cards whose
// mma.sync multiplies FP8: sm_89 and sm_120. The side branch t . b^T, if there is one, is
// multiplied in bf16 (linear_side.cuh): its fragments have the same layout in bytes.
//
// x: rows x k in bf16, w: n x k in e4m3 with one scale a row (or none). `quantise_rows` converts x
// to e4m3 with one scale per row. The product reads bytes and scales from buffers, so that the
// kernel that computes x could write them itself.
//
// Product: 128 x 128 tile, 64 bytes along k a step, three steps of cp.async in flight (48 KB), 8
// warps of 64 x 32, two blocks a processor. A warp reads 3 KB of shared memory for 64 x 32 x 32
// multiply-adds, 24 clocks of bandwidth against 128 of the tensor cores (512 a clock and processor
// on GeForce), so the tensor cores are the limit: the lower bound of the time is 2 rows n k /
// (4070: 117, 4090: 330, 5090: 419 TFLOP/s). A block reads 16 KB from L2 per 2048 clocks.
//
// The FP8 tensor cores keep only about 13 bits of their running sums. Therefore every mma begins at
// zero and its sums of 32 products are added to f32 registers: four additions per lane for an mma
// of 32 clocks, which are hidden.
#include "epilogue.cuh"
#include "linear_side.cuh"
#include "quantise.cuh"

// c (16x8, f32) = a (16x32, row-major, e4m3) . b (32x8, column-major, e4m3). In bytes, the
// fragments have the layout of 16-bit elements.
DEVICE void mma_e4m3(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
                 : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}

enum : u32 { TILE = 128, STEP = 64, STAGES = 3, OPERAND = TILE * STEP, STAGE = 2 * OPERAND };

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

// x: rows x k in e4m3 with x_stride bytes from row to row and zeros up to a multiple of 16;
// x_scales: rows f32.
KERNEL(256, 2)
linear_e4m3_w8a8_128x128_sm89(const u8* __restrict__ x, const float* __restrict__ x_scales, const u8* __restrict__ w,
                              const float* __restrict__ scales, const float* __restrict__ bias, const void* residual,
                              const void* __restrict__ gate, void* out, const u16* __restrict__ t, const u16* __restrict__ b,
                              const __grid_constant__ LinearParams p) {
    extern __shared__ __align__(128) u8 memory[];
    u32 shared = shared_address(memory), thread = threadIdx.x, lane = thread % 32;
    u32 warp_row = thread / 32 % 2 * 64, warp_col = thread / 64 * 32;
    uint2 tile = tile_of_block(blockIdx.x, (p.rows + TILE - 1) / TILE, (p.n + TILE - 1) / TILE);
    u32 row0 = tile.x * TILE, col0 = tile.y * TILE, steps = (p.k + STEP - 1) / STEP;

    // A thread copies chunk thread % 4 of rows thread / 4 and thread / 4 + 64 of either operand;
    // positions count chunks of 16 bytes. In place of missing rows the last row is copied, and its
    // results are not stored; chunks beyond k are zeros.
    u32 copy_row = thread / 4, copy_to = shared + swizzled(copy_row, thread % 4), chunk = thread % 4;
    u32 x_upper = min(row0 + copy_row, p.rows - 1) * (p.x_stride / 16), x_lower = min(row0 + copy_row + 64, p.rows - 1) * (p.x_stride / 16);
    u32 w_upper = min(col0 + copy_row, p.n - 1) * (p.w_stride / 16), w_lower = min(col0 + copy_row + 64, p.n - 1) * (p.w_stride / 16);
    auto copy = [&](u32 stage) {
        u32 bytes = chunk * 16 < p.k ? 16 : 0, along = bytes ? chunk : 0, to = copy_to + stage * STAGE;
        copy_async(to, x + (size_t)(x_upper + along) * 16, bytes);
        copy_async(to + 64 * STEP, x + (size_t)(x_lower + along) * 16, bytes);
        copy_async(to + OPERAND, w + (size_t)(w_upper + along) * 16, bytes);
        copy_async(to + OPERAND + 64 * STEP, w + (size_t)(w_lower + along) * 16, bytes);
        copy_commit();
        chunk += STEP / 16;
    };

    // The start of a lane's rows of the fragments. Sixteen rows further the swizzle is the same;
    // the other half of a step flips bit 5.
    u32 x_at = swizzled(warp_row + lane % 16, lane / 16), w_at = OPERAND + swizzled(warp_col + lane % 8 + lane / 16 * 8, lane / 8 % 2);
    float acc[4][4][4] = {};
    copy(0);
    copy(1);
    u32 stage = 0;
    for (u32 step = 0; step < steps; step++) {
        copy_wait<1>();
        __syncthreads();
        copy(stage == 0 ? 2 : stage - 1);
        u32 at = shared + stage * STAGE;
        // Not unrolled: ptxas would keep so many sums in flight that registers spill.
#pragma unroll 1
        for (u32 half = 0; half < 2; half++) {
            u32 b[2][4];
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                load_matrices(b[j], at + (w_at ^ half * 32) + j * (16 * STEP));
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 a[4];
                load_matrices(a, at + (x_at ^ half * 32) + i * (16 * STEP));
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    float sum[4];
                    mma_e4m3(sum, a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
#pragma unroll
                    for (u32 e = 0; e < 4; e++) acc[i][j][e] += sum[e];
                }
            }
        }
        stage = stage == 2 ? 0 : stage + 1;
    }

    copy_wait<0>();
    if (p.rank) {
        float columns[4][2];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                u32 col = col0 + warp_col + j * 8 + lane % 4 * 2 + e;
                columns[j][e] = load_if(scales + col, scales && col < p.n, 1.f);
            }
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                u32 row = row0 + warp_row + i * 16 + lane / 4 + e / 2 * 8;
                float scale = load_if(x_scales + row, row < p.rows, 0.f);
#pragma unroll
                for (u32 j = 0; j < 4; j++) acc[i][j][e] *= scale * columns[j][e % 2];
            }
        }
#pragma unroll 1
        for (u32 k = 0; k < p.rank; k += STAGES * 32) {
            fetch_side<STAGES, TILE, TILE, 256, swizzled>(p, {t, b}, row0, col0, k, shared);
#pragma unroll 1
            for (u32 h = 0; h < STAGES * 2 && k + h * 16 < p.rank; h++) {
                u32 at = shared + h / 2 * STAGE, half = h % 2, b[2][4];
#pragma unroll
                for (u32 j = 0; j < 2; j++) load_matrices(b[j], at + (w_at ^ half * 32) + j * (16 * STEP));
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    u32 a[4];
                    load_matrices(a, at + (x_at ^ half * 32) + i * (16 * STEP));
#pragma unroll
                    for (u32 j = 0; j < 4; j++) mma_bf16(acc[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }

    // The upper and the lower 64 rows are finished one after the other: the staged tile has room
    // for one of them.
    LinearOut o = {p.rank ? nullptr : scales, p.rank ? nullptr : x_scales, bias, residual, gate, out};
    float* staged = reinterpret_cast<float*>(memory);
#pragma unroll 1
    for (u32 half = 0; half < 2; half++) {
        __syncthreads();
        if (warp_row == half * 64) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    u32 row = i * 16 + lane / 4, col = warp_col + j * 8 + lane % 4 * 2;
                    stage_pair<TILE>(staged, row, col, acc[i][j][0], acc[i][j][1]);
                    stage_pair<TILE>(staged, row + 8, col, acc[i][j][2], acc[i][j][3]);
                }
            }
        }
        __syncthreads();
        finish_tile<64, TILE, 256>(p, o, staged, row0 + half * 64, col0);
    }
}
