//! Normalisation of rows.

use super::rule::rule;
use super::{Locate, Located, Operation, Use, Visitor};
use crate::error::Result;
use crate::tensor::{Tensor, View, Weight};

/// `out = (1 + scale[group]) * norm(x) + shift[group]`, where `norm` subtracts the mean of a row
/// and divides by its standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormModulate<T = Tensor, V = View> {
    /// `rows x cols`
    pub x: T,
    /// `groups x cols`, usually columns of a modulation matrix.
    pub shift: V,
    /// Shaped as `shift`.
    pub scale: V,
    /// Added to the variance.
    pub eps: f32,
    /// `rows x cols`; may be `x` itself.
    pub out: T,
}

impl Operation for LayerNormModulate {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.read(&mut self.shift);
        v.read(&mut self.scale);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let LayerNormModulate { x, shift, scale, out, .. } = *self;
        same_shape(x, out)?;
        for m in [shift, scale] {
            let fits = m.cols == x.cols && m.rows() > 0 && x.rows % m.rows() == 0;
            rule!(fits, "modulation {m} for {x}");
        }
        Ok(())
    }

    fn listing(&self) -> Option<Vec<String>> {
        let LayerNormModulate { x, shift, scale, .. } = self;
        Some(vec![x.to_string(), format!("shift {shift}"), format!("scale {scale}")])
    }
}

impl Located for LayerNormModulate {
    const NAME: &'static str = "layer_norm_modulate";
    type On<M: Copy> = LayerNormModulate<M, M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(LayerNormModulate {
            x: find.tensor(self.x)?,
            shift: find.view(self.shift)?,
            scale: find.view(self.scale)?,
            eps: self.eps,
            out: find.tensor(self.out)?,
        })
    }
}

/// `out = norm(x) * weight + bias`, where `norm` subtracts the mean of a row and divides by its
/// standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm<T = Tensor, W = Weight> {
    /// `rows x cols`
    pub x: T,
    /// `1 x cols`
    pub weight: W,
    /// `1 x cols`
    pub bias: W,
    /// Added to the variance.
    pub eps: f32,
    /// `rows x cols`; may be `x` itself.
    pub out: T,
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.weight(&mut self.weight, Use::Vector);
        v.weight(&mut self.bias, Use::Vector);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let LayerNorm { x, weight, bias, out, .. } = *self;
        same_shape(x, out)?;
        for w in [weight, bias] {
            rule!((w.rows, w.cols) == (1, x.cols), "affine {w} for {x}");
        }
        Ok(())
    }
}

impl Located for LayerNorm {
    const NAME: &'static str = "layer_norm";
    type On<M: Copy> = LayerNorm<M, M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(LayerNorm {
            x: find.tensor(self.x)?,
            weight: find.vector(self.weight)?,
            bias: find.vector(self.bias)?,
            eps: self.eps,
            out: find.tensor(self.out)?,
        })
    }
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`, the mean over the columns of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm<T = Tensor, W = Weight> {
    /// `rows x cols`
    pub x: T,
    /// `1 x cols`
    pub weight: W,
    /// Added to the mean square.
    pub eps: f32,
    /// `rows x cols`; may be `x` itself.
    pub out: T,
}

impl Operation for RmsNorm {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.weight(&mut self.weight, Use::Vector);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let RmsNorm { x, weight, out, .. } = *self;
        same_shape(x, out)?;
        rule!((weight.rows, weight.cols) == (1, x.cols), "gain {weight} for {x}");
        Ok(())
    }
}

impl Located for RmsNorm {
    const NAME: &'static str = "rms_norm";
    type On<M: Copy> = RmsNorm<M, M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(RmsNorm {
            x: find.tensor(self.x)?,
            weight: find.vector(self.weight)?,
            eps: self.eps,
            out: find.tensor(self.out)?,
        })
    }
}

fn same_shape(x: Tensor, out: Tensor) -> Result<(), String> {
    rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}");
    Ok(())
}
