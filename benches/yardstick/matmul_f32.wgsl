// The yardstick of `linear` on a driver that computes on the processor (lavapipe): a plain product c = a . b^T of f32 matrices whose sides `n` and `k` are
// multiples of 64, tuned by hand for such drivers and with no epilogue, no edges and no element types. 512 workgroups for 1024 x 1024.
//
// A subgroup is a vector register of eight lanes. What lanes fetch from different addresses is fetched element by element, so that fetches, not products,
// take the time; values that one lane gives to all others cost an instruction. Each lane holds four k of eight columns, lane i also four k of rows i, 8 + i,
// 16 + i and 24 + i, which are broadcast: 12 fetches of four elements for 1,024 multiply-adds of registers. A larger block no longer fits an instruction cache.
// Tried and slower, in operations a second of one core (this: 32e9): tiles in workgroup memory 4e9, 16 x 4 16e9, 64 x 8 27e9, eight k a step 24e9,
// b as k x n 13e9.

struct Params {
    first: u32,
    groups: u32,
    n: u32,
    k: u32,
}
var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>;

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}
// Four k of eight columns, k by k.
struct Columns {
    low0: vec4<f32>,
    high0: vec4<f32>,
    low1: vec4<f32>,
    high1: vec4<f32>,
    low2: vec4<f32>,
    high2: vec4<f32>,
    low3: vec4<f32>,
    high3: vec4<f32>,
}

fn more(s: Eight, u: vec4<f32>, v: Columns) -> Eight {
    return Eight(
        fma(vec4<f32>(u.w), v.low3, fma(vec4<f32>(u.z), v.low2, fma(vec4<f32>(u.y), v.low1, fma(vec4<f32>(u.x), v.low0, s.low)))),
        fma(vec4<f32>(u.w), v.high3, fma(vec4<f32>(u.z), v.high2, fma(vec4<f32>(u.y), v.high1, fma(vec4<f32>(u.x), v.high0, s.high)))));
}

fn store(row: u32, col: u32, s: Eight) {
    c[(row * params.n + col) / 4u] = s.low;
    c[(row * params.n + col) / 4u + 1u] = s.high;
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_invocation_id) lane: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let blocks = params.n / 64u;
    let row0 = group / blocks * 32u;
    let col0 = group % blocks * 64u + t * 8u;
    let quads = params.k / 4u;
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
    for (var q = 0u; q < quads; q++) {
        let b0 = b[(col0 + 0u) * quads + q];
        let b1 = b[(col0 + 1u) * quads + q];
        let b2 = b[(col0 + 2u) * quads + q];
        let b3 = b[(col0 + 3u) * quads + q];
        let b4 = b[(col0 + 4u) * quads + q];
        let b5 = b[(col0 + 5u) * quads + q];
        let b6 = b[(col0 + 6u) * quads + q];
        let b7 = b[(col0 + 7u) * quads + q];
        let v = Columns(
            vec4<f32>(b0.x, b1.x, b2.x, b3.x), vec4<f32>(b4.x, b5.x, b6.x, b7.x),
            vec4<f32>(b0.y, b1.y, b2.y, b3.y), vec4<f32>(b4.y, b5.y, b6.y, b7.y),
            vec4<f32>(b0.z, b1.z, b2.z, b3.z), vec4<f32>(b4.z, b5.z, b6.z, b7.z),
            vec4<f32>(b0.w, b1.w, b2.w, b3.w), vec4<f32>(b4.w, b5.w, b6.w, b7.w));
        let a0 = a[(row0 + 0u + lane) * quads + q];
        s0 = more(s0, subgroupBroadcast(a0, 0u), v);
        s1 = more(s1, subgroupBroadcast(a0, 1u), v);
        s2 = more(s2, subgroupBroadcast(a0, 2u), v);
        s3 = more(s3, subgroupBroadcast(a0, 3u), v);
        s4 = more(s4, subgroupBroadcast(a0, 4u), v);
        s5 = more(s5, subgroupBroadcast(a0, 5u), v);
        s6 = more(s6, subgroupBroadcast(a0, 6u), v);
        s7 = more(s7, subgroupBroadcast(a0, 7u), v);
        let a1 = a[(row0 + 8u + lane) * quads + q];
        s8 = more(s8, subgroupBroadcast(a1, 0u), v);
        s9 = more(s9, subgroupBroadcast(a1, 1u), v);
        s10 = more(s10, subgroupBroadcast(a1, 2u), v);
        s11 = more(s11, subgroupBroadcast(a1, 3u), v);
        s12 = more(s12, subgroupBroadcast(a1, 4u), v);
        s13 = more(s13, subgroupBroadcast(a1, 5u), v);
        s14 = more(s14, subgroupBroadcast(a1, 6u), v);
        s15 = more(s15, subgroupBroadcast(a1, 7u), v);
        let a2 = a[(row0 + 16u + lane) * quads + q];
        s16 = more(s16, subgroupBroadcast(a2, 0u), v);
        s17 = more(s17, subgroupBroadcast(a2, 1u), v);
        s18 = more(s18, subgroupBroadcast(a2, 2u), v);
        s19 = more(s19, subgroupBroadcast(a2, 3u), v);
        s20 = more(s20, subgroupBroadcast(a2, 4u), v);
        s21 = more(s21, subgroupBroadcast(a2, 5u), v);
        s22 = more(s22, subgroupBroadcast(a2, 6u), v);
        s23 = more(s23, subgroupBroadcast(a2, 7u), v);
        let a3 = a[(row0 + 24u + lane) * quads + q];
        s24 = more(s24, subgroupBroadcast(a3, 0u), v);
        s25 = more(s25, subgroupBroadcast(a3, 1u), v);
        s26 = more(s26, subgroupBroadcast(a3, 2u), v);
        s27 = more(s27, subgroupBroadcast(a3, 3u), v);
        s28 = more(s28, subgroupBroadcast(a3, 4u), v);
        s29 = more(s29, subgroupBroadcast(a3, 5u), v);
        s30 = more(s30, subgroupBroadcast(a3, 6u), v);
        s31 = more(s31, subgroupBroadcast(a3, 7u), v);
    }
    store(row0 + 0u, col0, s0);
    store(row0 + 1u, col0, s1);
    store(row0 + 2u, col0, s2);
    store(row0 + 3u, col0, s3);
    store(row0 + 4u, col0, s4);
    store(row0 + 5u, col0, s5);
    store(row0 + 6u, col0, s6);
    store(row0 + 7u, col0, s7);
    store(row0 + 8u, col0, s8);
    store(row0 + 9u, col0, s9);
    store(row0 + 10u, col0, s10);
    store(row0 + 11u, col0, s11);
    store(row0 + 12u, col0, s12);
    store(row0 + 13u, col0, s13);
    store(row0 + 14u, col0, s14);
    store(row0 + 15u, col0, s15);
    store(row0 + 16u, col0, s16);
    store(row0 + 17u, col0, s17);
    store(row0 + 18u, col0, s18);
    store(row0 + 19u, col0, s19);
    store(row0 + 20u, col0, s20);
    store(row0 + 21u, col0, s21);
    store(row0 + 22u, col0, s22);
    store(row0 + 23u, col0, s23);
    store(row0 + 24u, col0, s24);
    store(row0 + 25u, col0, s25);
    store(row0 + 26u, col0, s26);
    store(row0 + 27u, col0, s27);
    store(row0 + 28u, col0, s28);
    store(row0 + 29u, col0, s29);
    store(row0 + 30u, col0, s30);
    store(row0 + 31u, col0, s31);
}
