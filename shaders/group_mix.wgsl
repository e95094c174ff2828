// out[r, a n + j] = sum of w[a, i] x[r, i n + j]: groups of n columns of a row, multiplied with a
// small matrix (the first half of a LoKr). For every width, stride and offset, of bf16 and f32. A
// thread writes one word of the output, which is one or two elements; see words_main.wgsl.

override OUT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    rows: u32,
    cols: u32,
    // Groups of x, and the columns of a group.
    inputs: u32,
    width: u32,
    x_type: u32,
    x_base: u32,
    x_stride: u32,
    w_base: u32,
    out_base: u32,
    out_stride: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<atomic<u32>>;

fn load_x(e: u32) -> f32 { return element(x[word_of(e, params.x_type)], e, params.x_type); }

fn value(row: u32, column: u32) -> f32 {
    let group = column / params.width;
    let start = params.x_base + row * params.x_stride + column - group * params.width;
    let weights = params.w_base + group * params.inputs;
    var sum = 0.0;
    for (var i = 0u; i < params.inputs; i++) {
        sum = fma(w[weights + i], load_x(start + i * params.width), sum);
    }
    return sum;
}
