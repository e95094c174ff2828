// Normalises a chunk of rows of any width and alignment, element by element. Rows of out may share
// a word, so its halves are replaced one at a time.

@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> statistics: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<atomic<u32>>;

fn element(e: u32) -> f32 {
    if X_TYPE == F32 { return bitcast<f32>(x[e]); }
    return bitcast<f32>(select(x[e >> 1u] << 16u, x[e >> 1u] & 0xffff0000u, (e & 1u) == 1u));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let top = (params.first_chunk + group) * params.chunk_rows;
    let elements = min(params.rows - top, params.chunk_rows) * params.channels;
    let first = group * params.chunk_rows;
    let width = params.channels / params.norm_groups;
    let start = params.statistics_base;
    for (var e = thread; e < elements; e += THREADS) {
        let row = e / params.channels;
        let c = e - row * params.channels;
        let s = statistics[start + c / width];
        let v = element(params.x_base + (first + row) * params.x_stride + c);
        var y = (exact(v - s.y) - s.z) * (s.w * weight[params.weight_base + c]) + bias[params.bias_base + c];
        if params.silu != 0u { y = silu(y); }
        let to = params.out_base + (first + row) * params.out_stride + c;
        if OUT_TYPE == F32 {
            atomicStore(&out[to], bitcast<u32>(y));
        } else {
            let shift = (to & 1u) * 16u;
            atomicAnd(&out[to >> 1u], 0xffff0000u >> shift);
            atomicOr(&out[to >> 1u], bf16_bits(y) << shift);
        }
    }
}
