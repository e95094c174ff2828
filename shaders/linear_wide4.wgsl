// Weights of two or four bytes, four at a time.

@group(0) @binding(1) var<storage, read_write> w: array<vec2<u32>>;

fn w4_raw(row: u32, k: u32) -> vec4<u32> {
    let element = row + k;
    if W_TYPE == F32 { return vec4<u32>(w[element / 2u], w[element / 2u + 1u]); }
    return vec4<u32>(w[element / 4u], 0u, 0u);
}

fn w4_values(raw: vec4<u32>, k: u32) -> vec4<f32> {
    if W_TYPE == F32 { return bitcast<vec4<f32>>(raw); }
    if W_TYPE == F16 { return vec4<f32>(unpack2x16float(raw.x), unpack2x16float(raw.y)); }
    return bf16_unpack(raw.x, raw.y);
}
