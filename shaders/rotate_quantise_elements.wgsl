// x for shaders/rotate_quantise.wgsl, every width, stride and offset.

@group(0) @binding(0) var<storage, read_write> x: array<u32>;

fn element(row: u32, column: u32) -> f32 {
    if column >= params.k { return 0.0; }
    let e = row + column;
    if X_TYPE == F32 { return bitcast<f32>(x[e]); }
    return bf16_low(x[e / 2u] >> ((e & 1u) * 16u));
}

fn four(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>(element(row, column), element(row, column + 1u), element(row, column + 2u), element(row, column + 3u));
}

// The elements `column` to `column + 15` of the row that begins at element `row`; zeros beyond its
// end.
fn sixteen(row: u32, column: u32) -> Sixteen {
    return Sixteen(four(row, column), four(row, column + 4u), four(row, column + 8u), four(row, column + 12u));
}
