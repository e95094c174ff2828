// The workgroup of a row and its sums, for adapters without subgroups: 128 threads, each with a
// partial sum. The shader's own file defines `row_of_group(group, thread)`, which may call row_sum
// twice, with slots 0 and 1.

const THREADS: u32 = 128u;

// Each of the two sums has its own slots, so that nothing is written twice and a sum takes two
// barriers instead of four.
var<workgroup> partials: array<vec2<f32>, 256>;
var<workgroup> sums: array<vec2<f32>, 32>;

// The sum of `v` over the workgroup, for all of its threads: 128 values become 16, and each thread
// adds those up by itself. The order is fixed.
fn row_sum(v: vec2<f32>, thread: u32, slot: u32) -> vec2<f32> {
    partials[slot * THREADS + thread] = v;
    workgroupBarrier();
    if thread < 16u {
        var s = partials[slot * THREADS + thread];
        for (var j = 16u; j < THREADS; j += 16u) { s += partials[slot * THREADS + j + thread]; }
        sums[slot * 16u + thread] = s;
    }
    workgroupBarrier();
    var s = sums[slot * 16u];
    for (var j = 1u; j < 16u; j++) { s += sums[slot * 16u + j]; }
    return s;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    row_of_group(group, thread);
}
