// Stores of convolutions of any width and alignment. If rows of out may share a word, its halves
// are replaced one at a time.

@group(0) @binding(3) var<storage, read_write> residual: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<atomic<u32>>;

fn residual_element(e: u32) -> f32 {
    if OUT_TYPE == F32 { return bitcast<f32>(residual[e]); }
    return bitcast<f32>(select(residual[e >> 1u] << 16u, residual[e >> 1u] & 0xffff0000u, (e & 1u) == 1u));
}

fn store_element(m: u32, n: u32, sum: f32) {
    var v = sum;
    if params.residual != 0u { v += residual_element(params.residual_base + m * params.residual_stride + n); }
    let to = params.out_base + m * params.out_stride + n;
    if OUT_TYPE == F32 {
        atomicStore(&out[to], bitcast<u32>(v));
    } else {
        let shift = (to & 1u) * 16u;
        atomicAnd(&out[to >> 1u], 0xffff0000u >> shift);
        atomicOr(&out[to >> 1u], bf16_bits(v) << shift);
    }
}

// Two channels of one word of out.
fn store_pair(m: u32, n: u32, sum: vec2<f32>) {
    if n >= params.outputs { return; }
    var v = sum;
    if params.residual != 0u {
        let start = params.residual_base + m * params.residual_stride + n;
        v += vec2<f32>(residual_element(start), residual_element(start + 1u));
    }
    let to = params.out_base + m * params.out_stride + n;
    atomicStore(&out[to >> 1u], bf16_pack(v.x, v.y));
}

// Channels n to n + 3 of pixel m, as far as they exist; n is a multiple of 4.
fn store_four(m: u32, n: u32, sum: vec4<f32>, add: vec4<f32>) {
    if m >= params.pixels || n >= params.outputs { return; }
    var v = sum + add;
    if OUT_TYPE == BF16 && params.whole != 0u {
        store_pair(m, n, v.xy);
        store_pair(m, n + 2u, v.zw);
    } else {
        for (var i = 0u; i < min(params.outputs - n, 4u); i++) { store_element(m, n + i, v[i]); }
    }
}

// Pixels m + 16 i. The loop ends at the last pixel, so that drivers do not unroll these long
// stores.
fn store_eight(m: u32, n: u32, sums: ptr<function, array<vec4<f32>, 8>>, add: vec4<f32>) {
    if m >= params.pixels { return; }
    for (var i = 0u; i < min((params.pixels - m + 15u) / 16u, 8u); i++) { store_four(m + 16u * i, n, (*sums)[i], add); }
}
