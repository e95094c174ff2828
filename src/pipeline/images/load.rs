//! Reads image files: their pixels (for image-to-image), and the settings that are stored in them.

use std::io::Read;
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, RgbImage};

use super::complete::{check_complete, jpeg_segments};
use super::decoder::{
    MAX_PIXELS, MAX_ROW_PIXELS, check_pixels, check_size, decoder, format_of, on_white,
    transparent, unreadable,
};
use super::jpeg_rows::JpegRows;
use super::kontext::{kontext_size, prepare_kontext};
use super::metadata::{self, Provenance};
use super::png_rows::PngRows;
use super::reference::{ReferenceSize, check_reference_size, shrink, shrunk_size};
use super::resize::{Resizer, fit};
use super::stretch::{Filter, Stretcher, stretch_bytes};
use super::texts::texts_in;
use crate::error::{Error, Result};
use crate::pipeline::request::{ControlImage, Image, Mask, Settings};
use crate::units;

/// The maximum size of a file, in bytes.
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// An image file that was read and is complete, but not decoded: that needs much more memory.
pub struct ImageFile {
    bytes: Vec<u8>,
    /// Columns and rows as they are stored.
    size: (u64, u64),
    decode_bytes: u64,
    orientation: Orientation,
    has_alpha: bool,
}

/// What is known of an image before it is decoded.
struct Checked {
    /// Columns and rows as they are stored.
    size: (u64, u64),
    /// The most memory that its pixels need while they are decoded, in bytes.
    decode_bytes: u64,
    /// How EXIF says that it is to be turned.
    orientation: Orientation,
    /// Pixels may be transparent.
    has_alpha: bool,
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
        ImageFile::of(read_stream(stream, name)?).map_err(|e| e.at(name))
    }

    /// The same for bytes in memory.
    pub fn of(bytes: Vec<u8>) -> Result<ImageFile> {
        let Checked { size, decode_bytes, orientation, has_alpha } =
            checked(&bytes, MAX_ROW_PIXELS)?;
        let file = ImageFile { bytes, size, decode_bytes, orientation, has_alpha };
        if file.rows()?.is_none() && JpegRows::open(&file.bytes).is_none() {
            file.check_whole()?;
        }
        Ok(file)
    }

    /// Columns and rows of the image, turned as EXIF says.
    pub fn size(&self) -> (usize, usize) {
        let (width, height) = self.columns_and_rows();
        self.before_turn(width, height)
    }

    /// Columns and rows of what [`reference`](ImageFile::reference) returns for that size.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the image is too small or too narrow for
    /// the model.
    pub fn reference_size(&self, size: ReferenceSize) -> Result<(usize, usize)> {
        let (width, height) = self.size();
        match size {
            ReferenceSize::Kontext { unit } => Ok(kontext_size(width, height, unit)),
            ReferenceSize::Limited => {
                check_reference_size(width, height)?;
                Ok(shrunk_size(width, height))
            }
        }
    }

    /// Checks that the image is not too large to be decoded as a whole.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if it has more than 64 million pixels.
    pub fn check_whole(&self) -> Result<()> {
        let (w, h) = self.size;
        check_pixels(w, h, MAX_PIXELS)
    }

    fn is_turned(&self) -> bool {
        self.orientation != Orientation::NoTransforms
    }

    /// `width` and `height` as they are before the image is turned.
    fn before_turn(&self, width: usize, height: usize) -> (usize, usize) {
        match self.orientation {
            Orientation::NoTransforms
            | Orientation::Rotate180
            | Orientation::FlipHorizontal
            | Orientation::FlipVertical => (width, height),
            _ => (height, width),
        }
    }

    /// The rows of a JPEG that becomes one of `width x height`, before it is turned, at most half
    /// as large.
    fn jpeg_rows(&self, width: usize, height: usize) -> Option<JpegRows<'_>> {
        let is_large = Resizer::halves(self.columns_and_rows(), width, height);
        is_large.then(|| JpegRows::open(&self.bytes)).flatten()
    }

    /// `rows` scaled by `resizer`, and turned as EXIF says.
    fn turned_rows(&self, rows: JpegRows, resizer: Resizer) -> Result<Image> {
        let image = rows.resized(resizer)?;
        if !self.is_turned() {
            return Ok(image);
        }
        let Image { width, height, rgb } = image;
        let image = RgbImage::from_raw(width as u32, height as u32, rgb).expect("three channels");
        let mut image = DynamicImage::ImageRgb8(image);
        image.apply_orientation(self.orientation);
        Ok(on_white(image))
    }

    /// The file as it is.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Upper bound of the memory that [`decode`](ImageFile::decode) and a [`fit`] to `width` x
    /// `height` need besides the file itself, in bytes.
    pub fn decode_bytes(&self, width: usize, height: usize) -> u64 {
        let (w, h) = self.size;
        self.decode_bytes.max(3 * w * h + self.resizer_bytes(width, height))
    }

    /// The same for [`decode`](ImageFile::decode) alone.
    pub fn whole_bytes(&self) -> u64 {
        self.decode_bytes.max(3 * self.size.0 * self.size.1)
    }

    /// The same for [`fitted`](ImageFile::fitted).
    pub fn fitted_bytes(&self, width: usize, height: usize) -> u64 {
        let (w, h) = self.before_turn(width, height);
        match self.rows() {
            Ok(Some(rows)) => rows.row_bytes() + self.resizer_bytes(width, height),
            _ => match self.jpeg_rows(w, h) {
                Some(rows) => self.jpeg_bytes(&rows, w, h),
                None => self.decode_bytes(width, height),
            },
        }
    }

    /// Memory to make an image of `width x height` of `rows`, before it is turned, in bytes.
    fn jpeg_bytes(&self, rows: &JpegRows, width: usize, height: usize) -> u64 {
        let resizer = Resizer::bytes_of_part(self.columns_and_rows(), width, height);
        let turned = if self.is_turned() { 3 * width * height } else { 0 };
        rows.row_bytes() + resizer + turned as u64
    }

    fn resizer_bytes(&self, width: usize, height: usize) -> u64 {
        let (w, h) = self.columns_and_rows();
        // EXIF may swap the sides.
        Resizer::bytes((w, h), width, height).max(Resizer::bytes((h, w), width, height))
    }

    /// The rows of the image, if they can be read one after another: those of a PNG that is neither
    /// interlaced nor turned.
    fn rows(&self) -> Result<Option<PngRows<'_>>> {
        if self.is_turned() || format_of(&self.bytes)? != ImageFormat::Png {
            return Ok(None);
        }
        PngRows::open(&self.bytes)
    }

    /// The image of [`decode`](ImageFile::decode) at `width` x `height`, cut and scaled as by
    /// [`fit`], in less memory where rows can be read one after another. If a JPEG becomes at
    /// most half as large, single values may differ by rounding.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged, or the image is too
    /// large and its rows cannot be read one after another.
    pub fn fitted(&self, width: usize, height: usize) -> Result<Image> {
        let size = self.columns_and_rows();
        if let Some(rows) = self.rows()? {
            return rows.resized(Resizer::new(size, width, height));
        }
        let (w, h) = self.before_turn(width, height);
        match self.jpeg_rows(w, h) {
            Some(rows) => self.turned_rows(rows, Resizer::new(size, w, h)),
            None => Ok(fit(&self.decode()?, width, height)),
        }
    }

    /// The image as a reference for a model: in the size in which it is read, or made smaller if it
    /// is large, since a model reads no more of it. In less memory where rows can be read one after
    /// another.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged, or the image is too
    /// small or too narrow for the model.
    pub fn reference(&self, size: ReferenceSize) -> Result<Image> {
        let (width, height) = self.columns_and_rows();
        if let ReferenceSize::Kontext { unit } = size {
            let Some(rows) = self.rows()? else {
                return Ok(prepare_kontext(&self.decode()?, unit));
            };
            let (to, from) = (kontext_size(width, height, unit), (width, height));
            let mut stretcher = Stretcher::new(from, to.0, to.1, Filter::Lanczos);
            rows.each(&mut |row| stretcher.push(row))?;
            return Ok(stretcher.finish());
        }
        check_reference_size(width, height)?;
        let (smaller_width, smaller_height) = shrunk_size(width, height);
        match self.rows()? {
            Some(rows) => {
                let size = (width, height);
                rows.resized(Resizer::whole(size, smaller_width, smaller_height))
            }
            None => match self.jpeg_rows(smaller_width, smaller_height) {
                Some(rows) => {
                    let resizer = Resizer::whole((width, height), smaller_width, smaller_height);
                    self.turned_rows(rows, resizer)
                }
                None => Ok(shrink(self.decode()?)),
            },
        }
    }

    /// Upper bound of the memory that [`reference`](ImageFile::reference) needs besides the file
    /// itself, in bytes.
    pub fn reference_bytes(&self, size: ReferenceSize) -> u64 {
        let (w, h) = self.columns_and_rows();
        let (jpeg, resizer) = match size {
            ReferenceSize::Limited => {
                let (width, height) = shrunk_size(w, h);
                let jpeg = self.jpeg_rows(width, height);
                let jpeg = jpeg.map(|rows| self.jpeg_bytes(&rows, width, height));
                // EXIF may swap the sides.
                let turned = Resizer::bytes_of_part((h, w), height, width);
                (jpeg, Resizer::bytes_of_part((w, h), width, height).max(turned))
            }
            ReferenceSize::Kontext { unit } => {
                let bytes = |w: usize, h: usize| {
                    let (width, height) = kontext_size(w, h, unit);
                    stretch_bytes((w, h), width, height)
                };
                (None, bytes(w, h).max(bytes(h, w)))
            }
        };
        match (self.rows(), jpeg) {
            (Ok(Some(rows)), _) => rows.row_bytes() + resizer,
            (_, Some(bytes)) => bytes,
            (_, None) => self.decode_bytes.max(3 * self.size.0 * self.size.1 + resizer),
        }
    }

    fn columns_and_rows(&self) -> (usize, usize) {
        (self.size.0 as usize, self.size.1 as usize)
    }

    /// The image as 8-bit RGB. EXIF orientation is applied, gray and palettes become RGB, 16 bits
    /// become 8, transparent pixels are blended with white, and the first image of an animation is
    /// used. Colour profiles are ignored.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged, or the image has
    /// more than 64 million pixels.
    pub fn decode(&self) -> Result<Image> {
        self.check_whole()?;
        pixels(&self.bytes)
    }
}

impl ImageFile {
    /// Whether the format of the pixels has room for transparency.
    pub fn has_alpha(&self) -> bool {
        self.has_alpha
    }

    /// Upper bound of the memory that [`decode_with_mask`](ImageFile::decode_with_mask) and
    /// [`mask`](ImageFile::mask) need besides the file itself, in bytes.
    pub fn mask_bytes(&self) -> u64 {
        let (w, h) = self.size;
        // RGBA in 8 bits, the image and the mask.
        self.decode_bytes + 8 * w * h
    }

    /// The image of [`decode`](ImageFile::decode), and its transparent pixels as a mask of what is
    /// repainted; without one if all pixels are opaque.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged.
    pub fn decode_with_mask(&self) -> Result<(Image, Option<Mask>)> {
        self.check_whole()?;
        let image = turned(&self.bytes)?;
        let mask = transparent(&image);
        Ok((on_white(image), mask))
    }

    /// The image for a ControlNet. Its transparent pixels are the part that is repainted, for a
    /// ControlNet that reads it.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged, or the image has
    /// more than 64 million pixels.
    pub fn decode_control(&self) -> Result<ControlImage> {
        if !self.has_alpha {
            return self.decode().map(ControlImage::from);
        }
        let (image, mask) = self.decode_with_mask()?;
        Ok(ControlImage { image, mask })
    }

    /// Upper bound of the memory that [`decode_control`](ImageFile::decode_control) needs besides
    /// the file itself, in bytes.
    pub fn control_bytes(&self) -> u64 {
        match self.has_alpha {
            true => self.mask_bytes(),
            false => self.whole_bytes(),
        }
    }
}

/// All bytes of a stream that is an image file, at most 512 MiB; `name` is its place in
/// errors.
pub fn read_stream(stream: impl Read, name: &str) -> Result<Vec<u8>> {
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
    Ok(bytes)
}

/// Reads the image at `path` as 8-bit RGB: [`ImageFile::open`] and [`ImageFile::decode`].
pub fn load_init_image(path: &Path) -> Result<Image> {
    ImageFile::open(path)?.decode().map_err(|e| e.at_path(path))
}

/// Reads the image at `path` for a ControlNet: [`ImageFile::open`] and
/// [`ImageFile::decode_control`].
pub fn load_control_image(path: &Path) -> Result<ControlImage> {
    ImageFile::open(path)?.decode_control().map_err(|e| e.at_path(path))
}

/// Like [`load_init_image`], for bytes in memory. The size is checked before pixels are decoded.
pub fn decode(bytes: &[u8]) -> Result<Image> {
    checked(bytes, MAX_PIXELS)?;
    pixels(bytes)
}

/// Checks format, end and size of an image, which has at most `max_pixels` pixels.
fn checked(bytes: &[u8], max_pixels: u64) -> Result<Checked> {
    let format = format_of(bytes)?;
    check_complete(bytes, format)?;
    let mut decoder = decoder(bytes)?;
    let (w, h) = check_size(&decoder, max_pixels)?;
    let pixels = u64::from(w) * u64::from(h);
    let stored = decoder.total_bytes();
    // The memory of decoders besides the pixels that they return.
    let inside = match format {
        // A copy of the file, and the coefficients of each component of a progressive image.
        ImageFormat::Jpeg => {
            let progressive = jpeg_segments(bytes).find(|s| s.marker == 0xc2);
            let components = progressive.and_then(|s| s.content.get(5).copied()).unwrap_or(0);
            bytes.len() as u64 + 2 * u64::from(components) * pixels
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
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let turned = if orientation == Orientation::NoTransforms { 0 } else { stored };
    // Alpha is blended from a copy of 8 bits.
    let blended = if colour.has_alpha() { 7 * pixels } else { 0 };
    let decode_bytes = (stored + inside.max(converted).max(turned)).max(blended);
    let has_alpha = colour.has_alpha();
    Ok(Checked { size: (w.into(), h.into()), decode_bytes, orientation, has_alpha })
}

fn pixels(bytes: &[u8]) -> Result<Image> {
    Ok(on_white(turned(bytes)?))
}

/// The image in `bytes`, turned as EXIF says.
pub(super) fn turned(bytes: &[u8]) -> Result<DynamicImage> {
    let mut decoder = decoder(bytes)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Width and height of the image in `bytes`, turned as EXIF says, from its header alone. A file
/// that ends early is refused.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) if [`decode`] cannot read such a file, or if it
/// has more than `max_pixels` pixels.
pub fn image_size(bytes: &[u8], max_pixels: u64) -> Result<(u32, u32)> {
    check_complete(bytes, format_of(bytes)?)?;
    let mut decoder = decoder(bytes)?;
    let (w, h) = check_size(&decoder, max_pixels)?;
    let is_sideways = matches!(
        decoder.orientation(),
        Ok(Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH)
    );
    Ok(if is_sideways { (h, w) } else { (w, h) })
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
