//! Operations with their operands' places in device memory: what a variant is asked to run.

use super::launch::Matrix;
use crate::op::ConvShape;

/// What a `linear` does before it stores; see `op::Epilogue`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tail {
    None,
    Silu,
    GeluTanh,
    QuickGelu,
    /// `residual`: rows x N, of the element type of `out`; may be `out` itself.
    Add {
        residual: Matrix,
    },
    /// `out = residual + gate[group] * y`; `gate`: groups x N (a window of BF16 or F32), row r of `rows` belongs to group `r / (rows / groups)`.
    GatedAdd {
        residual: Matrix,
        gate: Matrix,
    },
}

/// What a `linear` adds before its bias: `t . b^T`, the second half of a LoRA.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SideArgs {
    /// rows x rank, BF16; its rows may begin anywhere.
    pub t: Matrix,
    /// N x rank in BF16 or F16; its rows begin at multiples of 16 bytes and are padded with zeros, as those of `LinearArgs::w` are.
    pub b: Matrix,
}

/// `out = tail(x . (scales * w)^T + side + bias)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearArgs {
    /// rows x K, BF16; a window of columns with any offset.
    pub x: Matrix,
    /// N x K in BF16, F16, F8E4M3, F8E5M2, I8 or a type that is stored in blocks. Its rows begin at multiples of 16 bytes (the loader pads them):
    /// `stride >= cols`, and the bytes between `cols` and `stride` are zero. `address` is a multiple of 256, or of the row pitch from one. Rows in
    /// blocks lie plane by plane (`Format::layout`), `stride` counts their bytes.
    pub w: Matrix,
    /// Address of N f32 factors, one for each row of `w`, or 0.
    pub scales: u64,
    /// Address of N f32, or 0.
    pub bias: u64,
    pub side: Option<SideArgs>,
    pub tail: Tail,
    /// rows x N, BF16 or F32; a window of columns with any offset.
    pub out: Matrix,
    /// Address of scratch (256-aligned), as much as the variant asked for.
    pub scratch: u64,
}

/// See `Op::Attention`. All of q, k, v, out are `batch*tokens x heads*head_dim` windows in BF16 (`out` has `batch*(tokens - first)` rows).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionArgs {
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub batch: usize,
    pub heads: usize,
    pub scale: f32,
    pub causal: bool,
    /// `(2*tokens - 1) x heads`, BF16 or F32.
    pub bias: Option<Matrix>,
    /// The first n tokens of each picture go to this matrix, `batch*n x heads*head_dim`.
    pub first: Option<(usize, Matrix)>,
    pub out: Matrix,
    pub scratch: u64,
}

impl AttentionArgs {
    pub fn tokens(&self) -> usize {
        self.q.rows / self.batch
    }
    pub fn head_dim(&self) -> usize {
        self.q.cols / self.heads
    }
}

/// See `Op::Conv2d`. The loader has brought the weight into the order `out_channels x (kernel*kernel) x in_channels` (taps row by row, input channel
/// fastest) as BF16; `w` is `out_channels x (kernel*kernel*in_channels)`, its rows begin at multiples of 16 bytes (padded with zeros at the end of a row).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv2dArgs {
    /// `batch*height*width x in_channels`, BF16, dense.
    pub x: Matrix,
    pub w: Matrix,
    /// Address of out_channels f32, or 0.
    pub bias: u64,
    pub shape: ConvShape,
    /// Of the shape and type of `out`; may be `out` itself.
    pub residual: Option<Matrix>,
    /// `batch*oh*ow x out_channels`, BF16 or F32, dense.
    pub out: Matrix,
    pub scratch: u64,
}
