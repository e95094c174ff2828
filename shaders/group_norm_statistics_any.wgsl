// Moments of one group in a row of pixels, of any width and alignment: workgroup `row of pixels *
// norm_groups + group`.

@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> partials: array<vec2<f32>>;

fn element(e: u32) -> f32 {
    if X_TYPE == F32 { return bitcast<f32>(x[e]); }
    return bitcast<f32>(select(x[e >> 1u] << 16u, x[e >> 1u] & 0xffff0000u, (e & 1u) == 1u));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let chunk = group / params.norm_groups;
    let g = group - chunk * params.norm_groups;
    let width = params.channels / params.norm_groups;
    let elements = params.chunk_rows * width;
    let start = params.x_base + chunk * params.chunk_rows * params.x_stride + g * width;
    var shift = 0.0;
    var sum = 0.0;
    var squares = 0.0;
    var count = 0.0;
    for (var e = thread; e < elements; e += THREADS) {
        let row = e / width;
        let v = element(start + row * params.x_stride + (e - row * width));
        if count == 0.0 { shift = v; }
        let d = exact(v - shift);
        sum += d;
        squares += d * d;
        count += 1.0;
    }
    let m = join_threads(thread, moments(count, shift, sum, squares));
    if thread == 0u { partials[params.partials_base + group] = as_pair(m); }
}
