// out = tail(x . (scales * w)^T + bias) in tiles of ROWS x COLUMNS, 16 threads across, each with
// PARTS x PARTS blocks of 4 x 4 sums in registers: 128 x 128 with 256 threads and PARTS 2 (8 x 8
// sums a thread), 64 x 64 with 256 threads, and 32 x 64 with 128 threads for few rows.
//
// A step takes STEP of k: 16 for 128 columns, 32 for 64, so that a step has 2048 elements of w, and
// tiles take at most 16 KiB, which every adapter has. Threads load blocks of four rows by four k:
// the first half of them from x and the second from w, or, if the tile has 128 threads, all of them
// from w and the first half from x, too. Neighbouring blocks in memory belong to threads that load
// at the same time, so that a row is read in complete sectors of 32 bytes (with two-byte elements).
// They are loaded before the previous step is multiplied, so that the loads overlap with the
// products, and are converted to `T` (f32, or f16 if the source before this one says so) once, when
// they are stored in workgroup memory.
//
// There they are transposed, k by k, four rows or columns per vector. A thread writes its block as
// four whole vectors: if several threads wrote components of one vector, they would overwrite each
// other's on Metal, where a write is always one of the whole vector. Eight neighbours write 128
// consecutive bytes, and neighbours read neighbouring vectors or the same one, so there are no bank
// conflicts. For each k a thread of the large tile reads 16 numbers for 64 multiply-adds; that, and
// not memory, is the limit on most GPUs. 8-bit weights cost about ten instructions each when they
// are stored, once for all rows of a tile; weights stored in blocks cost a few more for each, and
// about twenty for the factors of four.
//
// linear_f32.wgsl, linear_f16.wgsl and linear_int8.wgsl define the type of sums, `more`, which adds
// the products of AT_ONCE k to a thread's sums, `floats`, which makes floats of four sums, and
// `put_x` and `put_w`, which store blocks in workgroup memory (for floats in linear_floats.wgsl).

const STEP: u32 = 2048u / COLUMNS;
const THREADS: u32 = ROWS * COLUMNS / (16u * PARTS * PARTS);
const X_QUADS: u32 = ROWS / 4u;
const W_QUADS: u32 = COLUMNS / 4u;
// The start of w's tile.
const W_TILE: u32 = STEP * X_QUADS;
// Every thread loads a block of w, and the first `X_BLOCKS` threads load one of x as well.
const BOTH: bool = THREADS == 128u;
const X_BLOCKS: u32 = STEP * X_QUADS / 4u;

var<workgroup> tiles: array<vec4<T>, STEP * (X_QUADS + W_QUADS)>;

fn xs_at(k: u32, quad: u32) -> vec4<T> { return tiles[k * X_QUADS + quad]; }
fn ws_at(k: u32, quad: u32) -> vec4<T> { return tiles[W_TILE + k * W_QUADS + quad]; }

// Four k of four rows in their stored form.
struct Raw {
    r0: vec4<u32>,
    r1: vec4<u32>,
    r2: vec4<u32>,
    r3: vec4<u32>,
}

fn x_raw(at: vec4<u32>) -> Raw { return Raw(x4_raw(at.x), x4_raw(at.y), x4_raw(at.z), x4_raw(at.w)); }
fn w_raw(row: vec4<u32>, k: u32) -> Raw { return Raw(w4_raw(row.x, k), w4_raw(row.y, k), w4_raw(row.z, k), w4_raw(row.w, k)); }

// Four rows of four columns.
struct Quad {
    r0: Sum,
    r1: Sum,
    r2: Sum,
    r3: Sum,
}

// A thread's sums. Named variables instead of an array, so that they stay in registers even if the
// compiler unrolls no loops.
struct Sums {
    s00: Quad,
    s01: Quad,
    s10: Quad,
    s11: Quad,
}

fn finish_block(row: u32, col: u32, s: Quad) {
    if col >= params.n { return; }
    let c = columns(col);
    var sums = array<Sum, 4>(s.r0, s.r1, s.r2, s.r3);
    for (var i = 0u; i < 4u; i++) {
        if row + i < params.rows { finish(row + i, col, c, floats(row + i, col, sums[i])); }
    }
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    // Bands of eight rows of tiles, column by column: tiles that run at the same time share few
    // rows of x and few of w.
    let band = group / (8u * params.column_tiles);
    let height = min(8u, params.row_tiles - band * 8u);
    let within = group - band * 8u * params.column_tiles;
    let row0 = (band * 8u + within % height) * ROWS;
    let col0 = within / height * COLUMNS;

    // This thread loads four k from `chunk` on of four rows; rows beyond the last repeat it, and
    // their sums are not stored.
    let of_w = BOTH || t >= 128u;
    let block = t % 128u;
    let chunk = block / 8u % (STEP / 4u) * 4u;
    let quad = block % 8u + 8u * (block / (2u * STEP));
    let four = vec4<u32>(0u, 1u, 2u, 3u) + quad * 4u;
    let x_rows = params.x_base + min(row0 + four, vec4<u32>(params.rows - 1u)) * params.x_stride;
    let w_rows = params.w_base + min(col0 + four, vec4<u32>(params.n - 1u)) * params.w_stride;
    let rows = select(x_rows, w_rows, of_w);
    let x_slot = chunk * X_QUADS + quad;
    let w_slot = W_TILE + chunk * W_QUADS + quad;

    let tx = t % 16u;
    let ty = t / 16u;
    var s = Sums();
    // A block of x or of w, and one of x where `BOTH`.
    var next = Raw();
    var also = Raw();
    if chunk < params.k {
        if of_w { next = w_raw(rows, chunk); } else { next = x_raw(rows + chunk); }
        if BOTH && t < X_BLOCKS { also = x_raw(x_rows + chunk); }
    }
    for (var k = 0u; k < params.k; k += STEP) {
        workgroupBarrier();
        if of_w { put_w(w_slot, next, k + chunk); } else { put_x(x_slot, next); }
        if BOTH && t < X_BLOCKS { put_x(x_slot, also); }
        workgroupBarrier();
        next = Raw();
        also = Raw();
        let ahead = k + STEP + chunk;
        if ahead < params.k {
            if of_w { next = w_raw(rows, ahead); } else { next = x_raw(rows + ahead); }
            if BOTH && t < X_BLOCKS { also = x_raw(x_rows + ahead); }
        }
        for (var j = 0u; j < STEP; j += AT_ONCE) { s = more(s, j, ty, tx); }
    }

    let row = row0 + ty * 4u;
    let col = col0 + tx * 4u;
    finish_block(row, col, s.s00);
    if PARTS == 2u {
        finish_block(row, col + 64u, s.s01);
        finish_block(row + 64u, col, s.s10);
        finish_block(row + 64u, col + 64u, s.s11);
    }
}
