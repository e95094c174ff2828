// Loads of convolutions of any width and alignment, element by element. A unit may span several
// taps. It is kept as numbers, not in its stored form.

@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> w: array<u32>;

struct Held {
    unit: Unit,
}

fn x_element(e: u32) -> f32 {
    if X_TYPE == F32 { return bitcast<f32>(x[e]); }
    return bitcast<f32>(select(x[e >> 1u] << 16u, x[e >> 1u] & 0xffff0000u, (e & 1u) == 1u));
}
fn w_element(e: u32) -> f32 {
    if W_TYPE == F32 { return bitcast<f32>(w[e]); }
    return bitcast<f32>(select(w[e >> 1u] << 16u, w[e >> 1u] & 0xffff0000u, (e & 1u) == 1u));
}

// A position of the depth, and the row of x for its tap.
struct Place {
    tap: u32,
    row: u32,
    channel: u32,
}

fn after(pixel: Pixel, p: Place) -> Place {
    if p.channel + 1u < params.channels { return Place(p.tap, p.row, p.channel + 1u); }
    return Place(p.tap + 1u, source(pixel, p.tap + 1u), 0u);
}

fn x_at(p: Place) -> f32 {
    if p.row == NO_ROW { return 0.0; }
    return x_element(params.x_base + p.row * params.x_stride + p.channel);
}

// Eight positions of the depth from channel `channel` of tap `tap` on, whose row of x is `row`.
fn x_load(pixel: Pixel, tap: u32, row: u32, channel: u32) -> Held {
    let p0 = Place(tap, row, channel);
    let p1 = after(pixel, p0);
    let p2 = after(pixel, p1);
    let p3 = after(pixel, p2);
    let p4 = after(pixel, p3);
    let p5 = after(pixel, p4);
    let p6 = after(pixel, p5);
    let p7 = after(pixel, p6);
    return Held(Unit(vec4<f32>(x_at(p0), x_at(p1), x_at(p2), x_at(p3)), vec4<f32>(x_at(p4), x_at(p5), x_at(p6), x_at(p7))));
}

fn x_unit(v: Held) -> Unit { return v.unit; }

fn w_at(start: u32, place: u32, places: u32) -> f32 {
    if place >= places { return 0.0; }
    return w_element(start + place);
}

// Positions `place` to `place + 7` of the depth, which ends at `places`. Filters beyond the last
// repeat it; their results are not stored.
fn w_load(output: u32, place: u32, places: u32) -> Held {
    let start = params.w_base + min(output, params.outputs - 1u) * params.w_stride;
    let low = vec4<f32>(w_at(start, place, places), w_at(start, place + 1u, places), w_at(start, place + 2u, places), w_at(start, place + 3u, places));
    let high = vec4<f32>(w_at(start, place + 4u, places), w_at(start, place + 5u, places), w_at(start, place + 6u, places), w_at(start, place + 7u, places));
    return Held(Unit(low, high));
}

fn w_unit(v: Held) -> Unit { return v.unit; }
