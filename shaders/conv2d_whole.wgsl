// Stores of convolutions whose output channels are a multiple of four and begin at multiples of 8
// bytes.

@group(0) @binding(3) var<storage, read_write> residual: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec2<u32>>;

// Channels n to n + 3 of pixel m. Bases and strides count elements; the residual may be out itself.
fn store_four(m: u32, n: u32, sum: vec4<f32>, add: vec4<f32>) {
    if m >= params.pixels || n >= params.outputs { return; }
    var v = sum + add;
    if params.residual != 0u {
        let start = params.residual_base + m * params.residual_stride + n;
        if OUT_TYPE == BF16 {
            let r = residual[start >> 2u];
            v += vec4<f32>(bf16_low(r.x), bf16_high(r.x), bf16_low(r.y), bf16_high(r.y));
        } else {
            v += bitcast<vec4<f32>>(vec4<u32>(residual[start >> 1u], residual[(start >> 1u) + 1u]));
        }
    }
    let to = params.out_base + m * params.out_stride + n;
    if OUT_TYPE == BF16 {
        out[to >> 2u] = vec2<u32>(bf16_pack(v.x, v.y), bf16_pack(v.z, v.w));
    } else {
        out[to >> 1u] = bitcast<vec2<u32>>(v.xy);
        out[(to >> 1u) + 1u] = bitcast<vec2<u32>>(v.zw);
    }
}

// Pixels m + 16 i.
fn store_eight(m: u32, n: u32, sums: ptr<function, array<vec4<f32>, 8>>, add: vec4<f32>) {
    for (var i = 0u; i < 8u; i++) { store_four(m + 16u * i, n, (*sums)[i], add); }
}
