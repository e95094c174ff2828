// How shaders/linear.wgsl stores blocks of x and w in workgroup memory if products are those of
// floats.

alias Sum = vec4<f32>;

// Four rows of four k.
struct Block {
    r0: vec4<f32>,
    r1: vec4<f32>,
    r2: vec4<f32>,
    r3: vec4<f32>,
}

// Transposes a block into four vectors of the tile, one for each k.
fn put(at: u32, pitch: u32, factor: f32, b: Block) {
    let r0 = tile_values(b.r0, factor);
    let r1 = tile_values(b.r1, factor);
    let r2 = tile_values(b.r2, factor);
    let r3 = tile_values(b.r3, factor);
    tiles[at] = vec4<T>(r0.x, r1.x, r2.x, r3.x);
    tiles[at + pitch] = vec4<T>(r0.y, r1.y, r2.y, r3.y);
    tiles[at + 2u * pitch] = vec4<T>(r0.z, r1.z, r2.z, r3.z);
    tiles[at + 3u * pitch] = vec4<T>(r0.w, r1.w, r2.w, r3.w);
}
fn put_x(at: u32, raw: Raw) {
    put(at, X_QUADS, x_factor(), Block(x4_values(raw.r0), x4_values(raw.r1), x4_values(raw.r2), x4_values(raw.r3)));
}
fn put_w(at: u32, raw: Raw, k: u32) {
    put(at, W_QUADS, w_factor(), Block(w4_values(raw.r0, k), w4_values(raw.r1, k), w4_values(raw.r2, k), w4_values(raw.r3, k)));
}

fn floats(row: u32, col: u32, sum: vec4<f32>) -> vec4<f32> { return sum * (1.0 / (x_factor() * w_factor())); }
