//! wgpu as the shared lowering sees it, and how a `linear` becomes matrix products.
//!
//! The side branch of a LoRA, `t . b^T`, sums over few numbers (the rank), so it would cost next to
//! nothing within the main product. But a shader that does both needs two more buffers, and it can
//! bind only eight. So the side branch is a product of its own, limited by what it writes. If the
//! epilogue only adds, it is added to the result of the main product. An activation needs the whole
//! sum: then the side branch is computed first, into f32 scratch memory, some rows at a time to
//! keep that memory small.

use super::SMALLER;
use super::launch::{Args, Dispatch, Matrix, Needs, Spot, Wgpu, WgpuDevice};
use super::linear::{self, LINEAR, LINEAR_INT8};
use crate::backend::form::{ALIGN, Form};
use crate::backend::gpu::{GpuApi, GpuBackend, Lowering, Product, Tail, variants};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::{Epilogue, Linear, Locate, Use};

/// Bytes of the side branch at a time, unless 128 rows have more.
const SIDE_BYTES: usize = 32 << 20;
/// The rows at a time are a multiple of this: whole tiles.
const SIDE_ROWS: usize = 128;

impl GpuApi for Wgpu {
    type Place = Spot;
    type Device = WgpuDevice;
    type Needs = Needs;
    type Launch = Dispatch;
    /// `rows x N`, F32: the finished product of the side branch, where the tail is an activation.
    type Side = Matrix;

    fn runs(device: &WgpuDevice, needs: Needs) -> bool {
        needs.missing(device).is_none()
    }

    fn why_not(device: &WgpuDevice, needs: Needs) -> String {
        needs.missing(device).unwrap_or_default().to_string()
    }

    fn no_variant(op: &str, why: &str) -> Error {
        Error::memory(format!("the GPU has no shader for this {op}: {why}"))
            .at("wgpu")
            .try_(SMALLER)
    }
}

variants!(Wgpu, Linear: LINEAR_INT8, LINEAR; linear::choose);

impl GpuBackend for Wgpu {
    /// A product for each run of rows of one element type, and for each of the side branch.
    fn lower_linear(op: &Linear, to: &mut Lowering<Wgpu>) -> Result<()> {
        let main = Product::new(op, to)?;
        let w = to.form(op.w, Use::Matrix)?;
        let Some(side) = op.side else { return push_main(&main, &w, None, 0, to) };
        let (t, b) = (to.tensor(side.t)?, to.form(side.b, Use::Matrix)?);
        let branch = Product { x: t, bias: None, factors: None, ..main };
        let (bytes, most) = side_scratch(op);
        if bytes == 0 {
            push_main(&main, &w, None, 0, to)?;
            let tail = match main.tail {
                Tail::GatedAdd { gate, .. } => Tail::GatedAdd { residual: main.out, gate },
                _ => Tail::Add { residual: main.out },
            };
            return push_side(&Product { tail, ..branch }, &b, to);
        }
        let (rows, n) = (main.out.rows, main.out.cols);
        let place = to.scratch(bytes)?;
        for first in (0..rows).step_by(most) {
            let count = most.min(rows - first);
            let sums = Matrix { place, rows: count, cols: n, stride: n, dtype: DType::F32 };
            let x = branch.x.band(first, count);
            push_side(&Product { x, tail: Tail::None, out: sums, ..branch }, &b, to)?;
            push_main(&main.band(first, count), &w, Some(sums), bytes, to)?;
        }
        Ok(())
    }
}

/// Bytes of scratch memory for `op`, whatever variant runs. `int8`: its product is computed in
/// int8.
pub(super) fn scratch(op: &Linear, int8: bool) -> usize {
    let (side, rows) = side_scratch(op);
    let rows = if side > 0 { rows } else { op.out.rows() };
    side + if int8 { linear::scratch_bytes(rows, op.x.cols) } else { 0 }
}

/// Bytes of scratch memory for the side branch of `op`, and for how many rows at a time: a function
/// of shapes alone, whatever variant runs.
fn side_scratch(op: &Linear) -> (usize, usize) {
    let activation =
        matches!(op.epilogue, Epilogue::Silu | Epilogue::GeluTanh | Epilogue::QuickGelu);
    let most = (SIDE_BYTES / (4 * op.out.cols.max(1)) / SIDE_ROWS).max(1) * SIDE_ROWS;
    let rows = most.min(op.out.rows());
    let bytes = 4 * rows * op.out.cols;
    (if activation && op.side.is_some() { bytes.next_multiple_of(ALIGN) } else { 0 }, rows)
}

/// Adds the product with the weight of the operation; `used` bytes of scratch memory are in use.
fn push_main(
    product: &Product<Spot>,
    (form, place): &(Form, Spot),
    side: Option<Matrix>,
    used: usize,
    to: &mut Lowering<Wgpu>,
) -> Result<()> {
    form.segments.iter().try_for_each(|s| {
        let side = side.map(|m| m.columns(s.first, s.rows));
        let args = product.with(s, *place, (s.first, s.rows), side);
        to.push_with_scratch_after::<Linear>(used, args, |args, m| args.scratch = Some(m))
    })
}

/// Adds the product with the weight of the side branch. What is forced or allowed for the main
/// product does not apply: this one has another shape, and is too small to gain from products in
/// f16.
fn push_side(
    product: &Product<Spot>,
    (form, place): &(Form, Spot),
    to: &mut Lowering<Wgpu>,
) -> Result<()> {
    let device = WgpuDevice { half: false, ..to.device().clone() };
    form.segments.iter().try_for_each(|s| {
        let args: Args<Linear> = product.with(s, *place, (s.first, s.rows), None);
        let variant = linear::choose(&args, &device).map_err(|why| Wgpu::no_variant("linear", why));
        to.push_variant::<Linear>(variant?, &args, &device);
        Ok(())
    })
}
