// Shared by the attention shaders whose operands consist of whole vectors: parameters, loads of
// eight columns, biases, weights and stores.

struct Params {
    first: u32,
    groups: u32,
    // Keys of an image, and heads.
    tokens: u32,
    heads: u32,
    head_dim: u32,
    // Queries of an image in this dispatch, the number of the first one, and their tiles.
    rows: u32,
    row_first: u32,
    row_tiles: u32,
    q_base: u32,
    q_stride: u32,
    k_base: u32,
    k_stride: u32,
    v_base: u32,
    v_stride: u32,
    out_base: u32,
    out_stride: u32,
    // The window for the first `split` tokens of each image.
    first_base: u32,
    first_stride: u32,
    bias_base: u32,
    bias_stride: u32,
    split: u32,
    causal: u32,
    scale: f32,
}
var<immediate> params: Params;

@group(0) @binding(0) var<storage, read_write> q: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> k: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> v: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> bias: array<u32>;
@group(0) @binding(4) var<storage, read_write> first: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<u32>>;

override IN_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;
// NO_BIAS if there is none.
override BIAS_TYPE: u32 = 9u;
const NO_BIAS: u32 = 9u;

// Masks of scores: far below any score, and finite also as a difference and after scaling.
const HIDDEN: f32 = -1e30;

struct Oct {
    low: vec4<f32>,
    high: vec4<f32>,
}
fn quad(words: vec2<u32>) -> vec4<f32> { return vec4<f32>(bf16_low(words.x), bf16_high(words.x), bf16_low(words.y), bf16_high(words.y)); }
fn oct(words: vec4<u32>) -> Oct { return Oct(quad(words.xy), quad(words.zw)); }
// Eight elements from element `e` on, a multiple of 8 (f32: of 4).
fn q_oct(e: u32) -> Oct {
    if IN_TYPE == BF16 { return oct(q[e >> 3u]); }
    return Oct(bitcast<vec4<f32>>(q[e >> 2u]), bitcast<vec4<f32>>(q[(e >> 2u) + 1u]));
}
fn k_oct(e: u32) -> Oct {
    if IN_TYPE == BF16 { return oct(k[e >> 3u]); }
    return Oct(bitcast<vec4<f32>>(k[e >> 2u]), bitcast<vec4<f32>>(k[(e >> 2u) + 1u]));
}
fn v_oct(e: u32) -> Oct {
    if IN_TYPE == BF16 { return oct(v[e >> 3u]); }
    return Oct(bitcast<vec4<f32>>(v[e >> 2u]), bitcast<vec4<f32>>(v[(e >> 2u) + 1u]));
}

// The number that is added to the score of query `i` and key `j`. Indices after the last do not
// matter, but must not lead out of the table.
fn bias_at(i: u32, j: u32, head: u32) -> f32 {
    let last = params.tokens - 1u;
    let e = params.bias_base + (min(j, last) + last - min(i, last)) * params.bias_stride + head;
    if BIAS_TYPE == BF16 {
        let word = bias[e >> 1u];
        return select(bf16_low(word), bf16_high(word), (e & 1u) == 1u);
    }
    return bitcast<f32>(bias[e]);
}
// The unit in which scores are compared: without a bias they are scaled only after the row's
// maximum is subtracted. These differences are exact where they matter, so that large scores lose
// no precision. A negative scale changes their sign first. With a bias the unit is 1.
fn unit() -> f32 { return select(max(abs(params.scale), 1e-20), 1.0, BIAS_TYPE != NO_BIAS); }
fn factor() -> f32 { return select(select(1.0, -1.0, params.scale < 0.0), params.scale, BIAS_TYPE != NO_BIAS); }
// The exponential of a difference to a maximum, which is at most 0. Below -87 the result is 0, but
// a NaN stays one, so that it reaches the output. Fast arithmetic may turn `x < -87` into `!(x >=
// -87)`, which holds for NaN, so bits are compared: as integers
// they grow from -87 down to minus infinity.
fn weight(difference: vec4<f32>, unit: f32) -> vec4<f32> {
    let x = difference * unit;
    let bits = bitcast<vec4<u32>>(x);
    return select(exp(x), vec4<f32>(), (bits > vec4<u32>(0xc2ae0000u)) & (bits <= vec4<u32>(0xff800000u)));
}

// Eight columns of a query's result.
fn store(picture: u32, row: u32, column: u32, low: vec4<f32>, high: vec4<f32>) {
    if row >= params.rows { return; }
    let token = params.row_first + row;
    if token < params.split {
        let e = params.first_base + (picture * params.split + row) * params.first_stride + column;
        if OUT_TYPE == BF16 {
            first[e >> 3u] = vec4<u32>(bf16_pack(low.x, low.y), bf16_pack(low.z, low.w), bf16_pack(high.x, high.y), bf16_pack(high.z, high.w));
        } else {
            first[e >> 2u] = bitcast<vec4<u32>>(low);
            first[(e >> 2u) + 1u] = bitcast<vec4<u32>>(high);
        }
        return;
    }
    let e = params.out_base + (picture * (params.tokens - params.split) + token - max(params.row_first, params.split)) * params.out_stride + column;
    if OUT_TYPE == BF16 {
        out[e >> 3u] = vec4<u32>(bf16_pack(low.x, low.y), bf16_pack(low.z, low.w), bf16_pack(high.x, high.y), bf16_pack(high.z, high.w));
    } else {
        out[e >> 2u] = bitcast<vec4<u32>>(low);
        out[(e >> 2u) + 1u] = bitcast<vec4<u32>>(high);
    }
}
