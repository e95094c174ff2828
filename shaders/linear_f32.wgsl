// Tiles and products of shaders/linear.wgsl in f32.

alias T = f32;
const AT_ONCE: u32 = 1u;

fn x_factor() -> f32 { return 1.0; }
fn w_factor() -> f32 { return 1.0; }
fn tile_values(v: vec4<f32>, factor: f32) -> vec4<f32> { return v; }

fn outer(s: Quad, a: vec4<f32>, b: vec4<f32>) -> Quad {
    return Quad(fma(vec4<f32>(a.x), b, s.r0), fma(vec4<f32>(a.y), b, s.r1), fma(vec4<f32>(a.z), b, s.r2), fma(vec4<f32>(a.w), b, s.r3));
}

fn more(s: Sums, k: u32, ty: u32, tx: u32) -> Sums {
    let a0 = xs_at(k, ty);
    let b0 = ws_at(k, tx);
    if PARTS == 1u { return Sums(outer(s.s00, a0, b0), s.s01, s.s10, s.s11); }
    let a1 = xs_at(k, 16u + ty);
    let b1 = ws_at(k, 16u + tx);
    return Sums(outer(s.s00, a0, b0), outer(s.s01, a0, b1), outer(s.s10, a1, b0), outer(s.s11, a1, b1));
}
