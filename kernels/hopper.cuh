// Shared by the sm_90a kernels: mbarriers, TMA copies, warpgroup matrix products (wgmma) and their
// operand descriptors.
//
// The path of a tile: one thread of the producer waits until a ring slot is empty, announces the
// bytes on the slot's `full` barrier and starts TMA copies, which write to shared memory with the
// 128-byte swizzle: the 16-byte chunk c of row r of a box (128 bytes a row, boxes begin at
// multiples of 1024) is at chunk c ^ (r % 8). The consumers' warpgroups wait for `full`, start
// wgmma on the slot, and when the products that read it are complete, lane 0 of each of their warps
// arrives at `empty`.
#pragma once

#include "common.cuh"

// A TMA descriptor as the driver encodes it; a kernel takes it as `const __grid_constant__
// TensorMap`.
struct alignas(64) TensorMap {
    u64 words[16];
};

// ---- mbarriers. A barrier's phase completes when all arrivals and all announced bytes have been
// counted; the first is phase 0.
DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine; __syncthreads must follow.
DEVICE void barrier_init_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void barrier_arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
// One arrival that also announces the bytes of copies to come.
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE bool barrier_passed(u32 barrier, u32 parity) {
    u32 passed;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(passed)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return passed;
}
// Waits for the end of the phase of this parity. A barrier that was never used counts its
// (imaginary) phase -1, of parity 1, as ended.
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    while (!barrier_passed(barrier, parity)) {}
}

// The position in a ring of N slots and the parity of the round, which advance together.
template <int N> struct Ring {
    u32 slot = 0, parity = 0;
    DEVICE void next() {
        if (++slot == N) slot = 0, parity ^= 1;
    }
};

// Barriers of whole warps by number: `threads` counts those that sync and those that only arrive.
DEVICE void named_sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void named_arrive(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- TMA. Copies the box whose first element is (column, row); elements beyond the matrix are
// zeros, and their bytes count.
DEVICE void tma_load(u32 to, const TensorMap& map, int column, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}

// ---- Moves registers from the producer to the consumers; every warp of a warpgroup must do it.
template <int N> DEVICE void registers_more() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void registers_fewer() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// ---- wgmma. D (64 x N, f32) of a warpgroup: thread t holds D[16 (t/32) + t%32/4 + 8h][8j + 2(t%4)
// + e] in d[4j + 2h + e]. An operand in registers (A, 64 x 16 of bf16) has in a[2c + h] the pair
// A[row as above][8c + 2(t%4) ..].
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// From CUDA 12.8 on ptxas moves a wait up, in front of computations that should overlap with the
// products. It keeps this barrier of a warp in its place, whose mask depends on `last`, the result
// of these computations: all lanes, since `last` is never the smallest number above zero.
DEVICE void wgmma_wait_not_before(float last) {
    asm volatile("{\n.reg .pred p;\n.reg .b32 m;\nsetp.ne.b32 p, %0, 1;\nselp.b32 m, 0xffffffff, 0x7fffffff, p;\nbar.warp.sync m;\n}"
                 ::"r"(__float_as_uint(last)) : "memory");
}
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// The sums are complete from here on: no read of them may move up across the wait, and the compiler
// does not know that the wait concerns them.
template <int C> DEVICE void wgmma_complete(float (&d)[C]) {
#pragma unroll
    for (int i = 0; i < C; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// Which warpgroup of the block this is, in a register that the compiler knows to be the same for a
// whole warp.
DEVICE u32 warpgroup() { return __shfl_sync(~0u, threadIdx.x / 128, 0); }

// A box of rows of 128 bytes, the inner dimension (k) along them. Groups of 8 rows are 1024 bytes
// apart; the leading offset has no meaning here. Steps along k, 32 bytes each, add 2 to the
// descriptor: the swizzle works on addresses.
DEVICE u64 rows_descriptor(u32 address) { return (u64)((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
// A box of rows of 128 bytes where k is the index of the row: a row has 64 columns of the operand,
// the next 64 are `next` bytes further (leading offset), groups of 8 k 1024 bytes apart. A step of
// 16 along k adds 128.
DEVICE u64 columns_descriptor(u32 address, u32 next) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(next >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

#define FLOATS_8(d, i) \
    "+f"((d)[i]), "+f"((d)[i + 1]), "+f"((d)[i + 2]), "+f"((d)[i + 3]), "+f"((d)[i + 4]), "+f"((d)[i + 5]), "+f"((d)[i + 6]), \
        "+f"((d)[i + 7])
#define FLOATS_16(d, i) FLOATS_8(d, i), FLOATS_8(d, i + 8)
#define FLOATS_48(d) FLOATS_16(d, 0), FLOATS_16(d, 16), FLOATS_16(d, 32)
#define FLOATS_64(d) FLOATS_48(d), FLOATS_16(d, 48)
#define FLOATS_96(d) FLOATS_64(d), FLOATS_16(d, 64), FLOATS_16(d, 80)
#define FLOATS_128(d) FLOATS_96(d), FLOATS_16(d, 96), FLOATS_16(d, 112)
#define NAMES_48 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 NAMES_48 \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_96 NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_128 NAMES_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// "x, y" are the numbers of the operands after `count` floats; the predicate says whether D is
// added to: without it the products replace the old values.
#define WGMMA(shape, count, operands, add) \
    "{\n.reg .pred p;\nsetp.ne.u32 p, %" add ", 0;\nwgmma.mma_async.sync.aligned." shape " {" NAMES_##count "}, " operands ";\n}"
#define WGMMA_FROM_SHARED(name, shape, count, a_at, b_at, add_at, more)                                                            \
    DEVICE void name(float (&d)[count], u64 a, u64 b, u32 add) {                                                                   \
        asm volatile(WGMMA(shape, count, "%" #a_at ", %" #b_at ", p, 1, 1" more, #add_at)                                          \
                     : FLOATS_##count(d)                                                                                           \
                     : "l"(a), "l"(b), "r"(add));                                                                                  \
    }
#define WGMMA_FROM_REGISTERS(name, shape, count, a0, a1, a2, a3, b_at, add_at, more)                                               \
    DEVICE void name(float (&d)[count], const u32 (&a)[4], u64 b, u32 add) {                                                       \
        asm volatile(WGMMA(shape, count, "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b_at ", p, 1, 1" more, #add_at)            \
                     : FLOATS_##count(d)                                                                                           \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                              \
    }

// d (+)= A . B^T, k along the rows of both, in shared memory; `add` is 0 or 1.
WGMMA_FROM_SHARED(wgmma_bf16, "m64n128k16.f32.bf16.bf16", 64, 64, 65, 66, ", 0, 0")
WGMMA_FROM_SHARED(wgmma_bf16, "m64n192k16.f32.bf16.bf16", 96, 96, 97, 98, ", 0, 0")
WGMMA_FROM_SHARED(wgmma_bf16, "m64n256k16.f32.bf16.bf16", 128, 128, 129, 130, ", 0, 0")
WGMMA_FROM_SHARED(wgmma_e4m3, "m64n96k32.f32.e4m3.e4m3", 48, 48, 49, 50, "")
WGMMA_FROM_SHARED(wgmma_e4m3, "m64n128k32.f32.e4m3.e4m3", 64, 64, 65, 66, "")
// A from registers, which must not change before the product is complete.
WGMMA_FROM_REGISTERS(wgmma_bf16, "m64n128k16.f32.bf16.bf16", 64, 64, 65, 66, 67, 68, 69, ", 0")
WGMMA_FROM_REGISTERS(wgmma_bf16, "m64n192k16.f32.bf16.bf16", 96, 96, 97, 98, 99, 100, 101, ", 0")
WGMMA_FROM_REGISTERS(wgmma_bf16, "m64n256k16.f32.bf16.bf16", 128, 128, 129, 130, 131, 132, 133, ", 0")
// The same with B's k over its rows (`columns_descriptor`).
WGMMA_FROM_REGISTERS(wgmma_bf16_columns, "m64n128k16.f32.bf16.bf16", 64, 64, 65, 66, 67, 68, 69, ", 1")

// Each of the four lanes of a quad holds its word j for group j; afterwards lane q holds the four
// lanes' words of group q, in lane order. So accumulators, of which a lane has two adjacent columns
// in every eight, become 16 bytes of adjacent bf16.
DEVICE void quad_transpose(u32 (&v)[4], u32 quad_lane) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        bool upper = quad_lane & step;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & step) continue;
            u32 given = upper ? v[i] : v[i + step];
            u32 taken = __shfl_xor_sync(~0u, given, step);
            (upper ? v[i] : v[i + step]) = taken;
        }
    }
}
