// Adds the sums of shaders/linear_few.wgsl in workgroup memory, four rows at a time.

var<workgroup> parts: array<vec4<f32>, 256>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let row0 = group / params.column_tiles * ROWS;
    let col0 = group % params.column_tiles * 4u;
    var sums = few_sums(row0, col0, t);
    const AT_ONCE: u32 = 4u;
    for (var r = 0u; r < ROWS; r += AT_ONCE) {
        for (var i = 0u; i < min(ROWS, AT_ONCE); i++) { parts[i * THREADS + t] = sums[r + i]; }
        for (var half = THREADS / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if t < half {
                for (var i = 0u; i < min(ROWS, AT_ONCE); i++) { parts[i * THREADS + t] += parts[i * THREADS + t + half]; }
            }
        }
        workgroupBarrier();
        if t < min(ROWS, AT_ONCE) && row0 + r + t < params.rows { finish(row0 + r + t, col0, columns(col0), parts[t * THREADS]); }
        workgroupBarrier();
    }
}
