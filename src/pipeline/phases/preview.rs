//! A small image of unfinished latents, for progress displays: colours are a linear map of latents.

use super::tokens::unpack;
use crate::model::flux1::DenoiseShape;
use crate::pipeline::request::Image;

/// Red, green and blue for each of FLUX.1's 16 latent channels (from ComfyUI's latent formats).
const FACTORS: [[f32; 3]; 16] = [
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
/// Red, green and blue of latents that are 0.
const BIAS: [f32; 3] = [-0.0329, -0.0718, -0.0851];

/// What the first image will be if the last step's direction is right: one pixel per latent pixel.
/// `before` and `after` are the packed latents around a step from noise level `levels[0]` to
/// `levels[1]`. `None` if the model's latents do not have FLUX.1's channels.
pub fn preview(
    before: &[f32],
    after: &[f32],
    levels: &[f32],
    shape: &DenoiseShape,
) -> Option<Image> {
    let (height, width) = (2 * shape.height, 2 * shape.width);
    let values = height * width * FACTORS.len();
    if after.len() != values * shape.images {
        return None;
    }
    let (before, after) = (before.get(..values)?, &after[..values]);
    // The step added `(levels[1] - levels[0]) * v`; at noise level 0 the latents would be
    // `after - levels[1] * v`.
    let ahead = levels[1] / (levels[1] - levels[0]);
    let clean: Vec<f32> = before.iter().zip(after).map(|(b, a)| a - (a - b) * ahead).collect();
    let latents = unpack(&clean, height, width, FACTORS.len());
    let pixel = |channels: &[f32]| {
        let mut rgb = BIAS;
        for (value, factors) in channels.iter().zip(&FACTORS) {
            rgb.iter_mut().zip(factors).for_each(|(sum, f)| *sum += value * f);
        }
        rgb.map(|c| ((c / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8)
    };
    let rgb = latents.chunks_exact(FACTORS.len()).flat_map(pixel).collect();
    Some(Image { width, height, rgb })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_is_of_the_first_image_at_noise_level_zero() {
        let shape = DenoiseShape { images: 2, cfg: false, text_tokens: 1, height: 2, width: 3 };
        let values = 4 * 6 * 16;
        // From level 1 to 0.5 with direction -1: at level 0 all latents are 1.
        let before = vec![0.0; 2 * values];
        let after = vec![0.5; 2 * values];
        let image = preview(&before, &after, &[1.0, 0.5], &shape).unwrap();
        assert_eq!((image.width, image.height, image.rgb.len()), (6, 4, 72));
        let sum = |c: usize| BIAS[c] + FACTORS.iter().map(|f| f[c]).sum::<f32>();
        let want = [0, 1, 2].map(|c| ((sum(c) / 2.0 + 0.5) * 255.0).round() as u8);
        assert!(image.rgb.chunks(3).all(|p| p == want), "{:?} {want:?}", &image.rgb[..3]);
        // Fewer channels are another model's.
        assert!(preview(&before[..100], &after[..100], &[1.0, 0.5], &shape).is_none());
    }
}
