// Normalisation of rows of every width, stride, offset and mix of bf16 and f32; see norm.wgsl for
// the formulas and for how the mean is kept exact. One row has one workgroup; each pass reads the
// row again, usually from a cache. In place, a thread overwrites only elements that no other thread
// still reads: the barriers of the sums ended the other passes.

const GAIN: u32 = 0u;
const AFFINE: u32 = 1u;
const MODULATE: u32 = 2u;

// Whether the mean is subtracted.
override CENTRED: u32 = 0u;
// The operation that follows: GAIN, AFFINE or MODULATE.
override AFTER: u32 = 0u;
override X_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;
override SCALE_TYPE: u32 = 0u;
override SHIFT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    cols: u32,
    // Number of the window's first row, and rows for each row of scale and of shift.
    row: u32,
    scale_rows: u32,
    shift_rows: u32,
    x_base: u32,
    x_stride: u32,
    scale_base: u32,
    scale_stride: u32,
    shift_base: u32,
    shift_stride: u32,
    out_base: u32,
    out_stride: u32,
    eps: f32,
    // 1 / cols
    inverse_cols: f32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
// weight or scale
@group(0) @binding(1) var<storage, read_write> scale: array<u32>;
// bias or shift
@group(0) @binding(2) var<storage, read_write> shift: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<atomic<u32>>;

fn load_x(e: u32) -> f32 { return element(x[word_of(e, X_TYPE)], e, X_TYPE); }

fn load_scale(e: u32) -> f32 { return element(scale[word_of(e, SCALE_TYPE)], e, SCALE_TYPE); }

fn load_shift(e: u32) -> f32 { return element(shift[word_of(e, SHIFT_TYPE)], e, SHIFT_TYPE); }

// v - mean, computed from its bits and a zero that the compiler cannot know (there are fewer than
// 2^31 rows), so that sums cannot be rearranged across it.
fn minus(v: f32, mean: f32) -> f32 { return bitcast<f32>(bitcast<u32>(v - mean) | (params.groups >> 31u)); }

fn finished(row: u32, column: u32, mean: f32, rest: f32, inverse: f32) -> f32 {
    let r = params.row + row;
    let v = load_x(params.x_base + row * params.x_stride + column);
    let y = (minus(v, mean) - rest) * inverse;
    let factor = load_scale(params.scale_base + r / params.scale_rows * params.scale_stride + column);
    if AFTER == GAIN { return y * factor; }
    let term = load_shift(params.shift_base + r / params.shift_rows * params.shift_stride + column);
    if AFTER == MODULATE { return y * (1.0 + factor) + term; }
    return y * factor + term;
}

fn row_of_group(row: u32, thread: u32) {
    let at = params.x_base + row * params.x_stride;
    var mean = 0.0;
    if CENTRED != 0u {
        var sum = 0.0;
        for (var c = thread; c < params.cols; c += THREADS) { sum += load_x(at + c); }
        mean = row_sum(vec2<f32>(sum, 0.0), thread, 0u).x * params.inverse_cols;
    }
    var rest = 0.0;
    var squares = 0.0;
    for (var c = thread; c < params.cols; c += THREADS) {
        let d = minus(load_x(at + c), mean);
        rest += d;
        squares += d * d;
    }
    let moments = row_sum(vec2<f32>(rest, squares), thread, 1u) * params.inverse_cols;
    var variance = moments.y;
    rest = 0.0;
    if CENTRED != 0u {
        rest = moments.x;
        // A NaN that max() drops is in the mean as well.
        variance = max(moments.y - rest * rest, 0.0);
    }
    let inverse = inverseSqrt(variance + params.eps);
    let to = params.out_base + row * params.out_stride;
    for (var j = thread; j < words_of(params.cols); j += THREADS) {
        let s = spot(to, j, params.cols);
        var low = 0.0;
        var high = 0.0;
        if s.low { low = finished(row, s.column, mean, rest, inverse); }
        if s.high { high = finished(row, s.column + 1u, mean, rest, inverse); }
        store(s, low, high);
    }
}
