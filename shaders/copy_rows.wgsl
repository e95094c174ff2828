// Rows from .. from + count of each image of x become rows to .. of that image of out, bit for bit,
// 16 bytes at a time. The windows begin at the first image's rows; bases, strides and widths count
// vectors of 16 bytes. Memory is the limit.

struct Params {
    first: u32,
    groups: u32,
    // Vectors of a row, and all vectors to copy.
    width: u32,
    total: u32,
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
@group(0) @binding(0) var<storage, read_write> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let i = group * 256u + thread;
    if i >= params.total { return; }
    let row = i / params.width;
    let column = i - row * params.width;
    let picture = row / params.count;
    let r = row - picture * params.count;
    let source = params.x_base + (picture * params.x_rows + r) * params.x_stride + column;
    out[params.out_base + (picture * params.out_rows + r) * params.out_stride + column] = x[source];
}
