// Tiles and products of shaders/linear.wgsl in f16, with half the traffic of workgroup memory and
// two multiply-adds per instruction on GPUs that pack them. For eight k a block of 4 x 4 takes 96
// instructions instead of 128 in f32. That is counted, not measured; on a GPU that issues packed
// f16 at half the rate of f32 it is slower. It is used only on request.
//
// Eight products are summed in f16, then added to the sum in f32: a relative error of some 5e-4.
// The range of f16, at most 65,504, limits x and the sums of eight products. Larger x are clamped.
// x is then multiplied with 1/16, so that eight products do not overflow for any x if weights are
// at most 2, and otherwise if the sum of eight is at most 1,048,000. Scaled e4m3 weights are large
// numbers: they are multiplied with `w_factor()`. Both factors are powers of two, and the sums are
// divided by them.
//
// Small numbers lose precision: the smallest step of f16 is 2^-24, which is 2^-20 in x and in a
// product, an error of at most 5e-7. With unscaled weights around 0.05 the relative error is 2e-3
// if x is around 0.01, and 2e-2 if it is around 0.001; scaled e4m3 weights have large products, and
// 8e-4 there. On a GPU that flushes subnormal f16, x below 0.001 and products of that size become
// zero.

alias T = f16;
const AT_ONCE: u32 = 8u;

fn x_factor() -> f32 { return 0.0625; }

// The factor that makes the largest e4m3 weight 1.75 if weights are scaled (the largest i8 1, the
// largest nvfp4 1.3): unscaled weights are small, and would lose digits. Other types stored in
// blocks include their scales, and are as small as unscaled weights.
fn w_factor() -> f32 {
    if params.has_scales == 0u { return 1.0; }
    switch W_TYPE {
        case E4M3: { return 0.00390625; }
        case I8: { return 0.0078125; }
        case NVFP4: { return 0.00048828125; }
        default: { return 1.0; }
    }
}

// clamp would lose a NaN, so a NaN bypasses it.
fn tile_values(v: vec4<f32>, factor: f32) -> vec4<f16> {
    let nan = (bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return vec4<f16>(select(clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0)), v, nan) * factor);
}

// Products of a few k, four rows of four columns.
struct Half {
    r0: vec4<f16>,
    r1: vec4<f16>,
    r2: vec4<f16>,
    r3: vec4<f16>,
}

fn outer(s: Half, a: vec4<f16>, b: vec4<f16>) -> Half {
    return Half(fma(vec4<f16>(a.x), b, s.r0), fma(vec4<f16>(a.y), b, s.r1), fma(vec4<f16>(a.z), b, s.r2), fma(vec4<f16>(a.w), b, s.r3));
}

fn add(s: Quad, p: Half) -> Quad {
    return Quad(s.r0 + vec4<f32>(p.r0), s.r1 + vec4<f32>(p.r1), s.r2 + vec4<f32>(p.r2), s.r3 + vec4<f32>(p.r3));
}

fn more(s: Sums, k: u32, ty: u32, tx: u32) -> Sums {
    var p00 = Half();
    var p01 = Half();
    var p10 = Half();
    var p11 = Half();
    for (var i = k; i < k + AT_ONCE; i++) {
        let a0 = xs_at(i, ty);
        let b0 = ws_at(i, tx);
        p00 = outer(p00, a0, b0);
        if PARTS == 2u {
            let a1 = xs_at(i, 16u + ty);
            let b1 = ws_at(i, 16u + tx);
            p01 = outer(p01, a0, b1);
            p10 = outer(p10, a1, b0);
            p11 = outer(p11, a1, b1);
        }
    }
    if PARTS == 1u { return Sums(add(s.s00, p00), s.s01, s.s10, s.s11); }
    return Sums(add(s.s00, p00), add(s.s01, p01), add(s.s10, p10), add(s.s11, p11));
}
