// Tiles of 128 pixels x 64 output channels x 16 positions of the depth by 128 threads, each with 8
// x 8 sums in registers.
//
// Workgroup memory holds both tiles in f32 for every element type: 15.6 KB. A thread's step of four
// positions reads 16 vectors of 16 bytes for 256 multiply-adds. Both tiles keep the depth
// contiguous, as in memory, so that loads and stores are whole vectors and only registers are
// transposed. A row of a tile is 4 vectors and one of padding: eight consecutive rows at one
// position are in 32 different banks. A thread's output channels are two runs of four (so that it
// stores vectors), and the rows of the w tile are permuted so that the lanes of a subgroup
// nevertheless read consecutive rows: row 4 t + j is at j * 84 + 5 t. The next step's elements are
// loaded while this one is multiplied, and kept in their stored form: they are converted when they
// are written to the tiles. The start of a pixel's taps is computed once, and the row of x for a
// tap once per tap.
//
// Limit: products. A step loads 6 KB (bf16) for 262,144 operations; tiles that differ only in their
// output channels follow each other and find the pixels in the cache. The order of the sum is that
// of the depth, for every pixel and every division of the image.

const PIXELS: u32 = 128u;
const CHANNELS: u32 = 64u;
const ROW: u32 = 5u;
const QUARTER: u32 = 84u;

var<workgroup> tile_x: array<vec4<f32>, 640>;
var<workgroup> tile_w: array<vec4<f32>, 336>;

// sum + m . v
fn madd(sum: vec4<f32>, m: mat4x4<f32>, v: vec4<f32>) -> vec4<f32> {
    return fma(m[3], vec4<f32>(v.w), fma(m[2], vec4<f32>(v.z), fma(m[1], vec4<f32>(v.y), fma(m[0], vec4<f32>(v.x), sum))));
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let tile = group / params.columns;
    let m0 = tile * PIXELS;
    let n0 = (group - tile * params.columns) * CHANNELS;

    // A thread loads unit `half` of two pixels and of one filter.
    let half = thread & 1u;
    let row = thread >> 1u;
    let pixel0 = locate(m0 + row);
    let pixel1 = locate(m0 + row + 64u);
    let to_x = row * ROW + half * 2u;
    let to_w = (row & 3u) * QUARTER + (row >> 2u) * ROW + half * 2u;
    var place = half * 8u;
    var tap = place / params.channels;
    var channel = place - tap * params.channels;
    let places = depth();
    var row0 = source(pixel0, tap);
    var row1 = source(pixel1, tap);
    var x0 = x_load(pixel0, tap, row0, channel);
    var x1 = x_load(pixel1, tap, row1, channel);
    var w0 = w_load(n0 + row, place, places);

    // It computes the sums of pixels ty + 16 i, channels 4 tx to 4 tx + 3 (l) and 32 more (h).
    let tx = thread & 7u;
    let ty = thread >> 3u;
    var l0 = vec4<f32>(0.0);
    var l1 = l0;
    var l2 = l0;
    var l3 = l0;
    var l4 = l0;
    var l5 = l0;
    var l6 = l0;
    var l7 = l0;
    var h0 = l0;
    var h1 = l0;
    var h2 = l0;
    var h3 = l0;
    var h4 = l0;
    var h5 = l0;
    var h6 = l0;
    var h7 = l0;
    for (var done = 0u; done < places; done += 16u) {
        let u0 = x_unit(x0);
        tile_x[to_x] = u0.low;
        tile_x[to_x + 1u] = u0.high;
        let u1 = x_unit(x1);
        tile_x[to_x + 64u * ROW] = u1.low;
        tile_x[to_x + 64u * ROW + 1u] = u1.high;
        let f0 = w_unit(w0);
        tile_w[to_w] = f0.low;
        tile_w[to_w + 1u] = f0.high;
        workgroupBarrier();
        if done + 16u < places {
            place += 16u;
            channel += 16u;
            let last_tap = tap;
            while channel >= params.channels {
                channel -= params.channels;
                tap += 1u;
            }
            if tap != last_tap {
                row0 = source(pixel0, tap);
                row1 = source(pixel1, tap);
            }
            x0 = x_load(pixel0, tap, row0, channel);
            x1 = x_load(pixel1, tap, row1, channel);
            w0 = w_load(n0 + row, place, places);
        }
        for (var k = 0u; k < 4u; k++) {
            let f = tx * ROW + k;
            let l = transpose(mat4x4<f32>(tile_w[f], tile_w[f + QUARTER], tile_w[f + 2u * QUARTER], tile_w[f + 3u * QUARTER]));
            let g = f + 8u * ROW;
            let h = transpose(mat4x4<f32>(tile_w[g], tile_w[g + QUARTER], tile_w[g + 2u * QUARTER], tile_w[g + 3u * QUARTER]));
            let p = ty * ROW + k;
            let v0 = tile_x[p];
            l0 = madd(l0, l, v0);
            h0 = madd(h0, h, v0);
            let v1 = tile_x[p + 16u * ROW];
            l1 = madd(l1, l, v1);
            h1 = madd(h1, h, v1);
            let v2 = tile_x[p + 32u * ROW];
            l2 = madd(l2, l, v2);
            h2 = madd(h2, h, v2);
            let v3 = tile_x[p + 48u * ROW];
            l3 = madd(l3, l, v3);
            h3 = madd(h3, h, v3);
            let v4 = tile_x[p + 64u * ROW];
            l4 = madd(l4, l, v4);
            h4 = madd(h4, h, v4);
            let v5 = tile_x[p + 80u * ROW];
            l5 = madd(l5, l, v5);
            h5 = madd(h5, h, v5);
            let v6 = tile_x[p + 96u * ROW];
            l6 = madd(l6, l, v6);
            h6 = madd(h6, h, v6);
            let v7 = tile_x[p + 112u * ROW];
            l7 = madd(l7, l, v7);
            h7 = madd(h7, h, v7);
        }
        workgroupBarrier();
    }

    let low = n0 + tx * 4u;
    let high = low + 32u;
    let add_low = bias_four(low);
    let add_high = bias_four(high);
    let m = m0 + ty;
    var low_sums = array<vec4<f32>, 8>(l0, l1, l2, l3, l4, l5, l6, l7);
    store_eight(m, low, &low_sums, add_low);
    var high_sums = array<vec4<f32>, 8>(h0, h1, h2, h3, h4, h5, h6, h7);
    store_eight(m, high, &high_sums, add_high);
}
