//! Group normalisation, for convolutional networks, in two steps: the statistics of each row of
//! pixels, and the normalisation with the statistics of all rows of an image.
//!
//! Statistics are kept for each row of pixels, so that an image can be processed in bands of rows:
//! they are joined in the order of the rows, whatever the bands were, and the result is bitwise
//! that of the whole image.

use super::rule::rule;
use super::{Locate, Located, Operation, Use, Visitor};
use crate::error::Result;
use crate::tensor::{Tensor, Weight};

/// Mean and summed squared deviation of each row of pixels and each group of channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupStatistics<T = Tensor> {
    /// `rows*width x channels`: the pixels of an image, or of some of its rows.
    pub x: T,
    /// Pixels of a row.
    pub width: usize,
    /// Groups of consecutive channels.
    pub groups: usize,
    /// `rows x 2*groups`, f32: for each group the mean of its elements in a row of pixels, and the
    /// sum of the squared differences from that mean.
    pub out: T,
}

impl Operation for GroupStatistics {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let GroupStatistics { x, width, groups, out } = *self;
        rule!(width > 0 && x.rows % width == 0, "{x} in rows of {width} pixels");
        rule!(groups > 0 && x.cols % groups == 0, "{x} in {groups} groups");
        rule!((out.rows, out.cols) == (x.rows / width, 2 * groups), "out {out} for {x}");
        rule!(out.dtype == crate::dtype::DType::F32, "out {out} is not f32");
        Ok(())
    }
}

impl Located for GroupStatistics {
    const NAME: &'static str = "group_statistics";
    type On<M: Copy> = GroupStatistics<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(GroupStatistics {
            x: find.tensor(self.x)?,
            width: self.width,
            groups: self.groups,
            out: find.tensor(self.out)?,
        })
    }
}

/// `out = norm(x) * weight + bias`, then SiLU if `silu` is set. `norm` subtracts the mean and
/// divides by the standard deviation, both over all pixels of the image and the channels of a
/// group; [`GroupStatistics`] computes what they are joined from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNorm {
    /// `pixels x channels`: the image, or some of its rows of pixels.
    pub x: Tensor,
    /// `rows x 2*groups`, f32: the statistics of every row of pixels of the image.
    pub statistics: Tensor,
    /// Pixels of a row.
    pub width: usize,
    /// `1 x channels`
    pub weight: Weight,
    /// `1 x channels`
    pub bias: Weight,
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
        v.read(&mut self.statistics);
        v.weight(&mut self.weight, Use::Vector);
        v.weight(&mut self.bias, Use::Vector);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let GroupNorm { x, statistics, width, weight, bias, groups, out, .. } = *self;
        rule!((x.rows, x.cols) == (out.rows, out.cols), "x {x}, out {out}");
        rule!(groups > 0 && x.cols % groups == 0 && width > 0, "{x} in {groups} groups");
        rule!(statistics.rows > 0 && statistics.cols == 2 * groups, "statistics {statistics}");
        rule!(statistics.dtype == crate::dtype::DType::F32, "{statistics} is not f32");
        for w in [weight, bias] {
            rule!((w.rows, w.cols) == (1, x.cols), "affine {w} for {x}");
        }
        Ok(())
    }
}
