// The end of a shader that computes each element of its output on its own: a thread computes one word
// of the output, which is one or two elements; see words.wgsl. The shader's own file declares
// `value(row, column)`, and `rows`, `cols`, `out_base` and `out_stride` in its `Params`.

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let words = words_of(params.cols);
    let i = group * 256u + thread;
    let row = i / words;
    if row >= params.rows { return; }
    let s = spot(params.out_base + row * params.out_stride, i - row * words, params.cols);
    var low = 0.0;
    var high = 0.0;
    if s.low { low = value(row, s.column); }
    if s.high { high = value(row, s.column + 1u); }
    store(s, low, high);
}
