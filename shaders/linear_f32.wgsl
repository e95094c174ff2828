// Tiles and products of shaders/linear.wgsl in f32.

alias T = f32;
const AT_ONCE: u32 = 1u;

fn tile_values(v: vec4<f32>) -> vec4<f32> { return v; }
fn w_factor() -> f32 { return 1.0; }

fn xs_at(k: u32, quad: u32) -> vec4<f32> { return xs[k * QUADS + quad]; }
fn ws_at(k: u32, quad: u32) -> vec4<f32> { return ws[k * QUADS + quad]; }

fn more(s: Block, a: vec4<f32>, b: vec4<f32>) -> Block {
    return Block(fma(vec4<f32>(a.x), b, s.r0), fma(vec4<f32>(a.y), b, s.r1), fma(vec4<f32>(a.z), b, s.r2), fma(vec4<f32>(a.w), b, s.r3));
}
