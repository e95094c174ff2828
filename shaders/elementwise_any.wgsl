// Operations on single elements, for every width, stride, offset and mix of bf16 and f32; see
// elementwise.wgsl for the formulas. A thread writes one word of the output, which is one or two
// elements; see words_main.wgsl.

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
    rows: u32,
    cols: u32,
    a_base: u32,
    a_stride: u32,
    b_base: u32,
    b_stride: u32,
    out_base: u32,
    out_stride: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> a: array<u32>;
@group(0) @binding(1) var<storage, read_write> b: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<atomic<u32>>;

fn load_a(e: u32) -> f32 { return element(a[word_of(e, A_TYPE)], e, A_TYPE); }

fn load_b(e: u32) -> f32 { return element(b[word_of(e, B_TYPE)], e, B_TYPE); }

fn value(row: u32, column: u32) -> f32 {
    let x = load_a(params.a_base + row * params.a_stride + column);
    if OP == SILU { return silu(x); }
    if OP == CAST { return x; }
    let y = load_b(params.b_base + row * params.b_stride + column);
    if OP == ADD { return x + y; }
    if OP == SILU_MUL { return silu(x) * y; }
    return gelu_tanh(x) * y;
}
