// The workgroup of a row and its sums, with subgroups: 128 threads in any number of subgroups of
// any size. The shader's own file defines `row_of_group(group, thread)`, which may call row_sum
// twice, with slots 0 and 1.

const THREADS: u32 = 128u;

// There are at most 128 subgroups. Each of the two sums has its own slot, so that nothing is
// written twice.
var<workgroup> partials: array<vec2<f32>, 256>;
var<private> lane: u32;
var<private> subgroup: u32;
var<private> subgroups: u32;

// The sum of `v` over the workgroup, for all of its threads. The order is fixed. The first barrier
// makes subgroups converge again that diverged at the end of a row: not every driver does that by
// itself, and a sum over only some of the lanes would be wrong.
fn row_sum(v: vec2<f32>, thread: u32, slot: u32) -> vec2<f32> {
    workgroupBarrier();
    let mine = subgroupAdd(v);
    if lane == 0u { partials[slot * THREADS + subgroup] = mine; }
    workgroupBarrier();
    var s = partials[slot * THREADS];
    for (var j = 1u; j < subgroups; j++) { s += partials[slot * THREADS + j]; }
    return s;
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_id) subgroup_id: u32,
    @builtin(num_subgroups) num_subgroups: u32,
) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    lane = subgroup_lane;
    subgroup = subgroup_id;
    subgroups = num_subgroups;
    row_of_group(group, thread);
}
