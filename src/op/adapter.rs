//! Operations that only adapters need. [`Program::with_changes`](super::Program::with_changes)
//! records them; models do not.

use super::rule::rule;
use super::{Epilogue, Locate, Located, Operation, Use, Visitor};
use crate::error::Result;
use crate::tensor::{Tensor, View, Weight};

/// Multiplies groups of columns with a small matrix: with `width = x.cols / inputs`,
/// `out[r, a * width + j] = sum over i of w[a * inputs + i] * x[r, i * width + j]`.
///
/// It is the product of each row with the Kronecker product of the small matrix and the identity:
/// the first half of a LoKr. The second half multiplies each group of `width` columns with the
/// inner factor, which is a [`Linear`](super::Linear) on the same tensor with shorter rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupMix<V = View, W = Weight, T = Tensor> {
    /// `rows x (inputs * width)`
    pub x: V,
    /// `1 x (outputs * inputs)`: the small matrix, row by row.
    pub w: W,
    /// Columns of the small matrix.
    pub inputs: usize,
    /// `rows x (outputs * width)`, another tensor.
    pub out: T,
}

impl GroupMix {
    /// Rows of the small matrix.
    pub fn outputs(&self) -> usize {
        self.w.cols / self.inputs
    }

    /// Columns of a group.
    pub fn width(&self) -> usize {
        self.x.cols / self.inputs
    }
}

impl Operation for GroupMix {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.weight(&mut self.w, Use::Vector);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let GroupMix { x, w, inputs, out } = *self;
        rule!(inputs > 0 && x.cols.is_multiple_of(inputs), "{inputs} groups of {x}");
        rule!(w.rows == 1 && w.cols.is_multiple_of(inputs), "{inputs} columns of {w}");
        let fits = out.rows == x.rows() && out.cols == self.outputs() * self.width();
        rule!(fits && out.slot != x.tensor.slot, "x {x}, {} outputs, out {out}", self.outputs());
        Ok(())
    }

    fn flops(&self) -> u64 {
        2 * (self.out.rows * self.out.cols * self.inputs) as u64
    }
}

impl Located for GroupMix {
    const NAME: &'static str = "group_mix";
    type On<M: Copy> = GroupMix<M, M, M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(GroupMix {
            x: find.view(self.x)?,
            w: find.vector(self.w)?,
            inputs: self.inputs,
            out: find.tensor(self.out)?,
        })
    }
}

/// `out = epilogue(x + scale * add)`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaledAdd {
    /// `rows x cols`
    pub x: View,
    /// Shaped as `x`.
    pub add: Option<View>,
    /// `1 x cols`: a factor for each column of `add`; 1 if there is none.
    pub scale: Option<Weight>,
    /// The operation on the sum before it is stored.
    pub epilogue: Epilogue,
    /// Shaped as `x`; may be `x` or `add` itself.
    pub out: View,
}

impl Operation for ScaledAdd {
    fn name(&self) -> &'static str {
        "scaled_add"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        if let Some(add) = &mut self.add {
            v.read(add);
        }
        self.epilogue.visit(v);
        if let Some(scale) = &mut self.scale {
            v.weight(scale, Use::Vector);
        }
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let ScaledAdd { x, add, scale, epilogue, out } = *self;
        let like = |v: View| (v.rows(), v.cols) == (out.rows(), out.cols);
        rule!(like(x) && add.is_none_or(like), "{x} and what is added do not match {out}");
        let one_row = scale.is_none_or(|s| s.rows == 1 && s.cols == out.cols);
        rule!(one_row, "scale is not 1 x {}", out.cols);
        rule!(scale.is_none() || add.is_some(), "a scale of nothing");
        epilogue.check(out)
    }

    fn listing(&self) -> Option<Vec<String>> {
        let add = self.add.map(|add| add.to_string());
        let epilogue = self.epilogue.listing();
        Some([self.x.to_string()].into_iter().chain(add).chain(epilogue).collect())
    }
}
