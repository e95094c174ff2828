// out = tail(x . (scales * w)^T + bias) in tiles of TILE x TILE: 256 threads, 16 x 16, each with PARTS x PARTS blocks of 4 x 4 sums in registers.
//
// TILE 128 (PARTS 2, 8 x 8 sums a thread) takes STEP 16 of k at a time, TILE 64 (PARTS 1) takes 32: both keep two tiles of 8 KiB, which every adapter
// has room for, and every thread fetches eight elements of x and eight of w for a step. They are fetched before the step that they come after is
// multiplied, so that memory is waited for while there is work, and become `T` (f32, or f16 where the source before this says so) once, when they are put
// into workgroup memory. There they lie transposed, k by k: a thread reads its four rows or columns as one vector, neighbours read neighbouring vectors
// or the same one, and storing puts neighbouring rows next to each other, so that no two lanes of a subgroup meet in a bank.
// For each k a thread of the large tile reads 16 numbers for 64 multiply-adds; that, and not memory, bounds it on most GPUs. 8-bit weights cost about ten
// instructions each when they are stored, once for 128 rows.
//
// `more` adds the products of AT_ONCE k to a block: linear_f32.wgsl and linear_f16.wgsl have it.

const STEP: u32 = 2048u / TILE;
const QUADS: u32 = TILE / 4u;

var<workgroup> xs: array<vec4<T>, STEP * QUADS>;
var<workgroup> ws: array<vec4<T>, STEP * QUADS>;

fn store_x(at: u32, lane: u32, v: Eight) {
    let low = tile_values(v.low);
    let high = tile_values(v.high);
    for (var j = 0u; j < 4u; j++) {
        xs[at + j * QUADS][lane] = low[j];
        xs[at + (j + 4u) * QUADS][lane] = high[j];
    }
}

fn store_w(at: u32, lane: u32, v: Eight) {
    let low = tile_values(v.low * w_factor());
    let high = tile_values(v.high * w_factor());
    for (var j = 0u; j < 4u; j++) {
        ws[at + j * QUADS][lane] = low[j];
        ws[at + (j + 4u) * QUADS][lane] = high[j];
    }
}

// Four rows of four columns.
struct Block {
    r0: vec4<f32>,
    r1: vec4<f32>,
    r2: vec4<f32>,
    r3: vec4<f32>,
}

fn finish_block(row: u32, col: u32, s: Block) {
    if col >= params.n { return; }
    let c = columns(col);
    var sums = array<vec4<f32>, 4>(s.r0, s.r1, s.r2, s.r3);
    for (var i = 0u; i < 4u; i++) {
        if row + i < params.rows { finish(row + i, col, c, sums[i] * (1.0 / w_factor())); }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    // Bands of eight rows of tiles, column by column: what runs at the same time shares few rows of x and few of w.
    let band = group / (8u * params.column_tiles);
    let height = min(8u, params.row_tiles - band * 8u);
    let within = group - band * 8u * params.column_tiles;
    let row0 = (band * 8u + within % height) * TILE;
    let col0 = within / height * TILE;

    // This thread fetches k from `chunk` on of one row of x and one of w; those beyond the last repeat it, and their sums are not stored.
    let mine = t % TILE;
    let chunk = t / TILE * 8u;
    let x_at = params.x_base + min(row0 + mine, params.rows - 1u) * params.x_stride;
    let w_at = params.w_base + min(col0 + mine, params.n - 1u) * params.w_stride;
    let slot = chunk * QUADS + mine / 4u;
    let lane = mine % 4u;

    let tx = t % 16u;
    let ty = t / 16u;
    // Named, not an array: no compiler has to unroll anything to keep them in registers.
    var s00 = Block();
    var s01 = Block();
    var s10 = Block();
    var s11 = Block();
    var x_next = Raw();
    var w_next = Raw();
    if chunk < params.k {
        x_next = x_raw(x_at + chunk);
        w_next = w_raw(w_at + chunk);
    }
    for (var k = 0u; k < params.k; k += STEP) {
        workgroupBarrier();
        store_x(slot, lane, x_values(x_next));
        store_w(slot, lane, w_values(w_next));
        workgroupBarrier();
        x_next = Raw();
        w_next = Raw();
        if k + STEP + chunk < params.k {
            x_next = x_raw(x_at + k + STEP + chunk);
            w_next = w_raw(w_at + k + STEP + chunk);
        }
        for (var j = 0u; j < STEP; j += AT_ONCE) {
            let a0 = xs_at(j, ty);
            let b0 = ws_at(j, tx);
            s00 = more(s00, a0, b0);
            if PARTS == 2u {
                let a1 = xs_at(j, 16u + ty);
                let b1 = ws_at(j, 16u + tx);
                s01 = more(s01, a0, b1);
                s10 = more(s10, a1, b0);
                s11 = more(s11, a1, b1);
            }
        }
    }

    let row = row0 + ty * 4u;
    let col = col0 + tx * 4u;
    finish_block(row, col, s00);
    if PARTS == 2u {
        finish_block(row, col + 64u, s01);
        finish_block(row + 64u, col, s10);
        finish_block(row + 64u, col + 64u, s11);
    }
}
