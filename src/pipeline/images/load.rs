//! Reads image files: their pixels (for image-to-image), and the settings that are stored in them.

use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, imageops};

use super::metadata;
use super::{encode, exif};
use crate::error::{Error, Result};
use crate::pipeline::request::{Image, Settings};
use crate::units;

/// The maximum number of pixels of an image: 64 million.
pub const MAX_PIXELS: u64 = 64_000_000;
/// The maximum size of a file, in bytes.
pub const MAX_FILE_BYTES: u64 = 512 << 20;
/// The maximum memory for decoding: the largest image in 16-bit RGBA, twice.
const MAX_DECODE_BYTES: u64 = 2 * 8 * MAX_PIXELS;
/// The maximum size of a compressed text chunk after decompression, in bytes.
const MAX_TEXT_BYTES: usize = 8 << 20;

/// Reads a PNG, JPEG, WebP, BMP or TIFF as 8-bit RGB. The format is recognised by the content, not
/// by the name. EXIF orientation is applied, gray and palettes become RGB, 16 bits become 8,
/// transparent pixels are blended with white, and the first image of an animation is used. Colour
/// profiles are ignored.
pub fn load_init_image(path: &Path) -> Result<Image> {
    decode(&read_file(path)?).map_err(|e| e.at_path(path))
}

/// Like [`load_init_image`], for a stream, such as stdin; `name` is its place in errors.
pub fn read_init_image(stream: impl Read, name: &str) -> Result<Image> {
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
    decode(&bytes).map_err(|e| e.at(name))
}

/// Like [`load_init_image`], for bytes in memory. The size is checked before pixels are decoded.
pub fn decode(bytes: &[u8]) -> Result<Image> {
    let mut decoder = decoder(bytes)?;
    let (w, h) = decoder.dimensions();
    let pixels = u64::from(w) * u64::from(h);
    if pixels > MAX_PIXELS || pixels == 0 {
        return Err(Error::argument("the size of the image is not supported")
            .found(format!("{w}x{h}"))
            .expected(format!("1 to {} million pixels", MAX_PIXELS / 1_000_000))
            .try_("make the image smaller first"));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    image.apply_orientation(orientation);
    Ok(on_white(image))
}

/// The settings stored in an image file: those that this program wrote, or those of AUTOMATIC1111
/// as far as they are known.
pub fn read_metadata(path: &Path) -> Result<Settings> {
    let bytes = read_file(path)?;
    let text = text_in(&bytes).map_err(|e| e.at_path(path))?;
    metadata::read(&text).map_err(|e| e.at_path(path))
}

/// The text that `read_metadata` would parse.
pub fn text_in(bytes: &[u8]) -> Result<String> {
    let none = || {
        Error::argument("the image contains no settings")
            .try_("give a PNG, JPEG, WebP or TIFF that was written with them")
    };
    let text = match image::guess_format(bytes).ok() {
        Some(ImageFormat::Png) => png_text(bytes),
        Some(ImageFormat::Tiff) => exif::text_of(bytes),
        Some(ImageFormat::Jpeg | ImageFormat::WebP) => {
            let block = decoder(bytes)?.exif_metadata().map_err(unreadable)?;
            block.and_then(|block| exif::text_of(&block))
        }
        Some(ImageFormat::Bmp) => return Err(none().found("a BMP, which has no place for them")),
        _ => return Err(unknown()),
    };
    text.ok_or_else(none)
}

fn png_text(bytes: &[u8]) -> Option<String> {
    let decoder =
        png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: MAX_TEXT_BYTES });
    let mut reader = decoder.read_info().ok()?;
    text_of_png(reader.info()).or_else(|| {
        // Some tools write their text after the pixels.
        reader.finish().ok()?;
        text_of_png(reader.info())
    })
}

fn text_of_png(info: &png::Info) -> Option<String> {
    let latin = info
        .uncompressed_latin1_text
        .iter()
        .find(|c| c.keyword == encode::PNG_KEY)
        .map(|c| c.text.clone());
    let packed = || {
        let mut chunk =
            info.compressed_latin1_text.iter().find(|c| c.keyword == encode::PNG_KEY)?.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        chunk.get_text().ok()
    };
    let international = || {
        let mut chunk = info.utf8_text.iter().find(|c| c.keyword == encode::PNG_KEY)?.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        chunk.get_text().ok()
    };
    latin.or_else(packed).or_else(international)
}

fn decoder(bytes: &[u8]) -> Result<impl ImageDecoder + '_> {
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|_| unknown())?;
    match reader.format() {
        Some(
            ImageFormat::Png
            | ImageFormat::Jpeg
            | ImageFormat::WebP
            | ImageFormat::Bmp
            | ImageFormat::Tiff,
        ) => {}
        _ => return Err(unknown()),
    }
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    reader.limits(limits);
    reader.into_decoder().map_err(unreadable)
}

fn unknown() -> Error {
    Error::argument("this is not an image that can be read")
        .expected("PNG, JPEG, WebP, BMP or TIFF")
}

fn unreadable(error: image::ImageError) -> Error {
    Error::argument(format!("the image cannot be read: {error}"))
        .try_("open it in another program and save it as PNG")
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
pub fn fit(picture: Image, width: usize, height: usize) -> Image {
    if (picture.width, picture.height) == (width, height) {
        return picture;
    }
    let (w, h) = (picture.width as u64, picture.height as u64);
    let (crop_w, crop_h) = if w * height as u64 > h * width as u64 {
        ((h * width as u64 / height as u64).max(1), h)
    } else {
        (w, (w * height as u64 / width as u64).max(1))
    };
    let Some(image) = image::RgbImage::from_raw(w as u32, h as u32, picture.rgb) else {
        // `Image` promises as many bytes as its size needs.
        unreachable!("a picture of {w}x{h} with another number of bytes");
    };
    let (left, top) = (((w - crop_w) / 2) as u32, ((h - crop_h) / 2) as u32);
    let part = imageops::crop_imm(&image, left, top, crop_w as u32, crop_h as u32);
    let fitted =
        imageops::resize(&*part, width as u32, height as u32, imageops::FilterType::Lanczos3);
    Image { width, height, rgb: fitted.into_raw() }
}
