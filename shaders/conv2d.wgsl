// out[pixel][o] = bias[o] + residual[pixel][o] + sum over taps and input channels of
// x[source(pixel, tap)][c] * w[o][tap][c]
//
// A convolution over channels-last images as an implicit matrix product: rows are output pixels
// (batch x lines x width, stacked), columns are output channels, and the inner dimension, the
// depth, is (tap, input channel). The im2col matrix exists only as tiles in workgroup memory. A tap
// in the padding gives zeros; upsampling by two is a right shift of the source coordinates.
//
// This file is shared by the shaders of this family: the start of a window of taps, and the
// position of a tap in x. A shader is this file, one file that loads (conv2d_vectors or
// conv2d_elements), one that stores (conv2d_whole or conv2d_each) and one with `main` (conv2d_tile,
// conv2d_tile_lanes or conv2d_few). All load units of 8 consecutive positions of the depth, in two
// steps: `x_load` and `w_load` load the stored form, `x_unit` and `w_unit` convert it to numbers,
// so that products can run in between.
//
// An image that is larger than a binding is divided by lines of output: then x is a window that
// begins at line `in_first` of its image (it includes the lines above and below that the kernel
// needs), and out and residual are windows that begin at `first_line`.

struct Params {
    first: u32,
    groups: u32,
    pixels: u32,      // images * lines * out_width
    lines: u32,       // output lines of an image in this dispatch
    out_width: u32,
    first_line: u32,  // number of the first of them in the image
    height: u32,      // of a whole input image
    width: u32,
    in_first: u32,    // input lines before the window of x
    channels: u32,    // of x
    outputs: u32,     // channels of out
    kernel: u32,      // taps along a side, 1 or 3
    stride: u32,
    pad: u32,         // zeros above and left
    up: u32,          // 1 if the input is upsampled by two
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

// Eight consecutive positions of the depth.
struct Unit {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn nothing() -> Unit { return Unit(vec4<f32>(0.0), vec4<f32>(0.0)); }

// The start of the taps of an output pixel.
struct Pixel {
    y: i32,        // in the (upsampled) image
    x: i32,
    picture: u32,  // first row of the image in the window of x, if the window had all its lines
}

const OUTSIDE: i32 = -0x40000000;

fn locate(m: u32) -> Pixel {
    let line = m / params.out_width;
    let image = line / params.lines;
    let y = i32((line - image * params.lines + params.first_line) * params.stride) - i32(params.pad);
    let x = i32((m - line * params.out_width) * params.stride) - i32(params.pad);
    return Pixel(select(OUTSIDE, y, m < params.pixels), x, image * params.height * params.width);
}

// The row of x for a tap, or a number beyond all rows if the tap is a zero. Taps beyond the last
// are zeros.
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

// Bias of channels n to n + 3; zero for channels that do not exist.
fn bias_four(n: u32) -> vec4<f32> {
    if params.bias == 0u { return vec4<f32>(0.0); }
    let last = params.outputs - 1u;
    let at = params.bias_base + min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(last));
    return vec4<f32>(bias[at.x], bias[at.y], bias[at.z], bias[at.w]);
}
