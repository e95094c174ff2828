// out = tail(x . (scales * w)^T + bias) for drivers that compute on the processor, where a subgroup
// is a vector register.
//
// Such a driver loads element by element if lanes read from different addresses, and its workgroup
// memory is ordinary memory; a value that is broadcast from one lane to all others stays in
// registers. Therefore there are no tiles in workgroup memory: the first eight lanes of a subgroup
// hold four k of eight rows of x, one row each, every lane four k of eight columns of w, and each
// row's four numbers are broadcast to all lanes and multiplied with those of w. A subgroup computes
// ROWS x 64 sums (with eight lanes), and loads 12 elements per lane and k for 256 multiply-adds.
// The loop body for four k is unrolled by hand, and just fits into an instruction cache.
//
// A workgroup is one subgroup of eight lanes; with larger subgroups the other lanes would be idle,
// with smaller ones it does not work.

const ROWS: u32 = 32u;

fn x4(row: u32, k: u32) -> vec4<f32> { return x4_values(x4_raw(params.x_base + min(row, params.rows - 1u) * params.x_stride + k)); }
fn w4(row: u32, k: u32) -> vec4<f32> { return w4_values(w4_raw(row, k), k); }

// Four k of eight columns, k by k.
struct Weights {
    low0: vec4<f32>,
    high0: vec4<f32>,
    low1: vec4<f32>,
    high1: vec4<f32>,
    low2: vec4<f32>,
    high2: vec4<f32>,
    low3: vec4<f32>,
    high3: vec4<f32>,
}

fn weights(c: array<u32, 8>, k: u32) -> Weights {
    let a = w4(c[0], k);
    let b = w4(c[1], k);
    let d = w4(c[2], k);
    let e = w4(c[3], k);
    let f = w4(c[4], k);
    let g = w4(c[5], k);
    let h = w4(c[6], k);
    let i = w4(c[7], k);
    return Weights(
        vec4<f32>(a.x, b.x, d.x, e.x), vec4<f32>(f.x, g.x, h.x, i.x), vec4<f32>(a.y, b.y, d.y, e.y), vec4<f32>(f.y, g.y, h.y, i.y),
        vec4<f32>(a.z, b.z, d.z, e.z), vec4<f32>(f.z, g.z, h.z, i.z), vec4<f32>(a.w, b.w, d.w, e.w), vec4<f32>(f.w, g.w, h.w, i.w));
}

// The sums of one row plus four more k.
fn more(s: Eight, v: vec4<f32>, w: Weights) -> Eight {
    return Eight(
        fma(vec4<f32>(v.w), w.low3, fma(vec4<f32>(v.z), w.low2, fma(vec4<f32>(v.y), w.low1, fma(vec4<f32>(v.x), w.low0, s.low)))),
        fma(vec4<f32>(v.w), w.high3, fma(vec4<f32>(v.z), w.high2, fma(vec4<f32>(v.y), w.high1, fma(vec4<f32>(v.x), w.high0, s.high)))));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_invocation_id) lane: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let row0 = group % params.row_tiles * ROWS;
    let col0 = group / params.row_tiles * 64u + t * 8u;
    var c: array<u32, 8>;
    for (var i = 0u; i < 8u; i++) { c[i] = params.w_base + min(col0 + i, params.n - 1u) * params.w_stride; }
    var s0 = Eight();
    var s1 = Eight();
    var s2 = Eight();
    var s3 = Eight();
    var s4 = Eight();
    var s5 = Eight();
    var s6 = Eight();
    var s7 = Eight();
    var s8 = Eight();
    var s9 = Eight();
    var s10 = Eight();
    var s11 = Eight();
    var s12 = Eight();
    var s13 = Eight();
    var s14 = Eight();
    var s15 = Eight();
    var s16 = Eight();
    var s17 = Eight();
    var s18 = Eight();
    var s19 = Eight();
    var s20 = Eight();
    var s21 = Eight();
    var s22 = Eight();
    var s23 = Eight();
    var s24 = Eight();
    var s25 = Eight();
    var s26 = Eight();
    var s27 = Eight();
    var s28 = Eight();
    var s29 = Eight();
    var s30 = Eight();
    var s31 = Eight();
    for (var k = 0u; k < params.k; k += 4u) {
        let w = weights(c, k);
        let x0 = x4(row0 + 0u + lane % 8u, k);
        s0 = more(s0, subgroupBroadcast(x0, 0u), w);
        s1 = more(s1, subgroupBroadcast(x0, 1u), w);
        s2 = more(s2, subgroupBroadcast(x0, 2u), w);
        s3 = more(s3, subgroupBroadcast(x0, 3u), w);
        s4 = more(s4, subgroupBroadcast(x0, 4u), w);
        s5 = more(s5, subgroupBroadcast(x0, 5u), w);
        s6 = more(s6, subgroupBroadcast(x0, 6u), w);
        s7 = more(s7, subgroupBroadcast(x0, 7u), w);
        let x1 = x4(row0 + 8u + lane % 8u, k);
        s8 = more(s8, subgroupBroadcast(x1, 0u), w);
        s9 = more(s9, subgroupBroadcast(x1, 1u), w);
        s10 = more(s10, subgroupBroadcast(x1, 2u), w);
        s11 = more(s11, subgroupBroadcast(x1, 3u), w);
        s12 = more(s12, subgroupBroadcast(x1, 4u), w);
        s13 = more(s13, subgroupBroadcast(x1, 5u), w);
        s14 = more(s14, subgroupBroadcast(x1, 6u), w);
        s15 = more(s15, subgroupBroadcast(x1, 7u), w);
        let x2 = x4(row0 + 16u + lane % 8u, k);
        s16 = more(s16, subgroupBroadcast(x2, 0u), w);
        s17 = more(s17, subgroupBroadcast(x2, 1u), w);
        s18 = more(s18, subgroupBroadcast(x2, 2u), w);
        s19 = more(s19, subgroupBroadcast(x2, 3u), w);
        s20 = more(s20, subgroupBroadcast(x2, 4u), w);
        s21 = more(s21, subgroupBroadcast(x2, 5u), w);
        s22 = more(s22, subgroupBroadcast(x2, 6u), w);
        s23 = more(s23, subgroupBroadcast(x2, 7u), w);
        let x3 = x4(row0 + 24u + lane % 8u, k);
        s24 = more(s24, subgroupBroadcast(x3, 0u), w);
        s25 = more(s25, subgroupBroadcast(x3, 1u), w);
        s26 = more(s26, subgroupBroadcast(x3, 2u), w);
        s27 = more(s27, subgroupBroadcast(x3, 3u), w);
        s28 = more(s28, subgroupBroadcast(x3, 4u), w);
        s29 = more(s29, subgroupBroadcast(x3, 5u), w);
        s30 = more(s30, subgroupBroadcast(x3, 6u), w);
        s31 = more(s31, subgroupBroadcast(x3, 7u), w);
    }
    var s = array<Eight, ROWS>(
        s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15,
        s16, s17, s18, s19, s20, s21, s22, s23, s24, s25, s26, s27, s28, s29, s30, s31);
    // The compiler does not know its end, so that it does not unroll this loop, too.
    for (var i = 0u; i < min(ROWS, params.rows - row0); i++) {
        let sums = s[i];
        if col0 < params.n { finish(row0 + i, col0, columns(col0), sums.low); }
        if col0 + 4u < params.n { finish(row0 + i, col0 + 4u, columns(col0 + 4u), sums.high); }
    }
}
