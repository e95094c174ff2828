// Operations on single elements or whole rows, without sums:
//
//   gelu_mul        out = gelu_tanh(gate) * up
//   silu_mul        out = silu(gate) * up, over windows
//   silu            out = x / (1 + e^-x)
//   add             out = a + b
//   cast            out = x in another type, over windows
//   copy_rows       rows from .. from + count of each image of x become rows to .. of that image of
//   out, bit for bit
//   embed           out[r] = table[ids[r]] (+ positions[r % positions.rows])
//   timestep_embed  out = [cos(1000 t f) | sin(1000 t f)], f_i = 10000^(-i / half)
//   pack, unpack    latent pixels to tokens of 2x2 pixels and back
//   group_mix       out[r, a n + j] = sum of w[a, i] x[r, i n + j], for the groups i of n columns
//   scaled_add      out = tail(x + scale * add), the tails of linear
//   euler_step      x += dt * v, with true CFG x += dt * (vu + s * (vc - vu))
//
// Roofline: limited by memory; at most twenty operations per element, for which 4 to 8 bytes are
// moved; gelu_mul of T5 (512 x 10240) moves 31 MB: 9 us on an H100. The fast kernels have one
// thread for each 16 bytes, neighbouring threads on neighbouring 16 bytes, so that every sector is
// used completely; 2048 resident threads have 32 KB in flight, twice what hides the latency of an
// H100. The `_any` kernels have one thread for each element and take every type, window and
// alignment. `embed` and the operations listed after it have only these: they run once per text or
// step, on a few megabytes.
//
// `out` may be an input of gelu_mul, silu_mul, silu and add, so nothing is `__restrict__`. NaN and
// infinity propagate as in IEEE arithmetic.

#include "common.cuh"

enum : u32 { THREADS = 256 };

DEVICE u64 thread_index() { return (u64)blockIdx.x * THREADS + threadIdx.x; }

// Row and column of the i-th element of a window.
struct Spot {
    u64 row;
    u32 col;
    DEVICE Spot(u64 i, u32 cols) : row(i / cols), col((u32)(i - row * cols)) {}
    DEVICE size_t in(u32 stride) const { return row * stride + col; }
};

struct GeluMul {
    static DEVICE float of(float gate, float up) { return gelu_tanh(gate) * up; }
};
struct SiluMul {
    static DEVICE float of(float gate, float up) { return silu(gate) * up; }
};
struct Silu {
    static DEVICE float of(float x, float) { return silu(x); }
};
struct Add {
    static DEVICE float of(float a, float b) { return a + b; }
};

struct BinaryParams {
    u32 rows, cols;
    u32 a_stride, b_stride, out_stride;
    u32 a_type, b_type, out_type;
};

template <class F> DEVICE u32 pair_of(u32 a, u32 b) {
    return pack_bf16(F::of(bf16_low(a), bf16_low(b)), F::of(bf16_high(a), bf16_high(b)));
}

// Dense bf16 in vectors of 8. `b` is 0 if there is only one input.
template <class F> DEVICE void binary_bf16(const uint4* a, const uint4* b, uint4* out, const BinaryParams& p) {
    const u64 i = thread_index();
    if (i >= (u64)p.rows * p.cols / 8) return;
    const uint4 x = a[i], y = b ? b[i] : x;
    out[i] = make_uint4(pair_of<F>(x.x, y.x), pair_of<F>(x.y, y.y), pair_of<F>(x.z, y.z), pair_of<F>(x.w, y.w));
}

template <class F> DEVICE void binary_any(const void* a, const void* b, void* out, const BinaryParams& p) {
    const u64 i = thread_index();
    if (i >= (u64)p.rows * p.cols) return;
    const Spot spot(i, p.cols);
    const float x = load_element(a, spot.in(p.a_stride), p.a_type);
    const float y = b ? load_element(b, spot.in(p.b_stride), p.b_type) : 0.f;
    store_element(out, spot.in(p.out_stride), p.out_type, F::of(x, y));
}

KERNEL(THREADS, 4) gelu_mul_bf16_sm80(const uint4* gate, const uint4* up, uint4* out, BinaryParams p) {
    binary_bf16<GeluMul>(gate, up, out, p);
}
KERNEL(THREADS, 4) gelu_mul_any_sm80(const void* gate, const void* up, void* out, BinaryParams p) {
    binary_any<GeluMul>(gate, up, out, p);
}
// Windows of bf16 whose rows are vectors of 8. rows * cols / 8 is below 2^32 - THREADS, so that the
// division is short.
KERNEL(THREADS, 4) silu_mul_bf16_sm80(const uint4* gate, const uint4* up, uint4* out, BinaryParams p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x, octets = p.cols / 8, row = i / octets, octet = i % octets;
    if (row >= p.rows) return;
    const uint4 x = gate[(size_t)row * (p.a_stride / 8) + octet], y = up[(size_t)row * (p.b_stride / 8) + octet];
    out[(size_t)row * (p.out_stride / 8) + octet] =
        make_uint4(pair_of<SiluMul>(x.x, y.x), pair_of<SiluMul>(x.y, y.y), pair_of<SiluMul>(x.z, y.z), pair_of<SiluMul>(x.w, y.w));
}
KERNEL(THREADS, 4) silu_mul_any_sm80(const void* gate, const void* up, void* out, BinaryParams p) {
    binary_any<SiluMul>(gate, up, out, p);
}
KERNEL(THREADS, 4) silu_bf16_sm80(const uint4* x, uint4* out, BinaryParams p) { binary_bf16<Silu>(x, nullptr, out, p); }
KERNEL(THREADS, 4) silu_any_sm80(const void* x, void* out, BinaryParams p) { binary_any<Silu>(x, nullptr, out, p); }
KERNEL(THREADS, 4) add_bf16_sm80(const uint4* a, const uint4* b, uint4* out, BinaryParams p) { binary_bf16<Add>(a, b, out, p); }
KERNEL(THREADS, 4) add_any_sm80(const void* a, const void* b, void* out, BinaryParams p) { binary_any<Add>(a, b, out, p); }

struct CastParams {
    u32 rows, cols;
    u32 x_stride, out_stride;
    u32 x_type, out_type;
};

// Four elements a thread, 16 bytes of f32 against 8 of bf16: with eight, a warp would touch each
// f32 sector twice. rows * cols / 4 is below 2^32 - THREADS, so that the divisions are short.
KERNEL(THREADS, 4) cast_f32_bf16_sm80(const float* x, bf16* out, CastParams p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x, quads = p.cols / 4, row = i / quads, col = i % quads * 4;
    if (row >= p.rows) return;
    const float4 v = *reinterpret_cast<const float4*>(x + (size_t)row * p.x_stride + col);
    *reinterpret_cast<uint2*>(out + (size_t)row * p.out_stride + col) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
}
KERNEL(THREADS, 4) cast_bf16_f32_sm80(const bf16* x, float* out, CastParams p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x, quads = p.cols / 4, row = i / quads, col = i % quads * 4;
    if (row >= p.rows) return;
    const uint2 v = *reinterpret_cast<const uint2*>(x + (size_t)row * p.x_stride + col);
    const float4 y = make_float4(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y));
    *reinterpret_cast<float4*>(out + (size_t)row * p.out_stride + col) = y;
}
KERNEL(THREADS, 4) cast_any_sm80(const void* x, void* out, CastParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.rows * p.cols) return;
    const Spot spot(i, p.cols);
    store_element(out, spot.in(p.out_stride), p.out_type, load_element(x, spot.in(p.x_stride), p.x_type));
}

struct CopyRowsParams {
    // Images, and rows to copy from each.
    u32 batch, count;
    u32 from, to;
    // Rows of an image in x and in out.
    u32 x_rows, out_rows;
    // A row's width and the steps from row to row, in units of what one thread copies.
    u32 width, x_pitch, out_pitch;
    // Bytes of that unit.
    u32 unit;
};

// The positions of unit i of the copied data in x and in out.
struct Copy {
    size_t from, to;
    DEVICE Copy(u64 i, const CopyRowsParams& p) {
        const u64 row = i / p.width;
        const u32 unit = (u32)(i - row * p.width), picture = (u32)(row / p.count), r = (u32)row % p.count;
        from = ((size_t)picture * p.x_rows + p.from + r) * p.x_pitch + unit;
        to = ((size_t)picture * p.out_rows + p.to + r) * p.out_pitch + unit;
    }
};

KERNEL(THREADS, 4) copy_rows_vector_sm80(const uint4* x, uint4* out, CopyRowsParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.batch * p.count * p.width) return;
    const Copy c(i, p);
    out[c.to] = x[c.from];
}
KERNEL(THREADS, 4) copy_rows_any_sm80(const void* x, void* out, CopyRowsParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.batch * p.count * p.width) return;
    const Copy c(i, p);
    if (p.unit == 2) static_cast<u16*>(out)[c.to] = static_cast<const u16*>(x)[c.from];
    else static_cast<u32*>(out)[c.to] = static_cast<const u32*>(x)[c.from];
}

struct EmbedParams {
    u32 rows, cols;
    u32 table_rows, table_stride, table_type;
    u32 positions_rows, positions_stride, positions_type;
    u32 out_stride, out_type;
};

DEVICE float load_stored(const void* p, size_t i, u32 dtype) {
    return dtype == F16 ? __half2float(static_cast<const __half*>(p)[i]) : load_element(p, i, dtype);
}

KERNEL(THREADS, 4) embed_any_sm80(const void* table, const int* ids, const void* positions, void* out, EmbedParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.rows * p.cols) return;
    const Spot spot(i, p.cols);
    const u32 id = (u32)ids[spot.row];
    // The host checks ids when it writes them. If an id is wrong all the same, the result is NaN,
    // and no other memory is read.
    float v = __int_as_float(0x7fffffff);
    if (id < p.table_rows) v = load_stored(table, (size_t)id * p.table_stride + spot.col, p.table_type);
    if (positions) {
        v += load_stored(positions, (size_t)((u32)spot.row % p.positions_rows) * p.positions_stride + spot.col, p.positions_type);
    }
    store_element(out, spot.in(p.out_stride), p.out_type, v);
}

struct TimestepParams {
    u32 rows, half;
    u32 t_stride, out_stride, out_type;
};

// 10000^(-i/half), as if e^x were computed exactly for the f32 exponent and rounded once: an error
// in the last bit of the frequency changes an angle of 1000 by 6e-5. x = n ln 2 + r; e^r = 1 + r +
// r^2 P(r), whose large terms are added together with their rounding errors.
DEVICE float timestep_frequency(u32 i, u32 half) {
    const float x = __fdiv_rn(__fmul_rn(-9.210340371976184f, (float)i), (float)half);
    const float n = rintf(x * 1.4426950408889634f);
    // The first product and difference are exact: 0.693359375 has 9 bits.
    const float a = __fmaf_rn(n, -.693359375f, x), b = n * 2.1219444e-4f;
    const float r = __fadd_rn(a, b), back = __fadd_rn(r, -a);
    const float lost = __fadd_rn(__fadd_rn(a, -__fadd_rn(r, -back)), __fadd_rn(b, -back));
    float q = 2.48015873e-5f;
    q = __fmaf_rn(q, r, 1.98412698e-4f);
    q = __fmaf_rn(q, r, 1.38888889e-3f);
    q = __fmaf_rn(q, r, 8.33333333e-3f);
    q = __fmaf_rn(q, r, 4.16666667e-2f);
    q = __fmaf_rn(q, r, .166666667f);
    q = __fmaf_rn(q, r, .5f);
    const float one = __fadd_rn(1.f, r), rest = __fadd_rn(r, -__fadd_rn(one, -1.f));
    const float y = __fadd_rn(one, __fadd_rn(rest, __fmaf_rn(r * r, q, lost)));
    return y * __int_as_float(((int)n + 127) << 23);
}

// Cosine and sine with an error below 2e-7 for |x| up to 10^6 (guidance 3.5 needs 3500). CUDA's own
// functions have a path for large arguments with a table in local memory. x = n pi/2 + r with pi/2
// in three parts: the first difference is exact, because the remainder has no bit below the last
// bit of the product.
DEVICE void cos_sin(float x, float& c, float& s) {
    const float n = rintf(x * .6366197723675814f);
    float r = __fmaf_rn(n, -1.5707963705062866f, x);
    r = __fmaf_rn(n, 4.371138828673793e-8f, r);
    r = __fmaf_rn(n, 1.7151245100059e-15f, r);
    const float z = r * r;
    const float sine = r + r * z * (-.16666654611f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float cosine = 1.f - .5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const int quadrant = (int)n;
    c = quadrant & 1 ? sine : cosine;
    s = quadrant & 1 ? cosine : sine;
    if ((quadrant + 1) & 2) c = -c;
    if (quadrant & 2) s = -s;
}

// The angle is rounded to f32 where diffusers rounds it.
KERNEL(THREADS, 4) timestep_embed_any_sm80(const float* t, void* out, TimestepParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.rows * p.half) return;
    const Spot spot(i, p.half);
    const float time = __fmul_rn(1000.f, t[spot.row * p.t_stride]);
    float c, s;
    cos_sin(__fmul_rn(time, timestep_frequency(spot.col, p.half)), c, s);
    store_element(out, spot.in(p.out_stride), p.out_type, c);
    store_element(out, spot.in(p.out_stride) + p.half, p.out_type, s);
}

struct LatentParams {
    // Tokens of all images, and their columns: 4 for each channel.
    u32 tokens, cols;
    // Pixels of a line.
    u32 width;
    u32 x_stride, out_stride;
    u32 x_type, out_type;
    float scale, shift;
};

// The position of column `spot.col` of token `spot.row` among the pixels. The lines of all images
// are numbered through, since each image has an even number of them.
DEVICE size_t pixel_of(const Spot& spot, u32 width, u32 stride) {
    const u32 across = width / 2, token = (u32)spot.row;
    const u64 line = (u64)(token / across) * (2 * width) + spot.col / 2 % 2 * width;
    return (line + token % across * 2 + spot.col % 2) * stride + spot.col / 4;
}

KERNEL(THREADS, 4) pack_any_sm80(const void* x, void* out, LatentParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.tokens * p.cols) return;
    const Spot spot(i, p.cols);
    store_element(out, spot.in(p.out_stride), p.out_type, load_element(x, pixel_of(spot, p.width, p.x_stride), p.x_type));
}
KERNEL(THREADS, 4) unpack_any_sm80(const void* x, void* out, LatentParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.tokens * p.cols) return;
    const Spot spot(i, p.cols);
    const float v = load_element(x, spot.in(p.x_stride), p.x_type);
    store_element(out, pixel_of(spot, p.width, p.out_stride), p.out_type, v * p.scale + p.shift);
}

struct EulerParams {
    u32 rows, cols;
    u32 x_stride, v_stride, v_type;
    // Whether v has the unconditional rows after the conditional ones.
    u32 cfg;
};

// step: t_next - t and the CFG scale.
KERNEL(THREADS, 4) euler_step_any_sm80(float* x, const void* v, const float* step, EulerParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.rows * p.cols) return;
    const Spot spot(i, p.cols);
    float velocity = load_element(v, spot.in(p.v_stride), p.v_type);
    if (p.cfg) {
        const float without = load_element(v, spot.in(p.v_stride) + (size_t)p.rows * p.v_stride, p.v_type);
        velocity = without + step[1] * (velocity - without);
    }
    x[spot.in(p.x_stride)] += step[0] * velocity;
}

struct MixParams {
    u32 rows, cols;
    // Groups of x, and the columns of a group.
    u32 inputs, width;
    u32 x_stride, out_stride;
    u32 x_type, out_type;
};

// Neighbouring threads have neighbouring columns of one group, so that loads are consecutive; each
// element of x is read once for every output group, mostly from the caches.
KERNEL(THREADS, 4) group_mix_any_sm80(const void* x, const float* w, void* out, MixParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.rows * p.cols) return;
    const Spot spot(i, p.cols);
    const u32 group = spot.col / p.width;
    const size_t first = spot.row * p.x_stride + (spot.col - group * p.width);
    const float* row = w + (size_t)group * p.inputs;
    float sum = 0.f;
    for (u32 k = 0; k < p.inputs; ++k) sum = __fmaf_rn(row[k], load_element(x, first + (size_t)k * p.width, p.x_type), sum);
    store_element(out, spot.in(p.out_stride), p.out_type, sum);
}

struct ScaledAddParams {
    u32 rows, cols;
    u32 x_stride, add_stride, residual_stride, gate_stride, out_stride;
    u32 x_type, add_type, residual_type, gate_type, out_type;
    // 0 none, 1 silu, 2 gelu_tanh, 3 quick_gelu.
    u32 activation;
    // Rows of one group: row r is multiplied with row r / group_rows of the gate.
    u32 group_rows;
};

// add, scale, residual and gate may be absent.
KERNEL(THREADS, 4) scaled_add_any_sm80(const void* x, const void* add, const float* scale, const void* residual, const void* gate, void* out, ScaledAddParams p) {
    const u64 i = thread_index();
    if (i >= (u64)p.rows * p.cols) return;
    const Spot spot(i, p.cols);
    float y = load_element(x, spot.in(p.x_stride), p.x_type);
    if (add) y = __fmaf_rn(scale ? scale[spot.col] : 1.f, load_element(add, spot.in(p.add_stride), p.add_type), y);
    if (p.activation == 1) y = silu(y);
    if (p.activation == 2) y = gelu_tanh(y);
    if (p.activation == 3) y = quick_gelu(y);
    if (residual) {
        const float factor = gate ? load_element(gate, spot.row / p.group_rows * p.gate_stride + spot.col, p.gate_type) : 1.f;
        y = __fmaf_rn(factor, y, load_element(residual, spot.in(p.residual_stride), p.residual_type));
    }
    store_element(out, spot.in(p.out_stride), p.out_type, y);
}
