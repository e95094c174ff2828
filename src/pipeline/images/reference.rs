//! Reference images: the sizes in which a model reads them.

use image::{ImageBuffer, Rgb, imageops};

use crate::error::{Error, Result};
use crate::pipeline::request::Image;

/// The most pixels of a reference; larger ones are made smaller.
const MAX_PIXELS: usize = 1024 * 1024;
/// The shortest side, in pixels.
const MIN_SIDE: usize = 64;
/// The largest ratio of the sides.
const MAX_RATIO: usize = 8;

/// Checks that a model can read `image` as a reference.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for an image that is too small or too narrow.
pub fn check_reference(image: &Image) -> Result<()> {
    let (short, long) = (image.width.min(image.height), image.width.max(image.height));
    let refused = |what: &str, expected: String| {
        Err(Error::argument(what)
            .at_parameter("reference")
            .found(format!("{}x{}", image.width, image.height))
            .expected(expected))
    };
    if short < MIN_SIDE {
        return refused("this reference image is too small", format!("{MIN_SIDE} pixels a side"));
    }
    if long > MAX_RATIO * short {
        return refused("this reference image is too narrow", format!("at most {MAX_RATIO}:1"));
    }
    Ok(())
}

/// The size to which a reference of `width x height` is made smaller.
fn resized(width: usize, height: usize) -> (usize, usize) {
    if width * height <= MAX_PIXELS {
        return (width, height);
    }
    let scale = (MAX_PIXELS as f64 / (width * height) as f64).sqrt();
    ((width as f64 * scale) as usize, (height as f64 * scale) as usize)
}

/// Width and height of a reference of `width x height` pixels as a model with tokens of `unit`
/// pixels reads it.
pub fn reference_size(width: usize, height: usize, unit: usize) -> (usize, usize) {
    let (width, height) = resized(width, height);
    (width / unit * unit, height / unit * unit)
}

/// `image` in the size of [`reference_size`]: made smaller with a Lanczos filter if it is large,
/// then cut around its centre.
pub fn prepare_reference(image: &Image, unit: usize) -> Image {
    let (w, h) = (image.width as u32, image.height as u32);
    let Some(pixels) = ImageBuffer::<Rgb<u8>, _>::from_raw(w, h, image.rgb.as_slice()) else {
        // `Image` promises as many bytes as its size needs.
        unreachable!("an image of {w}x{h} with another number of bytes");
    };
    let (width, height) = reference_size(image.width, image.height, unit);
    let (whole_w, whole_h) = resized(image.width, image.height);
    let small = match (whole_w, whole_h) == (image.width, image.height) {
        true => None,
        false => {
            let filter = imageops::FilterType::Lanczos3;
            Some(imageops::resize(&pixels, whole_w as u32, whole_h as u32, filter).into_raw())
        }
    };
    let whole = small.as_deref().unwrap_or(&image.rgb);
    let (left, top) = ((whole_w - width) / 2, (whole_h - height) / 2);
    let rows = whole.chunks_exact(3 * whole_w).skip(top).take(height);
    let rgb = rows.flat_map(|row| row[3 * left..3 * (left + width)].iter().copied()).collect();
    Image { width, height, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray(width: usize, height: usize) -> Image {
        Image { width, height, rgb: vec![128; 3 * width * height] }
    }

    #[test]
    fn references_are_made_smaller_and_cut_to_whole_tokens() {
        assert_eq!(reference_size(100, 70, 16), (96, 64));
        assert_eq!(reference_size(1024, 1024, 16), (1024, 1024));
        assert_eq!(reference_size(2048, 1024, 16), (1440, 720));
        let small = prepare_reference(&gray(2000, 1000), 16);
        assert_eq!((small.width, small.height), reference_size(2000, 1000, 16));
        assert!(small.rgb.iter().all(|v| *v == 128));
        // The centre of a line of pixels is kept.
        let rgb = (0..70 * 64).flat_map(|i| [(i % 70) as u8; 3]).collect();
        let cut = prepare_reference(&Image { width: 70, height: 64, rgb }, 16);
        assert_eq!((cut.width, cut.height, cut.rgb[0], cut.rgb[3 * 63]), (64, 64, 3, 66));
    }

    #[test]
    fn references_that_are_too_small_or_narrow_are_refused() {
        assert!(check_reference(&gray(64, 512)).is_ok());
        assert!(check_reference(&gray(63, 512)).is_err());
        assert!(check_reference(&gray(64, 513)).is_err());
    }
}
