// As qk_norm_rope.wgsl, for every even head_dim, stride, offset and mix of bf16 and f32, for fewer
// heads of k and v than of q, and for pairs of columns c and c + head_dim / 2. A workgroup of 64
// threads has one head of one row of `out`, a thread has every 64th pair of it; in place it reads
// and writes the same pair. Bases and strides count elements.

const THREADS: u32 = 64u;

override X_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    // Heads of a row to work on (q, k, and v unless in place), the first `heads` of which belong to
    // q.
    row_heads: u32,
    heads: u32,
    // Heads of k and of v in x.
    kv_heads: u32,
    // 1 if a pair is columns c and c + head_dim / 2.
    halves: u32,
    head_dim: u32,
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
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> q_gain: array<f32>;
@group(0) @binding(2) var<storage, read_write> k_gain: array<f32>;
@group(0) @binding(3) var<storage, read_write> rope: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<atomic<u32>>;

var<workgroup> partials: array<f32, 64>;

fn load_x(e: u32) -> f32 { return element(x[word_of(e, X_TYPE)], e, X_TYPE); }

fn gain(head: u32, column: u32) -> f32 {
    if head < params.heads { return q_gain[params.q_base + column]; }
    return k_gain[params.k_base + column];
}

fn store_one(e: u32, v: f32) {
    if OUT_TYPE == F32 { atomicStore(&out[e], bitcast<u32>(v)); } else { store_half(e >> 1u, e & 1u, bf16_bits(v)); }
}

// The head of x from which head `head` of out is made.
fn source_head(head: u32) -> u32 {
    if head < params.heads { return head; }
    let which = head / params.heads;
    let i = head - which * params.heads;
    return params.heads + (which - 1u) * params.kv_heads + i / (params.heads / params.kv_heads);
}

// Elements e and e + 1.
fn store_pair(e: u32, a: f32, b: f32) {
    if OUT_TYPE == F32 {
        atomicStore(&out[e], bitcast<u32>(a));
        atomicStore(&out[e + 1u], bitcast<u32>(b));
    } else if (e & 1u) == 0u {
        atomicStore(&out[e >> 1u], bf16_pack(a, b));
    } else {
        store_half(e >> 1u, 1u, bf16_bits(a));
        store_half((e >> 1u) + 1u, 0u, bf16_bits(b));
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let row = group / params.row_heads;
    let head = group - row * params.row_heads;
    let picture = row / params.count;
    let token = row - picture * params.count;
    let source = params.x_base + row * params.x_stride + source_head(head) * params.head_dim;
    let to = params.out_base + (picture * params.tokens + token) * params.out_stride + head * params.head_dim;
    var squares = 0.0;
    for (var c = 2u * thread; c < params.head_dim; c += 2u * THREADS) {
        let a = load_x(source + c);
        let b = load_x(source + c + 1u);
        squares += a * a + b * b;
    }
    partials[thread] = squares;
    workgroupBarrier();
    squares = 0.0;
    for (var i = 0u; i < THREADS; i++) { squares += partials[i]; }
    let inverse = inverseSqrt(squares * params.inverse_dim + params.eps);
    let halves = params.halves != 0u;
    for (var c = 2u * thread; c < params.head_dim; c += 2u * THREADS) {
        // The columns of pair c / 2.
        let one = select(c, c >> 1u, halves);
        let two = select(c + 1u, (c + params.head_dim) >> 1u, halves);
        var y0 = load_x(source + one);
        var y1 = load_x(source + two);
        if head < 2u * params.heads {
            let a = y0 * inverse * gain(head, one);
            let b = y1 * inverse * gain(head, two);
            let at = params.rope_base + (params.first_token + token) * params.rope_stride + c;
            let cosine = rope[at];
            let sine = rope[at + 1u];
            y0 = cosine * a - sine * b;
            y1 = sine * a + cosine * b;
        }
        if halves {
            store_one(to + one, y0);
            store_one(to + two, y1);
        } else {
            store_pair(to + c, y0, y1);
        }
    }
}
