//! Between latent pixels and tokens, and the update of the sampler.

use super::rule::rule;
use super::{Operation, Visitor};
use crate::dtype::DType;
use crate::tensor::Tensor;

/// Latent pixels to tokens: each patch of 2 x 2 pixels becomes a row. Channel `c` of the pixel at
/// (row, column) of the patch becomes column `c*4 + row*2 + column`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pack {
    /// `batch*height*width x channels`
    pub x: Tensor,
    /// Number of images.
    pub batch: usize,
    /// Latent pixels of an image, even.
    pub height: usize,
    /// Latent pixels of an image, even.
    pub width: usize,
    /// `batch*(height/2)*(width/2) x 4*channels`
    pub out: Tensor,
}

impl Operation for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        patches(self.x, self.out, self.batch, self.height, self.width)
    }
}

/// The inverse of [`Pack`], followed by `out = x * scale + shift` (1 and 0 leave `x` unchanged).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unpack {
    /// `batch*(height/2)*(width/2) x 4*channels`
    pub x: Tensor,
    /// Number of images.
    pub batch: usize,
    /// Latent pixels of an image of `out`, even.
    pub height: usize,
    /// Latent pixels of an image of `out`, even.
    pub width: usize,
    /// Factor of every element.
    pub scale: f32,
    /// Added to every element.
    pub shift: f32,
    /// `batch*height*width x channels`
    pub out: Tensor,
}

impl Operation for Unpack {
    fn name(&self) -> &'static str {
        "unpack"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        patches(self.out, self.x, self.batch, self.height, self.width)
    }
}

fn patches(
    pixels: Tensor,
    tokens: Tensor,
    batch: usize,
    height: usize,
    width: usize,
) -> Result<(), String> {
    rule!(height.is_multiple_of(2) && width.is_multiple_of(2), "{height} x {width} is not even");
    rule!(pixels.rows == batch * height * width, "{pixels} is not {batch} x {height} x {width}");
    rule!(
        (tokens.rows * 4, tokens.cols) == (pixels.rows, pixels.cols * 4),
        "tokens {tokens}, pixels {pixels}"
    );
    Ok(())
}

/// `x += params[0] * v` in place, in f32. With `cfg`, `v` holds the conditional velocities `vc`
/// and below them the unconditional ones `vu`: `x += params[0] * (vu + params[1] * (vc - vu))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EulerStep {
    /// `rows x cols` f32
    pub x: Tensor,
    /// `rows x cols`, or `2*rows x cols` with `cfg`.
    pub v: Tensor,
    /// `1 x 2` f32: the time step `t_next - t`, and the scale of true CFG.
    pub params: Tensor,
    /// Whether true classifier-free guidance is applied.
    pub cfg: bool,
}

impl Operation for EulerStep {
    fn name(&self) -> &'static str {
        "euler_step"
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.update(&mut self.x);
        v.read(&mut self.v);
        v.read(&mut self.params);
    }

    fn check(&self) -> Result<(), String> {
        let EulerStep { x, v, params, cfg } = *self;
        rule!(x.dtype == DType::F32 && params.dtype == DType::F32, "x and params must be f32");
        rule!((params.rows, params.cols) == (1, 2), "params {params}");
        let sequences = if cfg { 2 } else { 1 };
        rule!((v.rows, v.cols) == (x.rows * sequences, x.cols), "x {x}, v {v}");
        Ok(())
    }
}
