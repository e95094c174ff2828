// The moments of a group from those of its rows of pixels: a workgroup for each group.

@group(0) @binding(0) var<storage, read_write> partials: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> statistics: array<vec4<f32>>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let start = params.partials_base + group;
    let count = f32(params.chunk_rows) * f32(params.channels / params.norm_groups);
    var mine = Moments(0.0, 0.0, 0.0, 0.0);
    for (var chunk = thread; chunk < params.chunks; chunk += THREADS) {
        let part = partials[start + chunk * params.norm_groups];
        mine = join(mine, Moments(count, part.x, 0.0, part.y));
    }
    let m = join_threads(thread, mine);
    if thread == 0u {
        let inverse = 1.0 / sqrt(m.squares / m.count + params.eps);
        statistics[params.statistics_base + group] = vec4<f32>(m.count, m.shift, m.mean, inverse);
    }
}
