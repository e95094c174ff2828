//! Operations with their operands' places in device memory: what a variant is asked to run.

use super::launch::Matrix;

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

/// `out = tail(x . (scales * w)^T + bias + side)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearArgs {
    /// rows x K, F32 or BF16; a window of columns with any offset.
    pub x: Matrix,
    /// N x K in F32, BF16, F16, F8E4M3, F8E5M2, I8 or a type stored in blocks. Its rows begin at multiples of 16 bytes (the loader pads them):
    /// `stride >= cols`, and the bytes between `cols` and `stride` are zero.
    pub w: Matrix,
    /// 1 x N, F32: a factor for each row of `w`.
    pub scales: Option<Matrix>,
    /// 1 x N, F32.
    pub bias: Option<Matrix>,
    /// rows x N, F32: the product of a side, where `tail` is an activation or nothing.
    pub side: Option<Matrix>,
    pub tail: Tail,
    /// rows x N, F32 or BF16; a window of columns with any offset.
    pub out: Matrix,
}
