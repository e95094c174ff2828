//! Between latent pixels and tokens, and the update of the sampler.

use super::rule::rule;
use super::{Locate, Located, Operation, Visitor};
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::Tensor;

/// Latent pixels to tokens: each patch of 2 x 2 pixels becomes a row. Channel `c` of the pixel at
/// (row, column) of the patch becomes column `c*4 + row*2 + column`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pack<T = Tensor> {
    /// `batch*height*width x channels`
    pub x: T,
    /// Number of images.
    pub batch: usize,
    /// Latent pixels of an image, even.
    pub height: usize,
    /// Latent pixels of an image, even.
    pub width: usize,
    /// `batch*(height/2)*(width/2) x 4*channels`
    pub out: T,
}

impl Operation for Pack {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        patches(self.x, self.out, self.batch, self.height, self.width)
    }
}

impl Located for Pack {
    const NAME: &'static str = "pack";
    type On<M: Copy> = Pack<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(Pack {
            x: find.tensor(self.x)?,
            batch: self.batch,
            height: self.height,
            width: self.width,
            out: find.tensor(self.out)?,
        })
    }
}

/// The inverse of [`Pack`], followed by `out = x * scale + shift` (1 and 0 leave `x` unchanged).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unpack<T = Tensor> {
    /// `batch*(height/2)*(width/2) x 4*channels`
    pub x: T,
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
    pub out: T,
}

impl Operation for Unpack {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn visit(&mut self, v: &mut Visitor) {
        v.read(&mut self.x);
        v.write(&mut self.out);
    }

    fn check(&self) -> Result<(), String> {
        patches(self.out, self.x, self.batch, self.height, self.width)
    }
}

impl Located for Unpack {
    const NAME: &'static str = "unpack";
    type On<M: Copy> = Unpack<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(Unpack {
            x: find.tensor(self.x)?,
            batch: self.batch,
            height: self.height,
            width: self.width,
            scale: self.scale,
            shift: self.shift,
            out: find.tensor(self.out)?,
        })
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
pub struct EulerStep<T = Tensor> {
    /// `rows x cols` f32
    pub x: T,
    /// `rows x cols`, or `2*rows x cols` with `cfg`.
    pub v: T,
    /// `1 x 2` f32: the time step `t_next - t`, and the scale of true CFG.
    pub params: T,
    /// Whether true classifier-free guidance is applied.
    pub cfg: bool,
}

impl Operation for EulerStep {
    fn name(&self) -> &'static str {
        Self::NAME
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

impl Located for EulerStep {
    const NAME: &'static str = "euler_step";
    type On<M: Copy> = EulerStep<M>;

    fn locate<M: Copy>(&self, find: &impl Locate<M>) -> Result<Self::On<M>> {
        Ok(EulerStep {
            x: find.tensor(self.x)?,
            v: find.tensor(self.v)?,
            params: find.tensor(self.params)?,
            cfg: self.cfg,
        })
    }
}
