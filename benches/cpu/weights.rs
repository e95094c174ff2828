//! Random weights for a program, and its plan without a memory limit.

use std::sync::Arc;

use flux_fast::backend::Backend;
use flux_fast::dtype::DType;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::op::Program;
use flux_fast::plan::{self, PhasePlan};
use flux_fast::tensor::{HostWeight, Scale};

/// Weights for every spec from a fast generator: roughly normal values, matrices stored as `dtype`.
pub fn random(program: &Program, dtype: DType) -> Vec<HostWeight> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut weight = |rows: usize, cols: usize, lora: bool| {
        let dtype = if rows > 1 && !lora { dtype } else { DType::BF16 };
        let amplitude = (3.0 / cols as f32).sqrt();
        let (amplitude, scale) = match dtype {
            DType::I8 => (127.0, Scale::Tensor(amplitude / 127.0)),
            _ => (amplitude, Scale::One),
        };
        let mut bytes = Vec::with_capacity(rows * cols * dtype.size());
        // Random picks from a table of encoded values: varied enough for a kernel, and fast to
        // make.
        let table: Vec<Vec<u8>> = (0..1024)
            .map(|i| {
                let mut one = Vec::new();
                dtype.encode((i as f32 / 511.5 - 1.0) * amplitude, &mut one);
                one
            })
            .collect();
        for _ in 0..rows * cols {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&table[(state >> 40) as usize % 1024]);
        }
        HostWeight::whole(Arc::new(bytes), (rows, cols), dtype, scale)
    };
    program.weights.iter().map(|w| weight(w.rows, w.cols, w.side.is_some())).collect()
}

/// Lets products with the matrices of transformer blocks be computed in 8-bit integers. Those that
/// are stored as integers count as rotated.
#[allow(dead_code, reason = "used by the bench of steps")]
pub fn in_integers(program: &Program, weights: &mut [HostWeight]) {
    let components = [flux_fast::spec::flux1::TRANSFORMER, flux_fast::spec::flux2::TRANSFORMER];
    for (spec, weight) in program.weights.iter().zip(weights) {
        if components.iter().any(|c| c.is_int8(&spec.name)) {
            let rotation = Rotation::of_columns(weight.cols);
            weight.int8 = Some(Int8 { rotation });
            for part in weight.parts.iter_mut().filter(|p| p.dtype == DType::I8) {
                part.rotation = rotation;
            }
        }
    }
}

/// A plan in which all weights are resident.
pub fn planned(backend: &dyn Backend, program: &Program, weights: &[HostWeight]) -> PhasePlan {
    let bytes: Vec<usize> =
        weights.iter().zip(program.uses()).map(|(w, how)| backend.weight_bytes(w, how)).collect();
    let weight = |w: flux_fast::tensor::Weight| &weights[w.id as usize];
    let scratch: Vec<usize> =
        program.steps.iter().map(|s| backend.scratch_bytes(&s.op, &weight)).collect();
    plan::phase(program, 1, &bytes, &scratch, backend.caps().grain, u64::MAX).unwrap()
}
