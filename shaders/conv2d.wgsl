// out[pixel][o] = bias[o] + residual[pixel][o] + sum over taps and input channels of x[source(pixel, tap)][c] * w[o][tap][c]
//
// A convolution over channels-last pictures as an implicit matrix product: rows are output pixels (batch x lines x width, stacked), columns are output
// channels, and the inner dimension, the depth, runs over (tap, input channel). The im2col matrix exists only as tiles in workgroup memory. A tap that falls
// into the padding gives zeros; enlarging the picture twice is a right shift of the source coordinates.
//
// This file has what the shaders of this family share: where a window of taps begins, and where a tap lies in x. A shader is this file, one file that
// loads (conv2d_vectors or conv2d_elements), one that stores (conv2d_whole or conv2d_each) and one with `main` (conv2d_tile, conv2d_tile_lanes
// or conv2d_few). All load units of 8 consecutive places of the depth, in two steps: `x_load` and `w_load` bring what memory has, `x_unit` and `w_unit` make
// numbers of it, so that products can run between them.
//
// A picture that is larger than a binding is cut by lines of output: then x is a window that begins at `in_first` lines of its picture (the lines above and
// below that the kernel reaches are in it), and out and residual are windows that begin at `first_line`.

struct Params {
    first: u32,
    groups: u32,
    pixels: u32,      // pictures * lines * out_width
    lines: u32,       // output lines of a picture, here
    out_width: u32,
    first_line: u32,  // number of the first of them in the picture
    height: u32,      // of a whole input picture
    width: u32,
    in_first: u32,    // input lines in front of the window of x
    channels: u32,    // of x
    outputs: u32,     // channels of out
    kernel: u32,      // taps along a side, 1 or 3
    stride: u32,
    pad: u32,         // zeros above and left
    up: u32,          // 1 if the picture is enlarged twice
    columns: u32,     // tiles along the output channels
    x_base: u32,      // bases and strides of x and w count vectors of 16 bytes in conv2d_vectors
    x_stride: u32,
    w_base: u32,
    w_stride: u32,
    bias: u32,        // 1 if there is one
    bias_base: u32,
    residual: u32,    // 1 if there is one
    residual_base: u32,
    residual_stride: u32,
    out_base: u32,
    out_stride: u32,
    whole: u32,       // 1 if no word of out has elements of two rows
}
var<immediate> params: Params;

override X_TYPE: u32 = 0u;
override W_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;

@group(0) @binding(2) var<storage, read_write> bias: array<f32>;

// Eight consecutive places of the depth.
struct Unit {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn nothing() -> Unit { return Unit(vec4<f32>(0.0), vec4<f32>(0.0)); }

// Where the taps of an output pixel begin.
struct Pixel {
    y: i32,        // in the (enlarged) picture
    x: i32,
    picture: u32,  // first row of the picture in the window of x, were all its lines there
}

const OUTSIDE: i32 = -0x40000000;

fn locate(m: u32) -> Pixel {
    let line = m / params.out_width;
    let image = line / params.lines;
    let y = i32((line - image * params.lines + params.first_line) * params.stride) - i32(params.pad);
    let x = i32((m - line * params.out_width) * params.stride) - i32(params.pad);
    return Pixel(select(OUTSIDE, y, m < params.pixels), x, image * params.height * params.width);
}

// The row of x that a tap sees, or a number beyond all rows where it sees a zero. Taps beyond the last see zeros.
const NO_ROW: u32 = 0xffffffffu;

fn source(pixel: Pixel, tap: u32) -> u32 {
    // tap / 3 for taps below 9.
    let down = select((tap * 11u) >> 5u, 0u, params.kernel == 1u);
    let y = u32(pixel.y + i32(down));
    let x = u32(pixel.x + i32(tap - down * params.kernel));
    let known = tap < params.kernel * params.kernel;
    let inside = known && y < (params.height << params.up) && x < (params.width << params.up);
    let row = pixel.picture + ((y >> params.up) - params.in_first) * params.width + (x >> params.up);
    return select(NO_ROW, row, inside);
}

fn depth() -> u32 { return params.kernel * params.kernel * params.channels; }

// Bias of channels n to n + 3, of which those that do not exist get a zero.
fn bias_four(n: u32) -> vec4<f32> {
    if params.bias == 0u { return vec4<f32>(0.0); }
    let last = params.outputs - 1u;
    let at = params.bias_base + min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(last));
    return vec4<f32>(bias[at.x], bias[at.y], bias[at.z], bias[at.w]);
}
