// Weights stored in blocks (shaders/blocks.wgsl), eight at a time: no format changes its factors
// within aligned eight. `row` is the first word of the row.

fn w_raw(row: u32, k: u32) -> Raw {
    let at = place(row, k);
    var raw = Raw(vec4<u32>(w[at.quants], 0u, 0u, 0u), vec4<u32>(bitcast<u32>(at.d), bitcast<u32>(at.m), 0u, 0u));
    if has_codes() { raw.low.y = raw.low.x; } else { raw.low.y = w[at.quants + 1u]; }
    if has_high() {
        raw.low.z = w[at.high];
        if has_fifths() { raw.low.w = raw.low.z; } else { raw.low.w = w[at.high + 1u]; }
    }
    return raw;
}

fn w_values(raw: Raw, k: u32) -> Eight {
    let d = bitcast<f32>(raw.high.x);
    let m = bitcast<f32>(raw.high.y);
    return Eight(block_values(raw.low.x, raw.low.z, d, m, k), block_values(raw.low.y, raw.low.w, d, m, k + 4u));
}
