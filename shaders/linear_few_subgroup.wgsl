// Adds the sums of shaders/linear_few.wgsl by subgroups of any size from 4 on, then those of the
// subgroups.

var<workgroup> parts: array<vec4<f32>, 256>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32, @builtin(subgroup_invocation_id) lane: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let row0 = group / params.column_tiles * ROWS;
    let col0 = group % params.column_tiles * 4u;
    var sums = few_sums(row0, col0, t);
    // Threads have left the loop over k at different times: after this they are together again, and
    // subgroups are complete.
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
        let sum = subgroupAdd(sums[r]);
        if lane == 0u { parts[r * 16u + subgroup] = sum; }
    }
    workgroupBarrier();
    if t < ROWS && row0 + t < params.rows {
        var sum = parts[t * 16u];
        for (var s = 1u; s < subgroups; s++) { sum += parts[t * 16u + s]; }
        finish(row0 + t, col0, columns(col0), sum);
    }
}
