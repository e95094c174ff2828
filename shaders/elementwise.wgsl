// Operations on single elements, sixteen bytes at a time:
//
//   gelu_mul   out = gelu_tanh(a) * b
//   silu_mul   out = a / (1 + e^-a) * b
//   silu       out = a / (1 + e^-a)
//   add        out = a + b
//   cast       out = a
//
// a, b, out: rows x cols in bf16 or f32, each with its own type; `out` may be an input: a thread
// reads its elements before it writes them. Memory is the limit: at most twenty operations per
// element, for which 4 to 12 bytes are moved. A thread has eight elements, neighbouring threads
// have neighbouring groups of eight, so that every cache line is used completely. Rows are whole
// vectors of 16 bytes; bases and strides count such vectors. If no operand has gaps, the host
// passes all of it as one row.

const GELU_MUL: u32 = 0u;
const SILU: u32 = 1u;
const ADD: u32 = 2u;
const CAST: u32 = 3u;
const SILU_MUL: u32 = 4u;

override OP: u32 = 0u;
override A_TYPE: u32 = 0u;
override B_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    // Groups of eight elements in a row, and in all rows.
    octets: u32,
    count: u32,
    a_base: u32,
    a_stride: u32,
    b_base: u32,
    b_stride: u32,
    out_base: u32,
    out_stride: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> a: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> b: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<u32>>;

fn load_a(row: u32, octet: u32) -> Octet {
    let at = params.a_base + row * params.a_stride;
    if A_TYPE == BF16 { return octet_bf16(a[at + octet]); }
    return octet_f32(a[at + 2u * octet], a[at + 2u * octet + 1u]);
}

fn load_b(row: u32, octet: u32) -> Octet {
    let at = params.b_base + row * params.b_stride;
    if B_TYPE == BF16 { return octet_bf16(b[at + octet]); }
    return octet_f32(b[at + 2u * octet], b[at + 2u * octet + 1u]);
}

fn store(row: u32, octet: u32, v: Octet) {
    let at = params.out_base + row * params.out_stride;
    if OUT_TYPE == BF16 {
        out[at + octet] = octet_to_bf16(v);
    } else {
        out[at + 2u * octet] = octet_first(v);
        out[at + 2u * octet + 1u] = octet_last(v);
    }
}

// 1 / (1 + e^-x), as sigmoid().
fn sigmoid4(x: vec4<f32>) -> vec4<f32> { return 1.0 / (1.0 + exp(clamp(-x, vec4<f32>(-87.0), vec4<f32>(87.0)))); }
fn gelu_tanh4(x: vec4<f32>) -> vec4<f32> { return x * sigmoid4(1.5957691216057308 * (x + 0.044715 * x * x * x)); }

fn apply(x: vec4<f32>, y: vec4<f32>) -> vec4<f32> {
    if OP == GELU_MUL { return gelu_tanh4(x) * y; }
    if OP == SILU_MUL { return x * sigmoid4(x) * y; }
    if OP == SILU { return x * sigmoid4(x); }
    if OP == ADD { return x + y; }
    return x;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let i = group * 256u + thread;
    if i >= params.count { return; }
    let row = i / params.octets;
    let octet = i - row * params.octets;
    let x = load_a(row, octet);
    var y = x;
    if OP == GELU_MUL || OP == SILU_MUL || OP == ADD { y = load_b(row, octet); }
    store(row, octet, Octet(apply(x.even, y.even), apply(x.odd, y.odd)));
}
