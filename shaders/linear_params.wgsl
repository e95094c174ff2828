// Shared by all shaders of `linear`: out = tail(x . (scales * w)^T + bias), with x rows x k, w n x
// k (in stored form), scales and bias 1 x n in f32, residual and out rows x n of one type, gate
// groups x n. Strides and bases count elements; those of w count words if it is stored in blocks.
// The host's side is in src/backend/wgpu/linear.rs.

struct Params {
    first: u32,
    groups: u32,
    rows: u32,
    n: u32,
    k: u32,
    x_base: u32,
    x_stride: u32,
    w_base: u32,
    w_stride: u32,
    scales_base: u32,
    bias_base: u32,
    residual_base: u32,
    residual_stride: u32,
    gate_base: u32,
    gate_stride: u32,
    out_base: u32,
    out_stride: u32,
    // 0 none, 1 silu, 2 gelu_tanh, 3 quick_gelu, 4 add, 5 gated add.
    tail: u32,
    out_type: u32,
    gate_type: u32,
    residual_type: u32,
    // Row r of this dispatch is row first_row + r of the operation; its gate is row (first_row + r)
    // / group_rows.
    first_row: u32,
    group_rows: u32,
    // 1 if there are scales, if there is a bias.
    has_scales: u32,
    has_bias: u32,
    // 1 if `residual` is the result of a side branch (f32), which is added before the activation.
    has_side: u32,
    // Tiles (or blocks) that cover the rows and the columns.
    row_tiles: u32,
    column_tiles: u32,
    // Products in int8 only, where k, and the strides and bases of x and w, count words: 1 if there are
    // further factors of the columns, and the first of them.
    has_factors: u32,
    factors_base: u32,
}
var<immediate> params: Params;

override X_TYPE: u32 = 0u;
override W_TYPE: u32 = 0u;

fn activated(v: vec4<f32>) -> vec4<f32> {
    switch params.tail {
        case 1u: { return vec4<f32>(silu(v.x), silu(v.y), silu(v.z), silu(v.w)); }
        case 2u: { return vec4<f32>(gelu_tanh(v.x), gelu_tanh(v.y), gelu_tanh(v.z), gelu_tanh(v.w)); }
        case 3u: { return vec4<f32>(quick_gelu(v.x), quick_gelu(v.y), quick_gelu(v.z), quick_gelu(v.w)); }
        default: { return v; }
    }
}
