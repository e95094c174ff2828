// The tile of conv2d_tile for drivers that compute on the processor with eight lanes: 128 pixels x
// 64 output channels x 16 positions of the depth by 64 threads (eight subgroups of eight lanes),
// each with 16 x 8 sums.
//
// With these drivers, a load from workgroup memory is a scalar load for each lane and component,
// and costs several times as much as a multiply-add of all lanes, while a broadcast from one lane
// costs about as much as one. Therefore a lane loads two of the subgroup's 16 pixels and gets the
// others from its neighbours: 10 vectors are loaded for 512 multiply-adds, where conv2d_tile loads
// 16 for 256. The order of the sum is the same.

const PIXELS: u32 = 128u;
const CHANNELS: u32 = 64u;
const ROW: u32 = 4u;

var<workgroup> tile_x: array<vec4<f32>, 512>;
var<workgroup> tile_w: array<vec4<f32>, 256>;

// sum + m . v
fn madd(sum: vec4<f32>, m: mat4x4<f32>, v: vec4<f32>) -> vec4<f32> {
    return fma(m[3], vec4<f32>(v.w), fma(m[2], vec4<f32>(v.z), fma(m[1], vec4<f32>(v.y), fma(m[0], vec4<f32>(v.x), sum))));
}

fn put_x(row: u32, half: u32, v: Unit) {
    tile_x[row * ROW + half * 2u] = v.low;
    tile_x[row * ROW + half * 2u + 1u] = v.high;
}

fn put_w(row: u32, half: u32, v: Unit) {
    tile_w[row * ROW + half * 2u] = v.low;
    tile_w[row * ROW + half * 2u + 1u] = v.high;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let tile = group / params.columns;
    let m0 = tile * PIXELS;
    let n0 = (group - tile * params.columns) * CHANNELS;

    // A thread loads unit `half` of four pixels and of two filters.
    let half = thread & 1u;
    let row = thread >> 1u;
    let pixel0 = locate(m0 + row);
    let pixel1 = locate(m0 + row + 32u);
    let pixel2 = locate(m0 + row + 64u);
    let pixel3 = locate(m0 + row + 96u);

    // It computes the sums of pixels 16 ty to 16 ty + 15, channels 4 tx to 4 tx + 3 (l) and 32 more
    // (h).
    let tx = thread & 7u;
    let ty = thread >> 3u;
    var l0 = vec4<f32>(0.0);
    var h0 = vec4<f32>(0.0);
    var l1 = vec4<f32>(0.0);
    var h1 = vec4<f32>(0.0);
    var l2 = vec4<f32>(0.0);
    var h2 = vec4<f32>(0.0);
    var l3 = vec4<f32>(0.0);
    var h3 = vec4<f32>(0.0);
    var l4 = vec4<f32>(0.0);
    var h4 = vec4<f32>(0.0);
    var l5 = vec4<f32>(0.0);
    var h5 = vec4<f32>(0.0);
    var l6 = vec4<f32>(0.0);
    var h6 = vec4<f32>(0.0);
    var l7 = vec4<f32>(0.0);
    var h7 = vec4<f32>(0.0);
    var l8 = vec4<f32>(0.0);
    var h8 = vec4<f32>(0.0);
    var l9 = vec4<f32>(0.0);
    var h9 = vec4<f32>(0.0);
    var l10 = vec4<f32>(0.0);
    var h10 = vec4<f32>(0.0);
    var l11 = vec4<f32>(0.0);
    var h11 = vec4<f32>(0.0);
    var l12 = vec4<f32>(0.0);
    var h12 = vec4<f32>(0.0);
    var l13 = vec4<f32>(0.0);
    var h13 = vec4<f32>(0.0);
    var l14 = vec4<f32>(0.0);
    var h14 = vec4<f32>(0.0);
    var l15 = vec4<f32>(0.0);
    var h15 = vec4<f32>(0.0);
    let places = depth();
    for (var done = 0u; done < places; done += 16u) {
        let place = done + half * 8u;
        let tap = place / params.channels;
        let channel = place - tap * params.channels;
        put_x(row, half, x_unit(x_channels(source(pixel0, tap), channel)));
        put_x(row + 32u, half, x_unit(x_channels(source(pixel1, tap), channel)));
        put_x(row + 64u, half, x_unit(x_channels(source(pixel2, tap), channel)));
        put_x(row + 96u, half, x_unit(x_channels(source(pixel3, tap), channel)));
        put_w(row, half, w_unit(w_load(n0 + row, place, places)));
        put_w(row + 32u, half, w_unit(w_load(n0 + row + 32u, place, places)));
        workgroupBarrier();
        for (var k = 0u; k < 4u; k++) {
            let f = tx * 4u * ROW + k;
            let l = transpose(mat4x4<f32>(tile_w[f], tile_w[f + ROW], tile_w[f + 2u * ROW], tile_w[f + 3u * ROW]));
            let g = f + 32u * ROW;
            let h = transpose(mat4x4<f32>(tile_w[g], tile_w[g + ROW], tile_w[g + 2u * ROW], tile_w[g + 3u * ROW]));
            let p = (ty * 16u + tx) * ROW + k;
            let a = tile_x[p];
            let b = tile_x[p + 8u * ROW];
            let v0 = subgroupBroadcast(a, 0u);
            l0 = madd(l0, l, v0);
            h0 = madd(h0, h, v0);
            let v1 = subgroupBroadcast(a, 1u);
            l1 = madd(l1, l, v1);
            h1 = madd(h1, h, v1);
            let v2 = subgroupBroadcast(a, 2u);
            l2 = madd(l2, l, v2);
            h2 = madd(h2, h, v2);
            let v3 = subgroupBroadcast(a, 3u);
            l3 = madd(l3, l, v3);
            h3 = madd(h3, h, v3);
            let v4 = subgroupBroadcast(a, 4u);
            l4 = madd(l4, l, v4);
            h4 = madd(h4, h, v4);
            let v5 = subgroupBroadcast(a, 5u);
            l5 = madd(l5, l, v5);
            h5 = madd(h5, h, v5);
            let v6 = subgroupBroadcast(a, 6u);
            l6 = madd(l6, l, v6);
            h6 = madd(h6, h, v6);
            let v7 = subgroupBroadcast(a, 7u);
            l7 = madd(l7, l, v7);
            h7 = madd(h7, h, v7);
            let v8 = subgroupBroadcast(b, 0u);
            l8 = madd(l8, l, v8);
            h8 = madd(h8, h, v8);
            let v9 = subgroupBroadcast(b, 1u);
            l9 = madd(l9, l, v9);
            h9 = madd(h9, h, v9);
            let v10 = subgroupBroadcast(b, 2u);
            l10 = madd(l10, l, v10);
            h10 = madd(h10, h, v10);
            let v11 = subgroupBroadcast(b, 3u);
            l11 = madd(l11, l, v11);
            h11 = madd(h11, h, v11);
            let v12 = subgroupBroadcast(b, 4u);
            l12 = madd(l12, l, v12);
            h12 = madd(h12, h, v12);
            let v13 = subgroupBroadcast(b, 5u);
            l13 = madd(l13, l, v13);
            h13 = madd(h13, h, v13);
            let v14 = subgroupBroadcast(b, 6u);
            l14 = madd(l14, l, v14);
            h14 = madd(h14, h, v14);
            let v15 = subgroupBroadcast(b, 7u);
            l15 = madd(l15, l, v15);
            h15 = madd(h15, h, v15);
        }
        workgroupBarrier();
    }

    let low = n0 + tx * 4u;
    let high = low + 32u;
    let add_low = bias_four(low);
    let add_high = bias_four(high);
    let m = m0 + ty * 16u;
    // The loops end at the last pixel, so that these long stores are not unrolled: they would take
    // longer to compile than everything else.
    let rows = min(params.pixels - min(m, params.pixels), 16u);
    var low_sums = array<vec4<f32>, 16>(l0, l1, l2, l3, l4, l5, l6, l7, l8, l9, l10, l11, l12, l13, l14, l15);
    for (var i = 0u; i < rows; i++) { store_four(m + i, low, low_sums[i], add_low); }
    var high_sums = array<vec4<f32>, 16>(h0, h1, h2, h3, h4, h5, h6, h7, h8, h9, h10, h11, h12, h13, h14, h15);
    for (var i = 0u; i < rows; i++) { store_four(m + i, high, high_sums[i], add_high); }
}
