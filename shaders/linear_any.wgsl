// out = tail(x . (scales * w)^T + bias) for all element types, sizes, strides and offsets: tiles of
// 64 x 64 like shaders/linear.wgsl, but every element is loaded, converted and stored separately
// (`w_at` is defined in linear_any_plain.wgsl and linear_any_blocks.wgsl). A step takes 16 of k. A
// thread loads one k of four rows of x and of four rows of w, and stores each four in workgroup
// memory as one vector: if several threads wrote components of one vector, they would overwrite
// each other's where a write is always one of the whole vector. With a pitch of 17 vectors,
// neighbours write to different banks; tiles take 8.5 KiB.
//
// If columns, strides or offsets are odd, a word of out may contain an element of another row or
// other data, so halves of words are set by atomics, each by the thread that owns the element.

@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual: array<u32>;
@group(0) @binding(5) var<storage, read_write> gate: array<u32>;
@group(0) @binding(6) var<storage, read_write> out: array<atomic<u32>>;

const TILE: u32 = 64u;
const STEP: u32 = 16u;
const PITCH: u32 = TILE / 4u + 1u;

var<workgroup> xs: array<vec4<f32>, STEP * PITCH>;
var<workgroup> ws: array<vec4<f32>, STEP * PITCH>;

fn half_of(word: u32, e: u32) -> u32 { return (word >> ((e & 1u) * 16u)) & 0xffffu; }
fn byte_of(word: u32, e: u32) -> u32 { return (word >> ((e & 3u) * 8u)) & 0xffu; }

fn x_at(e: u32) -> f32 {
    if X_TYPE == F32 { return bitcast<f32>(x[e]); }
    return bf16_low(half_of(x[e / 2u], e));
}

fn residual_at(row: u32, col: u32) -> f32 {
    let e = params.residual_base + row * params.residual_stride + col;
    if params.residual_type == F32 { return bitcast<f32>(residual[e]); }
    return bf16_low(half_of(residual[e / 2u], e));
}

fn finish(row: u32, col: u32, sum: f32) {
    var y = sum;
    if params.has_scales != 0u { y *= scales[params.scales_base + col]; }
    if params.has_bias != 0u { y += bias[params.bias_base + col]; }
    if params.has_side != 0u { y += residual_at(row, col); }
    y = activated(vec4<f32>(y)).x;
    if params.tail == 5u {
        let e = params.gate_base + (params.first_row + row) / params.group_rows * params.gate_stride + col;
        if params.gate_type == F32 { y *= bitcast<f32>(gate[e]); } else { y *= bf16_low(half_of(gate[e / 2u], e)); }
    }
    if params.tail >= 4u { y += residual_at(row, col); }
    let e = params.out_base + row * params.out_stride + col;
    if params.out_type == F32 {
        atomicStore(&out[e], bitcast<u32>(y));
    } else {
        let shift = (e & 1u) * 16u;
        atomicAnd(&out[e / 2u], 0xffff0000u >> shift);
        atomicOr(&out[e / 2u], bf16_bits(y) << shift);
    }
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
    for (var i = 0u; i < 4u; i++) {
        let row = row0 + ty * 4u + i;
        for (var j = 0u; j < 4u; j++) {
            let col = col0 + tx * 4u + j;
            if row < params.rows && col < params.n { finish(row, col, sums[i][j]); }
        }
    }
}
