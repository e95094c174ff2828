//! Group normalisation, for convolutional networks.

use super::rule::rule;
use super::{Operation, Use, Visitor};
use crate::tensor::{Tensor, Weight};

/// `out = norm(x) * weight + bias`, then SiLU if `silu` is set. `norm` subtracts the mean and
/// divides by the standard deviation, both over all pixels of an image and the channels of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// `batch*pixels x channels`
    pub x: Tensor,
    /// `1 x channels`
    pub weight: Weight,
    /// `1 x channels`
    pub bias: Weight,
    /// Number of images.
    pub batch: usize,
    /// Groups of consecutive channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether `y / (1 + e^-y)` follows.
    pub silu: bool,
    /// Shaped as `x`; may be `x` itself.
    pub out: Tensor,
}

impl Operation for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.weight(&mut self.weight, Use::Vector);
        v.weight(&mut self.bias, Use::Vector);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let GroupNorm { x, weight, bias, batch, groups, out, .. } = *self;
        rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}");
        rule!(
            batch > 0 && x.rows % batch == 0 && groups > 0 && x.cols % groups == 0,
            "{x} in {groups} groups"
        );
        for w in [weight, bias] {
            rule!((w.rows, w.cols) == (1, x.cols), "affine {w} for {x}");
        }
        Ok(())
    }
}
