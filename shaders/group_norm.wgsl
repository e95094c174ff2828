// out[p][c] = act((x[p][c] - mean[g]) / sqrt(variance[g] + eps) * weight[c] + bias[c]), act = SiLU
// or nothing
//
// Mean and variance are those of a group: all pixels of the image x the `channels / groups` channels
// of group g. Pixels are rows of x, channels last. Two operations do it, because an image may be
// processed in bands of rows of pixels:
//   group_statistics: a workgroup reads a row of pixels once and stores the mean and the summed
//   squared deviation of every group;
//   group_norm: `merge`, a workgroup per group, joins the rows of the whole image; `apply`
//   normalises chunk by chunk.
// A matrix larger than a binding is divided between rows of pixels or chunks. Everything is joined
// in an order that depends on the shape of the image alone: the result has the same bits for every
// division of an image or a dispatch.
//
// Sums of squares lose all precision if the mean is far from zero, and so does a mean rounded to
// f32: at 1000 deviations from zero its rounding error would be 3e-5 of a deviation. Therefore each
// thread sums differences from the first value that it reads of a channel, parts are joined by
// their means and squared deviations (Chan, Golub, LeVeque), and a mean is a sum of two numbers,
// `shift + mean`, that apply subtracts one after the other. Metal's compiler assumes that additions
// are associative, and would turn (v - shift) - mean into v - (shift + mean): such differences pass
// through `exact`.
//
// Limit: memory bandwidth. x is read twice and out is written once.

struct Params {
    first: u32,
    groups: u32,         // workgroups
    rows: u32,           // pixels of x
    channels: u32,
    norm_groups: u32,    // groups of channels
    chunk_rows: u32,     // pixels of a chunk: of statistics and merge, those of a row of pixels
    chunks: u32,         // of merge, the rows of pixels of the whole image
    first_chunk: u32,    // number of the chunk of workgroup 0, which is the first in the windows
    x_base: u32,         // of x and out: in vectors of 16 bytes if bound as vectors
    x_stride: u32,
    out_base: u32,
    out_stride: u32,
    weight_base: u32,
    bias_base: u32,
    partials_base: u32,  // in pairs
    statistics_base: u32,  // in moments
    silu: u32,
    eps: f32,
}
var<immediate> params: Params;

override X_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;

const THREADS: u32 = 128u;

// v itself, computed from its bits and a zero that the compiler cannot know (there are fewer than
// 2^31 workgroups), so that sums cannot be rearranged across it.
fn exact(v: f32) -> f32 { return bitcast<f32>(bitcast<u32>(v) | (params.groups >> 31u)); }
fn exact4(v: vec4<f32>) -> vec4<f32> { return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) | vec4<u32>(params.groups >> 31u)); }

// The moments of `count` values: their mean is shift + mean, `squares` is the sum of squared
// deviations from it. Those of a row of pixels are stored as (shift + mean, squares). The merged
// ones are a vector of these four, with 1 / deviation in place of `squares`.
struct Moments {
    count: f32,
    shift: f32,
    mean: f32,
    squares: f32,
}

// The same moments with a shift close to the mean. The remainder is computed by masking bits,
// because drivers would simplify (a + b) - a to b.
fn centre(m: Moments) -> Moments {
    let shift = bitcast<f32>(bitcast<u32>(m.shift + m.mean) & 0xffffff00u);
    return Moments(m.count, shift, exact(m.shift - shift) + m.mean, m.squares);
}

// From sums of differences from `shift`.
fn moments(count: f32, shift: f32, sum: f32, squares: f32) -> Moments {
    let mean = sum / max(count, 1.0);
    return centre(Moments(count, shift, mean, max(squares - sum * mean, 0.0)));
}

// The mean of the part with more values is corrected by that of the other: then the rounding of
// their difference matters little.
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
fn as_pair(m: Moments) -> vec2<f32> { return vec2<f32>(m.shift + m.mean, m.squares); }

// The moments of the union of the parts of all threads of the workgroup. The result is valid in
// thread 0.
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
