// Convolutions with few output channels (the autoencoder's last layer has 3): 64 pixels x 4 output
// channels by 128 threads.
//
// Eight threads share a pixel: each takes every eighth unit of its channels, so that they read
// consecutive vectors, and sums four pixels x four outputs, so that one position of a filter read
// from workgroup memory serves 16 multiply-adds. The filters are staged a tap (and 512 channels) at
// a time as vectors over the outputs; position 8 u + i is stored at 64 i + u, so that eight threads
// read consecutive vectors. At the end the eight sums of a pixel are added in order.
//
// Limit: reads of x. A tap reads the pixels of the previous one again, from the cache.

const PIXELS: u32 = 64u;
const STAGED: u32 = 512u;

var<workgroup> staged: array<vec4<f32>, 512>;

// sum + the products of a unit of a pixel and of four filters.
fn add(sum: vec4<f32>, v: Unit, f: mat4x4<f32>, g: mat4x4<f32>) -> vec4<f32> {
    var s = fma(f[3], vec4<f32>(v.low.w), fma(f[2], vec4<f32>(v.low.z), fma(f[1], vec4<f32>(v.low.y), fma(f[0], vec4<f32>(v.low.x), sum))));
    return fma(g[3], vec4<f32>(v.high.w), fma(g[2], vec4<f32>(v.high.z), fma(g[1], vec4<f32>(v.high.y), fma(g[0], vec4<f32>(v.high.x), s))));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let tile = group / params.columns;
    let m0 = tile * PIXELS;
    let n0 = (group - tile * params.columns) * 4u;

    let slice = thread & 7u;
    let quad = thread >> 3u;
    // Pixels quad + 16 i: neighbours at the same time, because they share the data that they read.
    let pixel0 = locate(m0 + quad);
    let pixel1 = locate(m0 + quad + 16u);
    let pixel2 = locate(m0 + quad + 32u);
    let pixel3 = locate(m0 + quad + 48u);
    var s0 = vec4<f32>(0.0);
    var s1 = s0;
    var s2 = s0;
    var s3 = s0;
    let taps = params.kernel * params.kernel;
    let places = depth();
    for (var tap = 0u; tap < taps; tap++) {
        let row0 = source(pixel0, tap);
        let row1 = source(pixel1, tap);
        let row2 = source(pixel2, tap);
        let row3 = source(pixel3, tap);
        for (var start = 0u; start < params.channels; start += STAGED) {
            let count = min(params.channels - start, STAGED);
            // A thread loads at most one unit of four filters.
            let place = thread * 8u;
            if place < count {
                let at = tap * params.channels + start + place;
                let f0 = w_unit(w_load(n0, at, places));
                let f1 = w_unit(w_load(n0 + 1u, at, places));
                let f2 = w_unit(w_load(n0 + 2u, at, places));
                let f3 = w_unit(w_load(n0 + 3u, at, places));
                let f = transpose(mat4x4<f32>(f0.low, f1.low, f2.low, f3.low));
                let g = transpose(mat4x4<f32>(f0.high, f1.high, f2.high, f3.high));
                staged[thread] = f[0];
                staged[thread + 64u] = f[1];
                staged[thread + 128u] = f[2];
                staged[thread + 192u] = f[3];
                staged[thread + 256u] = g[0];
                staged[thread + 320u] = g[1];
                staged[thread + 384u] = g[2];
                staged[thread + 448u] = g[3];
            }
            workgroupBarrier();
            for (var unit = slice; unit * 8u < count; unit += 8u) {
                let channel = start + unit * 8u;
                let v0 = x_channels(row0, channel);
                let v1 = x_channels(row1, channel);
                let v2 = x_channels(row2, channel);
                let v3 = x_channels(row3, channel);
                let f = mat4x4<f32>(staged[unit], staged[unit + 64u], staged[unit + 128u], staged[unit + 192u]);
                let g = mat4x4<f32>(staged[unit + 256u], staged[unit + 320u], staged[unit + 384u], staged[unit + 448u]);
                s0 = add(s0, x_unit(v0), f, g);
                s1 = add(s1, x_unit(v1), f, g);
                s2 = add(s2, x_unit(v2), f, g);
                s3 = add(s3, x_unit(v3), f, g);
            }
            workgroupBarrier();
        }
    }
    staged[slice * 64u + quad] = s0;
    staged[slice * 64u + quad + 16u] = s1;
    staged[slice * 64u + quad + 32u] = s2;
    staged[slice * 64u + quad + 48u] = s3;
    workgroupBarrier();
    if thread < PIXELS {
        var sum = staged[thread];
        for (var i = 1u; i < 8u; i++) { sum += staged[i * 64u + thread]; }
        store_four(m0 + thread, n0, sum, bias_four(n0));
    }
}
