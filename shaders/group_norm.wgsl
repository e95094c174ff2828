// out[p][c] = act((x[p][c] - mean[g]) / sqrt(variance[g] + eps) * weight[c] + bias[c]), act = SiLU or nothing
//
// Mean and variance are those of a group: all pixels of a picture x the `channels / groups` channels of group g. Pixels are rows, channels last. The group
// of a whole picture is far larger than a workgroup, so this takes three dispatches:
//   statistics: a workgroup reads a chunk of rows once and leaves the moments of every group in scratch;
//   merge:      a workgroup per picture and group joins the chunks;
//   apply:      normalises chunk by chunk.
// A picture larger than a binding is cut between chunks. Chunks depend on the shape alone and everything is joined in a fixed order: the result has the same
// bits wherever a picture or a dispatch is cut.
//
// Sums of squares lose everything where the mean is far from zero, and so does a mean rounded to f32: at 1000 deviations from zero its rounding would
// be 3e-5 of a deviation. So each thread sums differences from the first value that it saw of a channel, parts are joined by their means and squared
// deviations (Chan, Golub, LeVeque), and a mean is a sum of two numbers, `shift + mean`, that apply subtracts one after the other. Metal's compiler takes
// additions for associative, and would make (v - shift) - mean into v - (shift + mean): such differences go through `exact`.
//
// Bound: memory bandwidth. x is read twice and out written once.

struct Params {
    first: u32,
    groups: u32,         // workgroups
    rows: u32,           // pixels of a picture
    channels: u32,
    norm_groups: u32,    // groups of channels
    chunk_rows: u32,     // rows of a chunk
    chunks: u32,         // chunks of a picture
    first_chunk: u32,    // number, over all pictures, of the chunk of workgroup 0
    first_row: u32,      // number of the first row in the windows of x and out
    first_picture: u32,  // number of the first picture in the window of statistics
    x_base: u32,         // bases and strides of x and out count vectors of 16 bytes where these are bound as such
    x_stride: u32,
    out_base: u32,
    out_stride: u32,
    weight_base: u32,
    bias_base: u32,
    partials_base: u32,  // in moments
    statistics_base: u32,
    silu: u32,
    eps: f32,
}
var<immediate> params: Params;

override X_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;

const THREADS: u32 = 128u;

// v itself, by way of its bits and of a zero that no compiler knows (there are fewer than 2^31 workgroups): sums cannot be rearranged across it.
fn exact(v: f32) -> f32 { return bitcast<f32>(bitcast<u32>(v) | (params.groups >> 31u)); }
fn exact4(v: vec4<f32>) -> vec4<f32> { return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) | vec4<u32>(params.groups >> 31u)); }

// Of `count` values: their mean is shift + mean, `squares` the sum of squared deviations from it. In scratch a vector of these four; statistics have
// 1 / deviation in the place of `squares`.
struct Moments {
    count: f32,
    shift: f32,
    mean: f32,
    squares: f32,
}

// The same with a shift next to the mean. Bits are cut off where a remainder by arithmetic alone, (a + b) - a, would be simplified to b by drivers.
fn centre(m: Moments) -> Moments {
    let shift = bitcast<f32>(bitcast<u32>(m.shift + m.mean) & 0xffffff00u);
    return Moments(m.count, shift, exact(m.shift - shift) + m.mean, m.squares);
}

// From sums of differences from `shift`.
fn moments(count: f32, shift: f32, sum: f32, squares: f32) -> Moments {
    let mean = sum / max(count, 1.0);
    return centre(Moments(count, shift, mean, max(squares - sum * mean, 0.0)));
}

// The heavier part is moved by the lighter: then what is lost of their distance counts little.
fn join(a: Moments, b: Moments) -> Moments {
    if b.count == 0.0 { return a; }
    if a.count == 0.0 { return b; }
    let count = a.count + b.count;
    let d = exact(b.shift - a.shift) + (b.mean - a.mean);
    let squares = a.squares + b.squares + d * d * (a.count * (b.count / count));
    if b.count > a.count { return centre(Moments(count, b.shift, b.mean - d * (a.count / count), squares)); }
    return centre(Moments(count, a.shift, a.mean + d * (b.count / count), squares));
}

var<workgroup> joined: array<vec4<f32>, 128>;

fn as_vector(m: Moments) -> vec4<f32> { return vec4<f32>(m.count, m.shift, m.mean, m.squares); }
fn as_moments(v: vec4<f32>) -> Moments { return Moments(v.x, v.y, v.z, v.w); }

// Of what each thread of the workgroup has; the result is right in thread 0.
fn join_threads(thread: u32, mine: Moments) -> Moments {
    var m = mine;
    joined[thread] = as_vector(m);
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half >>= 1u) {
        if thread < half {
            m = join(m, as_moments(joined[thread + half]));
            joined[thread] = as_vector(m);
        }
        workgroupBarrier();
    }
    return m;
}

// Eight channels of a row.
struct Unit {
    low: vec4<f32>,
    high: vec4<f32>,
}
