//! The image that image-to-image starts from, to latents.

use super::bands::{self, Bands};
use super::{
    Draft, GenerationPhase, PlannedProgram, SharedDevice, Values, Variant, run_once, start_runs,
};
use crate::dtype::DType;
use crate::error::Result;
use crate::event::Phase;
use crate::model::flux1::DenoiseShape;
use crate::model::vae::Network as Half;
use crate::model::{VaeConfig, vae};
use crate::pipeline::model::{LatentScale, Network};
use crate::pipeline::progress::{Listener, Progress};
use crate::pipeline::request::{Image, Mask};

/// Pixels that are converted at a time.
const PIECE: usize = 1 << 16;
/// From this value on, a pixel of a mask counts as repainted where there is only yes or no.
const HALF: u8 = 128;

/// The purpose of the encoded image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ImageUse {
    /// [`Values::init`], mixed with the noise in [`Values::latents`].
    Start {
        /// The noise level at which denoising starts.
        sigma: f32,
        /// The image is the first reference, too (FLUX.2 with a mask).
        is_reference: bool,
    },
    /// [`Values::condition_image`], to [`Values::condition`].
    Condition,
    /// The image of the ControlNet of this number in [`Values::controls`], to its condition.
    Control(usize),
}

/// Encodes one image: in one piece, or in bands of rows where that does not fit.
pub struct ImageEncode<'a> {
    /// The autoencoder.
    pub vae: &'a Network<VaeConfig>,
    /// How its latents are scaled.
    pub latents: &'a LatentScale,
    /// Images and tokens.
    pub shape: DenoiseShape,
    /// The purpose of the image; `None` if this request has no image to encode.
    pub work: Option<ImageUse>,
}

impl ImageEncode<'_> {
    /// Height and width in pixels.
    fn size(&self) -> (usize, usize) {
        let edge = 2 * self.vae.config.factor();
        (edge * self.shape.height, edge * self.shape.width)
    }

    fn half(&self, activation: DType) -> Half {
        let (height, width) = self.size();
        Half::encoder(&self.vae.config, height, width, activation)
    }
}

impl GenerationPhase for ImageEncode<'_> {
    fn drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let (height, width) = self.size();
        let record =
            move || Variant::whole(vae::encode(&self.vae.config, height, width, activation), 1);
        vec![Draft::optional(Phase::ImageEncode, &self.vae.weights, self.work.map(|_| record()))]
    }

    fn small_drafts(&self, activation: DType) -> Vec<Draft<'_>> {
        let half = self.half(activation);
        let mut drafts = bands::drafts(&half, Phase::ImageEncode, &self.vae.weights, true, 1);
        if self.work.is_none() {
            drafts.iter_mut().for_each(|draft| draft.variants = Box::new(std::iter::empty()));
        }
        drafts
    }

    /// The image as it was given and in the size of the request, if it was that already.
    fn host_bytes(&self) -> u64 {
        let (height, width) = self.size();
        if self.work.is_some() { (6 * height * width) as u64 } else { 0 }
    }

    fn run(
        &self,
        programs: &[PlannedProgram],
        device: &mut SharedDevice<'_>,
        values: &mut Values,
        on: Listener<'_>,
    ) -> Result<()> {
        let Some(work) = self.work else { unreachable!("planned for a request with an image") };
        let (image, hole) = match work {
            ImageUse::Start { .. } => (values.init.as_ref(), None),
            ImageUse::Condition => (values.condition_image.as_ref(), values.hole.as_ref()),
            ImageUse::Control(number) => (Some(&values.controls[number].image), None),
        };
        let Some(image) = image else { unreachable!("planned for a request with an image") };
        let planned = &programs[0];
        let mut progress = start_runs(programs, on)?;
        let mut image = match planned.band {
            Some(_) => {
                let half = self.half(planned.activation());
                encode_in_bands(&half, programs, device, image, hole, &mut progress)?
            }
            None => encode(planned, device, image, hole, &mut progress)?,
        };
        progress.end()?;
        self.latents.encoded(&self.vae.config, &mut image);
        let factor = self.vae.config.factor();
        let (sigma, is_reference) = match work {
            ImageUse::Start { sigma, is_reference } => (sigma, is_reference),
            ImageUse::Condition => {
                values.condition = match &values.hole {
                    None => image,
                    Some(hole) => with_mask(&image, hole, &self.shape, factor),
                };
                return Ok(());
            }
            ImageUse::Control(number) => {
                let control = &mut values.controls[number];
                control.condition = match &control.mask {
                    None => image,
                    Some(mask) => with_kept(&image, mask, &self.shape, factor),
                };
                return Ok(());
            }
        };
        if let Some(kept) = &mut values.kept {
            kept.noise.clone_from(&values.latents);
            kept.clean.clone_from(&image);
        }
        if is_reference {
            values.references.extend_from_slice(&image);
        }
        for (noise, x) in values.latents.iter_mut().zip(image.iter().cycle()) {
            *noise = sigma * *noise + (1.0 - sigma) * x;
        }
        Ok(())
    }
}

/// The latents of `image` as packed tokens, not yet scaled, by a program of the whole encoder.
/// Pixels in `hole` are mid grey.
pub(super) fn encode(
    planned: &PlannedProgram,
    device: &mut SharedDevice<'_>,
    image: &Image,
    hole: Option<&Mask>,
    progress: &mut Progress<'_>,
) -> Result<Vec<f32>> {
    let mut session = device.session(planned)?;
    for (first, values) in pieces(image, hole) {
        let bytes = bytemuck::cast_slice(&values);
        session.write_rows(planned.program.input("pixels"), first, bytes)?;
    }
    let tokens = run_once(session, planned, "latents", &mut |_, _| progress.poll())?;
    progress.advance()?;
    Ok(tokens)
}

/// The same by `programs`, those of all stages of `half`, in bands of rows.
pub(super) fn encode_in_bands(
    half: &Half,
    programs: &[PlannedProgram],
    device: &mut SharedDevice<'_>,
    image: &Image,
    hole: Option<&Mask>,
    progress: &mut Progress<'_>,
) -> Result<Vec<f32>> {
    let mut bands = Bands::new(half);
    let plane = bands.plane(0)?;
    for (first, values) in pieces(image, hole) {
        plane.write(12 * first as u64, bytemuck::cast_slice(&values))?;
    }
    let mut tokens = Vec::new();
    bands.run(programs, device, &mut tokens, progress)?;
    Ok(tokens)
}

/// The pixels of `image` as values from -1 to 1, piece by piece, each with the number of its first
/// pixel. Pixels in `hole` are 0, which no byte is.
pub(super) fn pieces<'a>(
    image: &'a Image,
    hole: Option<&'a Mask>,
) -> impl Iterator<Item = (usize, Vec<f32>)> + 'a {
    let value = |b: &u8| f32::from(*b) / 255.0 * 2.0 - 1.0;
    let pieces = image.rgb.chunks(3 * PIECE).enumerate();
    pieces.map(move |(i, rgb)| {
        let first = i * PIECE;
        let mut values: Vec<f32> = rgb.iter().map(value).collect();
        if let Some(hole) = hole {
            let pixels = values.chunks_exact_mut(3).zip(&hole.values[first..]);
            pixels.filter(|(_, m)| **m >= HALF).for_each(|(pixel, _)| pixel.fill(0.0));
        }
        (first, values)
    })
}

/// The tokens of a masked image with the pixels of its mask behind them, as FLUX.1 Fill reads them:
/// `factor x factor` pixels are the channels of one latent pixel (row slowest), and four of these
/// are packed like latents.
fn with_mask(image: &[f32], mask: &Mask, shape: &DenoiseShape, factor: usize) -> Vec<f32> {
    let (tokens, edge) = (shape.height * shape.width, 2 * factor);
    let columns = image.len() / tokens;
    let mut out = Vec::with_capacity(tokens * (columns + edge * edge));
    for (token, latents) in image.chunks_exact(columns).enumerate() {
        out.extend_from_slice(latents);
        let (top, left) = (token / shape.width * edge, token % shape.width * edge);
        for channel in 0..factor * factor {
            for part in 0..4 {
                let y = top + part / 2 * factor + channel / factor;
                let x = left + part % 2 * factor + channel % factor;
                out.push(f32::from(mask.values[y * mask.width + x]) / 255.0);
            }
        }
    }
    out
}

/// The tokens of an image with four columns behind them: whether each of their latent pixels is
/// kept, by the first pixel of it in `mask` (alimama's ControlNet for inpainting).
fn with_kept(image: &[f32], mask: &Mask, shape: &DenoiseShape, factor: usize) -> Vec<f32> {
    let tokens = shape.height * shape.width;
    let columns = image.len() / tokens;
    let mut out = Vec::with_capacity(tokens * (columns + 4));
    for (token, latents) in image.chunks_exact(columns).enumerate() {
        out.extend_from_slice(latents);
        let (top, left) = (token / shape.width * 2, token % shape.width * 2);
        for (row, column) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let at = (top + row) * factor * mask.width + (left + column) * factor;
            out.push(if mask.values[at] < HALF { 1.0 } else { 0.0 });
        }
    }
    out
}

/// Paints the pixels of `image` that `mask` repaints black, as that ControlNet has learned it.
pub fn blacken(image: &mut Image, mask: &Mask) {
    let pixels = image.rgb.chunks_exact_mut(3).zip(&mask.values);
    pixels.filter(|(_, m)| **m >= HALF).for_each(|(pixel, _)| pixel.fill(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pixels_of_a_mask_are_columns_behind_the_latents() {
        let shape = DenoiseShape { images: 1, cfg: false, text_tokens: 0, height: 1, width: 2 };
        // Latent pixels of 2 x 2, so tokens of 4 x 4.
        let values = (0..32).map(|i| 5 * i).collect();
        let mask = Mask { width: 8, height: 4, values };
        let tokens = with_mask(&[1.0, 2.0], &mask, &shape, 2);
        assert_eq!((tokens.len(), tokens[0], tokens[17]), (34, 1.0, 2.0));
        let places: Vec<usize> =
            tokens[18..].iter().map(|v| (v * 255.0 / 5.0).round() as usize).collect();
        // Channel (row, column) of the latent pixel, then the four latent pixels of the token.
        assert_eq!(places, [4, 6, 20, 22, 5, 7, 21, 23, 12, 14, 28, 30, 13, 15, 29, 31]);
    }
}
