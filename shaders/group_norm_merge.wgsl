// The moments of an image's group from those of its chunks: workgroup `picture * norm_groups +
// group`.

@group(0) @binding(0) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> statistics: array<vec4<f32>>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let picture = group / params.norm_groups;
    let start = params.partials_base + picture * params.chunks * params.norm_groups + (group - picture * params.norm_groups);
    var mine = Moments(0.0, 0.0, 0.0, 0.0);
    for (var chunk = thread; chunk < params.chunks; chunk += THREADS) {
        mine = join(mine, as_moments(partials[start + chunk * params.norm_groups]));
    }
    let m = join_threads(thread, mine);
    if thread == 0u {
        let inverse = 1.0 / sqrt(m.squares / m.count + params.eps);
        statistics[params.statistics_base + group] = vec4<f32>(m.count, m.shift, m.mean, inverse);
    }
}
