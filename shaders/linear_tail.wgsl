// Operands and epilogue of the `linear` shaders that access whole vectors: four elements of scales,
// bias, residual, gate and out.

@group(0) @binding(2) var<storage, read_write> scales: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> residual: array<vec2<u32>>;
@group(0) @binding(5) var<storage, read_write> gate: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> out: array<vec2<u32>>;

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn bf16_unpack(a: u32, b: u32) -> vec4<f32> { return vec4<f32>(bf16_low(a), bf16_high(a), bf16_low(b), bf16_high(b)); }

// The values of four columns that are the same for all rows.
struct Columns {
    scale: vec4<f32>,
    bias: vec4<f32>,
}

fn columns(col: u32) -> Columns {
    var c = Columns(vec4<f32>(1.0), vec4<f32>(0.0));
    if params.has_scales != 0u { c.scale = scales[(params.scales_base + col) / 4u]; }
    if params.has_bias != 0u { c.bias = bias[(params.bias_base + col) / 4u]; }
    return c;
}

fn residual4(element: u32) -> vec4<f32> {
    if params.residual_type == F32 { return bitcast<vec4<f32>>(vec4<u32>(residual[element / 2u], residual[element / 2u + 1u])); }
    let pair = residual[element / 4u];
    return bf16_unpack(pair.x, pair.y);
}

fn gate4(element: u32) -> vec4<f32> {
    if params.gate_type == F32 { return bitcast<vec4<f32>>(vec4<u32>(gate[element / 2u], gate[element / 2u + 1u])); }
    let pair = gate[element / 4u];
    return bf16_unpack(pair.x, pair.y);
}

// Four sums of one row become four elements of out.
fn finish(row: u32, col: u32, c: Columns, sum: vec4<f32>) {
    var y = sum * c.scale + c.bias;
    if params.has_side != 0u { y += residual4(params.residual_base + row * params.residual_stride + col); }
    y = activated(y);
    if params.tail >= 4u {
        let before = residual4(params.residual_base + row * params.residual_stride + col);
        if params.tail == 5u {
            let group = (params.first_row + row) / params.group_rows;
            y = gate4(params.gate_base + group * params.gate_stride + col) * y;
        }
        y = before + y;
    }
    let at = params.out_base + row * params.out_stride + col;
    if params.out_type == F32 {
        let bits = bitcast<vec4<u32>>(y);
        out[at / 2u] = bits.xy;
        out[at / 2u + 1u] = bits.zw;
    } else {
        out[at / 4u] = vec2<u32>(bf16_pack(y.x, y.y), bf16_pack(y.z, y.w));
    }
}
