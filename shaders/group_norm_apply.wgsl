// Normalises a chunk of rows that are whole units of 8 channels beginning at multiples of 16 bytes,
// up to 1024 channels. A thread keeps its channels and their factors and goes through the rows; out
// may be x, because a thread writes only elements that no other thread reads.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> statistics: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<u32>>;

fn load(i: u32) -> Unit {
    let v = x[i];
    if X_TYPE == BF16 {
        return Unit(vec4<f32>(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)),
                    vec4<f32>(bf16_low(v.z), bf16_high(v.z), bf16_low(v.w), bf16_high(v.w)));
    }
    return Unit(bitcast<vec4<f32>>(v), bitcast<vec4<f32>>(x[i + 1u]));
}

fn act(v: vec4<f32>) -> vec4<f32> {
    if params.silu == 0u { return v; }
    return v / (1.0 + exp(clamp(-v, vec4<f32>(-87.0), vec4<f32>(87.0))));
}

// The factors of four channels.
struct Four {
    shift: vec4<f32>,
    mean: vec4<f32>,
    scale: vec4<f32>,
    add: vec4<f32>,
}

fn four(c: u32) -> Four {
    let width = params.channels / params.norm_groups;
    let start = params.statistics_base;
    let s = transpose(mat4x4<f32>(statistics[start + c / width], statistics[start + (c + 1u) / width], statistics[start + (c + 2u) / width],
                                  statistics[start + (c + 3u) / width]));
    let w = params.weight_base + c;
    let b = params.bias_base + c;
    return Four(s[1], s[2], s[3] * vec4<f32>(weight[w], weight[w + 1u], weight[w + 2u], weight[w + 3u]),
                vec4<f32>(bias[b], bias[b + 1u], bias[b + 2u], bias[b + 3u]));
}

fn apply(v: vec4<f32>, f: Four) -> vec4<f32> { return act((exact4(v - f.shift) - f.mean) * f.scale + f.add); }

fn store(i: u32, v: Unit, low: Four, high: Four) {
    let l = apply(v.low, low);
    let h = apply(v.high, high);
    if OUT_TYPE == BF16 {
        out[i] = vec4<u32>(bf16_pack(l.x, l.y), bf16_pack(l.z, l.w), bf16_pack(h.x, h.y), bf16_pack(h.z, h.w));
    } else {
        out[i] = bitcast<vec4<u32>>(l);
        out[i + 1u] = bitcast<vec4<u32>>(h);
    }
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let count = min(params.rows - (params.first_chunk + group) * params.chunk_rows, params.chunk_rows);
    let vectors = params.channels / 8u;
    let lines = THREADS / vectors;
    let line = thread / vectors;
    if line >= lines { return; }
    let vector = thread - line * vectors;
    let low = four(vector * 8u);
    let high = four(vector * 8u + 4u);
    let first = group * params.chunk_rows;
    let x_step = lines * params.x_stride;
    let out_step = lines * params.out_stride;
    var read = params.x_base + (first + line) * params.x_stride + vector * select(2u, 1u, X_TYPE == BF16);
    var write = params.out_base + (first + line) * params.out_stride + vector * select(2u, 1u, OUT_TYPE == BF16);
    var row = line;
    for (; row + 3u * lines < count; row += 4u * lines) {
        let v0 = load(read);
        let v1 = load(read + x_step);
        let v2 = load(read + 2u * x_step);
        let v3 = load(read + 3u * x_step);
        store(write, v0, low, high);
        store(write + out_step, v1, low, high);
        store(write + 2u * out_step, v2, low, high);
        store(write + 3u * out_step, v3, low, high);
        read += 4u * x_step;
        write += 4u * out_step;
    }
    for (; row < count; row += lines) {
        store(write, load(read), low, high);
        read += x_step;
        write += out_step;
    }
}
