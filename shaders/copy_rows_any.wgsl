// As copy_rows.wgsl, for elements of two or four bytes and every width, stride and offset. A thread
// writes one word of the output; half a word whose other half is not part of the row is set
// atomically. Bases, strides and columns count elements.

// Bytes of an element, 2 or 4.
override SIZE: u32 = 4u;

struct Params {
    first: u32,
    groups: u32,
    cols: u32,
    // Rows of all images to copy.
    rows: u32,
    // Rows of an image to copy, and how far apart images are, in rows.
    count: u32,
    x_rows: u32,
    out_rows: u32,
    x_base: u32,
    x_stride: u32,
    out_base: u32,
    out_stride: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<atomic<u32>>;

fn half_at(e: u32) -> u32 { return (x[e >> 1u] >> ((e & 1u) * 16u)) & 0xffffu; }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let words = select(params.cols / 2u + 1u, params.cols, SIZE == 4u);
    let i = group * 256u + thread;
    let row = i / words;
    if row >= params.rows { return; }
    let j = i - row * words;
    let picture = row / params.count;
    let r = row - picture * params.count;
    let source = params.x_base + (picture * params.x_rows + r) * params.x_stride;
    let to = params.out_base + (picture * params.out_rows + r) * params.out_stride;
    if SIZE == 4u {
        atomicStore(&out[to + j], x[source + j]);
        return;
    }
    let word = (to >> 1u) + j;
    // The column of the low half; it may be -1, which wraps around.
    let column = 2u * word - to;
    let low = column < params.cols;
    let high = column + 1u < params.cols;
    var bits = 0u;
    if low { bits = half_at(source + column); }
    if high { bits = bits | (half_at(source + column + 1u) << 16u); }
    if low && high {
        atomicStore(&out[word], bits);
    } else if low || high {
        atomicAnd(&out[word], select(0x0000ffffu, 0xffff0000u, low));
        atomicOr(&out[word], bits);
    }
}
