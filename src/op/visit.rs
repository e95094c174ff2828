//! What an operation reads and writes: every operation lists its operands once, in
//! [`Operation::visit`](super::Operation::visit).
//!
//! [`Op::reads`], [`Op::writes`], [`Op::checked_outputs`], [`Op::weights`] and
//! [`Op::with_tensors`] all follow from that one list.

use super::Op;
use crate::tensor::{Tensor, View, Weight};

/// How an operation uses a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The window is read.
    Read,
    /// Every element of the window is written.
    Write,
    /// Some rows of the tensor are written. The step alone does not complete it, so it is not
    /// checked for NaN after the step.
    WritePart,
    /// The whole tensor is read, then written in place.
    Update,
}

/// How the operations of a program use a weight. A device may store each kind in its own form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// Bias, gain or norm weight: `1 x n`, read element by element.
    Vector,
    /// `N x K` of a [`Linear`](super::Linear), or the second factor of its [`Side`](super::Side).
    Matrix,
    /// A table from which [`Embed`](super::Embed) picks rows.
    Table,
    /// `out_channels x (in_channels * taps)` of a [`Conv2d`](super::Conv2d).
    Kernel {
        /// Elements of the kernel for each pair of channels.
        taps: usize,
    },
}

/// One operand, as a visitor receives it.
pub enum Operand<'a> {
    /// A tensor that the host or an operation writes.
    Tensor {
        /// The handle within the operation; the visitor may replace it.
        tensor: &'a mut Tensor,
        /// The columns that are accessed.
        window: View,
        /// How the operation uses them.
        access: Access,
    },
    /// A weight of the model.
    Weight {
        /// The handle within the operation; the visitor may replace it.
        weight: &'a mut Weight,
        /// How the operation uses the weight.
        how: Use,
    },
}

/// A field of an operation that names a tensor: a whole [`Tensor`], or the columns of a [`View`].
pub trait Window {
    /// The tensor, to be read or replaced.
    fn tensor(&mut self) -> &mut Tensor;
    /// The columns that are meant.
    fn window(&self) -> View;
}

impl Window for Tensor {
    fn tensor(&mut self) -> &mut Tensor {
        self
    }

    fn window(&self) -> View {
        self.all()
    }
}

impl Window for View {
    fn tensor(&mut self) -> &mut Tensor {
        &mut self.tensor
    }

    fn window(&self) -> View {
        *self
    }
}

/// Receives the operands of an operation, in the order in which listings print them.
pub struct Visitor<'a> {
    each: &'a mut dyn FnMut(Operand<'_>),
}

impl Visitor<'_> {
    /// An operand that is read.
    pub fn read(&mut self, operand: &mut impl Window) {
        self.tensor(operand, Access::Read);
    }

    /// An output, every element of which is written.
    pub fn write(&mut self, operand: &mut impl Window) {
        self.tensor(operand, Access::Write);
    }

    /// An output that several steps fill together.
    pub fn write_part(&mut self, operand: &mut impl Window) {
        self.tensor(operand, Access::WritePart);
    }

    /// An operand that is changed in place.
    pub fn update(&mut self, operand: &mut impl Window) {
        self.tensor(operand, Access::Update);
    }

    /// A weight.
    pub fn weight(&mut self, weight: &mut Weight, how: Use) {
        (self.each)(Operand::Weight { weight, how });
    }

    fn tensor(&mut self, operand: &mut impl Window, access: Access) {
        let window = operand.window();
        (self.each)(Operand::Tensor { tensor: operand.tensor(), window, access });
    }
}

impl Op {
    /// Calls `each` with every operand.
    pub fn visit(&mut self, each: &mut dyn FnMut(Operand<'_>)) {
        self.operation_mut().visit(&mut Visitor { each });
    }

    /// The windows of the tensors for which `which` returns true.
    fn windows(&self, which: impl Fn(Access) -> bool) -> Vec<View> {
        let mut found = Vec::new();
        let mut op = *self;
        op.visit(&mut |operand| {
            if let Operand::Tensor { window, access, .. } = operand
                && which(access)
            {
                found.push(window);
            }
        });
        found
    }

    /// Tensors that are read.
    pub fn reads(&self) -> Vec<Tensor> {
        self.read_windows().into_iter().map(|w| w.tensor).collect()
    }

    /// The windows that are read.
    pub(super) fn read_windows(&self) -> Vec<View> {
        self.windows(|a| matches!(a, Access::Read | Access::Update))
    }

    /// The windows that are written, wholly or in part.
    pub fn written_windows(&self) -> Vec<View> {
        self.windows(|a| a != Access::Read)
    }

    /// Tensors that are written, wholly or in part.
    pub fn writes(&self) -> Vec<Tensor> {
        self.written_windows().into_iter().map(|w| w.tensor).collect()
    }

    /// The windows that are complete once the operation has run: the outputs to check when the
    /// first step that wrote a NaN is searched for. Operations that fill a tensor in several steps
    /// only move or rotate numbers, so a NaN in their input is found at the step before.
    pub fn checked_outputs(&self) -> Vec<View> {
        self.windows(|a| matches!(a, Access::Write | Access::Update))
    }

    /// Weights that are read, each with its use; the large one first.
    pub fn weight_uses(&self) -> Vec<(Weight, Use)> {
        let mut found = Vec::new();
        let mut op = *self;
        op.visit(&mut |operand| {
            if let Operand::Weight { weight, how } = operand {
                found.push((*weight, how));
            }
        });
        found
    }

    /// Weights that are read, the large one first.
    pub fn weights(&self) -> Vec<Weight> {
        self.weight_uses().into_iter().map(|(weight, _)| weight).collect()
    }

    /// The same operation on other tensors: `f` returns the replacement of each tensor, which must
    /// have the same shape.
    pub fn with_tensors(mut self, f: &dyn Fn(Tensor) -> Tensor) -> Op {
        self.visit(&mut |operand| {
            if let Operand::Tensor { tensor, .. } = operand {
                *tensor = f(*tensor);
            }
        });
        self
    }
}
