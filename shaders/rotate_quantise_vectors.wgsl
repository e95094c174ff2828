// x for shaders/rotate_quantise.wgsl if rows consist of whole sixteens and begin at multiples of 16
// bytes.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;

fn pairs(a: u32, b: u32) -> vec4<f32> { return vec4<f32>(bf16_low(a), bf16_high(a), bf16_low(b), bf16_high(b)); }

// The elements `column` to `column + 15` of the row that begins at element `row`; zeros beyond its
// end.
fn sixteen(row: u32, column: u32) -> Sixteen {
    if column >= params.k { return Sixteen(); }
    let e = row + column;
    if X_TYPE == F32 {
        let at = e / 4u;
        return Sixteen(bitcast<vec4<f32>>(x[at]), bitcast<vec4<f32>>(x[at + 1u]), bitcast<vec4<f32>>(x[at + 2u]), bitcast<vec4<f32>>(x[at + 3u]));
    }
    let low = x[e / 8u];
    let high = x[e / 8u + 1u];
    return Sixteen(pairs(low.x, low.y), pairs(low.z, low.w), pairs(high.x, high.y), pairs(high.z, high.w));
}
