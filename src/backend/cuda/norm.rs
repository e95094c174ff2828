//! Normalisations on CUDA: layer norm with a modulation or an affine map, RMS norm, and the norm and rotation of queries and keys.
//! `kernels/norm.cu` says how they work.

use bytemuck::{Pod, Zeroable};

use super::elementwise::{activations, counts, vectors};
use super::launch::{Arch, Kernel, Launch, Matrix, Variant, code};
use crate::dtype::DType;

/// Threads of a block in `norm.cu`.
const THREADS: u32 = 128;
const WARPS: usize = THREADS as usize / 32;
/// Columns of a row that a block holds in registers: four vectors of eight for each thread.
const HELD: usize = THREADS as usize * 4 * 8;

/// See `Op::LayerNormModulate`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormModulateArgs {
    /// rows x cols, BF16 or F32.
    pub x: Matrix,
    /// groups x cols, BF16 or F32; a window of columns with any offset.
    pub shift: Matrix,
    /// Like `shift`, with its own number of groups.
    pub scale: Matrix,
    pub eps: f32,
    /// rows x cols, BF16 or F32; may be `x` itself.
    pub out: Matrix,
}

/// See `Op::LayerNorm`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormArgs {
    /// rows x cols, BF16 or F32.
    pub x: Matrix,
    /// Address of cols f32.
    pub weight: u64,
    /// Address of cols f32.
    pub bias: u64,
    pub eps: f32,
    /// rows x cols, BF16 or F32; may be `x` itself.
    pub out: Matrix,
}

/// See `Op::RmsNorm`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNormArgs {
    /// rows x cols, BF16 or F32.
    pub x: Matrix,
    /// Address of cols f32.
    pub weight: u64,
    pub eps: f32,
    /// rows x cols, BF16 or F32; may be `x` itself.
    pub out: Matrix,
}

/// See `Op::QkNormRope`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNormRopeArgs {
    /// batch*n x 3*heads*head_dim, BF16 or F32.
    pub qkv: Matrix,
    /// Address of head_dim f32.
    pub q_gain: u64,
    /// Address of head_dim f32.
    pub k_gain: u64,
    /// tokens x head_dim, F32.
    pub rope: Matrix,
    pub batch: usize,
    pub heads: usize,
    pub tokens: usize,
    pub first: usize,
    pub eps: f32,
    /// batch*tokens x 3*heads*head_dim, BF16 or F32; may be `qkv` itself when n == tokens.
    pub out: Matrix,
}

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

/// Whether f32 vectors begin at multiples of 16 bytes.
fn aligned(addresses: &[u64]) -> Result<(), &'static str> {
    let all = addresses.iter().all(|a| a.is_multiple_of(16));
    all.then_some(()).ok_or("a gain or bias is not aligned to 16 bytes")
}

/// Whether a block can hold a row in registers.
fn held(cols: usize) -> Result<(), &'static str> {
    (cols <= HELD).then_some(()).ok_or("rows are longer than 4096")
}

/// Whether a grid may have that many blocks along x.
fn blocks_fit(blocks: usize) -> Result<(), &'static str> {
    (blocks <= i32::MAX as usize).then_some(()).ok_or("it takes more than 2^31 - 1 blocks")
}

/// Whether the rotations are what both kernels read: pairs of f32.
fn rotations(a: &QkNormRopeArgs) -> Result<(), &'static str> {
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

fn layer_norm_modulate(a: &LayerNormModulateArgs, kernel: &'static Kernel) -> Vec<Launch> {
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
        vec![a.x.address, a.shift.address, a.scale.address, a.out.address],
    )
}

fn layer_norm(a: &LayerNormArgs, kernel: &'static Kernel) -> Vec<Launch> {
    let buffers = vec![a.x.address, a.weight, a.bias, a.out.address];
    NormParams::new(&a.x, &a.out, a.eps).launch(kernel, a.x.rows, buffers)
}

fn rms_norm(a: &RmsNormArgs, kernel: &'static Kernel) -> Vec<Launch> {
    NormParams::new(&a.x, &a.out, a.eps).launch(
        kernel,
        a.x.rows,
        vec![a.x.address, a.weight, a.out.address],
    )
}

impl QkNormRopeArgs {
    fn head_dim(&self) -> usize {
        self.qkv.cols / (3 * self.heads)
    }

    /// Columns to work on: v stays where it is when the result replaces the input.
    fn cols(&self) -> usize {
        let in_place = (self.qkv.address, self.qkv.stride) == (self.out.address, self.out.stride);
        if in_place { self.qkv.cols / 3 * 2 } else { self.qkv.cols }
    }

    fn launch(&self, kernel: &'static Kernel, blocks: usize) -> Vec<Launch> {
        if blocks == 0 {
            return vec![];
        }
        let params = QkNormRopeParams {
            rows: self.qkv.rows as u32,
            count: (self.qkv.rows / self.batch) as u32,
            tokens: self.tokens as u32,
            first: self.first as u32,
            heads: self.heads as u32,
            head_dim: self.head_dim() as u32,
            cols: self.cols() as u32,
            qkv_stride: self.qkv.stride as u32,
            rope_stride: self.rope.stride as u32,
            out_stride: self.out.stride as u32,
            qkv_type: code(self.qkv.dtype),
            out_type: code(self.out.dtype),
            eps: self.eps,
            inverse_dim: 1.0 / self.head_dim() as f32,
        };
        let buffers =
            vec![self.qkv.address, self.q_gain, self.k_gain, self.rope.address, self.out.address];
        let params = bytemuck::bytes_of(&params).to_vec();
        vec![Launch { kernel, grid: [blocks as u32, 1, 1], buffers, maps: vec![], params }]
    }

    /// A warp for each head of each row.
    fn warps(&self) -> usize {
        self.qkv.rows * (self.cols() / self.head_dim().max(1))
    }
}

/// Best first; the last one takes every type, width and alignment.
pub static LAYER_NORM_MODULATE: &[Variant<LayerNormModulateArgs>] = &[
    Variant {
        name: "layer_norm_modulate_bf16_sm80",
        arch: Arch::From(8, 0),
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
        arch: Arch::From(8, 0),
        accepts: |a, _| {
            activations(&[&a.x, &a.shift, &a.scale, &a.out])?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| layer_norm_modulate(a, &LAYER_NORM_MODULATE_ANY),
    },
];

/// Best first; the last one takes every type, width and alignment.
pub static LAYER_NORM: &[Variant<LayerNormArgs>] = &[
    Variant {
        name: "layer_norm_bf16_sm80",
        arch: Arch::From(8, 0),
        accepts: |a, _| {
            vectors(&[&a.x, &a.out])?;
            aligned(&[a.weight, a.bias])?;
            held(a.x.cols)?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| layer_norm(a, &LAYER_NORM_BF16),
    },
    Variant {
        name: "layer_norm_any_sm80",
        arch: Arch::From(8, 0),
        accepts: |a, _| {
            activations(&[&a.x, &a.out])?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| layer_norm(a, &LAYER_NORM_ANY),
    },
];

/// Best first; the last one takes every type, width and alignment.
pub static RMS_NORM: &[Variant<RmsNormArgs>] = &[
    Variant {
        name: "rms_norm_bf16_sm80",
        arch: Arch::From(8, 0),
        accepts: |a, _| {
            vectors(&[&a.x, &a.out])?;
            aligned(&[a.weight])?;
            held(a.x.cols)?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| rms_norm(a, &RMS_NORM_BF16),
    },
    Variant {
        name: "rms_norm_any_sm80",
        arch: Arch::From(8, 0),
        accepts: |a, _| {
            activations(&[&a.x, &a.out])?;
            blocks_fit(a.x.rows)
        },
        scratch: |_, _| 0,
        launches: |a, _| rms_norm(a, &RMS_NORM_ANY),
    },
];

/// Best first; the last one takes every type, even head_dim and alignment.
pub static QK_NORM_ROPE: &[Variant<QkNormRopeArgs>] = &[
    Variant {
        name: "qk_norm_rope_bf16_sm80",
        arch: Arch::From(8, 0),
        accepts: |a, _| {
            vectors(&[&a.qkv, &a.out])?;
            aligned(&[a.q_gain, a.k_gain])?;
            rotations(a)?;
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
        launches: |a, _| a.launch(&QK_NORM_ROPE_BF16, a.qkv.rows),
    },
    Variant {
        name: "qk_norm_rope_any_sm80",
        arch: Arch::From(8, 0),
        accepts: |a, _| {
            activations(&[&a.qkv, &a.out])?;
            rotations(a)?;
            blocks_fit(a.warps().div_ceil(WARPS))
        },
        scratch: |_, _| 0,
        launches: |a, _| a.launch(&QK_NORM_ROPE_ANY, a.warps().div_ceil(WARPS)),
    },
];
