//! Reference images: the sizes in which a model reads them.

use std::borrow::Cow;

use super::resize::{Resizer, scaled};
use crate::error::{Error, Result};
use crate::pipeline::request::Image;

/// The most pixels of a reference; larger ones are made smaller.
const MAX_PIXELS: usize = 1024 * 1024;
/// The shortest side, in pixels.
const MIN_SIDE: usize = 64;
/// The largest ratio of the sides.
const MAX_RATIO: usize = 8;

/// In which size a model reads a reference image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceSize {
    /// Its own, but not too large, too small or too narrow (FLUX.2).
    Limited,
    /// One of those of its training, to which any image is stretched (FLUX.1 Kontext).
    Kontext {
        /// Pixels along the edge of a token.
        unit: usize,
    },
}

/// Checks that a model can read `image` as a reference.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) for an image that is too small or too narrow.
pub fn check_reference(image: &Image) -> Result<()> {
    check_reference_size(image.width, image.height)
}

/// The same for an image of `width x height` pixels.
pub fn check_reference_size(width: usize, height: usize) -> Result<()> {
    let (short, long) = (width.min(height), width.max(height));
    let refused = |what: &str, expected: String| {
        Err(Error::argument(what)
            .at_parameter("reference")
            .found(format!("{width}x{height}"))
            .expected(expected)
            .try_("give an image with this size, or scale this one in another program"))
    };
    if short < MIN_SIDE {
        let expected = format!("at least {MIN_SIDE} pixels a side");
        return refused("this reference image is too small", expected);
    }
    // The sides of one that is made smaller are rounded down.
    let (_, smaller) = shrunk_size(long, short);
    if long > MAX_RATIO * short || smaller < MIN_SIDE {
        let expected = format!("sides of at most {MAX_RATIO}:1");
        return refused("this reference image is too narrow", expected);
    }
    Ok(())
}

/// The size to which a reference of `width x height` is made smaller.
pub fn shrunk_size(width: usize, height: usize) -> (usize, usize) {
    if width * height <= MAX_PIXELS {
        return (width, height);
    }
    let scale = (MAX_PIXELS as f64 / (width * height) as f64).sqrt();
    let side = |pixels: usize| ((pixels as f64 * scale) as usize).max(1);
    (side(width), side(height))
}

/// `image` in the size of [`shrunk_size`], made smaller with a Lanczos filter.
pub fn shrink(image: Image) -> Image {
    match smaller(&image) {
        Cow::Borrowed(_) => image,
        Cow::Owned(image) => image,
    }
}

fn smaller(image: &Image) -> Cow<'_, Image> {
    let (width, height) = shrunk_size(image.width, image.height);
    scaled(image, width, height)
}

/// Width and height of a reference of `width x height` pixels as a model with tokens of `unit`
/// pixels reads it.
pub fn reference_size(width: usize, height: usize, unit: usize) -> (usize, usize) {
    let (width, height) = shrunk_size(width, height);
    (width / unit * unit, height / unit * unit)
}

/// Upper bound of the memory that [`prepare_reference`] needs for an image of `width x height`
/// besides its result, in bytes.
pub fn prepare_bytes(width: usize, height: usize) -> u64 {
    let small = shrunk_size(width, height);
    match small == (width, height) {
        true => 0,
        false => Resizer::bytes_of_part((width, height), small.0, small.1),
    }
}

/// `image` in the size of [`reference_size`]: made smaller if it is large, then cut around its
/// centre.
pub fn prepare_reference(image: &Image, unit: usize) -> Image {
    let (width, height) = reference_size(image.width, image.height, unit);
    let whole = smaller(image);
    let (left, top) = ((whole.width - width) / 2, (whole.height - height) / 2);
    let rows = whole.rgb.chunks_exact(3 * whole.width).skip(top).take(height);
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
        for (width, height) in [(1, 1), (1, 64_000_000), (20_000, 2_000)] {
            assert!(check_reference_size(width, height).is_err(), "{width}x{height}");
        }
        // The largest image that is read at all, and one that is as narrow as it may be.
        for (width, height) in [(8_000, 8_000), (16_384, 2_048), (2_897, 363)] {
            assert!(check_reference_size(width, height).is_ok(), "{width}x{height}");
            let (width, height) = reference_size(width, height, 16);
            assert!(width >= 64 && height >= 64 && width * height <= MAX_PIXELS);
        }
    }

    #[test]
    fn an_image_that_was_made_smaller_is_not_changed_again() {
        for (width, height) in [(2000, 1000), (1500, 1501), (1025, 1024), (3000, 400)] {
            let once = shrink(gray(width, height));
            assert_eq!(shrink(once.clone()), once);
            let of = |image: &Image| reference_size(image.width, image.height, 16);
            assert_eq!(of(&once), of(&gray(width, height)));
            assert!(prepare_bytes(width, height) < 8 << 20);
        }
    }
}
