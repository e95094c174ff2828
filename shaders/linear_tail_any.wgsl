// Operands and epilogue of the `linear` shaders that accept all sizes, strides and offsets: as
// linear_tail.wgsl, but every element is loaded and stored separately.
//
// If columns, strides or offsets are odd, a word of out may contain an element of another row or
// other data, so halves of words are set by atomics, each by the thread that owns the element.

@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual: array<u32>;
@group(0) @binding(5) var<storage, read_write> gate: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<atomic<u32>>;

fn half_of(word: u32, e: u32) -> u32 { return (word >> ((e & 1u) * 16u)) & 0xffffu; }
fn byte_of(word: u32, e: u32) -> u32 { return (word >> ((e & 3u) * 8u)) & 0xffu; }

// The values of four columns that are the same for all rows. Columns beyond the last repeat it.
struct Columns {
    scale: vec4<f32>,
    bias: vec4<f32>,
}

fn columns(col: u32) -> Columns {
    var c = Columns(vec4<f32>(1.0), vec4<f32>(0.0));
    let at = min(col + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.n - 1u));
    if params.has_scales != 0u {
        let s = params.scales_base + at;
        c.scale = vec4<f32>(scales[s.x], scales[s.y], scales[s.z], scales[s.w]);
    }
    if params.has_bias != 0u {
        let b = params.bias_base + at;
        c.bias = vec4<f32>(bias[b.x], bias[b.y], bias[b.z], bias[b.w]);
    }
    return c;
}

fn residual_at(row: u32, col: u32) -> f32 {
    let e = params.residual_base + row * params.residual_stride + col;
    if params.residual_type == F32 { return bitcast<f32>(residual[e]); }
    return bf16_low(half_of(residual[e / 2u], e));
}

fn finish_one(row: u32, col: u32, sum: f32) {
    var y = sum;
    if params.has_side != 0u { y += residual_at(row, col); }
    y = activated(vec4<f32>(y)).x;
    if params.tail == 5u {
        let e = params.gate_base + (params.first_row + row) / params.group_rows * params.gate_stride + col;
        if params.gate_type == F32 { y *= bitcast<f32>(gate[e]); } else { y *= bf16_low(half_of(gate[e / 2u], e)); }
    }
    if params.tail >= 4u { y += residual_at(row, col); }
    let e = params.out_base + row * params.out_stride + col;
    if params.out_type == F32 {
        atomicStore(&out[e], bitcast<u32>(y));
    } else {
        let shift = (e & 1u) * 16u;
        atomicAnd(&out[e / 2u], 0xffff0000u >> shift);
        atomicOr(&out[e / 2u], bf16_bits(y) << shift);
    }
}

// Up to four sums of one row become elements of out.
fn finish(row: u32, col: u32, c: Columns, sum: vec4<f32>) {
    let y = sum * c.scale + c.bias;
    for (var i = 0u; i < min(4u, params.n - col); i++) { finish_one(row, col + i, y[i]); }
}
