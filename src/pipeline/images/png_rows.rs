//! The rows of a PNG one after another: large images need not be in memory as a whole.

use std::io::Cursor;

use image::{ColorType, DynamicImage, ImageBuffer};

use super::decoder::{MAX_DECODE_BYTES, ends_early, on_white};
use super::resize::Resizer;
use crate::error::{Error, Result};
use crate::pipeline::request::Image;

/// A PNG whose rows are stored in their order.
pub struct PngRows<'a> {
    reader: png::Reader<Cursor<&'a [u8]>>,
    colour: ColorType,
}

impl<'a> PngRows<'a> {
    /// Reads the header of the PNG in `bytes`; `None` if its rows are interlaced.
    pub fn open(bytes: &'a [u8]) -> Result<Option<PngRows<'a>>> {
        let limits = png::Limits { bytes: usize::try_from(MAX_DECODE_BYTES).unwrap_or(usize::MAX) };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
        // As the decoder for whole images reads them: palettes and few bits become 8 bits.
        decoder.set_transformations(png::Transformations::EXPAND);
        decoder.set_ignore_text_chunk(true);
        let reader = decoder.read_info().map_err(unreadable)?;
        let colour = match reader.output_color_type() {
            (png::ColorType::Grayscale, png::BitDepth::Eight) => ColorType::L8,
            (png::ColorType::GrayscaleAlpha, png::BitDepth::Eight) => ColorType::La8,
            (png::ColorType::Rgb, png::BitDepth::Eight) => ColorType::Rgb8,
            (png::ColorType::Rgba, png::BitDepth::Eight) => ColorType::Rgba8,
            (png::ColorType::Grayscale, png::BitDepth::Sixteen) => ColorType::L16,
            (png::ColorType::GrayscaleAlpha, png::BitDepth::Sixteen) => ColorType::La16,
            (png::ColorType::Rgb, png::BitDepth::Sixteen) => ColorType::Rgb16,
            (png::ColorType::Rgba, png::BitDepth::Sixteen) => ColorType::Rgba16,
            _ => return Ok(None),
        };
        Ok((!reader.info().interlaced).then_some(PngRows { reader, colour }))
    }

    /// Upper bound of the memory that decoding a row needs, in bytes.
    pub fn row_bytes(&self) -> u64 {
        // The row before it, the row, its copies in 8 and 16 bits, and what is not unpacked yet.
        u64::from(self.reader.info().width) * 48 + (256 << 10)
    }

    /// The image scaled by `resizer`, which must be one for the size of this image.
    pub fn resized(self, mut resizer: Resizer) -> Result<Image> {
        self.each(&mut |row| resizer.push(row))?;
        Ok(resizer.finish())
    }

    /// Calls `push` with every row, in 8-bit RGB.
    pub fn each(mut self, push: &mut dyn FnMut(&[u8])) -> Result<()> {
        let (columns, rows) = self.reader.info().size();
        for _ in 0..rows {
            let row = self.reader.next_row().map_err(unreadable)?.ok_or_else(ends_early)?;
            let row = picture(columns, self.colour, row.data());
            push(&on_white(row).rgb);
        }
        Ok(())
    }
}

/// One row as an image.
fn picture(columns: u32, colour: ColorType, bytes: &[u8]) -> DynamicImage {
    let eight = || bytes.to_vec();
    let sixteen =
        || -> Vec<u16> { bytes.as_chunks().0.iter().map(|b| u16::from_be_bytes(*b)).collect() };
    let image = match colour {
        ColorType::L8 => ImageBuffer::from_raw(columns, 1, eight()).map(DynamicImage::ImageLuma8),
        ColorType::La8 => ImageBuffer::from_raw(columns, 1, eight()).map(DynamicImage::ImageLumaA8),
        ColorType::Rgb8 => ImageBuffer::from_raw(columns, 1, eight()).map(DynamicImage::ImageRgb8),
        ColorType::Rgba8 => {
            ImageBuffer::from_raw(columns, 1, eight()).map(DynamicImage::ImageRgba8)
        }
        ColorType::L16 => {
            ImageBuffer::from_raw(columns, 1, sixteen()).map(DynamicImage::ImageLuma16)
        }
        ColorType::La16 => {
            ImageBuffer::from_raw(columns, 1, sixteen()).map(DynamicImage::ImageLumaA16)
        }
        ColorType::Rgb16 => {
            ImageBuffer::from_raw(columns, 1, sixteen()).map(DynamicImage::ImageRgb16)
        }
        _ => ImageBuffer::from_raw(columns, 1, sixteen()).map(DynamicImage::ImageRgba16),
    };
    image.expect("the decoder returns whole rows")
}

fn unreadable(error: png::DecodingError) -> Error {
    match &error {
        png::DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            ends_early()
        }
        _ => Error::argument(format!("the image cannot be read: {error}"))
            .try_("open it in another program and save it as PNG"),
    }
}
