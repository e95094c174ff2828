// Weights that are not stored in blocks, one element at a time.

@group(0) @binding(1) var<storage, read_write> w: array<u32>;

fn w_at(row: u32, k: u32) -> f32 {
    let e = row + k;
    if W_TYPE == F32 { return bitcast<f32>(w[e]); }
    if W_TYPE == BF16 { return bf16_low(half_of(w[e / 2u], e)); }
    if W_TYPE == F16 { return unpack2x16float(half_of(w[e / 2u], e)).x; }
    if W_TYPE == E5M2 { return unpack2x16float(byte_of(w[e / 4u], e) << 8u).x; }
    if W_TYPE == I8 { return i8_unpack(byte_of(w[e / 4u], e)).x; }
    return e4m3(byte_of(w[e / 4u], e));
}
