// out = tail(x . (scales * w)^T + bias) for all element types, sizes, strides and offsets: tiles of
// 64 x 64 like shaders/linear.wgsl, but every element is loaded, converted and stored separately
// (`w_at` is defined in linear_any_plain.wgsl and linear_any_blocks.wgsl). A step takes 16 of k. A
// thread loads one k of four rows of x and of four rows of w, and stores each four in workgroup
// memory as one vector: if several threads wrote components of one vector, they would overwrite
// each other's where a write is always one of the whole vector. With a pitch of 17 vectors,
// neighbours write to different banks; tiles take 8.5 KiB.

@group(0) @binding(0) var<storage, read_write> x: array<u32>;

const TILE: u32 = 64u;
const STEP: u32 = 16u;
const PITCH: u32 = TILE / 4u + 1u;

var<workgroup> xs: array<vec4<f32>, STEP * PITCH>;
var<workgroup> ws: array<vec4<f32>, STEP * PITCH>;

fn x_at(e: u32) -> f32 {
    if X_TYPE == F32 { return bitcast<f32>(x[e]); }
    return bf16_low(half_of(x[e / 2u], e));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let row0 = group % params.row_tiles * TILE;
    let col0 = group / params.row_tiles * TILE;
    let tx = t % 16u;
    let ty = t / 16u;
    // Neighbours load neighbouring k of the same rows; rows beyond the last repeat it, and their
    // sums are not stored.
    let four = vec4<u32>(0u, 1u, 2u, 3u) + ty * 4u;
    let x_row = params.x_base + min(row0 + four, vec4<u32>(params.rows - 1u)) * params.x_stride;
    let w_row = params.w_base + min(col0 + four, vec4<u32>(params.n - 1u)) * params.w_stride;
    var sums: array<vec4<f32>, 4>;
    for (var i = 0u; i < 4u; i++) { sums[i] = vec4<f32>(0.0); }
    for (var k = 0u; k < params.k; k += STEP) {
        var xv = vec4<f32>(0.0);
        var wv = vec4<f32>(0.0);
        if k + tx < params.k {
            let xe = x_row + (k + tx);
            xv = vec4<f32>(x_at(xe.x), x_at(xe.y), x_at(xe.z), x_at(xe.w));
            // Not unrolled: an element of a block takes a few hundred instructions.
            for (var i = 0u; i < 4u; i++) { wv[i] = w_at(w_row[i], k + tx); }
        }
        workgroupBarrier();
        xs[tx * PITCH + ty] = xv;
        ws[tx * PITCH + ty] = wv;
        workgroupBarrier();
        for (var j = 0u; j < STEP; j++) {
            let a = xs[j * PITCH + ty];
            let b = ws[j * PITCH + tx];
            sums[0] = fma(vec4<f32>(a.x), b, sums[0]);
            sums[1] = fma(vec4<f32>(a.y), b, sums[1]);
            sums[2] = fma(vec4<f32>(a.z), b, sums[2]);
            sums[3] = fma(vec4<f32>(a.w), b, sums[3]);
        }
    }
    let row = row0 + ty * 4u;
    let col = col0 + tx * 4u;
    if col >= params.n { return; }
    let c = columns(col);
    for (var i = 0u; i < 4u; i++) {
        if row + i < params.rows { finish(row + i, col, c, sums[i]); }
    }
}
