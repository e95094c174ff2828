// Loads of convolutions whose input channels are whole units of 8 and whose pixels and filters begin at multiples of 16 bytes: one access of 16 bytes where
// elements have two bytes, two where they have four.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> w: array<vec4<u32>>;

fn widen(v: vec4<u32>) -> Unit {
    return Unit(vec4<f32>(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)),
                vec4<f32>(bf16_low(v.z), bf16_high(v.z), bf16_low(v.w), bf16_high(v.w)));
}

// Channels `channel` to `channel + 7` of the row of x.
fn x_channels(row: u32, channel: u32) -> Unit {
    if row == NO_ROW { return nothing(); }
    let at = params.x_base + row * params.x_stride;
    if X_TYPE == BF16 { return widen(x[at + (channel >> 3u)]); }
    let i = at + (channel >> 2u);
    return Unit(bitcast<vec4<f32>>(x[i]), bitcast<vec4<f32>>(x[i + 1u]));
}

// Places `place` to `place + 7` of the depth; `tap` and `channel` are those of the first.
fn x_unit(pixel: Pixel, tap: u32, channel: u32, place: u32) -> Unit {
    if place >= depth() { return nothing(); }
    return x_channels(source(pixel, tap), channel);
}

fn w_unit(output: u32, place: u32) -> Unit {
    if output >= params.outputs || place >= depth() { return nothing(); }
    let at = params.w_base + output * params.w_stride;
    if W_TYPE == BF16 { return widen(w[at + (place >> 3u)]); }
    let i = at + (place >> 2u);
    return Unit(bitcast<vec4<f32>>(w[i]), bitcast<vec4<f32>>(w[i + 1u]));
}
