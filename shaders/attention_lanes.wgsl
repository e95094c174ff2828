// Attention for drivers that compute on the processor with subgroups of 8 lanes: see attention.wgsl
// for the operation.
//
// With these drivers, a lane's load from any memory costs as much as dozens of multiply-adds,
// because lanes are loaded one by one; a broadcast from a lane is one instruction, spilled
// registers are in the cache, and barriers are expensive. Therefore a workgroup is one subgroup
// without workgroup memory. A lane has four queries (row, row + 8, row + 16 and row + 24 of the
// tile's 32, one vector) with all their sums, and computes its softmax alone. For 16 keys at a
// time, each lane loads two rows, eight columns at a time, and all lanes get each element from it
// by broadcast: for eight columns 48 words are loaded for 512 multiply-adds of a lane, and 16 for
// as many of the sums. Three to four times as fast as the tiles, but drivers take seconds to
// compile it. Its arrays of registers are indexed by loop counters, which compilers for GPUs reject
// or spill: it is for processors only.
//
// This source follows attention_common.wgsl. The line before common.wgsl has COLUMNS, the columns
// of the widest head.

const BQ: u32 = 32u;
const BK: u32 = 16u;

// A column of the queries times the same column of 16 keys: `a` is for the lane's key of the first
// eight, `b` for that of the other eight.
fn step(s: ptr<function, array<vec4<f32>, 16>>, q: vec4<f32>, a: f32, b: f32) {
    (*s)[0] = fma(q, vec4<f32>(subgroupBroadcast(a, 0u)), (*s)[0]);
    (*s)[1] = fma(q, vec4<f32>(subgroupBroadcast(a, 1u)), (*s)[1]);
    (*s)[2] = fma(q, vec4<f32>(subgroupBroadcast(a, 2u)), (*s)[2]);
    (*s)[3] = fma(q, vec4<f32>(subgroupBroadcast(a, 3u)), (*s)[3]);
    (*s)[4] = fma(q, vec4<f32>(subgroupBroadcast(a, 4u)), (*s)[4]);
    (*s)[5] = fma(q, vec4<f32>(subgroupBroadcast(a, 5u)), (*s)[5]);
    (*s)[6] = fma(q, vec4<f32>(subgroupBroadcast(a, 6u)), (*s)[6]);
    (*s)[7] = fma(q, vec4<f32>(subgroupBroadcast(a, 7u)), (*s)[7]);
    (*s)[8] = fma(q, vec4<f32>(subgroupBroadcast(b, 0u)), (*s)[8]);
    (*s)[9] = fma(q, vec4<f32>(subgroupBroadcast(b, 1u)), (*s)[9]);
    (*s)[10] = fma(q, vec4<f32>(subgroupBroadcast(b, 2u)), (*s)[10]);
    (*s)[11] = fma(q, vec4<f32>(subgroupBroadcast(b, 3u)), (*s)[11]);
    (*s)[12] = fma(q, vec4<f32>(subgroupBroadcast(b, 4u)), (*s)[12]);
    (*s)[13] = fma(q, vec4<f32>(subgroupBroadcast(b, 5u)), (*s)[13]);
    (*s)[14] = fma(q, vec4<f32>(subgroupBroadcast(b, 6u)), (*s)[14]);
    (*s)[15] = fma(q, vec4<f32>(subgroupBroadcast(b, 7u)), (*s)[15]);
}

// The weights of keys `g .. g + 7` times a column of their values. Each lane has the value of its
// key.
fn add(s: ptr<function, array<vec4<f32>, 16>>, g: u32, o: vec4<f32>, v: f32) -> vec4<f32> {
    var x = o;
    x = fma((*s)[g], vec4<f32>(subgroupBroadcast(v, 0u)), x);
    x = fma((*s)[g + 1u], vec4<f32>(subgroupBroadcast(v, 1u)), x);
    x = fma((*s)[g + 2u], vec4<f32>(subgroupBroadcast(v, 2u)), x);
    x = fma((*s)[g + 3u], vec4<f32>(subgroupBroadcast(v, 3u)), x);
    x = fma((*s)[g + 4u], vec4<f32>(subgroupBroadcast(v, 4u)), x);
    x = fma((*s)[g + 5u], vec4<f32>(subgroupBroadcast(v, 5u)), x);
    x = fma((*s)[g + 6u], vec4<f32>(subgroupBroadcast(v, 6u)), x);
    x = fma((*s)[g + 7u], vec4<f32>(subgroupBroadcast(v, 7u)), x);
    return x;
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let row = group % params.row_tiles * BQ + lane;
    let head = group / params.row_tiles % params.heads;
    let picture = group / params.row_tiles / params.heads;
    let column0 = head * params.head_dim;
    let token = params.row_first + row;
    let tokens = params.tokens;
    let causal = params.causal != 0u;
    let scale = vec4<f32>(factor());
    let unit = unit();
    let keys = select(tokens, min(tokens, token - lane + BQ), causal);
    let last_row = params.rows - 1u;
    let q_at = params.q_base + picture * tokens * params.q_stride + column0;
    let q_at0 = q_at + min(row, last_row) * params.q_stride;
    let q_at1 = q_at + min(row + 8u, last_row) * params.q_stride;
    let q_at2 = q_at + min(row + 16u, last_row) * params.q_stride;
    let q_at3 = q_at + min(row + 24u, last_row) * params.q_stride;
    let k_at = params.k_base + picture * tokens * params.k_stride + column0;
    let v_at = params.v_base + picture * tokens * params.v_stride + column0;

    var largest = vec4<f32>(HIDDEN);
    var total = vec4<f32>();
    var o: array<vec4<f32>, COLUMNS>;
    for (var j0 = 0u; j0 < keys; j0 += BK) {
        // Keys after the last are the last one again: their weights will be 0.
        let r0 = min(j0 + lane, tokens - 1u);
        let r1 = min(j0 + lane + 8u, tokens - 1u);
        var s: array<vec4<f32>, 16>;
        for (var d = 0u; d < params.head_dim; d += 8u) {
            let q0 = q_oct(q_at0 + d);
            let q1 = q_oct(q_at1 + d);
            let q2 = q_oct(q_at2 + d);
            let q3 = q_oct(q_at3 + d);
            let k0 = k_oct(k_at + r0 * params.k_stride + d);
            let k1 = k_oct(k_at + r1 * params.k_stride + d);
            step(&s, vec4<f32>(q0.low.x, q1.low.x, q2.low.x, q3.low.x), k0.low.x, k1.low.x);
            step(&s, vec4<f32>(q0.low.y, q1.low.y, q2.low.y, q3.low.y), k0.low.y, k1.low.y);
            step(&s, vec4<f32>(q0.low.z, q1.low.z, q2.low.z, q3.low.z), k0.low.z, k1.low.z);
            step(&s, vec4<f32>(q0.low.w, q1.low.w, q2.low.w, q3.low.w), k0.low.w, k1.low.w);
            step(&s, vec4<f32>(q0.high.x, q1.high.x, q2.high.x, q3.high.x), k0.high.x, k1.high.x);
            step(&s, vec4<f32>(q0.high.y, q1.high.y, q2.high.y, q3.high.y), k0.high.y, k1.high.y);
            step(&s, vec4<f32>(q0.high.z, q1.high.z, q2.high.z, q3.high.z), k0.high.z, k1.high.z);
            step(&s, vec4<f32>(q0.high.w, q1.high.w, q2.high.w, q3.high.w), k0.high.w, k1.high.w);
        }

        var most = largest;
        for (var i = 0u; i < BK; i++) {
            let j = j0 + i;
            var x = s[i] * scale;
            if BIAS_TYPE != NO_BIAS {
                let a = vec2<f32>(bias_at(token, j, head), bias_at(token + 8u, j, head));
                let b = vec2<f32>(bias_at(token + 16u, j, head), bias_at(token + 24u, j, head));
                x = fma(s[i], scale, vec4<f32>(a, b));
            }
            let late = vec4<bool>(causal) & (vec4<u32>(j) > vec4<u32>(token, token + 8u, token + 16u, token + 24u));
            x = select(x, vec4<f32>(HIDDEN), vec4<bool>(j >= tokens) | late);
            most = max(most, x);
            s[i] = x;
        }
        let ratio = weight(largest - most, unit);
        largest = most;
        total *= ratio;
        for (var i = 0u; i < BK; i++) {
            let x = weight(s[i] - most, unit);
            total += x;
            s[i] = x;
        }

        for (var d = 0u; d < params.head_dim; d += 8u) {
            let v0 = v_oct(v_at + r0 * params.v_stride + d);
            let v1 = v_oct(v_at + r1 * params.v_stride + d);
            o[d] = add(&s, 8u, add(&s, 0u, o[d] * ratio, v0.low.x), v1.low.x);
            o[d + 1u] = add(&s, 8u, add(&s, 0u, o[d + 1u] * ratio, v0.low.y), v1.low.y);
            o[d + 2u] = add(&s, 8u, add(&s, 0u, o[d + 2u] * ratio, v0.low.z), v1.low.z);
            o[d + 3u] = add(&s, 8u, add(&s, 0u, o[d + 3u] * ratio, v0.low.w), v1.low.w);
            o[d + 4u] = add(&s, 8u, add(&s, 0u, o[d + 4u] * ratio, v0.high.x), v1.high.x);
            o[d + 5u] = add(&s, 8u, add(&s, 0u, o[d + 5u] * ratio, v0.high.y), v1.high.y);
            o[d + 6u] = add(&s, 8u, add(&s, 0u, o[d + 6u] * ratio, v0.high.z), v1.high.z);
            o[d + 7u] = add(&s, 8u, add(&s, 0u, o[d + 7u] * ratio, v0.high.w), v1.high.w);
        }
    }

    for (var d = 0u; d < params.head_dim; d += 8u) {
        let o0 = o[d] / total;
        let o1 = o[d + 1u] / total;
        let o2 = o[d + 2u] / total;
        let o3 = o[d + 3u] / total;
        let o4 = o[d + 4u] / total;
        let o5 = o[d + 5u] / total;
        let o6 = o[d + 6u] / total;
        let o7 = o[d + 7u] / total;
        let column = column0 + d;
        store(picture, row, column, vec4<f32>(o0.x, o1.x, o2.x, o3.x), vec4<f32>(o4.x, o5.x, o6.x, o7.x));
        store(picture, row + 8u, column, vec4<f32>(o0.y, o1.y, o2.y, o3.y), vec4<f32>(o4.y, o5.y, o6.y, o7.y));
        store(picture, row + 16u, column, vec4<f32>(o0.z, o1.z, o2.z, o3.z), vec4<f32>(o4.z, o5.z, o6.z, o7.z));
        store(picture, row + 24u, column, vec4<f32>(o0.w, o1.w, o2.w, o3.w), vec4<f32>(o4.w, o5.w, o6.w, o7.w));
    }
}
