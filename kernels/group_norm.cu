// out[p][c] = act((x[p][c] - mean[g]) / sqrt(variance[g] + eps) * weight[c] + bias[c]), act = SiLU
// or nothing
//
// Mean and variance are those of a group: all pixels of the image x the `channels / groups`
// channels of group g. Pixels are rows of x, channels last. Two operations do it, because an image
// may be processed in bands of rows of pixels:
//   group_statistics: a block reads a row of pixels once and stores (mean, sum of squared
//   deviations) of every group;
//   group_norm: `merge`, a block for four groups, joins the rows of the whole image into (mean, 1 /
//   deviation); `apply` normalises chunk by chunk, the last chunk first, because the kernel that
//   wrote x leaves its end in L2.
// A thread keeps its 8 channels (16 bytes) and goes through the pixels, four at a time, so that a
// warp reads 512 consecutive bytes and a block has 16 KiB in flight.
//
// A sum of squares loses all precision if the mean is far from zero. Each thread sums differences
// from the first value that it reads of a channel; after that only means and squared deviations are
// joined (Chan, Golub, LeVeque), in an order that depends on the shape of the image alone.
//
// Roofline: three passes at memory bandwidth. A megapixel of 128 channels is 268 MB: 2.2 ms at 360
// GB/s, .24 at 3.3 TB/s.
#include "common.cuh"

struct Params {
    u32 rows;        // pixels of x
    u32 channels, groups;
    u32 chunk_rows;  // pixels of a block: of statistics and merge, those of a row of pixels
    u32 chunks;      // blocks; of merge, the rows of pixels of the whole image
    u32 x_stride, out_stride;
    u32 x_dtype, out_dtype;
    u32 silu;
    float eps;
};

enum : u32 { THREADS = 256 };

// Mean and summed squared deviation of `count` values.
struct Moments {
    float count, mean, squares;
};

// From sums of differences from `shift`.
DEVICE Moments moments(float count, float shift, float sum, float squares) {
    if (count == 0.f) return {0.f, 0.f, 0.f};
    const float mean = sum / count;
    return {count, shift + mean, fmaxf(squares - sum * mean, 0.f)};
}

// The moments of the union of `count` parts, by a whole warp: the mean first (as a difference from
// that of part 0, which is never empty), then the deviations from it. Every lane has the same
// result.
template <class Part> DEVICE Moments join(u32 count, Part part) {
    const u32 lane = threadIdx.x % 32;
    const float reference = part(0).mean;
    float n = 0.f, sum = 0.f, squares = 0.f;
    for (u32 i = lane; i < count; i += 32) {
        const Moments m = part(i);
        n += m.count;
        sum += m.count * (m.mean - reference);
    }
    n = warp_sum(n);
    const float mean = reference + warp_sum(sum) / n;
    for (u32 i = lane; i < count; i += 32) {
        const Moments m = part(i);
        squares += m.squares + m.count * (m.mean - mean) * (m.mean - mean);
    }
    return {n, mean, warp_sum(squares)};
}

// The moments of the union of the parts of all threads of a block (that of thread 0 is not empty).
// The result is valid in the first warp.
DEVICE Moments join_threads(const Moments& mine) {
    __shared__ Moments all[THREADS];
    all[threadIdx.x] = mine;
    __syncthreads();
    return threadIdx.x < 32 ? join(THREADS, [&](u32 i) { return all[i]; }) : mine;
}

DEVICE void unpack(const uint4& v, float (&f)[8]) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) f[2 * i] = bf16_low(words[i]), f[2 * i + 1] = bf16_high(words[i]);
}

// A block for each row of pixels; up to 2048 channels, a multiple of 8; pixels at multiples of 16
// bytes.
KERNEL(THREADS, 4) group_norm_statistics_bf16(const bf16* x, float2* partials, const __grid_constant__ Params p) {
    __shared__ __align__(16) float means[THREADS * 8], deviations[THREADS * 8];
    const u32 chunk = blockIdx.x, count = p.chunk_rows;
    // The block is `lines` rows of `vectors` threads; the other threads do nothing.
    const u32 vectors = p.channels / 8, lines = THREADS / vectors, line = threadIdx.x / vectors, vector = threadIdx.x - line * vectors;
    if (line < lines) {
        const bf16* from = x + (size_t)chunk * p.chunk_rows * p.x_stride + vector * 8;
        float shift[8] = {}, sum[8] = {}, squares[8] = {}, f[8];
        auto add = [&](const uint4& v) {
            unpack(v, f);
#pragma unroll
            for (int c = 0; c < 8; c++) {
                const float d = f[c] - shift[c];
                sum[c] += d;
                squares[c] += d * d;
            }
        };
        auto at = [&](u32 row) { return *reinterpret_cast<const uint4*>(from + (size_t)row * p.x_stride); };
        u32 row = line;
        if (row < count) {
            unpack(at(row), shift);
            row += lines;
        }
        for (; row + 3 * lines < count; row += 4 * lines) {
            const uint4 v[4] = {at(row), at(row + lines), at(row + 2 * lines), at(row + 3 * lines)};
#pragma unroll
            for (int i = 0; i < 4; i++) add(v[i]);
        }
        for (; row < count; row += lines) add(at(row));
        const float n = line < count ? (float)((count - line - 1) / lines + 1) : 0.f;
        float4* mean = reinterpret_cast<float4*>(means + line * p.channels + vector * 8);
        float4* deviation = reinterpret_cast<float4*>(deviations + line * p.channels + vector * 8);
#pragma unroll
        for (int c = 0; c < 8; c += 4) {
            Moments m[4];
#pragma unroll
            for (int i = 0; i < 4; i++) m[i] = moments(n, shift[c + i], sum[c + i], squares[c + i]);
            mean[c / 4] = make_float4(m[0].mean, m[1].mean, m[2].mean, m[3].mean);
            deviation[c / 4] = make_float4(m[0].squares, m[1].squares, m[2].squares, m[3].squares);
        }
    }
    __syncthreads();
    // Joins each channel over its lines, in the memory of line 0; then the channels of a group.
    // Both are free of bank conflicts.
    const u32 rounds = count / lines, rest = count - rounds * lines;
    for (u32 c = threadIdx.x; c < p.channels; c += THREADS) {
        const float reference = means[c];
        float sum = 0.f, squares = 0.f;
#pragma unroll 4
        for (u32 l = 0; l < lines; l++) sum += (float)(rounds + (l < rest)) * (means[l * p.channels + c] - reference);
        const float mean = reference + sum / (float)count;
#pragma unroll 4
        for (u32 l = 0; l < lines; l++) {
            const float d = means[l * p.channels + c] - mean;
            squares += deviations[l * p.channels + c] + (float)(rounds + (l < rest)) * d * d;
        }
        means[c] = mean;
        deviations[c] = squares;
    }
    __syncthreads();
    const u32 width = p.channels / p.groups;
    for (u32 group = threadIdx.x / 32; group < p.groups; group += THREADS / 32) {
        const Moments m = join(width, [&](u32 i) {
            return Moments{(float)count, means[group * width + i], deviations[group * width + i]};
        });
        if (threadIdx.x % 32 == 0) partials[(size_t)chunk * p.groups + group] = make_float2(m.mean, m.squares);
    }
}

// Any element type, width and alignment: block `row of pixels * groups + group`.
KERNEL(THREADS, 4) group_norm_statistics_any(const void* x, float2* partials, const __grid_constant__ Params p) {
    const u32 chunk = blockIdx.x / p.groups, width = p.channels / p.groups, column = (blockIdx.x - chunk * p.groups) * width;
    const u32 elements = p.chunk_rows * width;
    const size_t first = (size_t)chunk * p.chunk_rows;
    float shift = 0.f, sum = 0.f, squares = 0.f;
    u32 count = 0;
    for (u32 e = threadIdx.x; e < elements; e += THREADS, count++) {
        const u32 row = e / width;
        const float v = load_element(x, (first + row) * p.x_stride + column + (e - row * width), p.x_dtype);
        if (count == 0) shift = v;
        sum += v - shift;
        squares += (v - shift) * (v - shift);
    }
    const Moments m = join_threads(moments((float)count, shift, sum, squares));
    if (threadIdx.x == 0) partials[blockIdx.x] = make_float2(m.mean, m.squares);
}

// (mean, 1 / deviation) of four groups from their rows of pixels: 64 threads for each, so that
// neighbours read the statistics of neighbouring groups.
KERNEL(THREADS, 1) group_norm_merge(const float2* partials, float2* statistics, const __grid_constant__ Params p) {
    constexpr u32 GROUPS = 4, LANES = THREADS / GROUPS, PITCH = 72;  // a pitch without bank conflicts
    __shared__ Moments all[GROUPS * PITCH];
    const u32 first = blockIdx.x * GROUPS, part = threadIdx.x % GROUPS, lane = threadIdx.x / GROUPS, warp = threadIdx.x / 32;
    const float n = (float)p.chunk_rows * (float)(p.channels / p.groups);
    Moments mine = {0.f, 0.f, 0.f};
    if (first + part < p.groups)
        for (u32 chunk = lane; chunk < p.chunks; chunk += LANES) {
            const float2 row = partials[(size_t)chunk * p.groups + first + part];
            const float total = mine.count + n, d = row.x - mine.mean;
            mine.mean += d * (n / total);
            mine.squares += row.y + d * d * (n * (mine.count / total));
            mine.count = total;
        }
    all[part * PITCH + lane] = mine;
    __syncthreads();
    if (warp >= GROUPS || first + warp >= p.groups) return;
    const Moments m = join(LANES, [&](u32 i) { return all[warp * PITCH + i]; });
    if (threadIdx.x % 32 == 0) statistics[first + warp] = make_float2(m.mean, rsqrtf(m.squares / m.count + p.eps));
}

// A block for each chunk of pixels, in the opposite order. out may be x: a thread reads and writes
// the same elements.
KERNEL(THREADS, 4)
group_norm_apply_bf16(const bf16* x, const float2* statistics, const float* weight, const float* bias, bf16* out,
                      const __grid_constant__ Params p) {
    const u32 chunk = gridDim.x - 1 - blockIdx.x;
    const u32 count = min(p.rows - chunk * p.chunk_rows, p.chunk_rows), width = p.channels / p.groups;
    const u32 vectors = p.channels / 8, lines = THREADS / vectors, line = threadIdx.x / vectors, vector = threadIdx.x - line * vectors;
    if (line >= lines) return;
    float mean[8], scale[8], add[8];
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const float4 w = *reinterpret_cast<const float4*>(weight + vector * 8 + i);
        const float4 b = *reinterpret_cast<const float4*>(bias + vector * 8 + i);
        scale[i] = w.x, scale[i + 1] = w.y, scale[i + 2] = w.z, scale[i + 3] = w.w;
        add[i] = b.x, add[i + 1] = b.y, add[i + 2] = b.z, add[i + 3] = b.w;
    }
#pragma unroll
    for (int c = 0; c < 8; c++) {
        const float2 s = statistics[(vector * 8 + c) / width];
        mean[c] = s.x;
        scale[c] *= s.y;
    }
    const size_t first = (size_t)chunk * p.chunk_rows;
    const bf16* from = x + first * p.x_stride + vector * 8;
    bf16* to = out + first * p.out_stride + vector * 8;
    auto load = [&](u32 row) { return *reinterpret_cast<const uint4*>(from + (size_t)row * p.x_stride); };
    auto store = [&](u32 row, const uint4& v) {
        float f[8];
        unpack(v, f);
#pragma unroll
        for (int c = 0; c < 8; c++) f[c] = (f[c] - mean[c]) * scale[c] + add[c];
        if (p.silu)
#pragma unroll
            for (int c = 0; c < 8; c++) f[c] = silu(f[c]);
        *reinterpret_cast<uint4*>(to + (size_t)row * p.out_stride) =
            make_uint4(pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]), pack_bf16(f[4], f[5]), pack_bf16(f[6], f[7]));
    };
    u32 row = line;
    for (; row + 3 * lines < count; row += 4 * lines) {
        const uint4 v[4] = {load(row), load(row + lines), load(row + 2 * lines), load(row + 3 * lines)};
#pragma unroll
        for (int i = 0; i < 4; i++) store(row + i * lines, v[i]);
    }
    for (; row < count; row += lines) store(row, load(row));
}

// The same in plain loops, for any element type, width and alignment.
KERNEL(THREADS, 4)
group_norm_apply_any(const void* x, const float2* statistics, const float* weight, const float* bias, void* out,
                     const __grid_constant__ Params p) {
    const u32 chunk = blockIdx.x, width = p.channels / p.groups;
    const u32 elements = min(p.rows - chunk * p.chunk_rows, p.chunk_rows) * p.channels;
    const size_t first = (size_t)chunk * p.chunk_rows;
    for (u32 e = threadIdx.x; e < elements; e += THREADS) {
        const u32 row = e / p.channels, c = e - row * p.channels;
        const float2 s = statistics[c / width];
        const float v = load_element(x, (first + row) * p.x_stride + c, p.x_dtype);
        const float y = (v - s.x) * (s.y * weight[c]) + bias[c];
        store_element(out, (first + row) * p.out_stride + c, p.out_dtype, p.silu ? silu(y) : y);
    }
}
