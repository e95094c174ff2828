// Normalisation of rows that a workgroup holds in registers, and the operations fused with it:
//
//   layer_norm_modulate   out = (1 + scale[group]) * (x - mean) / sqrt(variance + eps) +
//   shift[group]
//   layer_norm            out = (x - mean) / sqrt(variance + eps) * weight + bias
//   rms_norm              out = x / sqrt(mean(x^2) + eps) * weight
//
// x, out: rows x cols in bf16 or f32, cols at most 4096; scale, shift: groups x cols in bf16 or
// f32; weight and bias: f32. `out` may be `x`. Memory is the limit: about ten operations per
// element, for which 4 to 8 bytes are moved. Each element is therefore read once and written once,
// 16 bytes at a time. One row has one workgroup of 128 threads, a thread has up to four groups of
// eight elements: FLUX's 3072 columns are exactly three groups for each thread, T5's 4096 are four.
// They are named variables: an array stays in registers only if a driver unrolls the loops over it.
//
// The variance comes from a second pass over the registers, because E[x^2] - E[x]^2 loses precision
// if the mean is large. The mean itself has a rounding error, of much more than its last bit if it
// is far from zero; but x minus that rounded mean is exact or nearly so, and the mean of those
// differences, which the second pass also sums, corrects it. Metal's compiler assumes that
// additions are associative and would subtract the sum of both means at once: hence `exact4`.
//
// Bases and strides count vectors of 16 bytes.

const GAIN: u32 = 0u;
const AFFINE: u32 = 1u;
const MODULATE: u32 = 2u;

// Whether the mean is subtracted.
override CENTRED: u32 = 0u;
// The operation that follows: GAIN, AFFINE or MODULATE.
override AFTER: u32 = 0u;
// Groups of eight per thread: the number of columns divided by 1024, rounded up.
override HELD: u32 = 4u;
override X_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;
override SCALE_TYPE: u32 = 0u;
override SHIFT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    cols: u32,
    // Number of the window's first row, and rows for each row of scale and of shift.
    row: u32,
    scale_rows: u32,
    shift_rows: u32,
    x_base: u32,
    x_stride: u32,
    scale_base: u32,
    scale_stride: u32,
    shift_base: u32,
    shift_stride: u32,
    out_base: u32,
    out_stride: u32,
    eps: f32,
    // 1 / cols
    inverse_cols: f32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
// weight or scale
@group(0) @binding(1) var<storage, read_write> scale: array<vec4<u32>>;
// bias or shift
@group(0) @binding(2) var<storage, read_write> shift: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<u32>>;

fn zero() -> Octet { return Octet(vec4<f32>(0.0), vec4<f32>(0.0)); }

// Group `octet` of eight elements of the row that begins at vector `at`; zeros beyond the row.
fn load_x(at: u32, octet: u32) -> Octet {
    if octet * 8u >= params.cols { return zero(); }
    if X_TYPE == BF16 { return octet_bf16(x[at + octet]); }
    return octet_f32(x[at + 2u * octet], x[at + 2u * octet + 1u]);
}

fn load_scale(at: u32, octet: u32) -> Octet {
    if SCALE_TYPE == BF16 { return octet_bf16(scale[at + octet]); }
    return octet_f32(scale[at + 2u * octet], scale[at + 2u * octet + 1u]);
}

fn load_shift(at: u32, octet: u32) -> Octet {
    if SHIFT_TYPE == BF16 { return octet_bf16(shift[at + octet]); }
    return octet_f32(shift[at + 2u * octet], shift[at + 2u * octet + 1u]);
}

// v itself, computed from its bits and a zero that the compiler cannot know (there are fewer than
// 2^31 rows), so that sums cannot be rearranged across it.
fn exact4(v: vec4<f32>) -> vec4<f32> { return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) | vec4<u32>(params.groups >> 31u)); }

// Zeros beyond the row stay zeros.
fn minus(v: Octet, mean: f32, octet: u32) -> Octet {
    if octet * 8u >= params.cols { return v; }
    return Octet(exact4(v.even - mean), exact4(v.odd - mean));
}

fn finish(row: u32, v: Octet, mean: f32, inverse: f32, octet: u32) {
    if octet * 8u >= params.cols { return; }
    let r = params.row + row;
    var y = v;
    if CENTRED != 0u { y = Octet(y.even - mean, y.odd - mean); }
    let factor = load_scale(params.scale_base + r / params.scale_rows * params.scale_stride, octet);
    if AFTER == MODULATE {
        y = Octet(y.even * inverse * (1.0 + factor.even), y.odd * inverse * (1.0 + factor.odd));
    } else {
        y = Octet(y.even * inverse * factor.even, y.odd * inverse * factor.odd);
    }
    if AFTER != GAIN {
        let term = load_shift(params.shift_base + r / params.shift_rows * params.shift_stride, octet);
        y = Octet(y.even + term.even, y.odd + term.odd);
    }
    let at = params.out_base + row * params.out_stride;
    if OUT_TYPE == BF16 {
        out[at + octet] = octet_to_bf16(y);
    } else {
        out[at + 2u * octet] = octet_first(y);
        out[at + 2u * octet + 1u] = octet_last(y);
    }
}

fn row_of_group(row: u32, thread: u32) {
    let at = params.x_base + row * params.x_stride;
    let o0 = thread;
    let o1 = thread + THREADS;
    let o2 = thread + 2u * THREADS;
    let o3 = thread + 3u * THREADS;
    var v0 = load_x(at, o0);
    var v1 = zero();
    var v2 = zero();
    var v3 = zero();
    if HELD > 1u { v1 = load_x(at, o1); }
    if HELD > 2u { v2 = load_x(at, o2); }
    if HELD > 3u { v3 = load_x(at, o3); }
    var rest = 0.0;
    if CENTRED != 0u {
        let sum = (octet_sum(v0) + octet_sum(v1)) + (octet_sum(v2) + octet_sum(v3));
        let mean = row_sum(vec2<f32>(sum, 0.0), thread, 0u).x * params.inverse_cols;
        v0 = minus(v0, mean, o0);
        if HELD > 1u { v1 = minus(v1, mean, o1); }
        if HELD > 2u { v2 = minus(v2, mean, o2); }
        if HELD > 3u { v3 = minus(v3, mean, o3); }
        rest = (octet_sum(v0) + octet_sum(v1)) + (octet_sum(v2) + octet_sum(v3));
    }
    let squares = (octet_squares(v0) + octet_squares(v1)) + (octet_squares(v2) + octet_squares(v3));
    let moments = row_sum(vec2<f32>(rest, squares), thread, 1u) * params.inverse_cols;
    var variance = moments.y;
    // A NaN that max() drops is in the mean as well.
    if CENTRED != 0u { variance = max(moments.y - moments.x * moments.x, 0.0); }
    let inverse = inverseSqrt(variance + params.eps);
    finish(row, v0, moments.x, inverse, o0);
    if HELD > 1u { finish(row, v1, moments.x, inverse, o1); }
    if HELD > 2u { finish(row, v2, moments.x, inverse, o2); }
    if HELD > 3u { finish(row, v3, moments.x, inverse, o3); }
}
