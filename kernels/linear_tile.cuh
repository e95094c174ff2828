// The tiled matrix product: a block computes BM x BN of the output with four warps, in steps of 32
// along k.
//
// The product is w . x^T: weights are the 16-row operand of mma.sync, rows of x its 8-column
// operand. So 8-bit weights, which arithmetic turns into bf16, are written directly to the four
// registers of that operand, and x is read from shared memory in the order that the two registers
// of the other operand need. The opposite assignment costs four moves per mma.
//
// Shared memory holds rows of 64 bytes of x and of 16-bit weights, whose chunks of 16 bytes are
// permuted (chunk ^ row / 2 % 4) so that ldmatrix uses no bank twice, and rows of 32 bytes of 8-bit
// weights, in their stored order. 16-bit weights and their x are loaded by ldmatrix in the order of
// k that the PTX manual shows. With 8-bit weights a lane takes 8 neighbouring k of a row as one
// vector, 8 bytes of w and 16 of x: the order is the same for both operands, and the sum does not
// depend on it. Weights in blocks (linear_blocks.cuh) are converted to bf16 when they are stored to
// shared memory, each once; meanwhile the bits for the next step are in registers.
#pragma once

#include "linear_blocks.cuh"
#include "linear_side.cuh"

constexpr int STEP = 32;             // k of a step
constexpr int X_PITCH = STEP * 2;    // bytes of a row of x in shared memory
constexpr u32 GROUP = 8;             // tiles of rows that go through the tiles of columns together, so that both operands stay in L2
constexpr int THREADS = 128, WARPS_M = 2, WARPS_N = 2;

template <u32 W, int BM, int BN> struct Tile {
    static constexpr int W_PITCH = STEP * Weights<W>::BYTES;
    static constexpr int X_BYTES = BM * X_PITCH, STAGE_BYTES = X_BYTES + BN * W_PITCH;
    // Steps in shared memory, including the one that is multiplied: four, or as many as allow two
    // blocks of 128x128, or four of 64x64, to share the 100 KiB of a small GPU's multiprocessor.
    static constexpr int DEPTH = STAGE_BYTES * 4 > (BM == 128 ? 49152 : 24576) ? 3 : 4;
    static constexpr int SHARED_BYTES = STAGE_BYTES * DEPTH;
    // A warp has MJ tiles of 8 rows and NI tiles of 16 columns. The rows of the warps interleave,
    // the columns do not.
    static constexpr int MJ = BM / 8 / WARPS_M, NI = BN / 16 / WARPS_N;
};

// The dynamic shared memory of a block.
DEVICE u8* dynamic_shared() {
    extern __shared__ __align__(128) u8 shared_bytes[];
    return shared_bytes;
}

// The offset of chunk `chunk` of row `row`; rows of 64 bytes are permuted.
template <int PITCH> DEVICE u32 chunk_place(u32 row, u32 chunk) {
    return row * PITCH + (PITCH == 64 ? chunk ^ row / 2 % 4 : chunk) * 16;
}

// As copy_async, but L2 loads the complete line, because the next steps need the rest of it.
DEVICE void copy_async_line(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

struct TilePlace {
    u32 row, col;
};

// Tile `index`: GROUP tiles of rows downwards, then the next tile of columns.
template <int BM, int BN> DEVICE TilePlace tile_place(const LinearParams& p, u32 index) {
    u32 down = (p.rows - 1) / BM + 1, across = (p.n - 1) / BN + 1;
    u32 group = index / (GROUP * across), in_group = index % (GROUP * across), height = min(GROUP, down - group * GROUP);
    return {(group * GROUP + in_group % height) * BM, in_group / height * BN};
}

// Copies ROWS rows of one operand, step after step. A thread always copies the same chunk of 16
// bytes of each of its rows.
template <int ROWS, int PITCH> struct Feed {
    static constexpr int CHUNKS = PITCH / 16, COPIES = ROWS * CHUNKS / THREADS, HOP = THREADS / CHUNKS;
    static_assert(ROWS * CHUNKS % THREADS == 0 && HOP % 8 == 0, "every thread has the same work, and permutes as in its first row");
    const u8 *start, *from;
    size_t hop;
    u32 to, inside, k, left;

    // The rows `row ..` of `rows`, each `pitch` bytes after the other, from byte `skip` on; a row
    // has `bytes` bytes.
    DEVICE Feed(const void* matrix, u32 row, u32 rows, size_t pitch, size_t skip, u32 bytes, u32 shared) {
        u32 r = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        start = static_cast<const u8*>(matrix);
        from = start + (row + r) * pitch + skip + chunk * 16;
        hop = pitch * HOP;
        to = shared + chunk_place<PITCH>(r, chunk);
        k = chunk * 16, left = bytes, inside = 0;
#pragma unroll
        for (int i = 0; i < COPIES; i++) inside |= (row + r + i * HOP < rows) << i;
    }
    DEVICE void copy(u32 stage_offset) {
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            bool ok = (inside >> i & 1) && k < left;
            copy_async_line(to + stage_offset + i * HOP * PITCH, ok ? from + i * hop : start, ok ? 16 : 0);
        }
        from += PITCH, k += PITCH;
    }
};

// The same for weights in blocks, which pass through registers: they are loaded two steps ahead,
// and converted to bf16 in shared memory one step ahead. A thread has one half of the group of 32
// in each of its rows. In place of missing rows the last row is loaded, and its results are not
// stored.
template <int ROWS> struct FeedBlocks {
    static constexpr int COUNT = ROWS * 2 / THREADS, HOP = THREADS / 2;
    const u8* rows[COUNT];
    Unit q[COUNT];
    u32 at, to;

    // From unit `first` of the rows `row ..` on.
    DEVICE FeedBlocks(const u8* w, u32 row, u32 first, const LinearParams& p, u32 shared) {
        u32 r = threadIdx.x / 2, half = threadIdx.x % 2;
#pragma unroll
        for (int i = 0; i < COUNT; i++) rows[i] = w + (size_t)min(row + r + i * HOP, p.n - 1) * p.w_stride;
        at = first + half, to = shared + chunk_place<X_PITCH>(r, half * 2);
    }
    DEVICE void fetch(const LinearParams& p) { load_units<COUNT>(q, rows, at, p), at += 2; }
    // The units that were loaded last.
    DEVICE void put(u32 stage_offset, u32 dtype, const Table& table) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            u32 pairs[8];
            unpack_unit(q[i], at - 2, dtype, table, pairs);
            // The address of the second chunk differs from that of the first in one bit.
            u32 place = to + stage_offset + i * HOP * X_PITCH;
            store_shared_16(place, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
            store_shared_16(place ^ 16, make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]));
        }
    }
};

// The products of one warp in a step. acc[i][j]: columns 16i + g (+ 8) of the warp's, rows 2t, 2t +
// 1 of its j-th tile.
template <u32 W, int MJ, int NI> struct Multiply {
    static constexpr int X_HOP = 8 * WARPS_M * X_PITCH;
    u32 x, w;

    // `x`, `w`: shared addresses of the operands' first rows in the first stage.
    DEVICE Multiply(u32 x_tile, u32 w_tile) {
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, wm = warp % WARPS_M, wn = warp / WARPS_M;
        if (Weights<W>::BYTES == 1) {
            x = x_tile + chunk_place<X_PITCH>(wm * 8 + lane / 4, lane % 4);
            w = w_tile + (wn * NI * 16 + lane / 4) * STEP + lane % 4 * 8;
        } else {
            // Matrices of x: two chunks of a row tile, then of the next. Matrices of w: 16 rows of
            // a chunk, then of the next.
            u32 r = lane % 8, low = lane / 8 % 2, high = lane / 16;
            x = x_tile + chunk_place<X_PITCH>((high * WARPS_M + wm) * 8 + r, low);
            w = w_tile + chunk_place<X_PITCH>(wn * NI * 16 + low * 8 + r, high);
        }
    }
    DEVICE void step(float (&acc)[NI][MJ][4], u32 stage_offset) const {
        if constexpr (Weights<W>::BYTES == 1) bytes(acc, stage_offset);
        else halves(acc, stage_offset);
    }
    // Half a step of 16-bit weights.
    DEVICE void half_step(float (&acc)[NI][MJ][4], u32 stage_offset, u32 half) const {
        // The addresses of the third and fourth chunk differ from those of the first and second in
        // one bit.
        u32 xh = (x ^ half * 32) + stage_offset, wh = (w ^ half * 32) + stage_offset;
        u32 b[MJ / 2][4];
#pragma unroll
        for (int j = 0; j < MJ / 2; j++) load_matrices(b[j], xh + j * 2 * X_HOP);
#pragma unroll
        for (int i = 0; i < NI; i++) {
            u32 a[4];
            load_matrices(a, wh + i * 16 * X_PITCH);
#pragma unroll
            for (int r = 0; r < 4; r++) a[r] = Weights<W>::pair(a[r]);
#pragma unroll
            for (int j = 0; j < MJ; j++) mma_bf16(acc[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }

   private:
    DEVICE void bytes(float (&acc)[NI][MJ][4], u32 stage_offset) const {
        uint4 b[MJ];
#pragma unroll
        for (int j = 0; j < MJ; j++) b[j] = load_shared_16(x + stage_offset + j * X_HOP);
#pragma unroll
        for (int i = 0; i < NI; i++) {
            uint2 low = load_shared_8(w + stage_offset + i * 16 * STEP), high = load_shared_8(w + stage_offset + (i * 16 + 8) * STEP);
            u32 a[4];
            Weights<W>::unpack(low.x, a[0], a[2]);
            Weights<W>::unpack(high.x, a[1], a[3]);
#pragma unroll
            for (int j = 0; j < MJ; j++) mma_bf16(acc[i][j], a, b[j].x, b[j].y);
            Weights<W>::unpack(low.y, a[0], a[2]);
            Weights<W>::unpack(high.y, a[1], a[3]);
#pragma unroll
            for (int j = 0; j < MJ; j++) mma_bf16(acc[i][j], a, b[j].z, b[j].w);
        }
    }
    DEVICE void halves(float (&acc)[NI][MJ][4], u32 stage_offset) const {
#pragma unroll
        for (u32 half = 0; half < 2; half++) half_step(acc, stage_offset, half);
    }
};

// Stages the row tiles FIRST .. FIRST + COUNT of every warp: they are 8 * WARPS_M * COUNT
// neighbouring rows.
template <int BN, int FIRST, int COUNT, int MJ, int NI> DEVICE void stage_rows(float* stage, const float (&acc)[NI][MJ][4]) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 row = warp % WARPS_M * 8 + lane % 4 * 2, col = warp / WARPS_M * NI * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
#pragma unroll
        for (int i = 0; i < NI; i++) stage_transposed<BN>(stage, j * 8 * WARPS_M + row, col + i * 16, acc[i][FIRST + j]);
    }
}

// Writes staged rows unchanged: partial sums, whose rows are padded to a multiple of 4 floats.
template <int ROWS, int COLUMNS>
DEVICE void store_partials(const LinearParams& p, float* partials, const float* stage, u32 row0, u32 col0) {
    constexpr u32 ACROSS = COLUMNS / 4, DOWN = THREADS / ACROSS;
    u32 col = threadIdx.x % ACROSS * 4, pitch = (p.n + 3) / 4 * 4;
#pragma unroll 1
    for (u32 r = threadIdx.x / ACROSS; r < ROWS; r += DOWN) {
        if (row0 + r >= p.rows || col0 + col >= p.n) continue;
        float4 v = *reinterpret_cast<const float4*>(stage + r * Stage<COLUMNS, 4>::STRIDE + col);
        *reinterpret_cast<float4*>(partials + ((size_t)blockIdx.z * p.rows + row0 + r) * pitch + col0 + col) = v;
    }
}

DEVICE u32 side_place(u32 row, u32 chunk) { return chunk_place<X_PITCH>(row, chunk); }

// Scales the sums and adds the side branch; `place` is the position of the tile.
template <int BM, int BN, int SHARED_BYTES, int MJ, int NI>
DEVICE void add_side(float (&acc)[NI][MJ][4], const LinearParams& p, const float* scales, const LinearSide& side, TilePlace place, u32 base) {
    constexpr int STAGE = (BM + BN) * X_PITCH, FIT = SHARED_BYTES / STAGE;
    static_assert(FIT > 0, "a step of the side must fit");
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    scale_columns(acc, scales, place.col + warp / WARPS_M * NI * 16 + lane / 4, p.n);
    if (blockIdx.z + 1 < p.splits) return;
    Multiply<BF16, MJ, NI> multiply(base, base + BM * X_PITCH);
#pragma unroll 1
    for (u32 k = 0; k < p.rank; k += FIT * STEP) {
        fetch_side<FIT, BM, BN, THREADS, side_place>(p, side, place.row, place.col, k, base);
#pragma unroll 1
        for (u32 h = 0; h < FIT * 2 && k + h * 16 < p.rank; h++) multiply.half_step(acc, h / 2 * STAGE, h % 2);
    }
}

// grid: (tiles, 1, splits), 128 threads as 2 x 2 warps.
template <u32 W, int BM, int BN>
DEVICE void linear_tile(const bf16* x, const u8* w, const float* scales, const LinearSide& side, const LinearOut& o, float* partials,
                        const LinearParams& p) {
    typedef Tile<W, BM, BN> T;
    constexpr int WB = Weights<W>::BYTES, MJ = T::MJ;
    // The staged output uses the memory of the pipeline, in as many slices as it takes.
    constexpr int SLICES = BM * Stage<BN, 4>::STRIDE * 4 > T::SHARED_BYTES ? 2 : 1, SLICE = BM / SLICES;
    static_assert(SLICE * Stage<BN, 4>::STRIDE * 4 <= T::SHARED_BYTES, "the staged output must fit");
    u8* shared = dynamic_shared();

    TilePlace place = tile_place<BM, BN>(p, blockIdx.x);
    u32 steps = (p.k - 1) / STEP + 1, first = blockIdx.z * p.split_steps, count = min(p.split_steps, steps - first);
    u32 base = shared_address(shared), skip = first * STEP;
    Feed<BM, X_PITCH> feed_x(x, place.row, p.rows, (size_t)p.x_stride * 2, skip * 2ull, (p.k - skip) * 2, base);
    Multiply<W, MJ, T::NI> multiply(base, base + T::X_BYTES);
    float acc[T::NI][MJ][4] = {};
    if constexpr (W == BLOCKS) {
        Table& table = *reinterpret_cast<Table*>(shared + T::SHARED_BYTES);
        table.fill(p.w_dtype);
        FeedBlocks<BN> feed_w(w, place.col, first * (STEP / 16), p, base + T::X_BYTES);
        // In round s, the copy of x for step s is started, w of step s - 1 is converted to bf16, w
        // of step s is loaded, and step s - 2 is multiplied, so that the code of each occurs once.
        // Three stages alternate; the one that is filled was multiplied in the round before.
        static_assert(T::DEPTH == 3, "a stage for each of the three");
        u32 filled = 0, before = 2 * T::STAGE_BYTES, now = T::STAGE_BYTES;
#pragma unroll 1
        for (u32 s = 0; s < count + 2; s++) {
            copy_wait<1>();
            __syncthreads();
            if (s < count) feed_x.copy(filled);
            copy_commit();
            if (s > 0 && s <= count) feed_w.put(before, p.w_dtype, table);
            if (s < count) feed_w.fetch(p);
            if (s > 1) multiply.step(acc, now);
            u32 free = now;
            now = before, before = filled, filled = free;
        }
    } else {
        Feed<BN, T::W_PITCH> feed_w(w, place.col, p.n, (size_t)p.w_stride * WB, (size_t)skip * WB, (p.k - skip) * WB, base + T::X_BYTES);
        u32 now = 0, next = (T::DEPTH - 1) * T::STAGE_BYTES;
#pragma unroll 1
        for (u32 s = 0; s < T::DEPTH - 1; s++) {
            if (s < count) feed_x.copy(s * T::STAGE_BYTES), feed_w.copy(s * T::STAGE_BYTES);
            copy_commit();
        }
#pragma unroll 1
        for (u32 s = 0; s < count; s++) {
            // This thread's part of the step has arrived; after the barrier the parts of all
            // threads have, and the step before is no longer needed.
            copy_wait<T::DEPTH - 2>();
            __syncthreads();
            if (s + T::DEPTH - 1 < count) feed_x.copy(next), feed_w.copy(next);
            copy_commit();
            multiply.step(acc, now);
            next = now;
            now = now + T::STAGE_BYTES == T::SHARED_BYTES ? 0 : now + T::STAGE_BYTES;
        }
    }
    if (p.rank) add_side<BM, BN, T::SHARED_BYTES>(acc, p, scales, side, place, base);

    float* stage = reinterpret_cast<float*>(shared);
#pragma unroll 1
    for (int slice = 0; slice < SLICES; slice++) {
        __syncthreads();
        if (slice == 0) stage_rows<BN, 0, MJ / SLICES>(stage, acc);
        else stage_rows<BN, MJ - MJ / SLICES, MJ / SLICES>(stage, acc);
        __syncthreads();
        u32 row0 = place.row + slice * SLICE;
        if (p.splits > 1) store_partials<SLICE, BN>(p, partials, stage, row0, place.col);
        else finish_tile<SLICE, BN, THREADS, 4>(p, o, stage, row0, place.col);
    }
}
