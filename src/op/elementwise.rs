//! Operations on single elements, and copies of rows.

use super::rule::rule;
use super::{Locate, Located, Operation, Visitor};
use crate::error::Result;
use crate::tensor::{Tensor, View};

/// `out = gelu_tanh(gate) * up`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GeluMul<T = Tensor> {
    /// `rows x cols`
    pub gate: T,
    /// Shaped as `gate`.
    pub up: T,
    /// Shaped as `gate`; may be `gate` or `up` itself.
    pub out: T,
}

impl Operation for GeluMul {
    fn name(&self) -> &'static str {
        Self::NAME
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

impl Located for GeluMul {
    const NAME: &'static str = "gelu_mul";
    type On<M: Copy> = GeluMul<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(GeluMul {
            gate: find.tensor(self.gate)?,
            up: find.tensor(self.up)?,
            out: find.tensor(self.out)?,
        })
    }
}

/// `out = silu(gate) * up`, where `silu(x) = x / (1 + e^-x)`: the gated half of a SwiGLU. The
/// operands may be windows, so that `gate` and `up` can be halves of one product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SiluMul<V = View> {
    /// `rows x cols`
    pub gate: V,
    /// Shaped as `gate`.
    pub up: V,
    /// Shaped as `gate`; may be `gate` or `up` itself, and otherwise does not overlap them.
    pub out: V,
}

impl Operation for SiluMul {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.gate);
        v.read(&mut self.up);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let SiluMul { gate, up, out } = *self;
        for x in [gate, up] {
            rule!((x.rows(), x.cols) == (out.rows(), out.cols), "{gate}, {up} for out {out}");
            let apart = x.tensor.slot != out.tensor.slot || x.col.abs_diff(out.col) >= out.cols;
            rule!(x == out || apart, "{x} overlaps out {out}");
        }
        Ok(())
    }
}

impl Located for SiluMul {
    const NAME: &'static str = "silu_mul";
    type On<M: Copy> = SiluMul<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(SiluMul {
            gate: find.view(self.gate)?,
            up: find.view(self.up)?,
            out: find.view(self.out)?,
        })
    }
}

/// `out = x / (1 + e^-x)`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Silu<T = Tensor> {
    /// `rows x cols`
    pub x: T,
    /// Shaped as `x`; may be `x` itself.
    pub out: T,
}

impl Operation for Silu {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        same_shapes(&[self.x], self.out)
    }
}

impl Located for Silu {
    const NAME: &'static str = "silu";
    type On<M: Copy> = Silu<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(Silu { x: find.tensor(self.x)?, out: find.tensor(self.out)? })
    }
}

/// `out = a + b`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Add<T = Tensor> {
    /// `rows x cols`
    pub a: T,
    /// Shaped as `a`.
    pub b: T,
    /// Shaped as `a`; may be `a` or `b` itself.
    pub out: T,
}

impl Operation for Add {
    fn name(&self) -> &'static str {
        Self::NAME
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

impl Located for Add {
    const NAME: &'static str = "add";
    type On<M: Copy> = Add<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(Add { a: find.tensor(self.a)?, b: find.tensor(self.b)?, out: find.tensor(self.out)? })
    }
}

/// `out = x` in another element type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cast<V = View> {
    /// `rows x cols`
    pub x: V,
    /// Shaped as `x`, in another tensor.
    pub out: V,
}

impl Operation for Cast {
    fn name(&self) -> &'static str {
        Self::NAME
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

impl Located for Cast {
    const NAME: &'static str = "cast";
    type On<M: Copy> = Cast<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(Cast { x: find.view(self.x)?, out: find.view(self.out)? })
    }
}

/// For each of `batch` images: rows `from .. from + count` of its rows in `x` become rows
/// `to .. to + count` of its rows in `out`. Other rows of `out` keep their values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CopyRows<T = Tensor> {
    /// `batch*n x cols`
    pub x: T,
    /// `batch*m x cols`, of the element type of `x`, in another tensor.
    pub out: T,
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
        Self::NAME
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

impl Located for CopyRows {
    const NAME: &'static str = "copy_rows";
    type On<M: Copy> = CopyRows<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(CopyRows {
            x: find.tensor(self.x)?,
            out: find.tensor(self.out)?,
            batch: self.batch,
            from: self.from,
            to: self.to,
            count: self.count,
        })
    }
}

fn same_shapes(inputs: &[Tensor], out: Tensor) -> Result<(), String> {
    let list = || inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let same = inputs.iter().all(|x| (x.rows, x.cols) == (out.rows, out.cols));
    rule!(same, "{} for out {out}", list());
    Ok(())
}
