// out = tail(x + scale * add), with the tails of linear, for every width, stride and offset, of bf16
// and f32. A thread writes one word of the output, which is one or two elements; see words_main.wgsl.

override OUT_TYPE: u32 = 0u;

const HAS_ADD: u32 = 1u;
const HAS_SCALE: u32 = 2u;
const HAS_RESIDUAL: u32 = 4u;
const HAS_GATE: u32 = 8u;

struct Params {
    first: u32,
    groups: u32,
    rows: u32,
    cols: u32,
    x_type: u32,
    x_base: u32,
    x_stride: u32,
    add_type: u32,
    add_base: u32,
    add_stride: u32,
    scale_base: u32,
    residual_type: u32,
    residual_base: u32,
    residual_stride: u32,
    gate_type: u32,
    gate_base: u32,
    gate_stride: u32,
    out_base: u32,
    out_stride: u32,
    // Which operands there are.
    has: u32,
    // 0 none, 1 silu, 2 gelu_tanh, 3 quick_gelu.
    activation: u32,
    // Number of the first row of the dispatch within the operation.
    first_row: u32,
    // Row r of the operation is multiplied with row r / group_rows of the gate.
    group_rows: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> add: array<u32>;
@group(0) @binding(2) var<storage, read_write> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> residual: array<u32>;
@group(0) @binding(4) var<storage, read_write> gate: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<atomic<u32>>;

fn value(row: u32, column: u32) -> f32 {
    let ex = params.x_base + row * params.x_stride + column;
    var y = element(x[word_of(ex, params.x_type)], ex, params.x_type);
    if (params.has & HAS_ADD) != 0u {
        let ea = params.add_base + row * params.add_stride + column;
        var factor = 1.0;
        if (params.has & HAS_SCALE) != 0u { factor = scale[params.scale_base + column]; }
        y = fma(factor, element(add[word_of(ea, params.add_type)], ea, params.add_type), y);
    }
    if params.activation == 1u { y = silu(y); }
    if params.activation == 2u { y = gelu_tanh(y); }
    if params.activation == 3u { y = quick_gelu(y); }
    if (params.has & HAS_RESIDUAL) != 0u {
        var factor = 1.0;
        if (params.has & HAS_GATE) != 0u {
            let group = (params.first_row + row) / params.group_rows;
            let eg = params.gate_base + group * params.gate_stride + column;
            factor = element(gate[word_of(eg, params.gate_type)], eg, params.gate_type);
        }
        let er = params.residual_base + row * params.residual_stride + column;
        y = fma(factor, y, element(residual[word_of(er, params.residual_type)], er, params.residual_type));
    }
    return y;
}
