// Weights of one byte, eight at a time.

@group(0) @binding(1) var<storage, read_write> w: array<vec2<u32>>;

fn w_raw(row: u32, k: u32) -> Raw { return Raw(vec4<u32>(w[(row + k) / 8u], 0u, 0u), vec4<u32>()); }

fn w_values(raw: Raw, k: u32) -> Eight {
    if W_TYPE == I8 { return Eight(i8_unpack(raw.low.x), i8_unpack(raw.low.y)); }
    if W_TYPE == E5M2 { return Eight(e5m2_unpack(raw.low.x), e5m2_unpack(raw.low.y)); }
    return Eight(e4m3_unpack(raw.low.x), e4m3_unpack(raw.low.y));
}
