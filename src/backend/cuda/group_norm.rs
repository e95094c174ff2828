//! Group normalisation. `kernels/group_norm.cu` explains the kernels.

use super::arch::{Arch, CudaDevice};
use super::launch::{Args, Cuda, Kernel, Launch, Variant, address, code};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::GroupNorm;

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
/// Bytes of x that a block reads, at least, if there are as many: enough to hide the start and the
/// end of a block.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks of an image, at most: one block merges them in four rounds.
const CHUNKS: usize = 1024;

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
#[cfg(test)]
pub static KERNELS: &[&Kernel] = &[&STATISTICS, &STATISTICS_ANY, &MERGE, &APPLY, &APPLY_ANY];

/// All variants, the fastest first.
pub static GROUP_NORM: &[Variant<GroupNorm>] = &[
    Variant {
        name: "group_norm_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: vectors,
        scratch: |a, _| scratch(a, rows(a)),
        launches: |a, _| {
            let chunk = rows(a);
            let blocks = a.batch * a.pixels().div_ceil(chunk);
            launches(a, (&STATISTICS, chunk, blocks), (&APPLY, chunk))
        },
    },
    Variant {
        name: "group_norm_any_sm80",
        needs: Arch::From(8, 0),
        accepts: any,
        scratch: |a, _| scratch(a, rows_any(a)),
        launches: |a, _| {
            let chunk = rows_any(a);
            let blocks = a.batch * a.groups * a.pixels().div_ceil(chunk);
            launches(
                a,
                (&STATISTICS_ANY, chunk, blocks),
                (&APPLY_ANY, 16_384usize.div_ceil(a.x.cols)),
            )
        },
    },
];

variants!(Cuda, GroupNorm: GROUP_NORM);

/// Rows of a chunk of the vector kernels: whole rounds of four rows for each thread. This depends
/// on the shape alone, and so does the order of summation.
fn rows(a: &Args<GroupNorm>) -> usize {
    let round = 4 * (THREADS / (a.x.cols / 8));
    (CHUNK_BYTES / (2 * a.x.cols)).max(a.pixels().div_ceil(CHUNKS)).next_multiple_of(round)
}

/// Rows of a chunk of `group_norm_statistics_any`, which has one group.
fn rows_any(a: &Args<GroupNorm>) -> usize {
    16_384usize.div_ceil(a.x.cols / a.groups).max(a.pixels().div_ceil(CHUNKS))
}

/// Bytes of the partial moments (mean, squared deviations) of each image, group and chunk. Those of
/// the groups follow after them.
fn partials(a: &Args<GroupNorm>, chunk_rows: usize) -> usize {
    a.batch * a.groups * a.pixels().div_ceil(chunk_rows) * 8
}

fn scratch(a: &Args<GroupNorm>, chunk_rows: usize) -> usize {
    partials(a, chunk_rows) + a.batch * a.groups * 8
}

/// Checks what all kernels require: operands that match, and sizes that fit 32 bits.
fn any(a: &Args<GroupNorm>, _: &CudaDevice) -> Result<(), &'static str> {
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
    if [a.x.dtype, a.out.dtype].iter().any(|d| !matches!(d, DType::BF16 | DType::F32)) {
        return Err("x and out must be BF16 or F32");
    }
    let chunk = rows_any(a);
    if a.x.rows >= 1 << 31
        || a.x.stride.max(a.out.stride) >= 1 << 31
        || a.x.cols >= 1 << 30
        || a.batch * a.groups * a.pixels().div_ceil(chunk) >= 1 << 31
        || chunk * (a.x.cols / a.groups) >= 1 << 31
    {
        return Err("more than 2^31 rows, columns or blocks");
    }
    Ok(())
}

/// Checks that a thread can hold 8 channels, and a block a row.
fn vectors(a: &Args<GroupNorm>, device: &CudaDevice) -> Result<(), &'static str> {
    any(a, device)?;
    if a.x.dtype != DType::BF16 || a.out.dtype != DType::BF16 {
        return Err("x and out must be BF16");
    }
    if !a.x.aligned()
        || !a.out.aligned()
        || !a.weight.address().is_multiple_of(16)
        || !a.bias.address().is_multiple_of(16)
    {
        return Err("x, out, weight or bias are not made of whole 16-byte chunks");
    }
    if a.x.cols > 8 * THREADS {
        return Err("more than 2048 channels");
    }
    Ok(())
}

/// Three launches: statistics by the kernel `first`, each block for a chunk of rows; merging; and
/// applying by the kernel `last`.
fn launches(
    a: &Args<GroupNorm>,
    (first, first_rows, first_blocks): (&'static Kernel, usize, usize),
    (last, last_rows): (&'static Kernel, usize),
) -> Vec<Launch> {
    let scratch = address(a.scratch);
    let statistics = scratch + partials(a, first_rows) as u64;
    let launch = |kernel, blocks: usize, rows: usize, buffers| {
        let params = Params {
            rows: a.pixels() as u32,
            channels: a.x.cols as u32,
            groups: a.groups as u32,
            chunk_rows: rows as u32,
            chunks: a.pixels().div_ceil(rows) as u32,
            x_stride: a.x.stride as u32,
            out_stride: a.out.stride as u32,
            x_dtype: code(a.x.dtype),
            out_dtype: code(a.out.dtype),
            silu: a.silu.into(),
            eps: a.eps,
        };
        let params = bytemuck::bytes_of(&params).to_vec();
        Launch { kernel, grid: [blocks as u32, 1, 1], buffers, maps: vec![], params }
    };
    let last_blocks = a.batch * a.pixels().div_ceil(last_rows);
    vec![
        launch(first, first_blocks, first_rows, vec![a.x.address(), scratch]),
        launch(&MERGE, a.batch * a.groups, first_rows, vec![scratch, statistics]),
        launch(
            last,
            last_blocks,
            last_rows,
            vec![a.x.address(), statistics, a.weight.address(), a.bias.address(), a.out.address()],
        ),
    ]
}
