// Moments of every group in a row of pixels, for pixels that are whole units of 8 channels beginning
// at multiples of 16 bytes, up to 1024 channels.
//
// A thread keeps its 8 channels and goes through the rows, four at a time, so that neighbours read
// neighbouring vectors and four loads are in flight. The moments of a thread's channels are then
// stored in workgroup memory (12.4 KB), channel i of all threads in one run, the runs 132 apart:
// neither writing them by thread nor reading them by channel has bank conflicts. First each channel
// is joined over the lines of threads, then the channels of each group.

@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> partials: array<vec2<f32>>;

const RUN: u32 = 132u;

var<workgroup> shifts: array<f32, 1056>;
var<workgroup> means: array<f32, 1056>;
var<workgroup> deviations: array<f32, 1056>;

struct Sums {
    shift: Unit,
    sum: Unit,
    squares: Unit,
}

fn load(i: u32) -> Unit {
    let v = x[i];
    if X_TYPE == BF16 {
        return Unit(vec4<f32>(bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)),
                    vec4<f32>(bf16_low(v.z), bf16_high(v.z), bf16_low(v.w), bf16_high(v.w)));
    }
    return Unit(bitcast<vec4<f32>>(v), bitcast<vec4<f32>>(x[i + 1u]));
}

fn add(sums: ptr<function, Sums>, v: Unit) {
    let low = exact4(v.low - (*sums).shift.low);
    let high = exact4(v.high - (*sums).shift.high);
    (*sums).sum.low += low;
    (*sums).sum.high += high;
    (*sums).squares.low += low * low;
    (*sums).squares.high += high * high;
}

fn put(at: u32, count: f32, shift: f32, sum: f32, squares: f32) {
    let m = moments(count, shift, sum, squares);
    shifts[at] = m.shift;
    means[at] = m.mean;
    deviations[at] = m.squares;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let count = params.chunk_rows;

    // The workgroup is `lines` rows of `vectors` threads; the other threads do nothing.
    let vectors = params.channels / 8u;
    let lines = THREADS / vectors;
    let line = thread / vectors;
    if line < lines && line < count {
        let per_unit = select(2u, 1u, X_TYPE == BF16);
        let start = params.x_base + group * params.chunk_rows * params.x_stride + (thread - line * vectors) * per_unit;
        let step = lines * params.x_stride;
        let zero = vec4<f32>(0.0);
        var at = start + line * params.x_stride;
        var sums = Sums(load(at), Unit(zero, zero), Unit(zero, zero));
        at += step;
        var row = line + lines;
        for (; row + 3u * lines < count; row += 4u * lines) {
            let v0 = load(at);
            let v1 = load(at + step);
            let v2 = load(at + 2u * step);
            let v3 = load(at + 3u * step);
            add(&sums, v0);
            add(&sums, v1);
            add(&sums, v2);
            add(&sums, v3);
            at += 4u * step;
        }
        for (; row < count; row += lines) {
            add(&sums, load(at));
            at += step;
        }
        let rows = f32((count - line - 1u) / lines + 1u);
        put(thread, rows, sums.shift.low.x, sums.sum.low.x, sums.squares.low.x);
        put(thread + RUN, rows, sums.shift.low.y, sums.sum.low.y, sums.squares.low.y);
        put(thread + 2u * RUN, rows, sums.shift.low.z, sums.sum.low.z, sums.squares.low.z);
        put(thread + 3u * RUN, rows, sums.shift.low.w, sums.sum.low.w, sums.squares.low.w);
        put(thread + 4u * RUN, rows, sums.shift.high.x, sums.sum.high.x, sums.squares.high.x);
        put(thread + 5u * RUN, rows, sums.shift.high.y, sums.sum.high.y, sums.squares.high.y);
        put(thread + 6u * RUN, rows, sums.shift.high.z, sums.sum.high.z, sums.squares.high.z);
        put(thread + 7u * RUN, rows, sums.shift.high.w, sums.sum.high.w, sums.squares.high.w);
    }
    workgroupBarrier();
    // Joins each channel over its lines, in the memory of line 0.
    let rounds = count / lines;
    let rest = count - rounds * lines;
    let used = min(lines, count);
    for (var c = thread; c < params.channels; c += THREADS) {
        let at = (c & 7u) * RUN + (c >> 3u);
        var m = Moments(f32(rounds + select(0u, 1u, rest > 0u)), shifts[at], means[at], deviations[at]);
        for (var l = 1u; l < used; l++) {
            let from_line = at + l * vectors;
            m = join(m, Moments(f32(rounds + select(0u, 1u, l < rest)), shifts[from_line], means[from_line], deviations[from_line]));
        }
        shifts[at] = m.shift;
        means[at] = m.mean;
        deviations[at] = m.squares;
    }
    workgroupBarrier();
    let width = params.channels / params.norm_groups;
    for (var g = thread; g < params.norm_groups; g += THREADS) {
        var m = Moments(0.0, 0.0, 0.0, 0.0);
        for (var c = g * width; c < (g + 1u) * width; c++) {
            let at = (c & 7u) * RUN + (c >> 3u);
            m = join(m, Moments(f32(count), shifts[at], means[at], deviations[at]));
        }
        partials[params.partials_base + group * params.norm_groups + g] = as_pair(m);
    }
}
