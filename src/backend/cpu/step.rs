//! From a recorded step to a kernel: what the CPU backend needs of every operation, and how a
//! kernel finds its operands.

use std::sync::Arc;

use super::arena::Arena;
use super::gemm::finish::Tail;
use super::kernels::{Choice, How, Kernels, Product};
use super::loaded::LoadedWeights;
use super::matrix::{In, Out};
use super::operand::Stored;
use crate::backend::Places;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::op::Epilogue;
use crate::tensor::{DTypes, HostWeight, Tensor, View, Weight};

/// The CPU implementation of an operation, next to the operation's kernels.
pub(super) trait CpuOperation {
    /// The variants, best first; the last one is the reference.
    const KERNELS: Kernels;

    /// Bytes of scratch that the chosen variant needs.
    fn scratch_bytes(&self, _sizing: &Sizing) -> usize {
        0
    }

    /// Runs the chosen variant on the threads of the current pool.
    fn run(&self, step: &CpuStep) -> Result<()>;
}

/// What the size of an operation's scratch depends on, besides its own fields.
pub(super) struct Sizing<'a> {
    pub choice: &'a Choice,
    pub threads: usize,
    /// The types in which a weight is stored.
    pub stored: &'a dyn Fn(Weight) -> DTypes,
}

/// One step while it runs: finds its operands in the arena and among the loaded weights.
pub(super) struct CpuStep<'a> {
    /// The variants of the operation.
    pub kernels: Kernels,
    pub choice: &'a Choice,
    pub threads: usize,
    pub arena: &'a Arena,
    pub places: &'a Places,
    pub weights: &'a LoadedWeights,
    /// The biases and gains of the operation, as f32.
    pub vectors: Vec<(Weight, Arc<[f32]>)>,
}

impl CpuStep<'_> {
    /// How the chosen variant computes; not for matrix products.
    pub(super) fn how(&self) -> How {
        self.choice.of(&self.kernels).how
    }

    /// The chosen variant of a matrix product with `weight`.
    pub(super) fn product(&self, weight: &HostWeight) -> Product {
        self.choice.product(&self.kernels, weight.stored())
    }

    /// A weight in its stored form.
    pub(super) fn weight(&self, weight: Weight) -> Result<&HostWeight> {
        self.weights.get(self.places.key(weight), weight)
    }

    /// A bias or gain.
    pub(super) fn vector(&self, weight: Weight) -> Result<&[f32]> {
        let found = self.vectors.iter().find(|(w, _)| *w == weight);
        let missing = || Error::device("an operation lacks a bias or gain").found(weight);
        found.map(|(_, values)| &values[..]).ok_or_else(missing)
    }

    /// A bias that the operation may do without.
    pub(super) fn bias(&self, weight: Option<Weight>) -> Result<Option<&[f32]>> {
        weight.map(|w| self.vector(w)).transpose()
    }

    /// The operands of an epilogue.
    pub(super) fn tail(&self, epilogue: Epilogue) -> Result<Tail> {
        Ok(match epilogue {
            Epilogue::None => Tail::None,
            Epilogue::Silu => Tail::Silu,
            Epilogue::GeluTanh => Tail::GeluTanh,
            Epilogue::QuickGelu => Tail::QuickGelu,
            Epilogue::Add { residual } => Tail::Add { residual: self.tensor(residual)? },
            Epilogue::GatedAdd { residual, gate } => {
                Tail::GatedAdd { residual: self.tensor(residual)?, gate: self.view(gate)? }
            }
        })
    }

    /// A window of any element type.
    pub(super) fn stored(&self, view: View) -> Result<Stored> {
        let t = view.tensor;
        let size = t.dtype.size();
        let start =
            self.arena.place(self.places.of(&t), t.bytes(), t)?.wrapping_add(view.col * size);
        if !(start as usize).is_multiple_of(size) {
            return Err(Error::device(format!("{t} is not aligned to its elements")));
        }
        // SAFETY: the whole tensor is inside the arena, which outlives the step; the plan gives
        // overlapping places only to tensors that are not in use at the same time.
        Ok(unsafe { Stored::new(start, t.rows, view.cols, t.cols, t.dtype) })
    }

    /// A window of f32 that is written.
    pub(super) fn view_out(&self, view: View) -> Result<Out> {
        let t = view.tensor;
        if t.dtype != DType::F32 {
            return Err(Error::device("the CPU computes on f32 activations only")
                .found(t)
                .try_("cast it first"));
        }
        let start = self.stored(view)?.start().cast::<f32>();
        // SAFETY: as in `stored`; the address is aligned.
        Ok(unsafe { Out::new(start, t.rows, view.cols, t.cols) })
    }

    /// A window of f32 that is read.
    pub(super) fn view(&self, view: View) -> Result<In> {
        Ok(self.view_out(view)?.read())
    }

    /// A whole tensor of f32 that is read.
    pub(super) fn tensor(&self, tensor: Tensor) -> Result<In> {
        self.view(tensor.all())
    }

    /// A whole tensor of f32 that is written.
    pub(super) fn out(&self, tensor: Tensor) -> Result<Out> {
        self.view_out(tensor.all())
    }

    /// The indices of an `Embed`.
    pub(super) fn ids(&self, ids: Tensor) -> Result<&[i32]> {
        let start = self.arena.place(self.places.of(&ids), ids.bytes(), ids)?.cast::<i32>();
        if !start.is_aligned() {
            return Err(Error::device(format!("{ids} is not aligned to its elements")));
        }
        // SAFETY: the ids are inside the arena, are aligned, and no operation writes I32.
        Ok(unsafe { std::slice::from_raw_parts(start, ids.rows) })
    }

    /// The scratch of `operation`, which is the one that runs.
    #[expect(
        clippy::mut_from_ref,
        reason = "the arena is raw memory, and a kernel takes its scratch once"
    )]
    pub(super) fn scratch(&self, operation: &impl CpuOperation) -> Result<&mut [u8]> {
        let stored = |w: Weight| self.weight(w).map(HostWeight::stored).unwrap_or_default();
        let sizing = Sizing { choice: self.choice, threads: self.threads, stored: &stored };
        let bytes = operation.scratch_bytes(&sizing);
        if bytes == 0 {
            return Ok(&mut []);
        }
        let start = self.arena.place(self.places.scratch, bytes, "an operation's scratch")?;
        // SAFETY: the range is inside the arena, whose bytes were all written when it was
        // allocated; the plan places no operand of the step there.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, bytes) })
    }
}
