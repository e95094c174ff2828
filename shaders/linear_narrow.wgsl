// Weights of one byte, eight at a time.

@group(0) @binding(1) var<storage, read_write> w: array<vec2<u32>>;

fn w_raw(element: u32) -> Raw { return Raw(vec4<u32>(w[element / 8u], 0u, 0u), vec4<u32>()); }

fn w_values(raw: Raw) -> Eight {
    if W_TYPE == E5M2 { return Eight(e5m2_unpack(raw.low.x), e5m2_unpack(raw.low.y)); }
    return Eight(e4m3_unpack(raw.low.x), e4m3_unpack(raw.low.y));
}
