// x, eight elements at a time.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;

// Eight elements in their stored form: in `low` alone, or in both if they have four bytes each.
struct Raw {
    low: vec4<u32>,
    high: vec4<u32>,
}

fn x_raw(element: u32) -> Raw {
    if X_TYPE == F32 { return Raw(x[element / 4u], x[element / 4u + 1u]); }
    return Raw(x[element / 8u], vec4<u32>());
}

fn x_values(raw: Raw) -> Eight {
    if X_TYPE == F32 { return Eight(bitcast<vec4<f32>>(raw.low), bitcast<vec4<f32>>(raw.high)); }
    return Eight(bf16_unpack(raw.low.x, raw.low.y), bf16_unpack(raw.low.z, raw.low.w));
}
