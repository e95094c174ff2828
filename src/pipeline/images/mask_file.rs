//! Image files as masks. Programs mark what is repainted in different ways.

use image::DynamicImage;

use super::decoder::transparent;
use super::load::{ImageFile, turned};
use crate::error::{Error, Result};
#[cfg(feature = "server")]
use crate::pipeline::request::Image;
use crate::pipeline::request::Mask;

/// What of an image file marks the pixels that are repainted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskMarks {
    /// Transparent pixels, or white ones in an image without transparency: see [`ImageFile::mask`].
    TransparentOrWhite,
    /// Transparent pixels. An image without any is refused.
    Transparent,
    /// Opaque pixels, or white ones in an image without transparency.
    OpaqueOrWhite,
    /// The opacity of every pixel, or the brightness of red in an image without an alpha channel.
    /// An image of which all pixels are opaque is repainted as a whole.
    Opacity,
    /// The brightness of red (0), green (1) or blue (2).
    Channel(usize),
}

impl ImageFile {
    /// The image as a mask: white is repainted, black is kept. If it has transparent pixels, these
    /// are repainted in place of white ones, as other programs mark them.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged.
    pub fn mask(&self) -> Result<Mask> {
        self.mask_by(MaskMarks::TransparentOrWhite)
    }

    /// The image as a mask of the pixels that `marks` says.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged, has no such pixels,
    /// or more than 64 million pixels.
    pub fn mask_by(&self, marks: MaskMarks) -> Result<Mask> {
        self.check_whole()?;
        let image = turned(self.bytes())?;
        match (marks, transparent(&image)) {
            (MaskMarks::TransparentOrWhite | MaskMarks::Transparent, Some(mask)) => Ok(mask),
            (MaskMarks::OpaqueOrWhite | MaskMarks::Opacity, Some(mask)) => {
                let values = mask.values.iter().map(|v| 255 - v).collect();
                Ok(Mask { values, ..mask })
            }
            (MaskMarks::TransparentOrWhite | MaskMarks::OpaqueOrWhite, None) => Ok(white(image)),
            (MaskMarks::Transparent, None) => Err(Error::argument(
                "the mask has no transparent pixels, which mark what to repaint",
            )
            .at_parameter("mask")
            .try_("make the part to repaint transparent, and save the mask as a PNG")),
            (MaskMarks::Opacity, None) if image.color().has_alpha() => {
                let (width, height) = (image.width() as usize, image.height() as usize);
                Ok(Mask { width, height, values: vec![255; width * height] })
            }
            (MaskMarks::Opacity, None) => Ok(brightness(image, 0)),
            (MaskMarks::Channel(channel), _) => Ok(brightness(image, channel)),
        }
    }
}

/// The values of red (0), green (1) or blue (2).
fn brightness(image: DynamicImage, channel: usize) -> Mask {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let values = image.into_rgb8().pixels().map(|p| p.0[channel.min(2)]).collect();
    Mask { width, height, values }
}

fn white(image: DynamicImage) -> Mask {
    let (width, height) = (image.width() as usize, image.height() as usize);
    Mask { width, height, values: image.into_luma8().into_raw() }
}

/// `mask` as a gray PNG in which white is repainted: [`ImageFile::mask`] reads it back.
///
/// # Errors
/// [`Kind::Output`](crate::error::Kind::Output) if its values do not match its size.
pub fn encode_mask(mask: &Mask) -> Result<Vec<u8>> {
    encode_png((mask.width, mask.height), png::ColorType::Grayscale, &mask.values)
}

/// `image` as a PNG in which `mask` is its opacity: black is transparent.
///
/// # Errors
/// [`Kind::Output`](crate::error::Kind::Output) if the two have different sizes.
#[cfg(feature = "server")]
pub fn encode_with_alpha(image: &Image, mask: &Mask) -> Result<Vec<u8>> {
    let pixels = image.rgb.chunks_exact(3).zip(&mask.values);
    let rgba: Vec<u8> = pixels.flat_map(|(rgb, a)| [rgb[0], rgb[1], rgb[2], *a]).collect();
    encode_png((image.width, image.height), png::ColorType::Rgba, &rgba)
}

fn encode_png(
    (width, height): (usize, usize),
    color: png::ColorType,
    pixels: &[u8],
) -> Result<Vec<u8>> {
    let cannot = |e: String| Error::output(format!("the image cannot be encoded: {e}"));
    let side = |side: usize| u32::try_from(side).map_err(|e| cannot(e.to_string()));
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, side(width)?, side(height)?);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().map_err(|e| cannot(e.to_string()))?;
    writer.write_image_data(pixels).map_err(|e| cannot(e.to_string()))?;
    writer.finish().map_err(|e| cannot(e.to_string()))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;

    fn file(image: impl Into<DynamicImage>) -> ImageFile {
        let mut bytes = Vec::new();
        image.into().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        ImageFile::of(bytes).unwrap()
    }

    #[test]
    fn every_kind_of_mark_is_read() {
        let opaque = file(RgbImage::from_fn(3, 1, |x, _| {
            [Rgb([0, 0, 0]), Rgb([255, 255, 255]), Rgb([7, 80, 200])][x as usize]
        }));
        let pixels = [[9, 9, 9, 255], [255, 255, 255, 0], [1, 2, 3, 55]];
        let clear = file(RgbaImage::from_fn(3, 1, |x, _| Rgba(pixels[x as usize])));
        let values = |file: &ImageFile, marks| file.mask_by(marks).unwrap().values;
        assert_eq!(values(&opaque, MaskMarks::TransparentOrWhite)[..2], [0, 255]);
        assert_eq!(values(&opaque, MaskMarks::OpaqueOrWhite)[..2], [0, 255]);
        assert_eq!(values(&clear, MaskMarks::TransparentOrWhite), [0, 255, 200]);
        assert_eq!(values(&clear, MaskMarks::Transparent), [0, 255, 200]);
        assert_eq!(values(&clear, MaskMarks::OpaqueOrWhite), [255, 0, 55]);
        assert_eq!(values(&clear, MaskMarks::Opacity), [255, 0, 55]);
        assert_eq!(values(&opaque, MaskMarks::Opacity), [0, 255, 7]);
        let whole = file(RgbaImage::from_pixel(2, 1, Rgba([9, 8, 7, 255])));
        assert_eq!(values(&whole, MaskMarks::Opacity), [255, 255]);
        for (channel, value) in [(0, 7), (1, 80), (2, 200)] {
            assert_eq!(values(&opaque, MaskMarks::Channel(channel)), [0, 255, value]);
        }
        let error = opaque.mask_by(MaskMarks::Transparent).unwrap_err();
        assert!(error.to_string().starts_with("mask: "), "{error}");
    }

    #[test]
    fn a_mask_survives_its_file() {
        let values = (0..=255).chain(0..=255).collect();
        let mask = Mask { width: 32, height: 16, values };
        let file = ImageFile::of(encode_mask(&mask).unwrap()).unwrap();
        assert_eq!(file.mask().unwrap(), mask);
    }
}
