// Products in int8 for shaders/linear.wgsl: out = tail(s_x s_w (q_x . q_w) + bias). x is rows of
// integers with their scales, as shaders/rotate_quantise.wgsl makes them; the weights and their scales
// were made alike when they were loaded. The elements that linear.wgsl counts are words of four
// integers: a word of x and one of w are four products and their sum (`dot4I8Packed`), which is one
// instruction on many GPUs; elsewhere it is emulated, and slower than products of floats. Sums are
// integers and exact: below 2^31 for k up to 132,000.
//
// Rows end with zeros to a multiple of 16 integers, so vectors of four words are loaded. The scale of
// a row of x comes after its k words.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> w: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> factors: array<f32>;

alias T = u32;
alias Sum = vec4<i32>;
const AT_ONCE: u32 = 1u;

fn x4_raw(word: u32) -> vec4<u32> { return x[word / 4u]; }
fn w4_raw(row: u32, k: u32) -> vec4<u32> { return w[(row + k) / 4u]; }

fn put(at: u32, pitch: u32, b: Raw) {
    tiles[at] = vec4<u32>(b.r0.x, b.r1.x, b.r2.x, b.r3.x);
    tiles[at + pitch] = vec4<u32>(b.r0.y, b.r1.y, b.r2.y, b.r3.y);
    tiles[at + 2u * pitch] = vec4<u32>(b.r0.z, b.r1.z, b.r2.z, b.r3.z);
    tiles[at + 3u * pitch] = vec4<u32>(b.r0.w, b.r1.w, b.r2.w, b.r3.w);
}
fn put_x(at: u32, raw: Raw) { put(at, X_QUADS, raw); }
fn put_w(at: u32, raw: Raw, k: u32) { put(at, W_QUADS, raw); }

// One product per function: where a function has several with the same operand, naga 30 declares a
// variable of the same name for each in Metal's language.
fn dot_word(a: u32, b: u32) -> i32 { return dot4I8Packed(a, b); }
fn dots(a: u32, b: vec4<u32>) -> vec4<i32> { return vec4<i32>(dot_word(a, b.x), dot_word(a, b.y), dot_word(a, b.z), dot_word(a, b.w)); }
fn outer(s: Quad, a: vec4<u32>, b: vec4<u32>) -> Quad {
    return Quad(s.r0 + dots(a.x, b), s.r1 + dots(a.y, b), s.r2 + dots(a.z, b), s.r3 + dots(a.w, b));
}

fn more(s: Sums, k: u32, ty: u32, tx: u32) -> Sums {
    let a0 = xs_at(k, ty);
    let b0 = ws_at(k, tx);
    if PARTS == 1u { return Sums(outer(s.s00, a0, b0), s.s01, s.s10, s.s11); }
    let a1 = xs_at(k, 16u + ty);
    let b1 = ws_at(k, 16u + tx);
    return Sums(outer(s.s00, a0, b0), outer(s.s01, a0, b1), outer(s.s10, a1, b0), outer(s.s11, a1, b1));
}

// Four columns of one row. Each sum is converted to f32 once.
fn floats(row: u32, col: u32, sum: vec4<i32>) -> vec4<f32> {
    let scale = bitcast<f32>(x[(params.x_base + row * params.x_stride + params.k) / 4u].x);
    let y = vec4<f32>(sum) * scale;
    if params.has_factors == 0u { return y; }
    let at = params.factors_base + min(col + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.n - 1u));
    return y * vec4<f32>(factors[at.x], factors[at.y], factors[at.z], factors[at.w]);
}
