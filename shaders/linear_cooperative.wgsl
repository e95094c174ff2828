// out = tail(x . (scales * w)^T + bias) with cooperative matrices of 8 x 8 in f32, which Apple's
// GPUs have: a subgroup multiplies matrices whose elements are in its threads' registers, with
// fewer instructions and fewer reads of workgroup memory than separate products per thread.
//
// Tiles of 64 x 64: four subgroups of 32 threads, 2 x 2, each with 4 x 4 matrices of sums. A step
// takes 16 of k: every thread loads eight elements of x and eight of w while the previous step is
// multiplied, and stores them in workgroup memory as f32, row by row; rows are 20 numbers apart, so
// that the rows of a matrix are in different banks. For 8 k a subgroup reads 8 matrices for 16
// products. The elements of a matrix of sums cannot be accessed, so the sums pass through workgroup
// memory to the threads that finish them.

const STEP: u32 = 16u;
const PITCH: u32 = 20u;

var<workgroup> xs: array<f32, 64u * PITCH>;
var<workgroup> ws: array<f32, 64u * PITCH>;
var<workgroup> sums: array<f32, 4096>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32,
    @builtin(subgroup_id) subgroup: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let band = group / (8u * params.column_tiles);
    let height = min(8u, params.row_tiles - band * 8u);
    let within = group - band * 8u * params.column_tiles;
    let row0 = (band * 8u + within % height) * 64u;
    let col0 = within / height * 64u;

    // Two neighbours load one row's 16 k; rows beyond the last repeat it, and their sums are not
    // stored.
    let mine = t / 2u;
    let chunk = t % 2u * 8u;
    let x_at = params.x_base + min(row0 + mine, params.rows - 1u) * params.x_stride + chunk;
    let w_row = params.w_base + min(col0 + mine, params.n - 1u) * params.w_stride;
    let slot = mine * PITCH + chunk;

    let a_at = subgroup / 2u * 32u * PITCH;
    let b_at = subgroup % 2u * 32u * PITCH;
    var c00 = coop_mat8x8<f32, C>();
    var c01 = coop_mat8x8<f32, C>();
    var c02 = coop_mat8x8<f32, C>();
    var c03 = coop_mat8x8<f32, C>();
    var c10 = coop_mat8x8<f32, C>();
    var c11 = coop_mat8x8<f32, C>();
    var c12 = coop_mat8x8<f32, C>();
    var c13 = coop_mat8x8<f32, C>();
    var c20 = coop_mat8x8<f32, C>();
    var c21 = coop_mat8x8<f32, C>();
    var c22 = coop_mat8x8<f32, C>();
    var c23 = coop_mat8x8<f32, C>();
    var c30 = coop_mat8x8<f32, C>();
    var c31 = coop_mat8x8<f32, C>();
    var c32 = coop_mat8x8<f32, C>();
    var c33 = coop_mat8x8<f32, C>();
    var x_next = Raw();
    var w_next = Raw();
    if chunk < params.k {
        x_next = x_raw(x_at);
        w_next = w_raw(w_row, chunk);
    }
    for (var k = 0u; k < params.k; k += STEP) {
        workgroupBarrier();
        let xv = x_values(x_next);
        let wv = w_values(w_next, k + chunk);
        for (var i = 0u; i < 4u; i++) {
            xs[slot + i] = xv.low[i];
            xs[slot + i + 4u] = xv.high[i];
            ws[slot + i] = wv.low[i];
            ws[slot + i + 4u] = wv.high[i];
        }
        workgroupBarrier();
        x_next = Raw();
        w_next = Raw();
        if k + STEP + chunk < params.k {
            x_next = x_raw(x_at + k + STEP);
            w_next = w_raw(w_row, k + STEP + chunk);
        }
        // w's rows are the columns of the second matrix: loaded without T, memory is read column by
        // column.
        for (var j = 0u; j < STEP; j += 8u) {
            let b0 = coopLoad<coop_mat8x8<f32, B>>(&ws[b_at + 0u * PITCH + j], PITCH);
            let b1 = coopLoad<coop_mat8x8<f32, B>>(&ws[b_at + 8u * PITCH + j], PITCH);
            let b2 = coopLoad<coop_mat8x8<f32, B>>(&ws[b_at + 16u * PITCH + j], PITCH);
            let b3 = coopLoad<coop_mat8x8<f32, B>>(&ws[b_at + 24u * PITCH + j], PITCH);
            let a0 = coopLoadT<coop_mat8x8<f32, A>>(&xs[a_at + 0u * PITCH + j], PITCH);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c03 = coopMultiplyAdd(a0, b3, c03);
            let a1 = coopLoadT<coop_mat8x8<f32, A>>(&xs[a_at + 8u * PITCH + j], PITCH);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c12 = coopMultiplyAdd(a1, b2, c12);
            c13 = coopMultiplyAdd(a1, b3, c13);
            let a2 = coopLoadT<coop_mat8x8<f32, A>>(&xs[a_at + 16u * PITCH + j], PITCH);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c21 = coopMultiplyAdd(a2, b1, c21);
            c22 = coopMultiplyAdd(a2, b2, c22);
            c23 = coopMultiplyAdd(a2, b3, c23);
            let a3 = coopLoadT<coop_mat8x8<f32, A>>(&xs[a_at + 24u * PITCH + j], PITCH);
            c30 = coopMultiplyAdd(a3, b0, c30);
            c31 = coopMultiplyAdd(a3, b1, c31);
            c32 = coopMultiplyAdd(a3, b2, c32);
            c33 = coopMultiplyAdd(a3, b3, c33);
        }
    }
    let s_at = subgroup / 2u * 2048u + subgroup % 2u * 32u;
    coopStoreT(c00, &sums[s_at + 0u], 64u);
    coopStoreT(c01, &sums[s_at + 8u], 64u);
    coopStoreT(c02, &sums[s_at + 16u], 64u);
    coopStoreT(c03, &sums[s_at + 24u], 64u);
    coopStoreT(c10, &sums[s_at + 512u], 64u);
    coopStoreT(c11, &sums[s_at + 520u], 64u);
    coopStoreT(c12, &sums[s_at + 528u], 64u);
    coopStoreT(c13, &sums[s_at + 536u], 64u);
    coopStoreT(c20, &sums[s_at + 1024u], 64u);
    coopStoreT(c21, &sums[s_at + 1032u], 64u);
    coopStoreT(c22, &sums[s_at + 1040u], 64u);
    coopStoreT(c23, &sums[s_at + 1048u], 64u);
    coopStoreT(c30, &sums[s_at + 1536u], 64u);
    coopStoreT(c31, &sums[s_at + 1544u], 64u);
    coopStoreT(c32, &sums[s_at + 1552u], 64u);
    coopStoreT(c33, &sums[s_at + 1560u], 64u);
    workgroupBarrier();
    let col = t % 16u * 4u;
    if col0 + col < params.n {
        let c = columns(col0 + col);
        for (var row = t / 16u; row < min(64u, params.rows - row0); row += 8u) {
            let at = row * 64u + col;
            finish(row0 + row, col0 + col, c, vec4<f32>(sums[at], sums[at + 1u], sums[at + 2u], sums[at + 3u]));
        }
    }
}
