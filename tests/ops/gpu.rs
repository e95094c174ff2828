//! Shared by the tests of both GPU backends: cases in the types that GPUs compute in.

use flux_fast::dtype::DType;
use flux_fast::op::{
    Cast, Conv2d, CopyRows, Epilogue, EulerStep, GroupNorm, GroupStatistics, Linear, Op,
    QkNormRope, TimestepEmbed,
};
use flux_fast::tensor::{Slot, Tensor};

use crate::case::Case;

/// Fills gaps between tensors: it is NaN in every type, so that a read out of bounds spoils the
/// result.
pub const GAP: u8 = 0xff;

/// The case in the types of a GPU (`f32_out`: written tensors stay F32), and the same case with the
/// rounded values in F32.
pub fn typed(case: &Case, op: &Op, f32_out: bool) -> (Case, Case) {
    let mut keep: Vec<Tensor> = match *op {
        Op::QkNormRope(QkNormRope { rope, .. }) => vec![rope],
        Op::TimestepEmbed(TimestepEmbed { t, .. }) => vec![t],
        Op::EulerStep(EulerStep { x, params, .. }) => vec![x, params],
        Op::CopyRows(CopyRows { x, out, .. }) => vec![x, out],
        Op::Cast(Cast { x, out }) => vec![x.tensor, out.tensor],
        Op::GroupStatistics(GroupStatistics { out, .. }) => vec![out],
        Op::GroupNorm(GroupNorm { statistics, .. }) => vec![statistics],
        _ => vec![],
    };
    if f32_out {
        // A residual has the type of the output.
        let residual = match *op {
            Op::Linear(Linear {
                epilogue: Epilogue::Add { residual } | Epilogue::GatedAdd { residual, .. },
                ..
            }) => Some(residual),
            Op::Conv2d(Conv2d { residual, .. }) => residual,
            _ => None,
        };
        keep.extend(op.writes().into_iter().chain(residual));
    }
    let (mut narrow, mut wide) = (case.again(), case.again());
    for (i, (tensor, bytes)) in case.tensors.iter().enumerate() {
        if tensor.dtype != DType::F32 || keep.contains(tensor) {
            continue;
        }
        let (mut small, mut rounded) = (Vec::new(), Vec::new());
        for b in bytes.chunks_exact(4) {
            let at = small.len();
            DType::BF16.encode(DType::F32.decode(b), &mut small);
            DType::F32.encode(DType::BF16.decode(&small[at..]), &mut rounded);
        }
        narrow.tensors[i] = (Tensor { dtype: DType::BF16, ..*tensor }, small);
        wide.tensors[i] = (*tensor, rounded);
    }
    (narrow, wide)
}

/// `op` over the tensors of `case`.
pub fn over(op: Op, case: &Case) -> Op {
    op.with_tensors(&|t| match t.slot {
        Slot::Input(id) => case.tensors[id as usize].0,
        _ => unreachable!("tests use inputs only"),
    })
}

/// The values of `f32_out` to test `op` with.
pub fn out_types(op: &Op) -> &'static [bool] {
    if matches!(op, Op::Linear(_) | Op::Conv2d(_) | Op::Unpack(_)) {
        &[false, true]
    } else {
        &[false]
    }
}

/// The case in BF16 with a NaN in the middle of `tensor`, and the operation on it.
pub fn with_nan(case: &Case, op: Op, tensor: Tensor) -> (Case, Op) {
    let (mut narrow, _) = typed(case, &op, false);
    let Slot::Input(id) = tensor.slot else { unreachable!("tests use inputs only") };
    let (t, bytes) = &mut narrow.tensors[id as usize];
    let at = (t.rows / 2 * t.cols + t.cols / 2) * t.dtype.size();
    let mut nan = Vec::new();
    t.dtype.encode(f32::NAN, &mut nan);
    bytes[at..at + nan.len()].copy_from_slice(&nan);
    let typed_op = over(op, &narrow);
    // An output that is not written must not count as the NaN that we look for.
    for out in typed_op.writes().iter().filter(|t| !typed_op.reads().contains(t)) {
        let Slot::Input(id) = out.slot else { unreachable!("tests use inputs only") };
        narrow.tensors[id as usize].1.fill(0);
    }
    (narrow, typed_op)
}

/// Whether a GPU backend supports the types of `op`: activations are BF16 or F32 only.
pub fn known(op: &Op) -> bool {
    op.reads().iter().chain(&op.writes()).all(|t| t.dtype != DType::F16)
}

/// Whether `op` moves numbers without changing them.
pub fn exact(op: &Op) -> bool {
    matches!(op, Op::Pack(_) | Op::CopyRows(_) | Op::Cast(_))
}
