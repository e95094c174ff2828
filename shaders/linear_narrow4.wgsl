// Weights of one byte, four at a time.

@group(0) @binding(1) var<storage, read_write> w: array<u32>;

fn w4_raw(row: u32, k: u32) -> vec4<u32> { return vec4<u32>(w[(row + k) / 4u], 0u, 0u, 0u); }

fn w4_values(raw: vec4<u32>, k: u32) -> vec4<f32> {
    if W_TYPE == I8 { return i8_unpack(raw.x); }
    if W_TYPE == E5M2 { return e5m2_unpack(raw.x); }
    return e4m3_unpack(raw.x);
}
