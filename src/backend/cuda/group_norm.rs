//! Group normalisation. `kernels/group_norm.cu` explains the kernels.

use super::arch::Arch;
use super::launch::{Args, Cuda, Kernel, Launch, Matrix, Variant, address, code};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{GroupNorm, GroupStatistics};

/// As in `kernels/group_norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    rows: u32,
    channels: u32,
    groups: u32,
    chunk_rows: u32,
    chunks: u32,
    x_stride: u32,
    out_stride: u32,
    x_dtype: u32,
    out_dtype: u32,
    silu: u32,
    eps: f32,
}

const THREADS: usize = 256;
/// Bytes of x that a block of `group_norm_apply_bf16` reads: enough to hide the start and the end
/// of a block.
const CHUNK_BYTES: usize = 64 << 10;

const fn kernel(entry: &'static str, buffers: usize) -> Kernel {
    let params = size_of::<Params>();
    Kernel {
        module: "group_norm.sm80",
        entry,
        buffers,
        maps: 0,
        params,
        threads: THREADS as u32,
        shared: 0,
    }
}

static STATISTICS: Kernel = kernel("group_norm_statistics_bf16", 2);
static STATISTICS_ANY: Kernel = kernel("group_norm_statistics_any", 2);
static MERGE: Kernel = kernel("group_norm_merge", 2);
static APPLY: Kernel = kernel("group_norm_apply_bf16", 5);
static APPLY_ANY: Kernel = kernel("group_norm_apply_any", 5);

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[&STATISTICS, &STATISTICS_ANY, &MERGE, &APPLY, &APPLY_ANY];

/// All variants, the fastest first.
pub static GROUP_STATISTICS: &[Variant<GroupStatistics>] = &[
    Variant {
        name: "group_statistics_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| statistics_any(a).and(statistics_vectors(a)),
        scratch: |_, _| 0,
        launches: |a, _| vec![statistics(a, &STATISTICS, a.x.rows / a.width)],
    },
    Variant {
        name: "group_statistics_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| statistics_any(a),
        scratch: |_, _| 0,
        launches: |a, _| vec![statistics(a, &STATISTICS_ANY, a.x.rows / a.width * a.groups)],
    },
];

/// All variants, the fastest first.
pub static GROUP_NORM: &[Variant<GroupNorm>] = &[
    Variant {
        name: "group_norm_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| norm_any(a).and(norm_vectors(a)),
        scratch: |a, _| a.groups * 8,
        launches: |a, _| {
            let round = 4 * (THREADS / (a.x.cols / 8));
            let rows = (CHUNK_BYTES / (2 * a.x.cols)).next_multiple_of(round);
            norm(a, &APPLY, rows)
        },
    },
    Variant {
        name: "group_norm_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| norm_any(a),
        scratch: |a, _| a.groups * 8,
        launches: |a, _| norm(a, &APPLY_ANY, 16_384usize.div_ceil(a.x.cols)),
    },
];

variants!(Cuda, GroupStatistics: GROUP_STATISTICS);
variants!(Cuda, GroupNorm: GROUP_NORM);

/// Checks what all kernels require of pixels: sizes that fit 32 bits.
fn pixels(x: &Matrix, width: usize, groups: usize) -> Result<(), &'static str> {
    if [x.rows, x.cols, width, groups].contains(&0) || !x.cols.is_multiple_of(groups) {
        return Err("a size is 0, or the channels are not a multiple of the groups");
    }
    if !matches!(x.dtype, DType::BF16 | DType::F32) || x.stride < x.cols {
        return Err("x must be BF16 or F32");
    }
    if x.rows.saturating_mul(groups) >= 1 << 31
        || x.stride >= 1 << 31
        || width.saturating_mul(x.cols) >= 1 << 31
    {
        return Err("more than 2^31 rows, columns or blocks");
    }
    Ok(())
}

/// Whether the statistics are f32 without gaps, as all kernels access them.
fn dense(statistics: &Matrix, groups: usize) -> Result<(), &'static str> {
    let columns = 2 * groups;
    if (statistics.cols, statistics.stride, statistics.dtype) != (columns, columns, DType::F32)
        || !statistics.address().is_multiple_of(8)
    {
        return Err("statistics are not dense pairs of F32");
    }
    if statistics.rows >= 1 << 24 { Err("more than 2^24 rows of pixels") } else { Ok(()) }
}

fn statistics_any(a: &Args<GroupStatistics>) -> Result<(), &'static str> {
    pixels(&a.x, a.width, a.groups)?;
    dense(&a.out, a.groups)?;
    if !a.x.rows.is_multiple_of(a.width) || a.out.rows != a.x.rows / a.width {
        return Err("out does not have a row for each row of pixels");
    }
    Ok(())
}

/// Checks that a thread can hold 8 channels, and a block a pixel.
fn eight_channels(x: &Matrix) -> Result<(), &'static str> {
    if x.dtype != DType::BF16 || !x.aligned() {
        return Err("x is not BF16 in whole 16-byte chunks");
    }
    if x.cols > 8 * THREADS { Err("more than 2048 channels") } else { Ok(()) }
}

fn statistics_vectors(a: &Args<GroupStatistics>) -> Result<(), &'static str> {
    eight_channels(&a.x)
}

fn norm_any(a: &Args<GroupNorm>) -> Result<(), &'static str> {
    pixels(&a.x, a.width, a.groups)?;
    dense(&a.statistics, a.groups)?;
    if (a.x.rows, a.x.cols) != (a.out.rows, a.out.cols) || a.out.stride < a.out.cols {
        return Err("out does not match x");
    }
    if !matches!(a.out.dtype, DType::BF16 | DType::F32) || a.out.stride >= 1 << 31 {
        return Err("out must be BF16 or F32");
    }
    Ok(())
}

fn norm_vectors(a: &Args<GroupNorm>) -> Result<(), &'static str> {
    eight_channels(&a.x)?;
    eight_channels(&a.out)?;
    if ![a.weight, a.bias].iter().all(|v| v.address().is_multiple_of(16)) {
        return Err("weight or bias do not begin at multiples of 16 bytes");
    }
    Ok(())
}

/// Blocks of the kernel `first`, which compute the statistics of one row of pixels each.
fn statistics(a: &Args<GroupStatistics>, first: &'static Kernel, blocks: usize) -> Launch {
    let params = Params {
        rows: a.x.rows as u32,
        channels: a.x.cols as u32,
        groups: a.groups as u32,
        chunk_rows: a.width as u32,
        chunks: (a.x.rows / a.width) as u32,
        x_stride: a.x.stride as u32,
        x_dtype: code(a.x.dtype),
        ..bytemuck::Zeroable::zeroed()
    };
    launch(first, blocks, vec![a.x.address(), a.out.address()], &params)
}

/// Two launches: the statistics of the rows of pixels are merged, and applied by the kernel `last`
/// in blocks of `chunk_rows` pixels.
fn norm(a: &Args<GroupNorm>, last: &'static Kernel, chunk_rows: usize) -> Vec<Launch> {
    let merged = address(a.scratch);
    let params = Params {
        rows: a.x.rows as u32,
        channels: a.x.cols as u32,
        groups: a.groups as u32,
        chunk_rows: chunk_rows as u32,
        chunks: a.x.rows.div_ceil(chunk_rows) as u32,
        x_stride: a.x.stride as u32,
        out_stride: a.out.stride as u32,
        x_dtype: code(a.x.dtype),
        out_dtype: code(a.out.dtype),
        silu: a.silu.into(),
        eps: a.eps,
    };
    let of_rows = Params { chunk_rows: a.width as u32, chunks: a.statistics.rows as u32, ..params };
    let operands =
        vec![a.x.address(), merged, a.weight.address(), a.bias.address(), a.out.address()];
    vec![
        launch(&MERGE, a.groups.div_ceil(4), vec![a.statistics.address(), merged], &of_rows),
        launch(last, params.chunks as usize, operands, &params),
    ]
}

fn launch(kernel: &'static Kernel, blocks: usize, buffers: Vec<u64>, params: &Params) -> Launch {
    let params = bytemuck::bytes_of(params).to_vec();
    Launch { kernel, grid: [blocks as u32, 1, 1], buffers, maps: vec![], params }
}
