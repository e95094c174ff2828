//! Normalisation of rows.

use super::rule::rule;
use super::{Operation, Use, Visitor};
use crate::tensor::{Tensor, View, Weight};

/// `out = (1 + scale[group]) * norm(x) + shift[group]`, where `norm` subtracts the mean of a row
/// and divides by its standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormModulate {
    /// `rows x cols`
    pub x: Tensor,
    /// `groups x cols`, usually columns of a modulation matrix.
    pub shift: View,
    /// Shaped as `shift`.
    pub scale: View,
    /// Added to the variance.
    pub eps: f32,
    /// `rows x cols`; may be `x` itself.
    pub out: Tensor,
}

impl Operation for LayerNormModulate {
    fn name(&self) -> &'static str {
        "layer_norm_modulate"
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

/// `out = norm(x) * weight + bias`, where `norm` subtracts the mean of a row and divides by its
/// standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// `rows x cols`
    pub x: Tensor,
    /// `1 x cols`
    pub weight: Weight,
    /// `1 x cols`
    pub bias: Weight,
    /// Added to the variance.
    pub eps: f32,
    /// `rows x cols`; may be `x` itself.
    pub out: Tensor,
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
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

/// `out = x / sqrt(mean(x^2) + eps) * weight`, the mean over the columns of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// `rows x cols`
    pub x: Tensor,
    /// `1 x cols`
    pub weight: Weight,
    /// Added to the mean square.
    pub eps: f32,
    /// `rows x cols`; may be `x` itself.
    pub out: Tensor,
}

impl Operation for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
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

fn same_shape(x: Tensor, out: Tensor) -> Result<(), String> {
    rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}");
    Ok(())
}
