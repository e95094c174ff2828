// Loads of convolutions whose input channels are whole units of 8 and whose pixels and filters
// begin at multiples of 16 bytes: one access of 16 bytes if elements have two bytes, two if they
// have four.
//
// In place of elements that do not exist (the padding, pixels and positions beyond the last),
// existing ones are loaded, and set to zero when they are converted: a load inside a branch, or a
// use of it there, would have to complete before the branch ends, and nothing could run meanwhile.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> w: array<vec4<u32>>;

// A unit in its stored form; `second` is used for elements of four bytes.
struct Held {
    first: vec4<u32>,
    second: vec4<u32>,
    there: bool,
}

fn bf16_unit(v: vec4<u32>) -> Unit {
    return Unit(vec4<f32>(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)),
                vec4<f32>(bf16_low(v.z), bf16_high(v.z), bf16_low(v.w), bf16_high(v.w)));
}

// Channels `channel` to `channel + 7` of the row of x.
fn x_channels(row: u32, channel: u32) -> Held {
    let there = row != NO_ROW;
    let at = params.x_base + select(0u, row, there) * params.x_stride;
    if X_TYPE == BF16 { return Held(x[at + (channel >> 3u)], vec4<u32>(0u), there); }
    let i = at + (channel >> 2u);
    return Held(x[i], x[i + 1u], there);
}

// The same, for the row of tap `tap` of the pixel.
fn x_load(pixel: Pixel, tap: u32, row: u32, channel: u32) -> Held { return x_channels(row, channel); }

fn x_unit(v: Held) -> Unit {
    let first = select(vec4<u32>(0u), v.first, v.there);
    if X_TYPE == BF16 { return bf16_unit(first); }
    return Unit(bitcast<vec4<f32>>(first), bitcast<vec4<f32>>(select(vec4<u32>(0u), v.second, v.there)));
}

// Positions `place` to `place + 7` of the depth, which ends at `places`. Filters beyond the last
// repeat it; their results are not stored.
fn w_load(output: u32, place: u32, places: u32) -> Held {
    let at = params.w_base + min(output, params.outputs - 1u) * params.w_stride;
    let begin = min(place, places - 8u);
    if W_TYPE == BF16 { return Held(w[at + (begin >> 3u)], vec4<u32>(0u), place < places); }
    let i = at + (begin >> 2u);
    return Held(w[i], w[i + 1u], place < places);
}

fn w_unit(v: Held) -> Unit {
    let first = select(vec4<u32>(0u), v.first, v.there);
    if W_TYPE == BF16 { return bf16_unit(first); }
    return Unit(bitcast<vec4<f32>>(first), bitcast<vec4<f32>>(select(vec4<u32>(0u), v.second, v.there)));
}
