//! Reference images of FLUX.1 Kontext: the sizes that it was trained with.

use super::stretch::{Filter, stretched};
use crate::pipeline::request::Image;

/// Width and height in pixels, from `black-forest-labs/flux` (`PREFERED_KONTEXT_RESOLUTIONS`).
const SIZES: [(usize, usize); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];

/// The size of Kontext's training, in pixels, whose ratio of width to height is nearest to `ratio`.
pub fn nearest_kontext_size(ratio: f64) -> (usize, usize) {
    let distance = |&(w, h): &(usize, usize)| (ratio - w as f64 / h as f64).abs();
    let nearest = SIZES.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.unwrap_or((1024, 1024))
}

/// Width and height in which Kontext reads an image of `width x height` pixels: the size of its
/// training with the nearest ratio, in whole tokens of `unit` pixels. The ratio is that of the
/// whole tokens of the image, as in diffusers.
pub fn kontext_size(width: usize, height: usize, unit: usize) -> (usize, usize) {
    let whole = |side: usize| (side / unit).max(1) as f64;
    let (w, h) = nearest_kontext_size(whole(width) / whole(height));
    (w / unit * unit, h / unit * unit)
}

/// `image` as Kontext reads it: stretched to the size of [`kontext_size`].
pub fn prepare_kontext(image: &Image, unit: usize) -> Image {
    let (width, height) = kontext_size(image.width, image.height, unit);
    stretched(image, width, height, Filter::Lanczos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_ratio_is_taken() {
        assert_eq!(kontext_size(500, 500, 16), (1024, 1024));
        assert_eq!(kontext_size(1920, 1080, 16), (1392, 752));
        assert_eq!(kontext_size(1, 1000, 16), (672, 1568));
        assert_eq!(kontext_size(1000, 1, 16), (1568, 672));
        assert_eq!(kontext_size(3000, 2000, 32), (1248, 832));
        let image = Image { width: 4, height: 4, rgb: vec![9; 48] };
        let prepared = prepare_kontext(&image, 16);
        assert_eq!((prepared.width, prepared.height, prepared.rgb[0]), (1024, 1024, 9));
    }
}
