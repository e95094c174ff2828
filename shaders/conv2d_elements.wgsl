// Loads of convolutions of any width and alignment, element by element. A unit may span several taps.

@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> w: array<u32>;

fn x_element(e: u32) -> f32 {
    if X_TYPE == F32 { return bitcast<f32>(x[e]); }
    return bitcast<f32>(select(x[e >> 1u] << 16u, x[e >> 1u] & 0xffff0000u, (e & 1u) == 1u));
}
fn w_element(e: u32) -> f32 {
    if W_TYPE == F32 { return bitcast<f32>(w[e]); }
    return bitcast<f32>(select(w[e >> 1u] << 16u, w[e >> 1u] & 0xffff0000u, (e & 1u) == 1u));
}

// Elements of x at four places of the depth from `place` on; `tap` and `channel` are those of the first.
fn x_four(pixel: Pixel, tap: u32, channel: u32, place: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    var t = tap;
    var c = channel;
    for (var i = 0u; i < min(depth() - min(place, depth()), 4u); i++) {
        let row = source(pixel, t);
        if row != NO_ROW { v[i] = x_element(params.x_base + row * params.x_stride + c); }
        c += 1u;
        if c == params.channels {
            c = 0u;
            t += 1u;
        }
    }
    return v;
}

// Places `place` to `place + 7` of the depth; `tap` and `channel` are those of the first.
fn x_unit(pixel: Pixel, tap: u32, channel: u32, place: u32) -> Unit {
    let t = (place + 4u) / params.channels;
    return Unit(x_four(pixel, tap, channel, place), x_four(pixel, t, place + 4u - t * params.channels, place + 4u));
}

fn w_four(output: u32, place: u32) -> vec4<f32> {
    var v = vec4<f32>(0.0);
    let start = params.w_base + output * params.w_stride + place;
    for (var i = 0u; i < min(depth() - min(place, depth()), 4u); i++) { v[i] = w_element(start + i); }
    return v;
}

fn w_unit(output: u32, place: u32) -> Unit {
    if output >= params.outputs { return nothing(); }
    return Unit(w_four(output, place), w_four(output, place + 4u));
}
