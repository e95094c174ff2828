//! Decoders of the formats that can be read, and the errors of images that they refuse.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::other_formats::refusal;
use crate::error::{Error, Result};
use crate::pipeline::request::{Image, Mask};

/// The maximum number of pixels of an image that is decoded as a whole: 64 million.
pub const MAX_PIXELS: u64 = 64_000_000;
/// The maximum number of pixels of an image that is made smaller row by row: 400 million.
pub const MAX_ROW_PIXELS: u64 = 400_000_000;
/// The maximum memory for decoding: the largest image in 16-bit RGBA, twice.
pub const MAX_DECODE_BYTES: u64 = 2 * 8 * MAX_PIXELS;

/// The format of an image that can be read.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) with the name of another format.
pub fn format_of(bytes: &[u8]) -> Result<ImageFormat> {
    match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Png
            | ImageFormat::Jpeg
            | ImageFormat::WebP
            | ImageFormat::Bmp
            | ImageFormat::Tiff),
        ) => Ok(format),
        _ => Err(refusal(bytes)),
    }
}

/// Opens the decoder of one of the formats that can be read.
pub fn decoder(bytes: &[u8]) -> Result<impl ImageDecoder + '_> {
    let format = format_of(bytes)?;
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    reader.limits(limits);
    reader.into_decoder().map_err(unreadable)
}

/// Width and height of the image that `decoder` reads, which has at most `max_pixels` pixels.
pub fn check_size(decoder: &impl ImageDecoder, max_pixels: u64) -> Result<(u32, u32)> {
    let (w, h) = decoder.dimensions();
    check_pixels(w.into(), h.into(), max_pixels)?;
    Ok((w, h))
}

/// Checks the size of an image that may have `max_pixels` pixels.
pub fn check_pixels(w: u64, h: u64, max_pixels: u64) -> Result<()> {
    let pixels = w * h;
    if pixels > max_pixels || pixels == 0 {
        return Err(Error::argument("the size of the image is not supported")
            .found(format!("{w}x{h}"))
            .expected(format!("1 to {} million pixels", max_pixels / 1_000_000))
            .try_("make the image smaller first"));
    }
    Ok(())
}

/// Converts to 8-bit RGB, blending transparent pixels with white.
pub fn on_white(image: DynamicImage) -> Image {
    let (width, height) = (image.width() as usize, image.height() as usize);
    if !image.color().has_alpha() {
        return Image { width, height, rgb: image.into_rgb8().into_raw() };
    }
    let rgba = image.into_rgba8();
    let blend =
        |c: u8, alpha: u32| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
    let rgb = rgba.pixels().flat_map(|p| {
        let [r, g, b, a] = p.0;
        [blend(r, a.into()), blend(g, a.into()), blend(b, a.into())]
    });
    Image { width, height, rgb: rgb.collect() }
}

/// The transparent pixels of `image` as what is repainted; `None` if all are opaque.
pub fn transparent(image: &DynamicImage) -> Option<Mask> {
    if !image.color().has_alpha() {
        return None;
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    let values: Vec<u8> = image.to_rgba8().pixels().map(|p| 255 - p.0[3]).collect();
    let is_used = values.iter().any(|v| *v != 0);
    is_used.then_some(Mask { width, height, values })
}

/// The error for an image that a decoder refuses.
pub fn unreadable(error: image::ImageError) -> Error {
    if let image::ImageError::IoError(e) = &error
        && e.kind() == std::io::ErrorKind::UnexpectedEof
    {
        return ends_early();
    }
    Error::argument(format!("the image cannot be read: {error}"))
        .try_("open it in another program and save it as PNG")
}

/// The error for a file that was cut.
pub fn ends_early() -> Error {
    Error::argument("the image ends early: a part of the file is missing")
        .try_("copy or download the image again")
}
