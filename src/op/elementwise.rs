//! Operations on single elements, and copies of rows.

use super::rule::rule;
use super::{Operation, Visitor};
use crate::tensor::{Tensor, View};

/// `out = gelu_tanh(gate) * up`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GeluMul {
    /// `rows x cols`
    pub gate: Tensor,
    /// Shaped as `gate`.
    pub up: Tensor,
    /// Shaped as `gate`; may be `gate` or `up` itself.
    pub out: Tensor,
}

impl Operation for GeluMul {
    fn name(&self) -> &'static str {
        "gelu_mul"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.gate);
        v.read(&mut self.up);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        same_shapes(&[self.gate, self.up], self.out)
    }
}

/// `out = x / (1 + e^-x)`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Silu {
    /// `rows x cols`
    pub x: Tensor,
    /// Shaped as `x`; may be `x` itself.
    pub out: Tensor,
}

impl Operation for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        same_shapes(&[self.x], self.out)
    }
}

/// `out = a + b`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Add {
    /// `rows x cols`
    pub a: Tensor,
    /// Shaped as `a`.
    pub b: Tensor,
    /// Shaped as `a`; may be `a` or `b` itself.
    pub out: Tensor,
}

impl Operation for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.a);
        v.read(&mut self.b);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        same_shapes(&[self.a, self.b], self.out)
    }
}

/// `out = x` in another element type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cast {
    /// `rows x cols`
    pub x: View,
    /// Shaped as `x`, in another tensor.
    pub out: View,
}

impl Operation for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let Cast { x, out } = *self;
        rule!(
            (x.rows(), x.cols) == (out.rows(), out.cols) && x.tensor.slot != out.tensor.slot,
            "x {x}, out {out}"
        );
        Ok(())
    }
}

/// For each of `batch` images: rows `from .. from + count` of its rows in `x` become rows
/// `to .. to + count` of its rows in `out`. Other rows of `out` keep their values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CopyRows {
    /// `batch*n x cols`
    pub x: Tensor,
    /// `batch*m x cols`, of the element type of `x`, in another tensor.
    pub out: Tensor,
    /// Number of images.
    pub batch: usize,
    /// First row of each image in `x`.
    pub from: usize,
    /// First row of each image in `out`.
    pub to: usize,
    /// Rows of each image that are copied.
    pub count: usize,
}

impl Operation for CopyRows {
    fn name(&self) -> &'static str {
        "copy_rows"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write_part(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let CopyRows { x, out, batch, from, to, count } = *self;
        rule!(x.cols == out.cols && x.dtype == out.dtype && x.slot != out.slot, "x {x}, out {out}");
        rule!(batch > 0 && x.rows % batch == 0 && out.rows % batch == 0, "{batch} images");
        rule!(
            from + count <= x.rows / batch && to + count <= out.rows / batch,
            "rows out of range"
        );
        Ok(())
    }
}

fn same_shapes(inputs: &[Tensor], out: Tensor) -> Result<(), String> {
    let list = || inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let same = inputs.iter().all(|x| (x.rows, x.cols) == (out.rows, out.cols));
    rule!(same, "{} for out {out}", list());
    Ok(())
}
