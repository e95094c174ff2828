//! Normalisations: layer norm with a modulation or an affine map, RMS norm, and norm and rotation
//! of queries and keys. `kernels/norm.cu` explains the kernels.

use bytemuck::{Pod, Zeroable};

use super::arch::Arch;
use super::elementwise::{activations, counts, vectors};
use super::launch::{Args, Cuda, Kernel, Launch, Matrix, Variant, code};
use crate::backend::gpu::variants;
use crate::dtype::DType;
use crate::op::{LayerNorm, LayerNormModulate, Pairs, QkNormRope, RmsNorm};

/// Threads of a block in `norm.cu`.
const THREADS: u32 = 128;
const WARPS: usize = THREADS as usize / 32;
/// Columns of a row that a block holds in registers: four vectors of eight for each thread.
const HELD: usize = THREADS as usize * 4 * 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    cols: u32,
    x_stride: u32,
    out_stride: u32,
    shift_stride: u32,
    scale_stride: u32,
    shift_rows: u32,
    scale_rows: u32,
    x_type: u32,
    out_type: u32,
    shift_type: u32,
    scale_type: u32,
    eps: f32,
    inverse_cols: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QkNormRopeParams {
    rows: u32,
    count: u32,
    tokens: u32,
    first: u32,
    heads: u32,
    head_dim: u32,
    kv_heads: u32,
    halves: u32,
    cols: u32,
    qkv_stride: u32,
    rope_stride: u32,
    out_stride: u32,
    qkv_type: u32,
    out_type: u32,
    eps: f32,
    inverse_dim: f32,
}

const fn kernel(entry: &'static str, buffers: usize, params: usize) -> Kernel {
    Kernel { module: "norm.sm80", entry, buffers, maps: 0, params, threads: THREADS, shared: 0 }
}

const fn norm_kernel(entry: &'static str, buffers: usize) -> Kernel {
    kernel(entry, buffers, size_of::<NormParams>())
}

static LAYER_NORM_MODULATE_BF16: Kernel = norm_kernel("layer_norm_modulate_bf16_sm80", 4);
static LAYER_NORM_MODULATE_ANY: Kernel = norm_kernel("layer_norm_modulate_any_sm80", 4);
static LAYER_NORM_BF16: Kernel = norm_kernel("layer_norm_bf16_sm80", 4);
static LAYER_NORM_ANY: Kernel = norm_kernel("layer_norm_any_sm80", 4);
static RMS_NORM_BF16: Kernel = norm_kernel("rms_norm_bf16_sm80", 3);
static RMS_NORM_ANY: Kernel = norm_kernel("rms_norm_any_sm80", 3);
static QK_NORM_ROPE_BF16: Kernel =
    kernel("qk_norm_rope_bf16_sm80", 5, size_of::<QkNormRopeParams>());
static QK_NORM_ROPE_ANY: Kernel = kernel("qk_norm_rope_any_sm80", 5, size_of::<QkNormRopeParams>());

/// Every kernel of this family.
pub static KERNELS: &[&Kernel] = &[
    &LAYER_NORM_MODULATE_BF16,
    &LAYER_NORM_MODULATE_ANY,
    &LAYER_NORM_BF16,
    &LAYER_NORM_ANY,
    &RMS_NORM_BF16,
    &RMS_NORM_ANY,
    &QK_NORM_ROPE_BF16,
    &QK_NORM_ROPE_ANY,
];

/// Checks that f32 vectors begin at multiples of 16 bytes.
fn aligned(vectors: &[&Matrix]) -> Result<(), &'static str> {
    let all = vectors.iter().all(|v| v.address().is_multiple_of(16));
    all.then_some(()).ok_or("a gain or bias is not aligned to 16 bytes")
}

/// Checks that a block can hold a row in registers.
fn held(cols: usize) -> Result<(), &'static str> {
    (cols <= HELD).then_some(()).ok_or("rows are longer than 4096")
}

/// Checks that a grid can have that many blocks along x.
fn blocks_fit(blocks: usize) -> Result<(), &'static str> {
    (blocks <= i32::MAX as usize).then_some(()).ok_or("it takes more than 2^31 - 1 blocks")
}

/// Checks that the rotations are pairs of f32, as both kernels require.
fn rotations(a: &Args<QkNormRope>) -> Result<(), &'static str> {
    if a.rope.dtype != DType::F32 {
        return Err("the rotations are not f32");
    }
    counts(&[&a.rope])?;
    a.head_dim().is_multiple_of(2).then_some(()).ok_or("head_dim is odd")
}

impl NormParams {
    fn new(x: &Matrix, out: &Matrix, eps: f32) -> NormParams {
        NormParams {
            cols: x.cols as u32,
            x_stride: x.stride as u32,
            out_stride: out.stride as u32,
            shift_rows: 1,
            scale_rows: 1,
            x_type: code(x.dtype),
            out_type: code(out.dtype),
            eps,
            inverse_cols: 1.0 / x.cols as f32,
            ..Zeroable::zeroed()
        }
    }

    /// One block for each of `rows`.
    fn launch(&self, kernel: &'static Kernel, rows: usize, buffers: Vec<u64>) -> Vec<Launch> {
        if rows == 0 || self.cols == 0 {
            return vec![];
        }
        let params = bytemuck::bytes_of(self).to_vec();
        vec![Launch { kernel, grid: [rows as u32, 1, 1], buffers, maps: vec![], params }]
    }
}

fn layer_norm_modulate(a: &Args<LayerNormModulate>, kernel: &'static Kernel) -> Vec<Launch> {
    let params = NormParams {
        shift_stride: a.shift.stride as u32,
        scale_stride: a.scale.stride as u32,
        shift_rows: (a.x.rows / a.shift.rows.max(1)) as u32,
        scale_rows: (a.x.rows / a.scale.rows.max(1)) as u32,
        shift_type: code(a.shift.dtype),
        scale_type: code(a.scale.dtype),
        ..NormParams::new(&a.x, &a.out, a.eps)
    };
    params.launch(
        kernel,
        a.x.rows,
        vec![a.x.address(), a.shift.address(), a.scale.address(), a.out.address()],
    )
}

fn layer_norm(a: &Args<LayerNorm>, kernel: &'static Kernel) -> Vec<Launch> {
    let buffers = vec![a.x.address(), a.weight.address(), a.bias.address(), a.out.address()];
    NormParams::new(&a.x, &a.out, a.eps).launch(kernel, a.x.rows, buffers)
}

fn rms_norm(a: &Args<RmsNorm>, kernel: &'static Kernel) -> Vec<Launch> {
    NormParams::new(&a.x, &a.out, a.eps).launch(
        kernel,
        a.x.rows,
        vec![a.x.address(), a.weight.address(), a.out.address()],
    )
}

/// Columns to process: v stays in place if the result replaces the input.
fn cols(a: &Args<QkNormRope>) -> usize {
    a.row_heads() * a.head_dim()
}

fn qk_norm_rope(a: &Args<QkNormRope>, kernel: &'static Kernel, blocks: usize) -> Vec<Launch> {
    if blocks == 0 {
        return vec![];
    }
    let params = QkNormRopeParams {
        rows: a.qkv.rows as u32,
        count: (a.qkv.rows / a.batch) as u32,
        tokens: a.tokens as u32,
        first: a.first as u32,
        heads: a.heads as u32,
        head_dim: a.head_dim() as u32,
        kv_heads: a.kv_heads as u32,
        halves: u32::from(a.pairs == Pairs::Halves),
        cols: cols(a) as u32,
        qkv_stride: a.qkv.stride as u32,
        rope_stride: a.rope.stride as u32,
        out_stride: a.out.stride as u32,
        qkv_type: code(a.qkv.dtype),
        out_type: code(a.out.dtype),
        eps: a.eps,
        inverse_dim: 1.0 / a.head_dim() as f32,
    };
    let buffers = [a.qkv, a.q_gain, a.k_gain, a.rope, a.out].map(|m| m.address()).to_vec();
    let params = bytemuck::bytes_of(&params).to_vec();
    vec![Launch { kernel, grid: [blocks as u32, 1, 1], buffers, maps: vec![], params }]
}

/// A warp for each head of each row.
fn warps(a: &Args<QkNormRope>) -> usize {
    a.qkv.rows * (cols(a) / a.head_dim().max(1))
}

/// Best first; the last one takes every type, width and alignment.
pub static LAYER_NORM_MODULATE: &[Variant<LayerNormModulate>] = &[
    Variant {
        name: "layer_norm_modulate_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            vectors(&[&a.x, &a.shift, &a.scale, &a.out])?;
            held(a.x.cols)?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| layer_norm_modulate(a, &LAYER_NORM_MODULATE_BF16),
    },
    Variant {
        name: "layer_norm_modulate_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            activations(&[&a.x, &a.shift, &a.scale, &a.out])?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| layer_norm_modulate(a, &LAYER_NORM_MODULATE_ANY),
    },
];
variants!(Cuda, LayerNormModulate: LAYER_NORM_MODULATE);

/// Best first; the last one takes every type, width and alignment.
pub static LAYER_NORM: &[Variant<LayerNorm>] = &[
    Variant {
        name: "layer_norm_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            vectors(&[&a.x, &a.out])?;
            aligned(&[&a.weight, &a.bias])?;
            held(a.x.cols)?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| layer_norm(a, &LAYER_NORM_BF16),
    },
    Variant {
        name: "layer_norm_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            activations(&[&a.x, &a.out])?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| layer_norm(a, &LAYER_NORM_ANY),
    },
];
variants!(Cuda, LayerNorm: LAYER_NORM);

/// Best first; the last one takes every type, width and alignment.
pub static RMS_NORM: &[Variant<RmsNorm>] = &[
    Variant {
        name: "rms_norm_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            vectors(&[&a.x, &a.out])?;
            aligned(&[&a.weight])?;
            held(a.x.cols)?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| rms_norm(a, &RMS_NORM_BF16),
    },
    Variant {
        name: "rms_norm_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            activations(&[&a.x, &a.out])?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| rms_norm(a, &RMS_NORM_ANY),
    },
];
variants!(Cuda, RmsNorm: RMS_NORM);

/// Best first; the last one takes every type, even head_dim and alignment.
pub static QK_NORM_ROPE: &[Variant<QkNormRope>] = &[
    Variant {
        name: "qk_norm_rope_bf16_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            vectors(&[&a.qkv, &a.out])?;
            aligned(&[&a.q_gain, &a.k_gain])?;
            rotations(a)?;
            a.is_joint()?;
            if !a.rope.aligned() {
                return Err("the rotations' rows are not aligned to 16 bytes");
            }
            let dim = a.head_dim();
            if !(dim.is_power_of_two() && (8..=256).contains(&dim)) {
                return Err("head_dim is not a power of two from 8 to 256");
            }
            blocks_fit(a.qkv.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| qk_norm_rope(a, &QK_NORM_ROPE_BF16, a.qkv.rows),
    },
    Variant {
        name: "qk_norm_rope_any_sm80",
        needs: Arch::From(8, 0),
        accepts: |a, _| {
            activations(&[&a.qkv, &a.out])?;
            rotations(a)?;
            blocks_fit(warps(a).div_ceil(WARPS))
        },
        scratch: |_, _| 0,
        launches: |a, _| qk_norm_rope(a, &QK_NORM_ROPE_ANY, warps(a).div_ceil(WARPS)),
    },
];
variants!(Cuda, QkNormRope: QK_NORM_ROPE);
