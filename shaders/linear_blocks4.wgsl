// Weights stored in blocks (shaders/blocks.wgsl), four at a time. `row` is the first word of the
// row.

// The words of quants are not used before they are converted, so nothing waits for them. d and m
// are computed at once: their words are few, shared by many threads and steps, and in a cache.
fn w4_raw(row: u32, k: u32) -> vec4<u32> {
    let at = place(row, k);
    var raw = vec4<u32>(w[at.quants], 0u, bitcast<u32>(at.d), bitcast<u32>(at.m));
    if has_high() { raw.y = w[at.high]; }
    return raw;
}

fn w4_values(raw: vec4<u32>, k: u32) -> vec4<f32> {
    return block_values(raw.x, raw.y, bitcast<f32>(raw.z), bitcast<f32>(raw.w), k);
}
