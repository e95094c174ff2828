//! Which latents of a masked request are kept.

use crate::model::flux1::DenoiseShape;
use crate::pipeline::images::is_hard;
use crate::pipeline::request::Mask;

/// How a model family makes the mask of latents from that of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskSampling {
    /// Each latent pixel takes the first of its pixels (diffusers' `FluxInpaintPipeline`).
    LatentPixels,
    /// Each token takes the mean of the four pixels in its middle (`Flux2KleinInpaintPipeline`).
    Tokens,
}

/// Puts the latents of the image to start from back outside of a mask, after every step.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptLatents {
    /// How much of each latent pixel is repainted, 0 to 1: four for each token.
    weights: Vec<[f32; 4]>,
    /// Values between 0 and 1 are the noise levels from which on a part is repainted, not shares.
    is_soft: bool,
    /// The latents of the image, as packed tokens of one image.
    pub clean: Vec<f32>,
    /// The noise of all images, as packed tokens.
    pub noise: Vec<f32>,
}

impl KeptLatents {
    /// That of a mask of the drawn pixels, for the tokens of `shape`, `2 * factor` pixels wide.
    pub fn of(mask: &Mask, shape: &DenoiseShape, factor: usize, sampling: MaskSampling) -> Self {
        let value = |x: usize, y: usize| f32::from(mask.values[y * mask.width + x]) / 255.0;
        let unit = 2 * factor;
        let token = |index: usize| {
            let (row, column) = (index / shape.width, index % shape.width);
            let (top, left) = (row * unit, column * unit);
            match sampling {
                MaskSampling::LatentPixels => [(0, 0), (0, 1), (1, 0), (1, 1)]
                    .map(|(r, c)| value(left + c * factor, top + r * factor)),
                MaskSampling::Tokens => {
                    let (x, y) = (left + factor - 1, top + factor - 1);
                    let rows = [y, y + 1].map(|y| value(x, y) + value(x + 1, y));
                    [(rows[0] + rows[1]) / 4.0; 4]
                }
            }
        };
        let mut weights: Vec<[f32; 4]> = (0..shape.height * shape.width).map(token).collect();
        add_thin_parts(&mut weights, mask, shape, factor);
        KeptLatents {
            weights,
            is_soft: !is_hard(&mask.values),
            clean: Vec::new(),
            noise: Vec::new(),
        }
    }

    /// Replaces what is kept of `latents`, the packed tokens of all images after a step that began
    /// at noise level `level` of a schedule that began at `first`, by the image at noise level
    /// `next`.
    ///
    /// Shares of a hard mask are blended, as in diffusers. A soft mask decides from which noise
    /// level on a part is repainted (differential diffusion, as in ComfyUI).
    pub fn apply(&self, latents: &mut [f32], first: f32, level: f32, next: f32) {
        let threshold = level / first;
        let (tokens, columns) = (self.weights.len(), self.clean.len() / self.weights.len());
        let images = latents.chunks_exact_mut(tokens * columns);
        for (latents, noise) in images.zip(self.noise.chunks_exact(tokens * columns)) {
            let rows = latents.chunks_exact_mut(columns).zip(noise.chunks_exact(columns));
            let rows = rows.zip(self.clean.chunks_exact(columns)).zip(&self.weights);
            for (((latents, noise), clean), weights) in rows {
                let values = latents.iter_mut().zip(noise).zip(clean).enumerate();
                for (i, ((x, n), z)) in values {
                    let weight = match weights[i % 4] {
                        w if self.is_soft => f32::from(w >= threshold),
                        w => w,
                    };
                    let kept = (1.0 - next) * z + next * n;
                    *x = weight * *x + (1.0 - weight) * kept;
                }
            }
        }
    }
}

/// Repaints the latent pixels of masked pixels that no sample was near: a line thinner than a
/// latent pixel would be lost otherwise, without a word.
fn add_thin_parts(weights: &mut [[f32; 4]], mask: &Mask, shape: &DenoiseShape, factor: usize) {
    let (height, width) = (2 * shape.height, 2 * shape.width);
    let place = |y: usize, x: usize| ((y / 2) * shape.width + x / 2, y % 2 * 2 + x % 2);
    let sampled: Vec<f32> = (0..height * width)
        .map(|i| place(i / width, i % width))
        .map(|(token, part)| weights[token][part])
        .collect();
    let is_near = |y: usize, x: usize| {
        let rows = y.saturating_sub(1)..(y + 2).min(height);
        rows.flat_map(|y| (x.saturating_sub(1)..(x + 2).min(width)).map(move |x| (y, x)))
            .any(|(y, x)| sampled[y * width + x] > 0.0)
    };
    for (y, row) in mask.values.chunks_exact(factor * mask.width).enumerate().take(height) {
        for x in 0..width {
            let pixels =
                row.chunks_exact(mask.width).flat_map(|r| &r[x * factor..(x + 1) * factor]);
            let most = pixels.max().copied().unwrap_or(0);
            if most > 0 && !is_near(y, x) {
                let (token, part) = place(y, x);
                weights[token][part] = f32::from(most) / 255.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: DenoiseShape =
        DenoiseShape { images: 1, cfg: false, text_tokens: 1, height: 2, width: 3 };

    /// White where `is_white` says so, 48 x 32 pixels.
    fn mask(is_white: impl Fn(usize, usize) -> bool) -> Mask {
        let values = (0..48 * 32).map(|i| 255 * u8::from(is_white(i % 48, i / 48))).collect();
        Mask { width: 48, height: 32, values }
    }

    #[test]
    fn weights_are_sampled_as_the_references_do() {
        // The right part from column 12 on.
        let right = mask(|x, _| x >= 12);
        let kept = KeptLatents::of(&right, &SHAPE, 8, MaskSampling::LatentPixels);
        assert_eq!(kept.weights, [[0.0; 4], [1.0; 4], [1.0; 4]].repeat(2));
        let kept = KeptLatents::of(&right, &SHAPE, 8, MaskSampling::Tokens);
        assert_eq!(kept.weights, [[0.0; 4], [1.0; 4], [1.0; 4]].repeat(2));
        // An edge between the four pixels in the middle of a token.
        let kept = KeptLatents::of(&mask(|x, _| x >= 8), &SHAPE, 8, MaskSampling::Tokens);
        assert_eq!(kept.weights, [[0.5; 4], [1.0; 4], [1.0; 4]].repeat(2));
        let kept = KeptLatents::of(&mask(|x, _| x >= 8), &SHAPE, 8, MaskSampling::LatentPixels);
        assert_eq!(kept.weights[0], [0.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn a_line_between_the_samples_is_repainted() {
        for sampling in [MaskSampling::LatentPixels, MaskSampling::Tokens] {
            let kept = KeptLatents::of(&mask(|x, _| x == 29), &SHAPE, 8, sampling);
            assert_eq!(kept.weights, [[0.0; 4], [0.0, 1.0, 0.0, 1.0], [0.0; 4]].repeat(2));
        }
    }

    #[test]
    fn what_is_kept_is_the_image_with_its_noise() {
        let mut kept = KeptLatents::of(&mask(|x, _| x >= 16), &SHAPE, 8, MaskSampling::Tokens);
        kept.clean = vec![2.0; 6 * 8];
        kept.noise = vec![-1.0; 6 * 8];
        let mut latents = vec![7.0; 6 * 8];
        kept.apply(&mut latents, 1.0, 0.9, 0.5);
        assert_eq!(latents[..16], [[0.5; 8], [7.0; 8]].concat());
        kept.apply(&mut latents, 1.0, 0.5, 0.0);
        assert_eq!(latents[..16], [[2.0; 8], [7.0; 8]].concat());
    }

    #[test]
    fn a_soft_part_is_repainted_in_the_later_steps() {
        let mut soft = mask(|x, _| x >= 16);
        soft.values.iter_mut().for_each(|v| *v = if *v == 255 { 128 } else { 0 });
        let mut kept = KeptLatents::of(&soft, &SHAPE, 8, MaskSampling::Tokens);
        (kept.clean, kept.noise) = (vec![0.0; 48], vec![0.0; 48]);
        for (level, repainted) in [(0.8, false), (0.6, false), (0.4, true), (0.1, true)] {
            let mut latents = vec![7.0; 48];
            kept.apply(&mut latents, 0.8, level, 0.0);
            assert_eq!(latents[8], if repainted { 7.0 } else { 0.0 }, "{level}");
            assert_eq!(latents[0], 0.0);
        }
    }
}
