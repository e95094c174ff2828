// Weights of one byte, four at a time, for shaders/linear_software.wgsl.

@group(0) @binding(1) var<storage, read_write> w: array<u32>;

fn w4(element: u32) -> vec4<f32> {
    if W_TYPE == E5M2 { return e5m2_unpack(w[element / 4u]); }
    return e4m3_unpack(w[element / 4u]);
}
