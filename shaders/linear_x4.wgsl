// x, four elements at a time.

@group(0) @binding(0) var<storage, read_write> x: array<vec2<u32>>;

// Four elements in their stored form: in two words, or in four if they have four bytes each.
fn x4_raw(element: u32) -> vec4<u32> {
    if X_TYPE == F32 { return vec4<u32>(x[element / 2u], x[element / 2u + 1u]); }
    return vec4<u32>(x[element / 4u], 0u, 0u);
}

fn x4_values(raw: vec4<u32>) -> vec4<f32> {
    if X_TYPE == F32 { return bitcast<vec4<f32>>(raw); }
    return bf16_unpack(raw.x, raw.y);
}
