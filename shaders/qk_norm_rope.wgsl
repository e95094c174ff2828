// Prepares queries and keys for attention: RMS norm over each head of q and k with gains, then a
// rotation of adjacent pairs; v is copied.
//
//   y = x / sqrt(mean(x^2) + eps) * gain;   out0 = cos y0 - sin y1,   out1 = sin y0 + cos y1
//
// qkv: batch*count x 3*heads*head_dim, out: batch*tokens x 3*heads*head_dim, in bf16 or f32; gains:
// head_dim f32; rope: tokens x head_dim f32, (cos, sin) for each pair. Row t of an image's `count`
// becomes row first_token + t of its `tokens` rows; the window of `out` begins with the first row
// that is written. In place, v is not changed. head_dim is a multiple of eight, at most 1024.
// Memory is the limit. head_dim / 8 neighbouring threads have one head, eight elements (four pairs)
// each, read once and written once; 128 threads have as many heads as fit (8 of 128 columns).
// Threads of a head share their sums of squares through workgroup memory: one barrier. Bases and
// strides count vectors of 16 bytes.

const THREADS: u32 = 128u;

override X_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    // Heads of a row to work on (q, k, and v unless in place), the first `heads` of which belong to
    // q; heads of all rows.
    row_heads: u32,
    heads: u32,
    total: u32,
    // Threads of a head: head_dim / 8; heads of a workgroup.
    lanes: u32,
    group_heads: u32,
    count: u32,
    tokens: u32,
    first_token: u32,
    x_base: u32,
    x_stride: u32,
    q_base: u32,
    k_base: u32,
    rope_base: u32,
    rope_stride: u32,
    out_base: u32,
    out_stride: u32,
    eps: f32,
    // 1 / head_dim
    inverse_dim: f32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> q_gain: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> k_gain: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> rope: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<u32>>;

var<workgroup> partials: array<f32, 128>;

fn load_x(at: u32, octet: u32) -> Octet {
    if X_TYPE == BF16 { return octet_bf16(x[at + octet]); }
    return octet_f32(x[at + 2u * octet], x[at + 2u * octet + 1u]);
}

fn store(at: u32, octet: u32, v: Octet) {
    if OUT_TYPE == BF16 {
        out[at + octet] = octet_to_bf16(v);
    } else {
        out[at + 2u * octet] = octet_first(v);
        out[at + 2u * octet + 1u] = octet_last(v);
    }
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    // Threads beyond the workgroup's last complete head, and heads beyond the last, do nothing.
    let local = thread / params.lanes;
    let lane = thread - local * params.lanes;
    let unit = group * params.group_heads + local;
    let busy = local < params.group_heads && unit < params.total;
    let row = unit / params.row_heads;
    let head = unit - row * params.row_heads;
    let octet = head * params.lanes + lane;
    var v = Octet(vec4<f32>(0.0), vec4<f32>(0.0));
    if busy { v = load_x(params.x_base + row * params.x_stride, octet); }
    partials[thread] = octet_squares(v);
    workgroupBarrier();
    if !busy { return; }
    let picture = row / params.count;
    let token = row - picture * params.count;
    if head < 2u * params.heads {
        var squares = 0.0;
        for (var i = 0u; i < params.lanes; i++) { squares += partials[local * params.lanes + i]; }
        let inverse = inverseSqrt(squares * params.inverse_dim + params.eps);
        var gain: Octet;
        if head < params.heads {
            gain = octet_f32(q_gain[params.q_base + 2u * lane], q_gain[params.q_base + 2u * lane + 1u]);
        } else {
            gain = octet_f32(k_gain[params.k_base + 2u * lane], k_gain[params.k_base + 2u * lane + 1u]);
        }
        let at = params.rope_base + (params.first_token + token) * params.rope_stride + 2u * lane;
        let turn = octet_f32(rope[at], rope[at + 1u]);
        let y0 = v.even * inverse * gain.even;
        let y1 = v.odd * inverse * gain.odd;
        v = Octet(turn.even * y0 - turn.odd * y1, turn.odd * y0 + turn.even * y1);
    }
    store(params.out_base + (picture * params.tokens + token) * params.out_stride, octet, v);
}
