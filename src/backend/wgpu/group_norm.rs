//! Group normalisation. `shaders/group_norm*.wgsl` explain the shaders.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::launch::{
    Args, Constants, Dispatch, Grid, Matrix, Needs, Shader, Variant, Wgpu, WgpuDevice, Window,
    blocks, code,
};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{GroupNorm, GroupStatistics};

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
/// Elements of x that a workgroup of `group_norm_apply` reads: enough to hide the start and the end
/// of a workgroup.
const CHUNK: usize = 16_384;
/// Bytes of the merged moments of a group.
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
pub static GROUP_STATISTICS: &[Variant<GroupStatistics>] = &[
    Variant {
        name: "group_statistics_any_vectors",
        needs: VECTORS_NEEDS,
        accepts: |a, device| statistics_any(a, device).and(eight_channels(&a.x)),
        scratch: |_, _| 0,
        launches: |a, device| statistics(a, device, &STATISTICS),
    },
    Variant {
        name: "group_statistics_any",
        needs: ANY_NEEDS,
        accepts: statistics_any,
        scratch: |_, _| 0,
        launches: |a, device| statistics(a, device, &STATISTICS_ANY),
    },
];

/// All variants, the fastest first.
pub static GROUP_NORM: &[Variant<GroupNorm>] = &[
    Variant {
        name: "group_norm_any_vectors",
        needs: VECTORS_NEEDS,
        accepts: |a, device| {
            norm_any(a, device, rows(a)).and(eight_channels(&a.x)).and(eight_channels(&a.out))
        },
        scratch: |a, _| a.groups * MOMENTS,
        launches: |a, device| norm(a, device, &APPLY, rows(a)),
    },
    Variant {
        name: "group_norm_any",
        needs: ANY_NEEDS,
        accepts: |a, device| norm_any(a, device, rows_any(a)),
        scratch: |a, _| a.groups * MOMENTS,
        launches: |a, device| norm(a, device, &APPLY_ANY, rows_any(a)),
    },
];
variants!(Wgpu, GroupStatistics: GROUP_STATISTICS);
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

/// Rows of a chunk of `group_norm_apply`: whole rounds of four rows for each thread.
fn rows(a: &Args<GroupNorm>) -> usize {
    let round = 4 * (THREADS / (a.x.cols / 8).max(1)).max(1);
    (CHUNK / a.x.cols.max(1)).next_multiple_of(round)
}

/// Rows of a chunk of `group_norm_apply_any`.
fn rows_any(a: &Args<GroupNorm>) -> usize {
    (CHUNK / 8).div_ceil(a.x.cols.max(1))
}

/// Checks what all shaders require of pixels: sizes that fit 32 bits.
fn pixels(x: &Matrix, width: usize, groups: usize) -> Result<(), &'static str> {
    if [x.rows, x.cols, width, groups].contains(&0) || !x.cols.is_multiple_of(groups) {
        return Err("a size is 0, or the channels are not a multiple of the groups");
    }
    if !matches!(x.dtype, DType::BF16 | DType::F32) || x.stride < x.cols {
        return Err("x must be BF16 or F32");
    }
    if x.rows.saturating_mul(groups) >= 1 << 31 || x.cols >= 1 << 24 {
        return Err("more than 2^31 rows, columns or workgroups");
    }
    Ok(())
}

/// Whether the statistics are f32 without gaps, as all shaders access them.
fn dense(statistics: &Matrix, groups: usize) -> Result<(), &'static str> {
    let columns = 2 * groups;
    if (statistics.cols, statistics.stride, statistics.dtype) != (columns, columns, DType::F32)
        || !statistics.place.offset.is_multiple_of(8)
    {
        return Err("statistics are not dense pairs of F32");
    }
    if statistics.rows >= 1 << 24 { Err("more than 2^24 rows of pixels") } else { Ok(()) }
}

/// Checks that pixels can be read in vectors of 16 bytes, 8 channels at a time, and that a
/// workgroup can hold a pixel.
fn eight_channels(x: &Matrix) -> Result<(), &'static str> {
    if !x.whole_vectors() || !x.cols.is_multiple_of(8) {
        return Err("channels are not a multiple of 8, or do not begin at multiples of 16 bytes");
    }
    if x.cols > 8 * THREADS { Err("more than 1024 channels") } else { Ok(()) }
}

fn statistics_any(a: &Args<GroupStatistics>, device: &WgpuDevice) -> Result<(), &'static str> {
    pixels(&a.x, a.width, a.groups)?;
    dense(&a.out, a.groups)?;
    if !a.x.rows.is_multiple_of(a.width) || a.out.rows != a.x.rows / a.width {
        return Err("out does not have a row for each row of pixels");
    }
    if a.x.rows_that_bind(device) < a.width || !a.out.binds(device) {
        return Err("a row of pixels or the statistics are larger than a binding");
    }
    Ok(())
}

fn norm_any(
    a: &Args<GroupNorm>,
    device: &WgpuDevice,
    chunk_rows: usize,
) -> Result<(), &'static str> {
    pixels(&a.x, a.width, a.groups)?;
    dense(&a.statistics, a.groups)?;
    if (a.x.rows, a.x.cols) != (a.out.rows, a.out.cols)
        || a.out.stride < a.out.cols
        || !matches!(a.out.dtype, DType::BF16 | DType::F32)
    {
        return Err("out does not match x, or is not BF16 or F32");
    }
    if [a.weight, a.bias].iter().any(|v| (v.rows, v.cols, v.dtype) != (1, a.x.cols, DType::F32)) {
        return Err("weight and bias must be F32, one for each channel");
    }
    let chunk = chunk_rows.min(a.x.rows);
    if a.x.rows_that_bind(device) < chunk || a.out.rows_that_bind(device) < chunk {
        return Err("a chunk of rows is larger than a binding");
    }
    if ![a.weight, a.bias, a.statistics].iter().all(|v| v.binds(device)) {
        return Err("weight, bias or statistics are larger than a binding");
    }
    Ok(())
}

/// The chunks of `chunk_rows` rows of a dispatch: all of them if the matrices fit into windows.
fn pieces(
    matrices: &[&Matrix],
    chunk_rows: usize,
    device: &WgpuDevice,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let rows = matrices[0].rows;
    let chunks = rows.div_ceil(chunk_rows);
    let most = match matrices.iter().all(|m| m.binds(device)) {
        true => chunks,
        false => {
            let most = matrices.iter().map(|m| m.rows_that_bind(device)).min();
            (most.unwrap_or(rows) / chunk_rows).max(1)
        }
    };
    blocks(chunks, most, 1).map(move |part| {
        let first = part.start * chunk_rows;
        (part.clone(), first..rows.min(part.end * chunk_rows))
    })
}

/// The number of operations that take as long as these bytes: memory limits these shaders, and
/// while an adapter moves one byte, it could do about five operations of a product or more.
/// Elements that are accessed one by one take several times as long.
fn work(moved: usize, vectors: bool) -> u64 {
    moved as u64 * if vectors { 5 } else { 20 }
}

fn dispatch(
    shader: &'static Shader,
    constants: Constants,
    buffers: Vec<Window>,
    params: Params,
    groups: usize,
    work: u64,
) -> Dispatch {
    Dispatch {
        shader,
        constants,
        buffers: buffers.into_iter().map(Some).collect(),
        params: bytemuck::bytes_of(&params).to_vec(),
        groups: groups as u64,
        work,
    }
}

/// Elements of the unit in which a shader counts the rows of `m`.
fn unit(m: &Matrix, vectors: bool) -> usize {
    if vectors { 16 / m.dtype.size() } else { 1 }
}

/// The shader computes rows of pixels with a workgroup for each; the one for any alignment has a
/// workgroup for each group of channels, too.
fn statistics(
    a: &Args<GroupStatistics>,
    device: &WgpuDevice,
    shader: &'static Shader,
) -> Vec<Dispatch> {
    let vectors = std::ptr::eq(shader, &STATISTICS);
    let unit = unit(&a.x, vectors);
    let one = |(lines, rows): (Range<usize>, Range<usize>)| {
        let (x, x_base) = a.x.band(rows.start, rows.len()).bind(device);
        let (out, base) = a.out.band(lines.start, lines.len()).bind(device);
        let params = Params {
            rows: a.x.rows as u32,
            channels: a.x.cols as u32,
            norm_groups: a.groups as u32,
            chunk_rows: a.width as u32,
            x_base: x_base / unit as u32,
            x_stride: (a.x.stride / unit) as u32,
            partials_base: base / 2,
            ..Params::zeroed()
        };
        let groups = lines.len() * if vectors { 1 } else { a.groups };
        let work = work(rows.len() * a.x.cols * a.x.dtype.size(), vectors);
        let constants = statistics_constants(a.x.dtype);
        dispatch(shader, constants, vec![x, out], params, groups, work)
    };
    pieces(&[&a.x], a.width, device).map(one).collect()
}

/// The statistics of the rows of pixels are merged, and applied by the shader `last` in chunks of
/// `chunk_rows` pixels.
fn norm(
    a: &Args<GroupNorm>,
    device: &WgpuDevice,
    last: &'static Shader,
    chunk_rows: usize,
) -> Vec<Dispatch> {
    let vectors = std::ptr::eq(last, &APPLY);
    let scratch = a.scratch.expect("scratch is given as the variant asked for");
    let cols = a.groups * MOMENTS / 4;
    let merged = Matrix { place: scratch.place, rows: 1, cols, stride: cols, dtype: DType::F32 };
    let (merged, statistics_base) = merged.bind(device);
    let statistics_base = statistics_base / 4;
    let common = Params {
        rows: a.x.rows as u32,
        channels: a.x.cols as u32,
        norm_groups: a.groups as u32,
        silu: a.silu.into(),
        eps: a.eps,
        statistics_base,
        ..Params::zeroed()
    };
    let (partials, base) = a.statistics.bind(device);
    let of_rows = Params {
        chunk_rows: a.width as u32,
        chunks: a.statistics.rows as u32,
        partials_base: base / 2,
        ..common
    };
    let moved = a.statistics.rows * a.groups * 8;
    let mut all = vec![dispatch(
        &MERGE,
        vec![],
        vec![partials, merged],
        of_rows,
        a.groups,
        work(moved, true),
    )];
    for (chunks, rows) in pieces(&[&a.x, &a.out], chunk_rows, device) {
        let (x, x_base) = a.x.band(rows.start, rows.len()).bind(device);
        let (out, out_base) = a.out.band(rows.start, rows.len()).bind(device);
        let (weight, weight_base) = a.weight.bind(device);
        let (bias, bias_base) = a.bias.bind(device);
        let (x_unit, out_unit) = (unit(&a.x, vectors), unit(&a.out, vectors));
        let params = Params {
            chunk_rows: chunk_rows as u32,
            first_chunk: chunks.start as u32,
            x_base: x_base / x_unit as u32,
            x_stride: (a.x.stride / x_unit) as u32,
            out_base: out_base / out_unit as u32,
            out_stride: (a.out.stride / out_unit) as u32,
            weight_base,
            bias_base,
            ..common
        };
        let constants = apply_constants(a.x.dtype, a.out.dtype);
        let buffers = vec![x, merged, weight, bias, out];
        let moved = rows.len() * a.x.cols * (a.x.dtype.size() + a.out.dtype.size());
        all.push(dispatch(last, constants, buffers, params, chunks.len(), work(moved, vectors)));
    }
    all
}
