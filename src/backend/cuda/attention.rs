//! `attention` on tensor cores from sm_80 on, and in plain loops for shapes that the tensor cores
//! do not take.

use super::arch::{Arch, CudaDevice};
use super::attention_hopper::ATTENTION_HOPPER;
use super::attention_int8::{self, ATTENTION_INT8};
use super::launch::{Args, Cuda, Kernel, Launch, Matrix, Variant, address, code};
use crate::backend::gpu::{first, variants};
use crate::dtype::DType;
use crate::op::Attention;

/// As in `kernels/attention_flash.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Params {
    queries: u32,
    tokens: u32,
    heads: u32,
    head_dim: u32,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    out_stride: u32,
    first_stride: u32,
    bias_stride: u32,
    first: u32,
    causal: u32,
    bias_type: u32,
    scale: f32,
}

/// Buffers: q, k, v, bias, first, out.
const fn kernel(entry: &'static str, threads: u32, shared: u32) -> Kernel {
    let params = size_of::<Params>();
    Kernel { module: "attention.sm80", entry, buffers: 6, maps: 0, params, threads, shared }
}

static D64: Kernel = kernel("attention_d64", 128, 33_792);
static D128: Kernel = kernel("attention_d128", 128, 32_768);
static D128_MASKED: Kernel = kernel("attention_d128_masked", 128, 33_792);
static D512: Kernel = kernel("attention_d512", 256, 81_920);
static ANY: Kernel = kernel("attention_any", 128, 0);

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[&D64, &D128, &D128_MASKED, &D512, &ANY];

/// Query rows of a block.
const ROWS_D64: usize = 64;
const ROWS_D128: usize = 128;
const ROWS_D128_MASKED: usize = 64;
const ROWS_D512: usize = 64;
const ROWS_ANY: usize = 4;

/// Blocks along y and z are counted in 16 bits.
const GRID: usize = 65_535;

/// Best first, so that each runs the shapes it is made for: `d64` computes 64 columns also for
/// heads of 40, `d128` computes 128 also for heads of 72.
pub static ATTENTION: &[Variant<Attention>] = &[
    Variant {
        name: "attention_d64_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, device| tensor_cores(a, device, 64, &D64),
        scratch: |_, _| 0,
        launches: |a, _| tiles(a, &D64, ROWS_D64),
    },
    Variant {
        name: "attention_d128_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, device| tensor_cores(a, device, 128, &D128).and(plain(a)),
        scratch: |_, _| 0,
        launches: |a, _| tiles(a, &D128, ROWS_D128),
    },
    Variant {
        name: "attention_d128_masked_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, device| tensor_cores(a, device, 128, &D128_MASKED),
        scratch: |_, _| 0,
        launches: |a, _| tiles(a, &D128_MASKED, ROWS_D128_MASKED),
    },
    Variant {
        name: "attention_d512_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, device| tensor_cores(a, device, 512, &D512).and(plain(a)),
        scratch: |_, _| 0,
        launches: |a, _| tiles(a, &D512, ROWS_D512),
    },
    Variant {
        name: "attention_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| any(a),
        scratch: |_, _| 0,
        launches: |a, _| rows(a),
    },
];

variants!(Cuda, Attention: ATTENTION_INT8, ATTENTION_HOPPER, ATTENTION; choose);

/// The kernel with 8-bit integers where `--compute int8` is set and it is faster, else the kernel
/// for Hopper, else the first that accepts the operands.
fn choose(
    a: &Args<Attention>,
    device: &CudaDevice,
) -> Result<&'static Variant<Attention>, &'static str> {
    if let Some(int8) = attention_int8::choose(a, device) {
        return Ok(int8);
    }
    first(ATTENTION_HOPPER.iter().chain(ATTENTION), a, device)
}

/// Checks what all kernels require.
pub(super) fn any(a: &Args<Attention>) -> Result<(), &'static str> {
    let first = a.first.map(|(_, t)| t);
    let (wide, tokens) =
        ([Some(a.q), Some(a.k), Some(a.v), Some(a.out), first, a.bias], a.tokens());
    if [Some(a.q), Some(a.k), Some(a.v), Some(a.out), first]
        .iter()
        .flatten()
        .any(|m| m.dtype != DType::BF16)
    {
        return Err("attention reads and writes BF16");
    }
    if a.bias.is_some_and(|b| !matches!(b.dtype, DType::BF16 | DType::F32)) {
        return Err("the bias is neither BF16 nor F32");
    }
    if a.head_dim() > 1024 {
        return Err("more than 1024 columns a head");
    }
    let small = |n: usize| n < 1 << 31;
    let blocks =
        a.queries().div_ceil(ROWS_ANY).checked_mul(a.heads).and_then(|n| n.checked_mul(a.batch));
    if !wide.iter().flatten().all(|m| small(m.stride))
        || !small(tokens.max(a.queries()))
        || !blocks.is_some_and(small)
    {
        return Err("too large for 32-bit sizes");
    }
    Ok(())
}

/// Checks what the kernels with `mma` require; `dim` is the largest head.
pub(super) fn tensor_cores(
    a: &Args<Attention>,
    device: &CudaDevice,
    dim: usize,
    kernel: &Kernel,
) -> Result<(), &'static str> {
    any(a)?;
    if a.head_dim() > dim {
        return Err("the head is too wide");
    }
    if !a.head_dim().is_multiple_of(8) {
        return Err("a head is not a multiple of 8 columns");
    }
    let stored = a.first.filter(|(n, _)| *n > 0).map(|(_, t)| t);
    if ![Some(a.q), Some(a.k), Some(a.v), Some(a.out), stored].iter().flatten().all(Matrix::aligned)
    {
        return Err("rows or heads do not begin at multiples of 16 bytes");
    }
    // Offsets within the rows of one sequence have 32 bits.
    if [a.q, a.k, a.v]
        .iter()
        .any(|m| m.stride.saturating_mul(m.rows / a.batch).saturating_mul(2) > u32::MAX as usize)
    {
        return Err("the rows of one sequence span 4 GiB");
    }
    if a.heads > GRID || a.batch > GRID {
        return Err("too many heads or sequences for a grid");
    }
    if kernel.shared > device.shared_bytes {
        return Err("too little shared memory");
    }
    Ok(())
}

/// Checks what the kernels require that support neither bias nor causal masks, and that find the
/// largest score before they scale it.
pub(super) fn plain(a: &Args<Attention>) -> Result<(), &'static str> {
    if a.causal || a.bias.is_some() {
        return Err("neither bias nor causal masks");
    }
    if a.scale > 0.0 && a.scale.is_finite() {
        Ok(())
    } else {
        Err("the scale is not a positive number")
    }
}

/// Blocks of `rows` queries of one head. The grid counts query blocks along x, heads along y and
/// sequences along z, so that blocks that read the same keys run together.
fn tiles(a: &Args<Attention>, kernel: &'static Kernel, rows: usize) -> Vec<Launch> {
    launch(a, kernel, [a.queries().div_ceil(rows), a.heads, a.batch])
}

fn rows(a: &Args<Attention>) -> Vec<Launch> {
    launch(a, &ANY, [a.queries().div_ceil(ROWS_ANY) * a.heads * a.batch, 1, 1])
}

/// The parameters of every kernel of this family.
pub(super) fn params(a: &Args<Attention>) -> Params {
    Params {
        queries: a.queries() as u32,
        tokens: a.tokens() as u32,
        heads: a.heads as u32,
        head_dim: a.head_dim() as u32,
        q_stride: a.q.stride as u32,
        k_stride: a.k.stride as u32,
        v_stride: a.v.stride as u32,
        out_stride: a.out.stride as u32,
        first_stride: a.first.map_or(0, |(_, t)| t.stride as u32),
        bias_stride: a.bias.map_or(0, |b| b.stride as u32),
        first: a.first.map_or(0, |(n, _)| n as u32),
        causal: u32::from(a.causal),
        bias_type: a.bias.map_or(0, |b| code(b.dtype)),
        scale: a.scale,
    }
}

fn launch(a: &Args<Attention>, kernel: &'static Kernel, grid: [usize; 3]) -> Vec<Launch> {
    if a.q.rows == 0 || a.q.cols == 0 {
        return vec![];
    }
    let params = params(a);
    let first = address(a.first.map(|(_, t)| t));
    vec![Launch {
        kernel,
        grid: grid.map(|n| n as u32),
        buffers: vec![
            a.q.address(),
            a.k.address(),
            a.v.address(),
            address(a.bias),
            first,
            a.out.address(),
        ],
        maps: vec![],
        params: bytemuck::bytes_of(&params).to_vec(),
    }]
}
