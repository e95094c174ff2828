// out = tail(x . (scales * w)^T + bias) for few rows: modulations and embedders, where every weight
// is used once or a few times and the time is that of reading w from memory.
//
// 64 threads compute four columns of up to ROWS rows (1, 4 or 16): each takes eight k of the four
// rows of w at a time, neighbours the next eight, so that w is read once in complete cache lines; x
// stays in the caches. Each thread's sums are then added over the workgroup, always in the same
// order (linear_few_plain.wgsl: in workgroup memory; linear_few_subgroup.wgsl: by subgroups first),
// and one thread per row finishes the four columns. If there are more than ROWS rows, there are
// more blocks of rows.

override ROWS: u32 = 4u;
const THREADS: u32 = 64u;

alias Sums = array<vec4<f32>, 16>;

// Eight k of four columns.
struct Weights {
    c0: Eight,
    c1: Eight,
    c2: Eight,
    c3: Eight,
}

// The sums of one row, with the products of eight more k added. A row beyond the last one is read
// as the last one.
fn few(s: vec4<f32>, row: u32, k: u32, w: Weights) -> vec4<f32> {
    let v = x_values(x_raw(params.x_base + min(row, params.rows - 1u) * params.x_stride + k));
    let low = vec4<f32>(dot(v.low, w.c0.low), dot(v.low, w.c1.low), dot(v.low, w.c2.low), dot(v.low, w.c3.low));
    let high = vec4<f32>(dot(v.high, w.c0.high), dot(v.high, w.c1.high), dot(v.high, w.c2.high), dot(v.high, w.c3.high));
    return s + low + high;
}

// One thread's part of the sums of ROWS rows, four columns each. Named variables instead of an
// array while they are computed, so that they stay in registers even if the compiler unrolls no
// loops.
fn few_sums(row0: u32, col0: u32, t: u32) -> Sums {
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    var s8 = vec4<f32>(0.0);
    var s9 = vec4<f32>(0.0);
    var s10 = vec4<f32>(0.0);
    var s11 = vec4<f32>(0.0);
    var s12 = vec4<f32>(0.0);
    var s13 = vec4<f32>(0.0);
    var s14 = vec4<f32>(0.0);
    var s15 = vec4<f32>(0.0);
    // n is a multiple of four.
    let w_row = params.w_base + col0 * params.w_stride;
    for (var k = t * 8u; k < params.k; k += THREADS * 8u) {
        let w = Weights(
            w_values(w_raw(w_row, k), k), w_values(w_raw(w_row + params.w_stride, k), k),
            w_values(w_raw(w_row + 2u * params.w_stride, k), k), w_values(w_raw(w_row + 3u * params.w_stride, k), k));
        s0 = few(s0, row0, k, w);
        if ROWS > 1u {
            s1 = few(s1, row0 + 1u, k, w);
            s2 = few(s2, row0 + 2u, k, w);
            s3 = few(s3, row0 + 3u, k, w);
        }
        if ROWS > 4u {
            s4 = few(s4, row0 + 4u, k, w);
            s5 = few(s5, row0 + 5u, k, w);
            s6 = few(s6, row0 + 6u, k, w);
            s7 = few(s7, row0 + 7u, k, w);
            s8 = few(s8, row0 + 8u, k, w);
            s9 = few(s9, row0 + 9u, k, w);
            s10 = few(s10, row0 + 10u, k, w);
            s11 = few(s11, row0 + 11u, k, w);
            s12 = few(s12, row0 + 12u, k, w);
            s13 = few(s13, row0 + 13u, k, w);
            s14 = few(s14, row0 + 14u, k, w);
            s15 = few(s15, row0 + 15u, k, w);
        }
    }
    return Sums(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15);
}
