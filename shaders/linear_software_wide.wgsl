// Weights of two or four bytes, four at a time, for shaders/linear_software.wgsl.

@group(0) @binding(1) var<storage, read_write> w: array<vec2<u32>>;

fn w4(element: u32) -> vec4<f32> {
    if W_TYPE == F32 { return bitcast<vec4<f32>>(vec4<u32>(w[element / 2u], w[element / 2u + 1u])); }
    let pair = w[element / 4u];
    if W_TYPE == F16 { return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y)); }
    return bf16_unpack(pair.x, pair.y);
}
