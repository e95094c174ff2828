//! What all kernels of `linear` share: their parameters, their buffers, and their requirements.

use super::launch::{Args, Matrix, Side, address, code};
use crate::dtype::DType;
use crate::dtype::GROUP;
use crate::op::Linear;

/// `LinearParams` in `kernels/epilogue.cuh`, for every kernel of the family. Strides count
/// elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub rows: u32,
    pub n: u32,
    pub k: u32,
    pub x_stride: u32,
    pub w_stride: u32,
    pub out_stride: u32,
    pub residual_stride: u32,
    pub gate_stride: u32,
    /// Rows of one group: row r is multiplied with row `r / group_rows` of the gate.
    pub group_rows: u32,
    /// 0 none, 1 silu, 2 gelu_tanh, 3 quick_gelu, 4 add, 5 gated add.
    pub tail: u32,
    /// Element type of `out` and the residual.
    pub out_dtype: u32,
    pub gate_dtype: u32,
    /// 1 if n is a multiple of 4 and four columns of out, residual, gate, scales and bias can be
    /// accessed as one vector.
    pub vector: u32,
    /// Number of parts of k that are summed separately; see `split_steps`.
    pub splits: u32,
    pub split_steps: u32,
    pub w_dtype: u32,
    /// Columns of t and b; 0 if there is no side branch.
    pub rank: u32,
    pub t_stride: u32,
    pub b_stride: u32,
    /// 1 if rows of t can be copied in chunks of 16 bytes.
    pub t_vector: u32,
    pub b_dtype: u32,
    /// For block-quantised weights: bytes from the first plane of a row to the others. `w_stride`
    /// counts bytes then.
    pub planes: [u32; 3],
}

/// Elements of k that a kernel's pipeline processes at a time.
pub const STEP: usize = 32;

/// The parameters of a launch that sums all of k at once. `a` must have passed [`shapes`].
pub fn params(a: &Args<Linear>) -> Params {
    let (residual, gate) = (a.tail.residual(), a.tail.gate());
    let planes = a.w.dtype.format().map_or([0; 5], |f| f.layout(a.w.cols).planes);
    let fours = |m: &Matrix| {
        m.address().is_multiple_of(4 * m.dtype.size() as u64)
            && m.stride.is_multiple_of(4)
            && m.cols.is_multiple_of(4)
    };
    Params {
        rows: a.x.rows as u32,
        n: a.w.rows as u32,
        k: a.x.cols as u32,
        x_stride: a.x.stride as u32,
        w_stride: a.w.stride as u32,
        out_stride: a.out.stride as u32,
        residual_stride: residual.map_or(0, |r| r.stride as u32),
        gate_stride: gate.map_or(0, |g| g.stride as u32),
        group_rows: gate.map_or(1, |g| (a.x.rows / g.rows) as u32),
        tail: a.tail.code(),
        out_dtype: code(a.out.dtype),
        gate_dtype: gate.map_or(0, |g| code(g.dtype)),
        vector: ([Some(a.out), residual, gate].iter().flatten().all(fours)
            && (address(a.scales) | address(a.bias)).is_multiple_of(16)) as u32,
        splits: 1,
        split_steps: a.x.cols.div_ceil(STEP) as u32,
        w_dtype: code(a.w.dtype),
        rank: a.side.map_or(0, |s| s.t.cols as u32),
        t_stride: a.side.map_or(0, |s| s.t.stride as u32),
        b_stride: a.side.map_or(0, |s| s.b.stride as u32),
        t_vector: a.side.is_some_and(|s| s.t.aligned()) as u32,
        b_dtype: a.side.map_or(0, |s| code(s.b.dtype)),
        planes: [planes[1] as u32, planes[2] as u32, planes[3] as u32],
    }
}

/// The buffers of all kernels of the family: x, w, scales, bias, residual, gate, out, scratch, t,
/// b.
pub fn buffers(a: &Args<Linear>) -> Vec<u64> {
    let (t, b) = (a.side.map(|s| s.t), a.side.map(|s| s.b));
    vec![
        a.x.address(),
        a.w.address(),
        address(a.scales),
        address(a.bias),
        address(a.tail.residual()),
        address(a.tail.gate()),
        a.out.address(),
        address(a.scratch),
        address(t),
        address(b),
    ]
}

/// Checks what every kernel of the family requires that multiplies the stored weights.
pub fn legal(a: &Args<Linear>) -> Result<(), &'static str> {
    if a.int8.is_some() {
        return Err("the product is to be computed in int8");
    }
    shapes(a)
}

/// Checks what every kernel of the family requires. Shapes that contradict each other are a bug of
/// the caller, and panic.
pub fn shapes(a: &Args<Linear>) -> Result<(), &'static str> {
    let (rows, n, k) = (a.x.rows, a.w.rows, a.x.cols);
    assert!(
        a.w.cols == k && a.out.rows == rows && a.out.cols == n,
        "linear: x, w and out do not fit together"
    );
    assert!(
        a.x.dtype == DType::BF16 && matches!(a.out.dtype, DType::BF16 | DType::F32),
        "linear: element types"
    );
    if let Some(r) = a.tail.residual() {
        assert!(
            r.rows == rows && r.cols == n && r.dtype == a.out.dtype,
            "linear: residual and out differ"
        );
    }
    if let Some(g) = a.tail.gate() {
        assert!(
            g.cols == n && g.rows > 0 && rows.is_multiple_of(g.rows),
            "linear: the gate does not fit"
        );
        assert!(matches!(g.dtype, DType::BF16 | DType::F32), "linear: element type of the gate");
    }
    if let Some(Side { t, b }) = a.side {
        assert!(t.rows == rows && b.rows == n && t.cols == b.cols, "linear: the side does not fit");
        assert!(t.dtype == DType::BF16, "linear: element type of the side");
        if !matches!(b.dtype, DType::BF16 | DType::F16) {
            return Err("the LoRA's weights must be BF16 or F16");
        }
        if !b.address().is_multiple_of(16) || !b.stride.is_multiple_of(8) {
            return Err("rows of the LoRA's weights do not begin at multiples of 16 bytes");
        }
        if b.cols == 0 || t.stride.max(b.stride) > 1 << 30 {
            return Err("the LoRA has rank 0, or rows of more than 2^30 elements");
        }
    }
    if !a.w.dtype.is_plain() {
        if !k.is_multiple_of(GROUP) {
            return Err("rows of weights in blocks must be multiples of 32 elements");
        }
        if !a.w.address().is_multiple_of(16) || !a.w.stride.is_multiple_of(16) {
            return Err("rows of the weights do not begin at multiples of 16 bytes");
        }
    } else if !matches!(
        a.w.dtype,
        DType::BF16 | DType::F16 | DType::F8E4M3 | DType::F8E5M2 | DType::I8
    ) {
        return Err("weights must be BF16, F16, F8_E4M3, F8_E5M2, I8 or in blocks");
    }
    if rows == 0 || n == 0 || k == 0 {
        return Err("empty");
    }
    let strides = [
        a.x.stride,
        a.w.stride,
        a.out.stride,
        a.tail.residual().map_or(0, |r| r.stride),
        a.tail.gate().map_or(0, |g| g.stride),
    ];
    // Byte offsets within a row, and sizes rounded up to whole tiles, must fit 32 bits.
    if rows > 1 << 31 || n > 1 << 30 || strides.iter().any(|&s| s > 1 << 30) {
        return Err("a side has more than 2^30 elements");
    }
    if rows.div_ceil(64) * n.div_ceil(64) > i32::MAX as usize {
        return Err("more tiles than a grid has blocks");
    }
    Ok(())
}

/// Checks that rows of x and w can be copied 16 bytes at a time. Rows of w are padded, so K can
/// have any size.
pub fn vectors(a: &Args<Linear>) -> Result<(), &'static str> {
    legal(a)?;
    if !a.x.aligned() {
        return Err("x is not aligned to 16 bytes");
    }
    if !a.w.address().is_multiple_of(16) || !a.w.stride_bytes().is_multiple_of(16) {
        return Err("rows of the weights do not begin at multiples of 16 bytes");
    }
    Ok(())
}
