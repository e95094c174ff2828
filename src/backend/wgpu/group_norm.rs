//! Group normalisation. `shaders/group_norm*.wgsl` explain the shaders.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::launch::{
    Args, Constants, Dispatch, Grid, Matrix, Needs, Shader, Variant, Wgpu, WgpuDevice, Window,
    blocks, code,
};
use crate::backend::gpu::{Location, variants};
use crate::dtype::DType;
use crate::op::GroupNorm;

/// As in `group_norm.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    grid: Grid,
    rows: u32,
    channels: u32,
    norm_groups: u32,
    chunk_rows: u32,
    chunks: u32,
    first_chunk: u32,
    first_row: u32,
    first_picture: u32,
    x_base: u32,
    x_stride: u32,
    out_base: u32,
    out_stride: u32,
    weight_base: u32,
    bias_base: u32,
    partials_base: u32,
    statistics_base: u32,
    silu: u32,
    eps: f32,
}

const THREADS: usize = 128;
/// Elements of x that a workgroup reads, at least, if there are as many: enough to hide the start
/// and the end of a workgroup.
const CHUNK: usize = 16_384;
/// Chunks of an image, at most: one workgroup merges them in eight rounds.
const CHUNKS: usize = 1024;
/// Bytes of (count, shift, mean, squared deviations).
const MOMENTS: usize = 16;

macro_rules! shader {
    ($name:literal, $file:literal, $buffers:literal) => {
        Shader {
            name: $name,
            sources: &[
                include_str!("../../../shaders/common.wgsl"),
                include_str!("../../../shaders/group_norm.wgsl"),
                include_str!(concat!("../../../shaders/", $file)),
            ],
            params_bytes: size_of::<Params>(),
            buffers: $buffers,
        }
    };
}

static STATISTICS: Shader = shader!("group_norm_statistics", "group_norm_statistics.wgsl", 2);
static STATISTICS_ANY: Shader =
    shader!("group_norm_statistics_any", "group_norm_statistics_any.wgsl", 2);
static MERGE: Shader = shader!("group_norm_merge", "group_norm_merge.wgsl", 2);
static APPLY: Shader = shader!("group_norm_apply", "group_norm_apply.wgsl", 5);
static APPLY_ANY: Shader = shader!("group_norm_apply_any", "group_norm_apply_any.wgsl", 5);

const VECTORS_NEEDS: Needs = Needs::new(THREADS as u32, 3 * 8 * 132 * 4);
const ANY_NEEDS: Needs = Needs::new(THREADS as u32, (THREADS * MOMENTS) as u32);

/// All variants, the fastest first.
pub static GROUP_NORM: &[Variant<GroupNorm>] = &[
    Variant {
        name: "group_norm_any_vectors",
        needs: VECTORS_NEEDS,
        accepts: vectors,
        scratch: |a, _| scratch(a, rows(a)),
        launches: |a, device| dispatches(a, device, &PLAN),
    },
    Variant {
        name: "group_norm_any",
        needs: ANY_NEEDS,
        accepts: any,
        scratch: |a, _| scratch(a, rows_any(a)),
        launches: |a, device| dispatches(a, device, &PLAN_ANY),
    },
];
variants!(Wgpu, GroupNorm: GROUP_NORM);

/// Every shader of this family with every set of constants that it is used with.
pub fn shaders() -> Vec<(&'static Shader, Constants, Needs)> {
    let types = [DType::F32, DType::BF16];
    let mut all = vec![(&MERGE, vec![], ANY_NEEDS)];
    for x in types {
        all.push((&STATISTICS, statistics_constants(x), VECTORS_NEEDS));
        all.push((&STATISTICS_ANY, statistics_constants(x), ANY_NEEDS));
        for out in types {
            all.push((&APPLY, apply_constants(x, out), ANY_NEEDS));
            all.push((&APPLY_ANY, apply_constants(x, out), ANY_NEEDS));
        }
    }
    all
}

fn statistics_constants(x: DType) -> Constants {
    vec![("X_TYPE", f64::from(code(x)))]
}

fn apply_constants(x: DType, out: DType) -> Constants {
    vec![("X_TYPE", f64::from(code(x))), ("OUT_TYPE", f64::from(code(out)))]
}

/// The shaders of a variant, the rows of their chunks, and whether x and out are bound as vectors
/// of 16 bytes.
struct Plan {
    statistics: &'static Shader,
    statistics_rows: fn(&Args<GroupNorm>) -> usize,
    /// Whether each group of channels has a workgroup of its own.
    by_group: bool,
    apply: &'static Shader,
    apply_rows: fn(&Args<GroupNorm>) -> usize,
    vectors: bool,
}

static PLAN: Plan = Plan {
    statistics: &STATISTICS,
    statistics_rows: rows,
    by_group: false,
    apply: &APPLY,
    apply_rows: rows,
    vectors: true,
};
static PLAN_ANY: Plan = Plan {
    statistics: &STATISTICS_ANY,
    statistics_rows: rows_any,
    by_group: true,
    apply: &APPLY_ANY,
    apply_rows: |a| (CHUNK / 8).div_ceil(a.x.cols),
    vectors: false,
};

/// Rows of a chunk of the vector shaders: whole rounds of four rows for each thread. This depends
/// on the shape alone, and so does the order of summation.
fn rows(a: &Args<GroupNorm>) -> usize {
    let round = 4 * (THREADS / (a.x.cols / 8));
    (CHUNK / a.x.cols).max(a.pixels().div_ceil(CHUNKS)).next_multiple_of(round)
}

/// Rows of a chunk of `group_norm_statistics_any`, which has one group.
fn rows_any(a: &Args<GroupNorm>) -> usize {
    (CHUNK / 4).div_ceil(a.x.cols / a.groups).max(a.pixels().div_ceil(CHUNKS))
}

/// Bytes of the moments of each image, chunk and group, then of each image and group.
fn scratch(a: &Args<GroupNorm>, chunk_rows: usize) -> usize {
    a.batch * a.groups * MOMENTS * (a.pixels().div_ceil(chunk_rows) + 1)
}

/// Checks what all shaders require: operands that match, sizes that fit 32 bits, and windows that
/// can show a chunk.
fn any(a: &Args<GroupNorm>, device: &WgpuDevice) -> Result<(), &'static str> {
    check(a)?;
    fits(a, device, &PLAN_ANY)
}

fn check(a: &Args<GroupNorm>) -> Result<(), &'static str> {
    if [a.x.rows, a.x.cols, a.batch, a.groups].contains(&0)
        || !a.x.rows.is_multiple_of(a.batch)
        || !a.x.cols.is_multiple_of(a.groups)
    {
        return Err("rows or channels do not divide evenly");
    }
    if (a.x.rows, a.x.cols) != (a.out.rows, a.out.cols)
        || a.x.stride < a.x.cols
        || a.out.stride < a.out.cols
    {
        return Err("out does not match x");
    }
    if [a.weight, a.bias].iter().any(|v| (v.rows, v.cols, v.dtype) != (1, a.x.cols, DType::F32)) {
        return Err("weight and bias must be F32, one for each channel");
    }
    if [a.x.dtype, a.out.dtype].iter().any(|d| !matches!(d, DType::BF16 | DType::F32)) {
        return Err("x and out must be BF16 or F32");
    }
    if a.x.rows >= 1 << 31 || a.x.cols >= 1 << 24 || a.batch * a.groups * CHUNKS >= 1 << 31 {
        return Err("more than 2^31 rows, columns or workgroups");
    }
    Ok(())
}

/// Checks that a thread can hold 8 channels, and a workgroup a row.
fn vectors(a: &Args<GroupNorm>, device: &WgpuDevice) -> Result<(), &'static str> {
    check(a)?;
    if !a.x.whole_vectors() || !a.out.whole_vectors() || !a.x.cols.is_multiple_of(8) {
        return Err(
            "channels are not a multiple of 8, or x or out do not begin at multiples of 16 bytes",
        );
    }
    if a.x.cols > 8 * THREADS {
        return Err("more than 1024 channels");
    }
    fits(a, device, &PLAN)
}

/// Checks that a chunk, the moments of an image, weight and bias each fit into a window.
fn fits(a: &Args<GroupNorm>, device: &WgpuDevice, plan: &Plan) -> Result<(), &'static str> {
    let (first, last) =
        ((plan.statistics_rows)(a).min(a.pixels()), (plan.apply_rows)(a).min(a.pixels()));
    let moments = (scratch(a, first) / a.batch) as u64 + device.alignment + 4;
    if a.x.rows_that_bind(device) < first.max(last)
        || a.out.rows_that_bind(device) < last
        || moments > device.binding_bytes
    {
        return Err("a chunk of rows or the moments of an image are larger than a binding");
    }
    if !a.weight.binds(device) || !a.bias.binds(device) {
        return Err("weight or bias are larger than a binding");
    }
    Ok(())
}

/// The chunks of a dispatch, numbered over all images; their rows; and their images.
struct Piece {
    chunks: Range<usize>,
    rows: Range<usize>,
    images: Range<usize>,
}

/// All chunks, if the matrices fit into windows; otherwise chunks of one image at a time.
fn pieces(
    a: &Args<GroupNorm>,
    chunk_rows: usize,
    matrices: &[&Matrix],
    device: &WgpuDevice,
) -> Vec<Piece> {
    let (pixels, chunks) = (a.pixels(), a.pixels().div_ceil(chunk_rows));
    if matrices.iter().all(|m| m.binds(device)) {
        return vec![Piece { chunks: 0..a.batch * chunks, rows: 0..a.x.rows, images: 0..a.batch }];
    }
    let most = matrices.iter().map(|m| m.rows_that_bind(device)).min().unwrap_or(pixels);
    let of_image = |image: usize| {
        blocks(chunks, most / chunk_rows, 1).map(move |part| Piece {
            rows: image * pixels + part.start * chunk_rows
                ..image * pixels + pixels.min(part.end * chunk_rows),
            chunks: image * chunks + part.start..image * chunks + part.end,
            images: image..image + 1,
        })
    };
    (0..a.batch).flat_map(of_image).collect()
}

/// The number of operations that take as long as these bytes: memory limits these shaders, and
/// while an adapter moves one byte, it could do about five operations of a product or more.
/// Elements that are accessed one by one take several times as long.
fn work(moved: usize, plan: &Plan) -> u64 {
    moved as u64 * if plan.vectors { 5 } else { 20 }
}

fn dispatches(a: &Args<GroupNorm>, device: &WgpuDevice, plan: &Plan) -> Vec<Dispatch> {
    let pixels = a.pixels();
    let (first_rows, last_rows) = ((plan.statistics_rows)(a), (plan.apply_rows)(a));
    let chunks = pixels.div_ceil(first_rows);
    let scratch = a.scratch.expect("scratch is given as the variant asked for");
    // Rows of moments: one for each image and chunk, then one for each image.
    let cols = a.groups * MOMENTS / 4;
    let moments = |place, rows| Matrix { place, rows, cols, stride: cols, dtype: DType::F32 };
    let partials = moments(scratch.place, a.batch * chunks);
    let statistics = moments(scratch.place.after(partials.span() as usize), a.batch);
    let unit = |m: &Matrix| if plan.vectors { 16 / m.dtype.size() } else { 1 };
    let params = |chunk_rows: usize| Params {
        grid: Grid::default(),
        rows: pixels as u32,
        channels: a.x.cols as u32,
        norm_groups: a.groups as u32,
        chunk_rows: chunk_rows as u32,
        chunks: pixels.div_ceil(chunk_rows) as u32,
        x_stride: (a.x.stride / unit(&a.x)) as u32,
        out_stride: (a.out.stride / unit(&a.out)) as u32,
        silu: a.silu.into(),
        eps: a.eps,
        ..Params::zeroed()
    };
    let dispatch = |shader: &'static Shader,
                    constants,
                    buffers: Vec<Window>,
                    params: Params,
                    groups: usize,
                    moved: usize| {
        Dispatch {
            shader,
            constants,
            buffers: buffers.into_iter().map(Some).collect(),
            params: bytemuck::bytes_of(&params).to_vec(),
            groups: groups as u64,
            work: work(moved, plan),
        }
    };
    let mut all = Vec::new();
    for piece in pieces(a, first_rows, &[&a.x, &partials], device) {
        let (x, x_base) = a.x.band(piece.rows.start, piece.rows.len()).bind(device);
        let (parts, partials_base) =
            partials.band(piece.chunks.start, piece.chunks.len()).bind(device);
        let params = Params {
            first_chunk: piece.chunks.start as u32,
            first_row: piece.rows.start as u32,
            x_base: x_base / unit(&a.x) as u32,
            partials_base: partials_base / 4,
            ..params(first_rows)
        };
        let groups = piece.chunks.len() * if plan.by_group { a.groups } else { 1 };
        let constants = statistics_constants(a.x.dtype);
        let moved = piece.rows.len() * a.x.cols * a.x.dtype.size();
        all.push(dispatch(plan.statistics, constants, vec![x, parts], params, groups, moved));
    }
    let images = if partials.binds(device) { a.batch } else { 1 };
    for image in blocks(a.batch, images, 1) {
        let (parts, partials_base) =
            partials.band(image.start * chunks, image.len() * chunks).bind(device);
        let (whole, statistics_base) = statistics.band(image.start, image.len()).bind(device);
        let params = Params {
            partials_base: partials_base / 4,
            statistics_base: statistics_base / 4,
            ..params(first_rows)
        };
        let groups = image.len() * a.groups;
        let moved = groups * chunks * MOMENTS;
        all.push(dispatch(&MERGE, vec![], vec![parts, whole], params, groups, moved));
    }
    for piece in pieces(a, last_rows, &[&a.x, &a.out, &statistics], device) {
        let (x, x_base) = a.x.band(piece.rows.start, piece.rows.len()).bind(device);
        let (out, out_base) = a.out.band(piece.rows.start, piece.rows.len()).bind(device);
        let (whole, statistics_base) =
            statistics.band(piece.images.start, piece.images.len()).bind(device);
        let (weight, weight_base) = a.weight.bind(device);
        let (bias, bias_base) = a.bias.bind(device);
        let params = Params {
            first_chunk: piece.chunks.start as u32,
            first_row: piece.rows.start as u32,
            first_picture: piece.images.start as u32,
            x_base: x_base / unit(&a.x) as u32,
            out_base: out_base / unit(&a.out) as u32,
            weight_base,
            bias_base,
            statistics_base: statistics_base / 4,
            ..params(last_rows)
        };
        let constants = apply_constants(a.x.dtype, a.out.dtype);
        let buffers = vec![x, whole, weight, bias, out];
        let moved = piece.rows.len() * a.x.cols * (a.x.dtype.size() + a.out.dtype.size());
        all.push(dispatch(plan.apply, constants, buffers, params, piece.chunks.len(), moved));
    }
    all
}
