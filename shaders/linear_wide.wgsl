// Weights of two or four bytes, eight at a time.

@group(0) @binding(1) var<storage, read_write> w: array<vec4<u32>>;

fn w_raw(row: u32, k: u32) -> Raw {
    let element = row + k;
    if W_TYPE == F32 { return Raw(w[element / 4u], w[element / 4u + 1u]); }
    return Raw(w[element / 8u], vec4<u32>());
}

fn f16_unpack(a: u32, b: u32) -> vec4<f32> { return vec4<f32>(unpack2x16float(a), unpack2x16float(b)); }

fn w_values(raw: Raw, k: u32) -> Eight {
    if W_TYPE == F32 { return Eight(bitcast<vec4<f32>>(raw.low), bitcast<vec4<f32>>(raw.high)); }
    if W_TYPE == F16 { return Eight(f16_unpack(raw.low.x, raw.low.y), f16_unpack(raw.low.z, raw.low.w)); }
    return Eight(bf16_unpack(raw.low.x, raw.low.y), bf16_unpack(raw.low.z, raw.low.w));
}
