//! Reads image files: their pixels (for image-to-image), and the settings that are stored in them.

use std::io::Read;
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, Rgb, imageops};

use super::complete::{check_complete, jpeg_segments};
use super::decoder::{MAX_PIXELS, decoder, format_of, unreadable};
use super::metadata::{self, Provenance};
use super::texts::texts_in;
use crate::error::{Error, Result};
use crate::pipeline::request::{Image, Settings};
use crate::units;

/// The maximum size of a file, in bytes.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// An image file that was read and is complete, but not decoded: that needs much more memory.
pub struct ImageFile {
    bytes: Vec<u8>,
    /// Columns and rows as they are stored.
    size: (u64, u64),
    decode_bytes: u64,
}

impl ImageFile {
    /// Reads a PNG, JPEG, WebP, BMP or TIFF. The format is recognised by the content, not by the
    /// name.
    ///
    /// # Errors
    /// [`Kind::Missing`](crate::error::Kind::Missing) if there is no such file,
    /// [`Kind::Argument`](crate::error::Kind::Argument) for another format, a file that ends early,
    /// and an image of too many pixels.
    pub fn open(path: &Path) -> Result<ImageFile> {
        ImageFile::of(read_file(path)?).map_err(|e| e.at_path(path))
    }

    /// The same for a stream, such as stdin; `name` is its place in errors.
    pub fn read(stream: impl Read, name: &str) -> Result<ImageFile> {
        let mut bytes = Vec::new();
        // One byte more than the limit, to see whether there is more.
        stream
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::argument(format!("the image cannot be read: {e}")).at(name))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::argument("this is not an image that can be read")
                .at(name)
                .found(format!("more than {}", units::bytes(MAX_FILE_BYTES)))
                .expected(format!("at most {}", units::bytes(MAX_FILE_BYTES))));
        }
        ImageFile::of(bytes).map_err(|e| e.at(name))
    }

    /// The same for bytes in memory.
    pub fn of(bytes: Vec<u8>) -> Result<ImageFile> {
        let (size, decode_bytes) = checked(&bytes)?;
        Ok(ImageFile { bytes, size, decode_bytes })
    }

    /// The file as it is.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Upper bound of the memory that [`decode`](ImageFile::decode) and a [`fit`] to `width` x
    /// `height` need besides the file itself, in bytes.
    pub fn decode_bytes(&self, width: usize, height: usize) -> u64 {
        let (w, h) = self.size;
        // The filter makes the rows first, in four channels of F32. EXIF may swap the sides.
        let rows = 16 * w.max(h) * height as u64;
        let fitted = 3 * (width * height) as u64;
        self.decode_bytes.max(3 * w * h + rows + fitted)
    }

    /// The image as 8-bit RGB. EXIF orientation is applied, gray and palettes become RGB, 16 bits
    /// become 8, transparent pixels are blended with white, and the first image of an animation is
    /// used. Colour profiles are ignored.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged.
    pub fn decode(&self) -> Result<Image> {
        pixels(&self.bytes)
    }
}

/// Reads the image at `path` as 8-bit RGB: [`ImageFile::open`] and [`ImageFile::decode`].
pub fn load_init_image(path: &Path) -> Result<Image> {
    ImageFile::open(path)?.decode().map_err(|e| e.at_path(path))
}

/// Like [`load_init_image`], for bytes in memory. The size is checked before pixels are decoded.
pub fn decode(bytes: &[u8]) -> Result<Image> {
    checked(bytes)?;
    pixels(bytes)
}

/// Checks format, end and size of an image. Returns columns and rows, and the most memory that its
/// pixels need while they are decoded, in bytes.
fn checked(bytes: &[u8]) -> Result<((u64, u64), u64)> {
    let format = format_of(bytes)?;
    check_complete(bytes, format)?;
    let mut decoder = decoder(bytes)?;
    let (w, h) = check_size(&decoder, MAX_PIXELS)?;
    let pixels = u64::from(w) * u64::from(h);
    let stored = decoder.total_bytes();
    // What decoders keep besides the pixels that they return.
    let inside = match format {
        // A copy of the file, and the coefficients of a progressive image.
        ImageFormat::Jpeg => {
            let is_progressive = jpeg_segments(bytes).any(|s| s.marker == 0xc2);
            bytes.len() as u64 + if is_progressive { 6 * pixels } else { 0 }
        }
        ImageFormat::WebP => 8 * pixels,
        ImageFormat::Tiff => stored,
        _ => 0,
    };
    let colour = decoder.color_type();
    let converted = match colour {
        ColorType::Rgb8 => 0,
        ColorType::Rgba8 => 3 * pixels,
        colour if colour.has_alpha() => 4 * pixels,
        _ => 3 * pixels,
    };
    let is_turned = decoder.orientation().is_ok_and(|o| o != Orientation::NoTransforms);
    let turned = if is_turned { stored } else { 0 };
    // Alpha is blended from a copy of 8 bits.
    let blended = if colour.has_alpha() { 7 * pixels } else { 0 };
    let most = (stored + inside.max(converted).max(turned)).max(blended);
    Ok(((w.into(), h.into()), most))
}

fn pixels(bytes: &[u8]) -> Result<Image> {
    let mut decoder = decoder(bytes)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    image.apply_orientation(orientation);
    Ok(on_white(image))
}

/// Width and height of the image in `bytes`, as they are stored (EXIF orientation is not applied),
/// from its header alone. A file that ends early is refused.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if [`decode`] cannot read such a file, or if it
/// has more than `max_pixels` pixels.
pub fn image_size(bytes: &[u8], max_pixels: u64) -> Result<(u32, u32)> {
    check_complete(bytes, format_of(bytes)?)?;
    check_size(&decoder(bytes)?, max_pixels)
}

fn check_size(decoder: &impl ImageDecoder, max_pixels: u64) -> Result<(u32, u32)> {
    let (w, h) = decoder.dimensions();
    let pixels = u64::from(w) * u64::from(h);
    if pixels > max_pixels || pixels == 0 {
        return Err(Error::argument("the size of the image is not supported")
            .found(format!("{w}x{h}"))
            .expected(format!("1 to {} million pixels", max_pixels / 1_000_000))
            .try_("make the image smaller first"));
    }
    Ok((w, h))
}

/// The settings stored in an image file: those that this program wrote, or another program's as far
/// as they have a meaning here.
///
/// # Errors
/// [`Kind::Missing`](crate::error::Kind::Missing) if there is no such file,
/// [`Kind::Argument`](crate::error::Kind::Argument) if it contains no settings that can be read.
pub fn read_metadata(path: &Path) -> Result<Settings> {
    read_provenance(path).map(|found| found.settings)
}

/// The same, with what else the file says about how the image was made.
pub fn read_provenance(path: &Path) -> Result<Provenance> {
    provenance_of(&read_file(path)?).map_err(|e| e.at_path(path))
}

/// Like [`read_provenance`], for bytes in memory.
pub fn provenance_of(bytes: &[u8]) -> Result<Provenance> {
    let texts = texts_in(bytes, format_of(bytes)?)?;
    let size = decoder(bytes).map(|d| d.dimensions()).ok();
    metadata::provenance(&texts, size.map(|(w, h)| (w as usize, h as usize)))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let cannot = |e: std::io::Error| {
        let kind =
            if e.kind() == std::io::ErrorKind::NotFound { Error::missing } else { Error::argument };
        kind(format!("the image cannot be read: {e}")).at_path(path).try_("check the path")
    };
    let facts = std::fs::metadata(path).map_err(cannot)?;
    if !facts.is_file() || facts.len() > MAX_FILE_BYTES {
        return Err(Error::argument("this is not an image that can be read")
            .at_path(path)
            .found(if facts.is_file() {
                units::bytes(facts.len())
            } else {
                "no regular file".to_string()
            })
            .expected(format!("a file of at most {}", units::bytes(MAX_FILE_BYTES))));
    }
    std::fs::read(path).map_err(cannot)
}

/// Converts to 8-bit RGB, blending transparent pixels with white.
fn on_white(image: DynamicImage) -> Image {
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

/// Returns `picture` at `width` x `height`: cuts the largest part around its centre with that
/// aspect ratio, then resizes it with a Lanczos filter. An image that has this size already is not
/// changed.
pub fn fit(picture: &Image, width: usize, height: usize) -> Image {
    if (picture.width, picture.height) == (width, height) {
        return picture.clone();
    }
    let (w, h) = (picture.width as u64, picture.height as u64);
    let (crop_w, crop_h) = if w * height as u64 > h * width as u64 {
        ((h * width as u64 / height as u64).max(1), h)
    } else {
        (w, (w * height as u64 / width as u64).max(1))
    };
    let pixels = picture.rgb.as_slice();
    let Some(image) = ImageBuffer::<Rgb<u8>, _>::from_raw(w as u32, h as u32, pixels) else {
        // `Image` promises as many bytes as its size needs.
        unreachable!("a picture of {w}x{h} with another number of bytes");
    };
    let (left, top) = (((w - crop_w) / 2) as u32, ((h - crop_h) / 2) as u32);
    let part = imageops::crop_imm(&image, left, top, crop_w as u32, crop_h as u32);
    let fitted =
        imageops::resize(&*part, width as u32, height as u32, imageops::FilterType::Lanczos3);
    Image { width, height, rgb: fitted.into_raw() }
}
