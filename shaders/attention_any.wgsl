// Attention of any shape: odd heads, strides and offsets, up to 1024 columns a head. See
// attention.wgsl for the operation.
//
// A workgroup takes one query of one head, 64 keys at a time: a thread multiplies one key with the
// query, then adds up columns t, t + 64 ... of the values. The query and the sums are in workgroup
// memory. The limit is loads of two or four bytes. For shapes that no other shader accepts.

struct Params {
    first: u32,
    groups: u32,
    tokens: u32,
    heads: u32,
    head_dim: u32,
    // Queries of an image in this dispatch, the number of the first one, and their tiles (one query
    // each).
    rows: u32,
    row_first: u32,
    row_tiles: u32,
    q_base: u32,
    q_stride: u32,
    k_base: u32,
    k_stride: u32,
    v_base: u32,
    v_stride: u32,
    out_base: u32,
    out_stride: u32,
    first_base: u32,
    first_stride: u32,
    bias_base: u32,
    bias_stride: u32,
    split: u32,
    causal: u32,
    scale: f32,
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read_write> q: array<u32>;
@group(0) @binding(1) var<storage, read_write> k: array<u32>;
@group(0) @binding(2) var<storage, read_write> v: array<u32>;
@group(0) @binding(3) var<storage, read_write> bias: array<u32>;
// Halves of a word may belong to other rows, or to data outside the window.
@group(0) @binding(4) var<storage, read_write> first: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> out: array<atomic<u32>>;

override IN_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;
override BIAS_TYPE: u32 = 9u;
const NO_BIAS: u32 = 9u;

const THREADS: u32 = 64u;
const HIDDEN: f32 = -1e30;

var<workgroup> query: array<f32, 1024>;
var<workgroup> sums: array<f32, 1024>;
var<workgroup> weights: array<f32, THREADS>;

fn element(word: u32, e: u32) -> f32 { return select(bf16_low(word), bf16_high(word), (e & 1u) == 1u); }
fn q_at(e: u32) -> f32 {
    if IN_TYPE == BF16 { return element(q[e >> 1u], e); }
    return bitcast<f32>(q[e]);
}
fn k_at(e: u32) -> f32 {
    if IN_TYPE == BF16 { return element(k[e >> 1u], e); }
    return bitcast<f32>(k[e]);
}
fn v_at(e: u32) -> f32 {
    if IN_TYPE == BF16 { return element(v[e >> 1u], e); }
    return bitcast<f32>(v[e]);
}
fn bias_at(e: u32) -> f32 {
    if BIAS_TYPE == BF16 { return element(bias[e >> 1u], e); }
    return bitcast<f32>(bias[e]);
}

// As in attention_common.wgsl: 0 below -87, compared by bits, because a NaN must stay one.
fn weight(difference: f32, unit: f32) -> f32 {
    let x = difference * unit;
    let bits = bitcast<u32>(x);
    return select(exp(x), 0.0, bits > 0xc2ae0000u && bits <= 0xff800000u);
}

fn store_first(e: u32, x: f32) {
    if OUT_TYPE == BF16 {
        let shift = (e & 1u) * 16u;
        atomicAnd(&first[e >> 1u], 0xffff0000u >> shift);
        atomicOr(&first[e >> 1u], bf16_bits(x) << shift);
    } else {
        atomicStore(&first[e], bitcast<u32>(x));
    }
}
fn store_out(e: u32, x: f32) {
    if OUT_TYPE == BF16 {
        let shift = (e & 1u) * 16u;
        atomicAnd(&out[e >> 1u], 0xffff0000u >> shift);
        atomicOr(&out[e >> 1u], bf16_bits(x) << shift);
    } else {
        atomicStore(&out[e], bitcast<u32>(x));
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let row = group % params.row_tiles;
    let head = group / params.row_tiles % params.heads;
    let picture = group / params.row_tiles / params.heads;
    let dim = params.head_dim;
    let column0 = head * dim;
    let token = params.row_first + row;
    let top = picture * params.tokens;
    let keys = select(params.tokens, token + 1u, params.causal != 0u);

    let q0 = params.q_base + (top + row) * params.q_stride + column0;
    for (var d = t; d < dim; d += THREADS) {
        query[d] = q_at(q0 + d);
        sums[d] = 0.0;
    }
    // Without a bias, scores are scaled after the maximum is subtracted.
    let unit = select(max(abs(params.scale), 1e-20), 1.0, BIAS_TYPE != NO_BIAS);
    let factor = select(select(1.0, -1.0, params.scale < 0.0), params.scale, BIAS_TYPE != NO_BIAS);
    var largest = HIDDEN;
    var total = 0.0;
    for (var j0 = 0u; j0 < keys; j0 += THREADS) {
        workgroupBarrier();
        let key = j0 + t;
        var score = HIDDEN;
        if key < keys {
            let k0 = params.k_base + (top + key) * params.k_stride + column0;
            var dot = 0.0;
            for (var d = 0u; d < dim; d++) { dot = fma(query[d], k_at(k0 + d), dot); }
            score = dot * factor;
            if BIAS_TYPE != NO_BIAS {
                score = fma(dot, factor, bias_at(params.bias_base + (key + params.tokens - 1u - token) * params.bias_stride + head));
            }
        }
        weights[t] = score;
        workgroupBarrier();
        let count = min(THREADS, keys - j0);
        var most = largest;
        for (var i = 0u; i < count; i++) { most = max(most, weights[i]); }
        let scale = weight(largest - most, unit);
        largest = most;
        workgroupBarrier();
        weights[t] = weight(score - most, unit);
        workgroupBarrier();
        total *= scale;
        for (var i = 0u; i < count; i++) { total += weights[i]; }
        for (var d = t; d < dim; d += THREADS) {
            var sum = sums[d] * scale;
            let v0 = params.v_base + (top + j0) * params.v_stride + column0 + d;
            for (var i = 0u; i < count; i++) { sum = fma(weights[i], v_at(v0 + i * params.v_stride), sum); }
            sums[d] = sum;
        }
    }

    // Sums are read by the thread that computed them.
    if token < params.split {
        let e = params.first_base + (picture * params.split + row) * params.first_stride + column0;
        for (var d = t; d < dim; d += THREADS) { store_first(e + d, sums[d] / total); }
    } else {
        let at = picture * (params.tokens - params.split) + token - max(params.row_first, params.split);
        let e = params.out_base + at * params.out_stride + column0;
        for (var d = t; d < dim; d += THREADS) { store_out(e + d, sums[d] / total); }
    }
}
