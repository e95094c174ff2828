// Shared by all kernel families: wrappers for the few PTX instructions that CUDA C++ has no
// function for, conversions, reductions.
//
// Calling convention of all kernels: first the buffers (device addresses; 0 where an optional one
// is absent), then TMA descriptors if there are any (`const __grid_constant__ CUtensorMap`), last
// one `Params` struct by value, whose fields are 32 bits wide and mirrored in `src/backend/cuda/`.
// Strides count elements. Every matrix is `rows x cols`, row-major.
//
// NVRTC compiles these files: there is no <stdint.h> and no host code.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef __nv_bfloat16 bf16;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Element types, as `DType` is numbered in `src/backend/cuda/launch.rs`.
enum DType : u32 {
    BF16 = 0, F32 = 1, F16 = 2, E4M3 = 3, E5M2 = 4, I8 = 6,
    // Stored in blocks; see linear_blocks.cuh.
    Q8_0 = 16, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, NF4, FP4, MXFP8, NVFP4,
    FP8_BLOCK,
    // Any of these; a run-time parameter of the kernel.
    BLOCKS = 32,
};

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory, of which the first `bytes` (0 or 16) come from `from` and the
// others are zero. `from` is not read when `bytes` is 0, but must still be a valid address: pass
// the start of the matrix.
DEVICE void copy_async(u32 to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `N` of this thread's groups are still in flight.
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void load_matrices(u32 (&d)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}
DEVICE void load_matrices_transposed(u32 (&d)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}

// c (16x8, f32) += a (16x16, row-major, bf16) . b (16x8, column-major, bf16).
DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c (16x8, s32) += a (16x32, row-major, s8) . b (32x8, column-major, s8). In bytes, the fragments
// have the layout of 16-bit elements.
DEVICE void mma_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c (16x8, f16) += a (16x16, row-major, f16) . b (16x8, column-major, f16).
DEVICE void mma_f16(u32 (&c)[2], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%0,%1};"
                 : "+r"(c[0]), "+r"(c[1])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE u32 pack_bf16(float low, float high) {
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<u32*>(&v);
}
DEVICE u32 pack_f16(float low, float high) {
    __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<u32*>(&v);
}
DEVICE float2 unpack_f16(u32 pair) { return __half22float2(*reinterpret_cast<__half2*>(&pair)); }
DEVICE float bf16_low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float sigmoid(float x) { return reciprocal_fast(1.f + exp2_fast(-1.4426950408889634f * x)); }
DEVICE float silu(float x) { return x * sigmoid(x); }
// x/2 (1 + tanh u) is x sigmoid(2u), which stays precise where tanh u is near -1; tanh.approx has
// an error of 2^-11 there.
DEVICE float gelu_tanh(float x) { return x * sigmoid(1.5957691216057308f * (x + .044715f * x * x * x)); }
DEVICE float quick_gelu(float x) { return x * sigmoid(1.702f * x); }

DEVICE float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
    return v;
}

// One element of a matrix that is bf16 or f32: for the operations whose time does not matter.
DEVICE float load_element(const void* p, size_t i, u32 dtype) {
    return dtype == F32 ? static_cast<const float*>(p)[i] : __bfloat162float(static_cast<const bf16*>(p)[i]);
}
DEVICE void store_element(void* p, size_t i, u32 dtype, float v) {
    if (dtype == F32) static_cast<float*>(p)[i] = v;
    else static_cast<bf16*>(p)[i] = __float2bfloat16_rn(v);
}
