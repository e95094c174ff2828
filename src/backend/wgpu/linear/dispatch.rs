//! What all variants of `linear` share: their `Params`, their dispatches, and their requirements.

use crate::backend::wgpu::launch::{
    Args, Constants, Dispatch, Grid, Matrix, Shader, WgpuDevice, Window, blocks, code,
};
use crate::dtype::DType;
use crate::op::Linear;

/// `Params` in `shaders/linear_params.wgsl`, for every shader of the family. Strides and bases
/// count elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    grid: Grid,
    rows: u32,
    n: u32,
    k: u32,
    x_base: u32,
    x_stride: u32,
    w_base: u32,
    w_stride: u32,
    scales_base: u32,
    bias_base: u32,
    residual_base: u32,
    residual_stride: u32,
    gate_base: u32,
    gate_stride: u32,
    out_base: u32,
    out_stride: u32,
    /// 0 none, 1 silu, 2 gelu_tanh, 3 quick_gelu, 4 add, 5 gated add.
    tail: u32,
    out_type: u32,
    gate_type: u32,
    residual_type: u32,
    /// Number of the first row of the dispatch within the operation.
    first_row: u32,
    /// Row r of the operation is multiplied with row `r / group_rows` of the gate.
    group_rows: u32,
    has_scales: u32,
    has_bias: u32,
    /// 1 if `residual` is the product of a side branch.
    has_side: u32,
    row_tiles: u32,
    column_tiles: u32,
    /// 1 if a product in int8 has further factors.
    has_factors: u32,
    factors_base: u32,
}

/// The matrix that is bound as `residual`: it is added at the end, or before the activation.
fn residual(a: &Args<Linear>) -> Option<Matrix> {
    a.tail.residual().or(a.side)
}

/// The part of the result that one workgroup computes.
#[derive(Clone, Copy)]
pub struct Block {
    pub rows: usize,
    pub columns: usize,
    /// Time of a product relative to tiles of whole vectors.
    pub slowness: u64,
}

const fn block(rows: usize, columns: usize) -> Block {
    Block { rows, columns, slowness: 1 }
}

pub const LARGE_BLOCK: Block = block(128, 128);
pub const SMALL_BLOCK: Block = block(64, 64);
pub const LOW_BLOCK: Block = block(32, 64);
pub const SOFTWARE_BLOCK: Block = block(32, 64);
pub const ANY_BLOCK: Block = Block { slowness: 16, ..SMALL_BLOCK };

/// Integers that a product in int8 takes at a time.
const WORD: usize = 4;

/// Columns of scales, bias, gate, residual and out that shaders access at a time.
const VECTOR: usize = 4;

/// Operations that a GPU could do, roughly, while it reads one byte: few rows wait for their
/// weights.
const WORK_OF_A_BYTE: u64 = 16;

/// Rows of x, out and the residual, and rows of w, that fit into windows.
fn room(a: &Args<Linear>, device: &WgpuDevice) -> (usize, usize) {
    let rows = [Some(a.x), Some(a.out), residual(a)]
        .iter()
        .flatten()
        .map(|m| m.rows_that_bind(device))
        .min()
        .unwrap_or(0);
    (rows, a.w.rows_that_bind(device))
}

/// [`blocks`] in steps of whole tiles if they fit, else of whole vectors if they fit; one block if
/// everything fits.
fn cut(rows: usize, most: usize, tile: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let unit = [tile, VECTOR].into_iter().find(|&unit| unit <= most && most < rows);
    blocks(rows, most, unit.unwrap_or(1))
}

/// The dispatches of a shader of floats.
pub fn dispatches(
    shader: &'static Shader,
    block: Block,
    constants: &[(&'static str, f64)],
    a: &Args<Linear>,
    device: &WgpuDevice,
) -> Vec<Dispatch> {
    let types = [("X_TYPE", f64::from(code(a.x.dtype))), ("W_TYPE", f64::from(code(a.w.dtype)))];
    products(shader, block, types.iter().chain(constants).copied().collect(), a, device)
}

/// The dispatches of a shader: one, unless windows are too small for the matrices.
pub fn products(
    shader: &'static Shader,
    block: Block,
    constants: Constants,
    a: &Args<Linear>,
    device: &WgpuDevice,
) -> Vec<Dispatch> {
    // Elements that the shader counts k, x and w by.
    let unit = if a.int8.is_some() { WORD } else { 1 };
    let k = if a.int8.is_some() { a.w.cols.next_multiple_of(4 * WORD) } else { a.w.cols };
    let words = |(window, base, stride): (Option<Window>, u32, u32)| {
        (window, base / unit as u32, stride / unit as u32)
    };
    let (rows, columns) = room(a, device);
    let mut made = Vec::new();
    for c in cut(a.w.rows, columns, block.columns) {
        for r in cut(a.x.rows, rows, block.rows) {
            let part = |m: Matrix| m.band(r.start, r.len()).columns(c.start, c.len());
            let bind = |m: Option<Matrix>| {
                m.map_or((None, 0, 0), |m| {
                    let (window, base) = m.bind(device);
                    (Some(window), base, m.stride as u32)
                })
            };
            let of_columns = |m: Option<Matrix>| bind(m.map(|m| m.columns(c.start, c.len())));
            let weights = a.w.band(c.start, c.len());
            let (x, x_base, x_stride) = words(bind(Some(a.x.band(r.start, r.len()))));
            let (w, w_base, w_stride) = words(bind(Some(weights)));
            let (scales, scales_base, _) = of_columns(a.scales);
            let (bias, bias_base, _) = of_columns(a.bias);
            let (factors, factors_base, _) = of_columns(a.factors);
            let (bound, gate) = (residual(a), a.tail.gate());
            let (residual, residual_base, residual_stride) = bind(bound.map(part));
            let (gates, gate_base, gate_stride) = of_columns(gate);
            let (out, out_base, out_stride) = bind(Some(part(a.out)));
            let (row_tiles, column_tiles) =
                (r.len().div_ceil(block.rows), c.len().div_ceil(block.columns));
            let params = Params {
                grid: Grid::default(),
                rows: r.len() as u32,
                n: c.len() as u32,
                k: (k / unit) as u32,
                x_base,
                x_stride,
                w_base,
                w_stride,
                scales_base,
                bias_base,
                residual_base,
                residual_stride,
                gate_base,
                gate_stride,
                out_base,
                out_stride,
                tail: a.tail.code(),
                out_type: code(a.out.dtype),
                gate_type: gate.map_or(0, |g| code(g.dtype)),
                residual_type: bound.map_or(0, |r| code(r.dtype)),
                first_row: r.start as u32,
                group_rows: gate.map_or(1, |g| (a.x.rows / g.rows) as u32),
                has_scales: a.scales.is_some() as u32,
                has_bias: a.bias.is_some() as u32,
                has_side: a.side.is_some() as u32,
                row_tiles: row_tiles as u32,
                column_tiles: column_tiles as u32,
                has_factors: a.factors.is_some() as u32,
                factors_base,
            };
            let sums = (row_tiles * block.rows * column_tiles * block.columns) as u64;
            made.push(Dispatch {
                shader,
                constants: constants.clone(),
                buffers: [x, w, scales, bias, residual, gates, out, factors][..shader.buffers]
                    .to_vec(),
                params: bytemuck::bytes_of(&params).to_vec(),
                groups: row_tiles as u64 * column_tiles as u64,
                work: (block.slowness * 2 * sums * k as u64).max(WORK_OF_A_BYTE * weights.span()),
            });
        }
    }
    made
}

/// Checks what every shader of floats requires.
pub fn legal(a: &Args<Linear>, device: &WgpuDevice) -> Result<(), &'static str> {
    shapes(a, device)?;
    if a.int8.is_some() {
        return Err("the weights are integers for products in int8");
    }
    Ok(())
}

/// Checks what every shader of the family requires. Shapes that contradict each other are a bug of
/// the caller, and panic.
pub fn shapes(a: &Args<Linear>, device: &WgpuDevice) -> Result<(), &'static str> {
    let (rows, n, k) = (a.x.rows, a.w.rows, a.x.cols);
    // Where x has become integers, its rows are longer.
    let made = a.int8.is_some() && a.x.dtype == DType::I8;
    assert!(
        (a.w.cols == k || made) && a.out.rows == rows && a.out.cols == n,
        "linear: x, w and out do not fit together"
    );
    let activation = |m: Matrix| matches!(m.dtype, DType::F32 | DType::BF16);
    assert!((activation(a.x) || made) && activation(a.out), "linear: element types");
    assert!(a.w.dtype != DType::I32, "linear: element type of the weights");
    for v in [a.scales, a.bias, a.factors].into_iter().flatten() {
        assert!(
            v.rows == 1 && v.cols == n && v.dtype == DType::F32,
            "linear: scales, factors and bias are a row of f32"
        );
    }
    let adds = a.tail.residual().is_some();
    assert!(!adds || a.side.is_none(), "linear: a residual and a side at once");
    if let Some(r) = residual(a) {
        let dtype = if a.side.is_some() { DType::F32 } else { a.out.dtype };
        assert!(
            r.rows == rows && r.cols == n && r.dtype == dtype,
            "linear: residual and out differ"
        );
    }
    if let Some(g) = a.tail.gate() {
        assert!(
            g.cols == n && g.rows > 0 && rows.is_multiple_of(g.rows),
            "linear: the gate does not fit"
        );
        assert!(activation(g), "linear: element type of the gate");
    }
    if rows == 0 || n == 0 || k == 0 {
        return Err("empty");
    }
    let vectors = [a.scales, a.bias, a.factors, a.tail.gate()];
    if !vectors.into_iter().flatten().all(|m| m.binds(device)) {
        return Err("scales, factors, bias or gate are larger than a window");
    }
    let (rows, columns) = room(a, device);
    if rows == 0 || columns == 0 { Err("a row is larger than a window") } else { Ok(()) }
}

/// Checks that eight elements of x and w, and four of all other operands, can be accessed at a
/// time. Rows of w are padded.
pub fn vectors(a: &Args<Linear>, device: &WgpuDevice) -> Result<(), &'static str> {
    legal(a, device)?;
    if !a.x.whole_vectors() || !a.x.cols.is_multiple_of(8) {
        return Err("rows of x are not whole vectors");
    }
    if !a.w.place.offset.is_multiple_of(16) || !a.w.stride_bytes().is_multiple_of(16) {
        return Err("rows of the weights do not begin at multiples of 16 bytes");
    }
    fours(a, device)
}

/// Checks that four elements of all operands of the epilogue can be accessed at a time.
pub fn fours(a: &Args<Linear>, device: &WgpuDevice) -> Result<(), &'static str> {
    let fours = |m: Matrix| {
        let bytes = 4 * m.dtype.size();
        m.place.offset.is_multiple_of(bytes as u64)
            && m.cols.is_multiple_of(4)
            && (m.rows == 1 || m.stride.is_multiple_of(4))
    };
    if ![Some(a.out), residual(a), a.tail.gate(), a.scales, a.bias].into_iter().flatten().all(fours)
    {
        return Err("columns are not whole vectors");
    }
    // A window of columns must begin at a vector. Otherwise windows do not decide which shader
    // runs: another one could sum in another order.
    let columns = room(a, device).1;
    if columns < a.w.rows && columns < VECTOR {
        Err("the largest buffer binding of this adapter has room for too few rows of the weights")
    } else {
        Ok(())
    }
}
