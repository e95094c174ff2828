//! Convolution over images.

use super::rule::rule;
use super::{Locate, Located, Operation, Use, Visitor};
use crate::error::Result;
use crate::tensor::{Tensor, Weight};

/// The geometry of a convolution over `batch` images of `height x width` pixels. Pixels are the
/// rows of `x`, row-major; the images are stacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Number of images.
    pub batch: usize,
    /// Input height in pixels, before `upsample`.
    pub height: usize,
    /// Input width in pixels, before `upsample`.
    pub width: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Side of the square kernel, 1 or 3.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Zero rows above and zero columns to the left.
    pub pad_before: usize,
    /// Zero rows below and zero columns to the right.
    pub pad_after: usize,
    /// The input is enlarged to twice its height and width (nearest neighbour) while it is read.
    pub upsample: bool,
}

impl ConvShape {
    /// Height and width of the (enlarged) input over which the kernel slides.
    pub fn source(&self) -> (usize, usize) {
        if self.upsample { (2 * self.height, 2 * self.width) } else { (self.height, self.width) }
    }

    /// Output height and width.
    pub fn output(&self) -> (usize, usize) {
        let (h, w) = self.source();
        let along =
            |n: usize| (n + self.pad_before + self.pad_after - self.kernel) / self.stride + 1;
        (along(h), along(w))
    }

    /// Elements of the kernel for each pair of an input and an output channel.
    pub fn taps(&self) -> usize {
        self.kernel * self.kernel
    }
}

/// Convolution as implicit GEMM: `out = conv(x, w) + bias + residual`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv2d<T = Tensor, W = Weight> {
    /// `batch*height*width x in_channels`
    pub x: T,
    /// `out_channels x (in_channels*kernel*kernel)`, in the order of files: input channel slowest,
    /// kernel column fastest.
    pub w: W,
    /// `1 x out_channels`
    pub bias: Option<W>,
    /// Sizes, stride and padding.
    pub shape: ConvShape,
    /// Has the shape of `out`, and may be `out` itself.
    pub residual: Option<T>,
    /// `batch*oh*ow x out_channels`
    pub out: T,
}

impl Operation for Conv2d {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        if let Some(residual) = &mut self.residual {
            v.read(residual);
        }
        v.weight(&mut self.w, Use::Kernel { taps: self.shape.taps() });
        if let Some(bias) = &mut self.bias {
            v.weight(bias, Use::Vector);
        }
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        let Conv2d { x, w, bias, shape: s, residual, out } = *self;
        let known = matches!(s.kernel, 1 | 3) && matches!(s.stride, 1 | 2);
        rule!(known, "kernel {} stride {}", s.kernel, s.stride);
        rule!((x.rows, x.cols) == (s.batch * s.height * s.width, s.in_channels), "x is {x}");
        rule!((w.rows, w.cols) == (s.out_channels, s.in_channels * s.taps()), "w is {w}");
        let one_row = bias.is_none_or(|b| b.rows == 1 && b.cols == w.rows);
        rule!(one_row, "bias is not 1 x {}", w.rows);
        let (height, width) = s.output();
        rule!(
            (out.rows, out.cols) == (s.batch * height * width, s.out_channels),
            "out is {out}, expected {height} x {width} pixels with {} channels",
            s.out_channels
        );
        rule!(
            residual.is_none_or(|r| (r.rows, r.cols) == (out.rows, out.cols)),
            "residual does not match out"
        );
        Ok(())
    }

    fn flops(&self) -> u64 {
        let (h, w) = self.shape.output();
        2 * (self.shape.batch * h * w * self.w.rows * self.w.cols) as u64
    }

    fn listing(&self) -> Option<Vec<String>> {
        let ConvShape { height, width, kernel, stride, upsample, .. } = self.shape;
        let enlarged = if upsample { " up2" } else { "" };
        let mut items = vec![
            self.x.to_string(),
            format!("{height}x{width}"),
            format!("k{kernel} s{stride}{enlarged}"),
        ];
        items.extend(self.residual.map(|r| format!("+{r}")));
        Some(items)
    }
}

impl Located for Conv2d {
    const NAME: &'static str = "conv2d";
    type On<M: Copy> = Conv2d<M, M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(Conv2d {
            x: find.tensor(self.x)?,
            w: find.weight(self.w, Use::Kernel { taps: self.shape.taps() })?,
            bias: self.bias.map(|w| find.vector(w)).transpose()?,
            shape: self.shape,
            residual: self.residual.map(|t| find.tensor(t)).transpose()?,
            out: find.tensor(self.out)?,
        })
    }
}
