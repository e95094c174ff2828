//! Matrix product with a weight, and everything that is fused into it.

use super::rule::rule;
use super::{Operation, Use, Visitor};
use crate::tensor::{Tensor, View, Weight};

/// What a [`Linear`] does with `y = x . w^T + side + bias` before it stores the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// `out = y`
    None,
    /// `out = y / (1 + e^-y)`
    Silu,
    /// `out = gelu(y)`, the tanh form: `y/2 (1 + tanh(sqrt(2/pi) (y + 0.044715 y^3)))`
    GeluTanh,
    /// `out = y / (1 + e^(-1.702 y))`
    QuickGelu,
    /// `out = residual + y`
    Add {
        /// Shaped as `out`; may be `out` itself.
        residual: Tensor,
    },
    /// `out = residual + gate[group] * y`
    GatedAdd {
        /// Shaped as `out`; may be `out` itself.
        residual: Tensor,
        /// A row for each group, and as many columns as `out`.
        gate: View,
    },
}

impl Epilogue {
    /// Passes its operands to `v`.
    pub(super) fn visit(&mut self, v: &mut Visitor) {
        match self {
            Epilogue::Add { residual } => v.read(residual),
            Epilogue::GatedAdd { residual, gate } => {
                v.read(residual);
                v.read(gate);
            }
            Epilogue::None | Epilogue::Silu | Epilogue::GeluTanh | Epilogue::QuickGelu => {}
        }
    }

    /// Checks that its operands fit `out`.
    pub(super) fn check(self, out: View) -> Result<(), String> {
        if let Epilogue::GatedAdd { gate, .. } = self {
            rule!(gate.cols == out.cols, "gate has {} columns, out {}", gate.cols, out.cols);
            let groups = gate.rows();
            rule!(out.rows().is_multiple_of(groups), "{} rows in {groups} groups", out.rows());
        }
        if let Some(r) = self.residual() {
            rule!((r.rows, r.cols) == (out.rows(), out.cols), "residual {r} does not match out");
            rule!(out.cols == out.tensor.cols, "a residual needs a whole output tensor");
        }
        Ok(())
    }

    /// The text in a listing.
    pub(super) fn listing(self) -> Option<String> {
        match self {
            Epilogue::None => None,
            Epilogue::Silu => Some("silu".into()),
            Epilogue::GeluTanh => Some("gelu_tanh".into()),
            Epilogue::QuickGelu => Some("quick_gelu".into()),
            Epilogue::Add { residual } => Some(format!("+{residual}")),
            Epilogue::GatedAdd { residual, gate } => Some(format!("+{residual} gate {gate}")),
        }
    }

    /// The tensor to which the product is added, if any.
    fn residual(&self) -> Option<Tensor> {
        match *self {
            Epilogue::Add { residual } | Epilogue::GatedAdd { residual, .. } => Some(residual),
            Epilogue::None | Epilogue::Silu | Epilogue::GeluTanh | Epilogue::QuickGelu => None,
        }
    }
}

/// The second half of a low-rank side branch, which a [`Linear`] adds to its product before the
/// epilogue: `y += t . b^T`. The first half, `t = x . a^T`, is a `Linear` of its own. A LoRA is
/// applied this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Side {
    /// `rows x rank`
    pub t: Tensor,
    /// `N x rank`
    pub b: Weight,
}

/// `out[r] = epilogue(factors * (x[r] . w^T) + side + bias)`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// `rows x K`
    pub x: View,
    /// `N x K`
    pub w: Weight,
    /// `1 x N`
    pub bias: Option<Weight>,
    /// `1 x N`: a factor for each row of `w`, in place of the factors that are stored with `w`; if
    /// the product is computed in 8-bit integers, besides these.
    pub factors: Option<Weight>,
    /// Added to the product before the epilogue.
    pub side: Option<Side>,
    /// Applied before the result is stored.
    pub epilogue: Epilogue,
    /// `rows x N`
    pub out: View,
}

impl Linear {
    /// `out = x . w^T`
    pub fn plain(x: View, w: Weight, out: View) -> Linear {
        let (bias, factors, side) = (None, None, None);
        Linear { x, w, bias, factors, side, epilogue: Epilogue::None, out }
    }
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        if let Some(side) = &mut self.side {
            v.read(&mut side.t);
        }
        self.epilogue.visit(v);
        v.weight(&mut self.w, Use::Matrix);
        if let Some(bias) = &mut self.bias {
            v.weight(bias, Use::Vector);
        }
        if let Some(factors) = &mut self.factors {
            v.weight(factors, Use::Vector);
        }
        if let Some(side) = &mut self.side {
            v.weight(&mut side.b, Use::Matrix);
        }
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let Linear { x, w, bias, factors, side, epilogue, out } = *self;
        rule!(x.cols == w.cols, "x has {} columns, w {}", x.cols, w.cols);
        rule!(out.cols == w.rows, "out has {} columns, w {} rows", out.cols, w.rows);
        rule!(out.rows() == x.rows(), "out has {} rows, x {}", out.rows(), x.rows());
        for (what, vector) in [("bias is", bias), ("factors are", factors)] {
            let one_row = vector.is_none_or(|b| b.rows == 1 && b.cols == w.rows);
            rule!(one_row, "{what} not 1 x {}", w.rows);
        }
        if let Some(Side { t, b }) = side {
            rule!(t.rows == x.rows(), "the side has {} rows, x {}", t.rows, x.rows());
            rule!((b.rows, b.cols) == (w.rows, t.cols), "the side's b is {b}, its t {t}");
            rule!(t.slot != out.tensor.slot, "the side is the output");
        }
        epilogue.check(out)
    }

    fn flops(&self) -> u64 {
        let rank = self.side.map_or(0, |s| s.b.cols);
        2 * (self.x.rows() * self.w.rows * (self.w.cols + rank)) as u64
    }

    fn listing(&self) -> Option<Vec<String>> {
        let side = self.side.map(|side| format!("side {}", side.t));
        let epilogue = self.epilogue.listing();
        Some([self.x.to_string()].into_iter().chain(side).chain(epilogue).collect())
    }
}
