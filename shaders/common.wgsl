// Shared by all shaders. The sources of a shader are concatenated: first a line of `enable`s if it
// needs any, then this file, then its own.
//
// Calling convention of all shaders: storage buffers at @group(0) @binding(0..7), then
// `var<immediate> params: Params`, whose fields are 32 bits wide, begin with `first` and `groups`,
// and are mirrored in src/backend/wgpu/. A window may begin a little before its matrix: `_base`
// fields count the elements before it. Strides count elements. Every matrix is rows x columns,
// row-major. Elements smaller than a word are stored in u32 words, the first in the low bits.

// Element types; `code` in src/backend/wgpu/launch.rs numbers them.
const F32: u32 = 0u;
const BF16: u32 = 1u;
const F16: u32 = 2u;
const E4M3: u32 = 3u;
const E5M2: u32 = 4u;
const I8: u32 = 6u;
const Q8_0: u32 = 16u;
const Q4_0: u32 = 17u;
const Q4_1: u32 = 18u;
const Q5_0: u32 = 19u;
const Q5_1: u32 = 20u;
const Q2K: u32 = 21u;
const Q3K: u32 = 22u;
const Q4K: u32 = 23u;
const Q5K: u32 = 24u;
const Q6K: u32 = 25u;
const NF4: u32 = 26u;
const FP4: u32 = 27u;
const MXFP8: u32 = 28u;
const NVFP4: u32 = 29u;
const FP8_BLOCK: u32 = 30u;

fn bf16_low(word: u32) -> f32 { return bitcast<f32>(word << 16u); }
fn bf16_high(word: u32) -> f32 { return bitcast<f32>(word & 0xffff0000u); }

// To nearest, ties to even; NaN stays NaN.
fn bf16_bits(v: f32) -> u32 {
    let u = bitcast<u32>(v);
    let rounded = (u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u;
    return select(rounded, 0x7fc0u, (u & 0x7fffffffu) > 0x7f800000u);
}
fn bf16_pack(low: f32, high: f32) -> u32 { return bf16_bits(low) | (bf16_bits(high) << 16u); }

// e4m3 (bias 7, NaN 0x7f) from its low eight bits. Subnormals are converted with integer
// operations: those of f32 and f16 may be flushed to zero.
fn e4m3(q: u32) -> f32 {
    let magnitude = q & 0x7fu;
    let bits = select((magnitude << 20u) + (120u << 23u), 0x7fc00000u, magnitude == 0x7fu) | ((q & 0x80u) << 24u);
    let small = f32(magnitude) * select(0.001953125, -0.001953125, (q & 0x80u) != 0u);
    return select(bitcast<f32>(bits), small, magnitude < 8u);
}
fn e4m3_unpack(word: u32) -> vec4<f32> {
    return vec4<f32>(e4m3(word & 0xffu), e4m3((word >> 8u) & 0xffu), e4m3((word >> 16u) & 0xffu), e4m3(word >> 24u));
}
fn i8_unpack(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
// e5m2 is the upper byte of an f16.
fn e5m2_unpack(word: u32) -> vec4<f32> {
    let even = unpack2x16float((word & 0x00ff00ffu) << 8u);
    let odd = unpack2x16float(word & 0xff00ff00u);
    return vec4<f32>(even.x, odd.x, even.y, odd.y);
}

// Arguments are clamped so that exponentials do not overflow: WGSL does not define what
// implementations do with infinities.
fn exp_safe(x: f32) -> f32 { return exp(clamp(x, -87.0, 87.0)); }
fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exp_safe(-x)); }
fn silu(x: f32) -> f32 { return x * sigmoid(x); }
// x/2 (1 + tanh u) is x sigmoid(2u).
fn gelu_tanh(x: f32) -> f32 { return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)); }
fn quick_gelu(x: f32) -> f32 { return x * sigmoid(1.702 * x); }
