//! A small image of unfinished latents, for progress displays: colours are a linear map of latents.

use super::tokens::unpack;
use super::transformer::Transformer;
use crate::model::flux1::DenoiseShape;
use crate::pipeline::request::Image;

/// Red, green and blue for each of FLUX.1's 16 latent channels (from ComfyUI's latent formats).
const FLUX1: [[f32; 3]; 16] = [
    [-0.0346, 0.0244, 0.0681],
    [0.0034, 0.021, 0.0687],
    [0.0275, -0.0668, -0.0433],
    [-0.0174, 0.016, 0.0617],
    [0.0859, 0.0721, 0.0329],
    [0.0004, 0.0383, 0.0115],
    [0.0405, 0.0861, 0.0915],
    [-0.0236, -0.0185, -0.0259],
    [-0.0245, 0.025, 0.118],
    [0.1008, 0.0755, -0.0421],
    [-0.0515, 0.0201, 0.0011],
    [0.0428, -0.0012, -0.0036],
    [0.0817, 0.0765, 0.0749],
    [-0.1264, -0.0522, -0.1103],
    [-0.028, -0.0881, -0.0499],
    [-0.1262, -0.0982, -0.0778],
];
/// Red, green and blue for each of FLUX.2's 32 latent channels, before the statistics of the
/// autoencoder are undone (from the same source).
const FLUX2: [[f32; 3]; 32] = [
    [0.0058, 0.0113, 0.0073],
    [0.0495, 0.0443, 0.0836],
    [-0.0099, 0.0096, 0.0644],
    [0.2144, 0.3009, 0.3652],
    [0.0166, -0.0039, -0.0054],
    [0.0157, 0.0103, -0.016],
    [-0.0398, 0.0902, -0.0235],
    [-0.0052, 0.0095, 0.0109],
    [-0.3527, -0.2712, -0.1666],
    [-0.0301, -0.0356, -0.018],
    [-0.0107, 0.0078, 0.0013],
    [0.0746, 0.009, -0.0941],
    [0.0156, 0.0169, 0.007],
    [-0.0034, -0.004, -0.0114],
    [0.0032, 0.0181, 0.008],
    [-0.0939, -0.0008, 0.0186],
    [0.0018, 0.0043, 0.0104],
    [0.0284, 0.0056, -0.0127],
    [-0.0024, -0.0022, -0.003],
    [0.1207, -0.0026, 0.0065],
    [0.0128, 0.0101, 0.0142],
    [0.0137, -0.0072, -0.0007],
    [0.0095, 0.0092, -0.0059],
    [0.0, -0.0077, -0.0049],
    [-0.0465, -0.0204, -0.0312],
    [0.0095, 0.0012, -0.0066],
    [0.029, -0.0034, 0.0025],
    [0.022, 0.0169, -0.0048],
    [-0.0332, -0.0457, -0.0468],
    [-0.0085, 0.0389, 0.0609],
    [-0.0076, 0.0003, -0.0043],
    [-0.0111, -0.046, -0.0614],
];
/// Red, green and blue of latents that are 0, in both families.
const BIAS: [f32; 3] = [-0.0329, -0.0718, -0.0851];

/// What the first image will be if the last step's direction is right: one pixel per latent pixel.
/// `before` and `after` are the packed latents of `flux` around a step from noise level `levels[0]`
/// to `levels[1]`. `None` if they have another number of channels than those of the published
/// models.
pub fn preview(
    flux: &Transformer<'_>,
    before: &[f32],
    after: &[f32],
    levels: &[f32],
) -> Option<Image> {
    let factors: &[[f32; 3]] = match flux {
        Transformer::Flux1 { .. } => &FLUX1,
        Transformer::Flux2 { .. } => &FLUX2,
    };
    (flux.channels() == 4 * factors.len())
        .then(|| coloured(factors, flux.shape(), before, after, levels))
}

/// The same with these colours of channels.
fn coloured(
    factors: &[[f32; 3]],
    shape: &DenoiseShape,
    before: &[f32],
    after: &[f32],
    levels: &[f32],
) -> Image {
    let (height, width) = (2 * shape.height, 2 * shape.width);
    let values = height * width * factors.len();
    let (before, after) = (&before[..values], &after[..values]);
    // The step added `(levels[1] - levels[0]) * v`; at noise level 0 the latents would be
    // `after - levels[1] * v`.
    let ahead = levels[1] / (levels[1] - levels[0]);
    let clean: Vec<f32> = before.iter().zip(after).map(|(b, a)| a - (a - b) * ahead).collect();
    let latents = unpack(&clean, height, width, factors.len());
    let pixel = |channels: &[f32]| {
        let mut rgb = BIAS;
        for (value, factors) in channels.iter().zip(factors) {
            rgb.iter_mut().zip(factors).for_each(|(sum, f)| *sum += value * f);
        }
        rgb.map(|c| ((c / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8)
    };
    let rgb = latents.chunks_exact(factors.len()).flat_map(pixel).collect();
    Image { width, height, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_is_of_the_first_image_at_noise_level_zero() {
        for factors in [&FLUX1[..], &FLUX2[..]] {
            let shape = DenoiseShape { images: 2, cfg: false, text_tokens: 1, height: 2, width: 3 };
            let values = 4 * 6 * factors.len();
            // From level 1 to 0.5 with direction -1: at level 0 all latents are 1.
            let before = vec![0.0; 2 * values];
            let after = vec![0.5; 2 * values];
            let image = coloured(factors, &shape, &before, &after, &[1.0, 0.5]);
            assert_eq!((image.width, image.height, image.rgb.len()), (6, 4, 72));
            let sum = |c: usize| BIAS[c] + factors.iter().map(|f| f[c]).sum::<f32>();
            let want = [0, 1, 2].map(|c| ((sum(c) / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round());
            let want = want.map(|v| v as u8);
            assert!(image.rgb.chunks(3).all(|p| p == want), "{:?} {want:?}", &image.rgb[..3]);
        }
    }

    /// The first pixel of a token is the one above and to the left: column `4 * channel`.
    #[test]
    fn a_token_is_four_pixels_of_the_preview() {
        let shape = DenoiseShape { images: 1, cfg: false, text_tokens: 1, height: 1, width: 1 };
        let mut after = vec![0.0; 4 * FLUX2.len()];
        after[4 * 3] = 4.0;
        let image = coloured(&FLUX2, &shape, &vec![0.0; after.len()], &after, &[1.0, 0.0]);
        let of = |value: f32| {
            [0, 1, 2].map(|c| {
                let v = (BIAS[c] + value * FLUX2[3][c]) / 2.0 + 0.5;
                (v.clamp(0.0, 1.0) * 255.0).round() as u8
            })
        };
        let pixels: Vec<[u8; 3]> = image.rgb.chunks(3).map(|p| [p[0], p[1], p[2]]).collect();
        assert_eq!(pixels, [of(4.0), of(0.0), of(0.0), of(0.0)]);
    }
}
