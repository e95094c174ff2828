// The parameters and the three kernels for one type of weights.
#pragma once

#include "linear_few.cuh"
#include "linear_tile.cuh"

#define OPERANDS                                                                                                            \
    const bf16 *__restrict__ x, const u8 *__restrict__ w, const float *__restrict__ scales, const float *__restrict__ bias, \
        const void *residual, const void *gate, void *out, float *partials, const u16 *__restrict__ t, const u16 *__restrict__ b, const LinearParams p
// With a side branch, the sums are scaled before it is added.
#define OUT (LinearOut{p.rank ? nullptr : scales, nullptr, bias, residual, gate, out})
#define SIDE (LinearSide{t, b})

#define TILED(name, W)                                                                                                            \
    KERNEL(128, 2) linear_##name##_128x128_sm80(OPERANDS) { linear_tile<W, 128, 128>(x, w, scales, SIDE, OUT, partials, p); } \
    KERNEL(128, 4) linear_##name##_64x64_sm80(OPERANDS) { linear_tile<W, 64, 64>(x, w, scales, SIDE, OUT, partials, p); }     \
    KERNEL(256, 2) linear_##name##_rows16_sm80(OPERANDS) { linear_few<W>(x, w, scales, SIDE, OUT, p); }
