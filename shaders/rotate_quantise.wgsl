// Rows of x as the integers of a product in int8 (linear_int8.wgsl): q = round((x R) / scale), from
// -127 to 127, with scale = max |x R| / 127 of the row. src/dtype/int8.rs defines both.
//
// R rotates groups of GROUP = 16, 64 or 256 columns by stages of sums and differences of four
// elements that are 1, 4, 16 and 64 columns apart; 0: there is no rotation. A workgroup of 64
// threads has one row, and takes 1024 columns at a time. Each thread has 16 neighbours: it does the
// first two stages in its registers. Then the 16 threads of 256 columns transpose their elements in
// workgroup memory (a pitch of 17, so that neither side has bank conflicts), and each has 16 elements
// that are 16 columns apart, for the other two stages.
//
// The row is rotated twice, first for its maximum, then for its integers: a row of 15,360 columns
// does not fit into workgroup memory, and the second time it comes from a cache. The maximum is that
// of bit patterns, so that its order does not matter and a NaN is larger than all numbers. Reading x
// limits the speed. rotate_quantise_vectors.wgsl and rotate_quantise_elements.wgsl read it.

override X_TYPE: u32 = 0u;
override GROUP: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    k: u32,
    x_base: u32,
    x_stride: u32,
    // In vectors of 16 integers. The last one of a row ends with zeros; after it comes the scale.
    q_base: u32,
    q_stride: u32,
}

var<immediate> params: Params;
@group(0) @binding(1) var<storage, read_write> q: array<vec4<u32>>;

const PITCH: u32 = 17u;
var<workgroup> tile: array<f32, 1088>;
var<workgroup> largest: atomic<u32>;

// The elements of a thread: 16 neighbours, or elements that are 16 columns apart.
struct Sixteen {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// A stage within a vector. Halves are exact.
fn turn(v: vec4<f32>) -> vec4<f32> {
    let s = v.x + v.y;
    let t = v.z - v.w;
    let m = v.x - v.y;
    let p = v.z + v.w;
    return vec4<f32>(s + t, s - t, m + p, p - m) * 0.5;
}

fn turn_each(e: Sixteen) -> Sixteen { return Sixteen(turn(e.a), turn(e.b), turn(e.c), turn(e.d)); }

// A stage across the four vectors.
fn turn_across(e: Sixteen) -> Sixteen {
    let s = e.a + e.b;
    let t = e.c - e.d;
    let m = e.a - e.b;
    let p = e.c + e.d;
    return Sixteen((s + t) * 0.5, (s - t) * 0.5, (m + p) * 0.5, (p - m) * 0.5);
}

fn put(at: u32, v: vec4<f32>) {
    tile[at] = v.x;
    tile[at + 1u] = v.y;
    tile[at + 2u] = v.z;
    tile[at + 3u] = v.w;
}
fn take(at: u32) -> vec4<f32> { return vec4<f32>(tile[at], tile[at + PITCH], tile[at + 2u * PITCH], tile[at + 3u * PITCH]); }

// Element j of thread i becomes element i of thread j. Twice gives them back.
fn transposed(e: Sixteen, thread: u32) -> Sixteen {
    let block = thread / 16u * 16u * PITCH;
    let mine = block + thread % 16u * PITCH;
    let theirs = block + thread % 16u;
    // All threads have read what was there before.
    workgroupBarrier();
    put(mine, e.a);
    put(mine + 4u, e.b);
    put(mine + 8u, e.c);
    put(mine + 12u, e.d);
    workgroupBarrier();
    return Sixteen(take(theirs), take(theirs + 4u * PITCH), take(theirs + 8u * PITCH), take(theirs + 12u * PITCH));
}

// Elements of x R: those of sixteen(), or if GROUP is larger than 16, transposed.
fn rotated(row: u32, column: u32, thread: u32) -> Sixteen {
    var e = sixteen(row, column);
    if GROUP >= 16u { e = turn_across(turn_each(e)); }
    if GROUP >= 64u { e = turn_each(transposed(e, thread)); }
    if GROUP >= 256u { e = turn_across(e); }
    return e;
}

fn magnitude(v: vec4<f32>) -> vec4<u32> { return bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu); }

fn pack(v: vec4<f32>) -> u32 {
    let i = vec4<u32>(vec4<i32>(clamp(round(v), vec4<f32>(-127.0), vec4<f32>(127.0)))) & vec4<u32>(255u);
    return i.x | (i.y << 8u) | (i.z << 16u) | (i.w << 24u);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = params.first + wg.y * n.x + wg.x;
    if row >= params.groups { return; }
    let at = params.x_base + row * params.x_stride;
    if thread == 0u { atomicStore(&largest, 0u); }
    var most = vec4<u32>();
    for (var c = 0u; c < params.k; c += 1024u) {
        let e = rotated(at, c + thread * 16u, thread);
        most = max(most, max(max(magnitude(e.a), magnitude(e.b)), max(magnitude(e.c), magnitude(e.d))));
    }
    workgroupBarrier();
    atomicMax(&largest, max(max(most.x, most.y), max(most.z, most.w)));
    workgroupBarrier();
    let bits = atomicLoad(&largest);
    // If a value is not finite, the scale is NaN, which spoils the row of the product.
    let bad = bits >= 0x7f800000u;
    let to = params.q_base + row * params.q_stride;
    let scale = select(max(bitcast<f32>(bits) / 127.0, 1e-30), bitcast<f32>(params.groups | 0x7fc00000u), bad);
    for (var c = 0u; c < params.k; c += 1024u) {
        let column = c + thread * 16u;
        var e = rotated(at, column, thread);
        if GROUP >= 64u { e = transposed(e, thread); }
        if column < params.k {
            let words = vec4<u32>(pack(e.a / scale), pack(e.b / scale), pack(e.c / scale), pack(e.d / scale));
            q[to + column / 16u] = select(words, vec4<u32>(), bad);
        }
    }
    if thread == 0u { q[to + (params.k + 15u) / 16u] = vec4<u32>(bitcast<u32>(scale), 0u, 0u, 0u); }
}
