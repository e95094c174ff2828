// Weights stored in blocks (shaders/blocks.wgsl): one of four elements that are decoded together.
// `row` is the first word of the row.

fn w_at(row: u32, k: u32) -> f32 {
    let four = k & 0xfffffffcu;
    let at = place(row, four);
    var high = 0u;
    if has_high() { high = w[at.high]; }
    return block_values(w[at.quants], high, at.d, at.m, four)[k & 3u];
}
