// Rows of a table by number: out[r] = table[ids[r]] (+ positions[r % positions_rows]).
//
// table: any rows x cols in f32, bf16 or f16; positions: the same; ids: i32; out: rows x cols in
// bf16 or f32. A table may be larger than a window: then there are several dispatches, each with a
// range of its rows, and each writes only the rows of the output whose ids are in its range. A row
// whose id is outside the whole table becomes NaN, so that the error is visible. A thread writes
// one word of the output; see words.wgsl. Runs once per text.

override TABLE_TYPE: u32 = 0u;
// POSITIONS: whether there are any.
override POSITIONS: u32 = 0u;
override POSITIONS_TYPE: u32 = 0u;
override OUT_TYPE: u32 = 0u;

struct Params {
    first: u32,
    groups: u32,
    rows: u32,
    cols: u32,
    // Number of the window's first output row.
    row: u32,
    // The range of the table's rows in the window, and the number of all its rows.
    table_first: u32,
    table_count: u32,
    table_rows: u32,
    table_base: u32,
    table_stride: u32,
    ids_base: u32,
    ids_stride: u32,
    positions_rows: u32,
    positions_base: u32,
    positions_stride: u32,
    out_base: u32,
    out_stride: u32,
}

var<immediate> params: Params;
@group(0) @binding(0) var<storage, read_write> table: array<u32>;
@group(0) @binding(1) var<storage, read_write> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> positions: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<atomic<u32>>;

fn load_table(e: u32) -> f32 { return element(table[word_of(e, TABLE_TYPE)], e, TABLE_TYPE); }

fn load_position(e: u32) -> f32 { return element(positions[word_of(e, POSITIONS_TYPE)], e, POSITIONS_TYPE); }

// `id` counts from the window's first row of the table; it is in the window unless `wrong`.
fn value(row: u32, id: u32, wrong: bool, column: u32) -> f32 {
    if wrong { return bitcast<f32>(id | 0x7fc00000u); }
    var v = load_table(params.table_base + id * params.table_stride + column);
    if POSITIONS != 0u {
        v += load_position(params.positions_base + (params.row + row) % params.positions_rows * params.positions_stride + column);
    }
    return v;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let words = words_of(params.cols);
    let i = group * 256u + thread;
    let row = i / words;
    if row >= params.rows { return; }
    // Negative ids are large ones here.
    let id = ids[params.ids_base + row * params.ids_stride];
    let wrong = id >= params.table_rows;
    let place = id - params.table_first;
    if !wrong && place >= params.table_count { return; }
    let s = spot(params.out_base + row * params.out_stride, i - row * words, params.cols);
    var low = 0.0;
    var high = 0.0;
    if s.low { low = value(row, place, wrong, s.column); }
    if s.high { high = value(row, place, wrong, s.column + 1u); }
    store(s, low, high);
}
