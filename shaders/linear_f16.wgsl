// Tiles and products of shaders/linear.wgsl in f16: two multiply-adds an instruction where GPUs have them, and half the traffic of workgroup memory.
//
// Four products are summed in f16, then added to the sum in f32: a relative error of some 4e-4. Inputs beyond 65,504, the largest f16, are clamped to it; sums
// of four products beyond it overflow. Scaled 8-bit weights are large numbers: they enter the products times `w_factor()`, a power of two, which the sums are
// divided by.

alias T = f16;
const AT_ONCE: u32 = 4u;

// Four k of four rows or columns.
struct Quad {
    k0: vec4<f16>,
    k1: vec4<f16>,
    k2: vec4<f16>,
    k3: vec4<f16>,
}

// clamp would lose a NaN, so a NaN goes round it.
fn tile_values(v: vec4<f32>) -> vec4<f16> {
    let nan = (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return vec4<f16>(select(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0)), v, nan));
}

// Brings the largest 8-bit weight to 1.75 where weights are scaled: unscaled ones are small, and would lose digits.
fn w_factor() -> f32 {
    if params.has_scales == 0u { return 1.0; }
    if W_TYPE == E4M3 { return 0.00390625; }
    if W_TYPE == E5M2 { return 0.000030517578125; }
    return 1.0;
}

fn xs_at(k: u32, quad: u32) -> Quad {
    let at = k * QUADS + quad;
    return Quad(xs[at], xs[at + QUADS], xs[at + 2u * QUADS], xs[at + 3u * QUADS]);
}
fn ws_at(k: u32, quad: u32) -> Quad {
    let at = k * QUADS + quad;
    return Quad(ws[at], ws[at + QUADS], ws[at + 2u * QUADS], ws[at + 3u * QUADS]);
}

fn four(a: vec4<f16>, b: Quad) -> vec4<f32> {
    return vec4<f32>(fma(vec4<f16>(a.w), b.k3, fma(vec4<f16>(a.z), b.k2, fma(vec4<f16>(a.y), b.k1, vec4<f16>(a.x) * b.k0))));
}

fn more(s: Block, a: Quad, b: Quad) -> Block {
    return Block(
        s.r0 + four(vec4<f16>(a.k0.x, a.k1.x, a.k2.x, a.k3.x), b), s.r1 + four(vec4<f16>(a.k0.y, a.k1.y, a.k2.y, a.k3.y), b),
        s.r2 + four(vec4<f16>(a.k0.z, a.k1.z, a.k2.z, a.k3.z), b), s.r3 + four(vec4<f16>(a.k0.w, a.k1.w, a.k2.w, a.k3.w), b));
}
