//! Between latent pixels and tokens, and the update of the sampler.

use super::kernels::{How, Kernels, kernels};
use super::matrix::{In, Out};
use super::share::for_rows;
use super::step::{CpuOperation, CpuStep};
use crate::error::Result;
use crate::op::{EulerStep, Pack, Unpack};

/// Latent pixels to tokens; see [`Pack`].
pub(crate) fn pack(how: How, x: In, height: usize, width: usize, out: Out) {
    if how == How::Reference {
        return reference::pack(x, height, width, out);
    }
    for_rows(out.rows(), out.cols(), |rows| {
        for r in rows {
            // SAFETY: only this task writes the row of out; x is not written.
            let (token, pixels) =
                unsafe { (out.row(r), patch(height, width, r).map(|p| x.row(p))) };
            for (i, pixel) in pixels.into_iter().enumerate() {
                token.iter_mut().skip(i).step_by(4).zip(pixel).for_each(|(t, p)| *t = *p);
            }
        }
    });
}

/// Tokens to latent pixels, then `x * scale + shift`; see [`Unpack`].
pub(crate) fn unpack(
    how: How,
    x: In,
    height: usize,
    width: usize,
    scale: f32,
    shift: f32,
    out: Out,
) {
    if how == How::Reference {
        return reference::unpack(x, height, width, scale, shift, out);
    }
    for_rows(x.rows(), x.cols(), |rows| {
        for r in rows {
            // SAFETY: the four pixels belong only to this token; x is not written.
            let (token, pixels) =
                unsafe { (x.row(r), patch(height, width, r).map(|p| out.row(p))) };
            for (i, pixel) in pixels.into_iter().enumerate() {
                pixel
                    .iter_mut()
                    .zip(token.iter().skip(i).step_by(4))
                    .for_each(|(p, t)| *p = *t * scale + shift);
            }
        }
    });
}

/// The four pixels of a token, row by row.
fn patch(height: usize, width: usize, token: usize) -> [usize; 4] {
    let (across, down) = (width / 2, height / 2);
    let (image, y, x) = (token / (across * down), token / across % down, token % across);
    let first = (image * height + 2 * y) * width + 2 * x;
    [first, first + 1, first + width, first + width + 1]
}

/// `x += params[0] * v`, or its true CFG form; see [`EulerStep`].
pub(crate) fn euler_step(how: How, x: Out, v: In, params: In, cfg: bool) {
    if how == How::Reference {
        return reference::euler_step(x, v, params, cfg);
    }
    let rows = x.rows();
    // SAFETY: nothing writes to params or v.
    let (dt, s) = unsafe { (params.row(0)[0], params.row(0)[1]) };
    for_rows(rows, x.cols(), |range| {
        for r in range {
            // SAFETY: only this task writes the row of x; v is not written.
            let (x, vc) = unsafe { (x.row(r), v.row(r)) };
            if cfg {
                // SAFETY: as above.
                let vu = unsafe { v.row(rows + r) };
                for ((x, vc), vu) in x.iter_mut().zip(vc).zip(vu) {
                    *x += dt * (vu + s * (vc - vu));
                }
            } else {
                x.iter_mut().zip(vc).for_each(|(x, v)| *x += dt * v);
            }
        }
    });
}

impl CpuOperation for Pack {
    const KERNELS: Kernels = kernels!(plain "pack");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (x, out) = (step.tensor(self.x)?, step.out(self.out)?);
        pack(step.how(), x, self.height, self.width, out);
        Ok(())
    }
}

impl CpuOperation for Unpack {
    const KERNELS: Kernels = kernels!(plain "unpack");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (x, out) = (step.tensor(self.x)?, step.out(self.out)?);
        unpack(step.how(), x, self.height, self.width, self.scale, self.shift, out);
        Ok(())
    }
}

impl CpuOperation for EulerStep {
    const KERNELS: Kernels = kernels!(plain "euler_step");

    fn run(&self, step: &CpuStep) -> Result<()> {
        let (x, v) = (step.out(self.x)?, step.tensor(self.v)?);
        euler_step(step.how(), x, v, step.tensor(self.params)?, self.cfg);
        Ok(())
    }
}

/// The specification: plain loops, with sums in f64.
pub(super) mod reference {
    use crate::backend::cpu::matrix::{In, Out};
    use crate::backend::cpu::plain::{at, put};

    /// The pixel row and the channel for a token row and a column of packed latents.
    fn unpacked(token: usize, column: usize, height: usize, width: usize) -> (usize, usize) {
        let (across, down) = (width / 2, height / 2);
        let (image, y, x) = (token / (across * down), token / across % down, token % across);
        let (channel, dy, dx) = (column / 4, column / 2 % 2, column % 2);
        ((image * height + 2 * y + dy) * width + 2 * x + dx, channel)
    }

    /// Latent pixels to tokens.
    pub(crate) fn pack(x: In, height: usize, width: usize, out: Out) {
        for r in 0..out.rows() {
            for c in 0..out.cols() {
                let (pixel, channel) = unpacked(r, c, height, width);
                put(out, r, c, at(x, pixel, channel));
            }
        }
    }

    /// Tokens to latent pixels, then `x * scale + shift`.
    pub(crate) fn unpack(x: In, height: usize, width: usize, scale: f32, shift: f32, out: Out) {
        for r in 0..x.rows() {
            for c in 0..x.cols() {
                let (pixel, channel) = unpacked(r, c, height, width);
                put(out, pixel, channel, at(x, r, c) * scale + shift);
            }
        }
    }

    /// `x += params[0] * v`, or with `cfg` `x += params[0] * (vu + s * (vc - vu))`, conditional
    /// rows first.
    pub(crate) fn euler_step(x: Out, v: In, params: In, cfg: bool) {
        let (dt, s) = (at(params, 0, 0), at(params, 0, 1));
        let rows = x.rows();
        for r in 0..rows {
            for c in 0..x.cols() {
                let vc = at(v, r, c);
                let velocity = if cfg {
                    let vu = at(v, rows + r, c);
                    vu + s * (vc - vu)
                } else {
                    vc
                };
                put(x, r, c, at(x.read(), r, c) + dt * velocity);
            }
        }
    }
}
