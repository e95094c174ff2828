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
    use super::super::reference::{ReferenceSize, shrink};
    use super::super::{Format, ImageFile, encode};
    use super::*;

    /// Any file is stretched from its own size, not from a smaller copy.
    #[test]
    fn files_are_stretched_as_they_are() {
        let size = ReferenceSize::Kontext { unit: 16 };
        for (width, height) in [(1500, 1100), (1, 1), (3, 700)] {
            let value = |i: usize| (i * 7919 % 251) as u8;
            let rgb = (0..3 * width * height).map(value).collect();
            let image = Image { width, height, rgb };
            let want = prepare_kontext(&image, 16);
            // The rows of a PNG are read one after another, those of a BMP are not.
            for format in [Format::Png, Format::Bmp] {
                let file = ImageFile::of(encode(&image, format, 90, "").unwrap()).unwrap();
                assert!(file.reference(size).unwrap() == want, "{width}x{height} {format:?}");
                let bytes = file.reference_bytes(size);
                let least = 3 * want.width * (height + want.height);
                assert!((least as u64..least as u64 + (12 << 20)).contains(&bytes), "{bytes}");
            }
            let smaller = shrink(image.clone());
            assert_eq!(smaller == image, width * height < 1 << 20);
            assert!(smaller == image || prepare_kontext(&smaller, 16) != want);
            // What was stretched once is not changed again.
            assert!(prepare_kontext(&want, 16) == want);
        }
    }

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
