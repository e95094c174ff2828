// Latent pixels to tokens of 2x2 pixels (pack) and back (unpack), out = x * scale + shift on the
// way back:
//
//   token (y, x), column c*4 + dy*2 + dx   <->   pixel (2y + dy, 2x + dx), channel c
//
// tokens: batch*(height/2)*(width/2) x 4*channels, pixels: batch*height*width x channels, in bf16
// or f32. Each image has an even number of lines, so the lines of all images are numbered through.
// A thread writes one word of the output (see words.wgsl): a megabyte or two, once per image.

// Whether tokens are the output (pack).
override PACK: u32 = 0u;
override X_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    // Rows and columns of the output.
    rows: u32,
    cols: u32,
    // Pixels of a line.
    width: u32,
    x_base: u32,
    x_stride: u32,
    out_base: u32,
    out_stride: u32,
    scale: f32,
    shift: f32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<atomic<u32>>;

fn load_x(row: u32, column: u32) -> f32 {
    let e = params.x_base + row * params.x_stride + column;
    if X_TYPE == F32 { return bitcast<f32>(x[e]); }
    return half_value(x[e >> 1u], e, X_TYPE);
}

fn value(row: u32, column: u32) -> f32 {
    let across = params.width / 2u;
    if PACK != 0u {
        let line = row / across * 2u + (column >> 1u) % 2u;
        return load_x(line * params.width + row % across * 2u + column % 2u, column >> 2u);
    }
    let line = row / params.width;
    let along = row - line * params.width;
    return load_x(line / 2u * across + along / 2u, column * 4u + line % 2u * 2u + along % 2u) * params.scale + params.shift;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let words = words_of(params.cols);
    let i = group * 256u + thread;
    let row = i / words;
    if row >= params.rows { return; }
    let s = spot(params.out_base + row * params.out_stride, i - row * words, params.cols);
    var low = 0.0;
    var high = 0.0;
    if s.low { low = value(row, s.column); }
    if s.high { high = value(row, s.column + 1u); }
    store(s, low, high);
}
