// The sampler's step, in place: x += step[0] * v, or with true CFG x += step[0] * (u + step[1] * (v
// - u)).
//
// x: rows x cols in f32; v, u (without the prompt): rows x cols in bf16 or f32; step: two f32. A
// thread has one element: a megabyte, once per step.

override V_TYPE: u32 = 0u;
override CFG: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    rows: u32,
    cols: u32,
    x_base: u32,
    x_stride: u32,
    v_base: u32,
    u_base: u32,
    v_stride: u32,
    step_base: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> v: array<u32>;
@group(0) @binding(2) var<storage, read_write> u: array<u32>;
@group(0) @binding(3) var<storage, read_write> step_of: array<f32>;

fn element(word: u32, e: u32) -> f32 {
    if V_TYPE == F32 { return bitcast<f32>(word); }
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (e & 1u) == 1u));
}

fn load_v(e: u32) -> f32 { return element(v[select(e >> 1u, e, V_TYPE == F32)], e); }
fn load_u(e: u32) -> f32 { return element(u[select(e >> 1u, e, V_TYPE == F32)], e); }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let i = group * 256u + thread;
    let row = i / params.cols;
    if row >= params.rows { return; }
    let column = i - row * params.cols;
    var velocity = load_v(params.v_base + row * params.v_stride + column);
    if CFG != 0u {
        let without = load_u(params.u_base + row * params.v_stride + column);
        velocity = without + step_of[params.step_base + 1u] * (velocity - without);
    }
    let at = params.x_base + row * params.x_stride + column;
    x[at] += step_of[params.step_base] * velocity;
}
