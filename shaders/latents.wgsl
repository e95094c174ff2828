// Latent pixels to tokens of 2x2 pixels (pack) and back (unpack), out = x * scale + shift on the
// way back:
//
//   token (y, x), column c*4 + dy*2 + dx   <->   pixel (2y + dy, 2x + dx), channel c
//
// tokens: batch*(height/2)*(width/2) x 4*channels, pixels: batch*height*width x channels, in bf16
// or f32. Each image has an even number of lines, so the lines of all images are numbered through.
// A thread writes one word of the output (see words_main.wgsl): a megabyte or two, once per image.

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
    return element(x[word_of(e, X_TYPE)], e, X_TYPE);
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
