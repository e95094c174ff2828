//! Masks as clients send them, which are many kinds, and as jobs have them, which is one: a gray
//! PNG of the size of the image, in which white is repainted.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;

use super::draft::{Draft, size_of};
use super::fault::Fault;
use crate::pipeline::images::{Format, ImageFile, MaskMarks, Region, encode, encode_mask, fit};
use crate::pipeline::request::{Image, Mask};

/// A mask with at least this value changes a pixel of a round mask.
const HALF: u8 = 128;

/// Taken while pixels of a client are decoded outside of the worker: a small file may have many,
/// and memory for one such image at a time is enough.
static DECODING: Mutex<()> = Mutex::new(());
/// How many wait for it, and how many may.
static WAITING: AtomicUsize = AtomicUsize::new(0);
const MAX_WAITING: usize = 64;

/// What is repainted of the image to start from.
#[derive(Debug, Clone)]
pub struct DraftMask {
    /// The file of the mask.
    pub png: Bytes,
    /// Columns and rows.
    pub size: (usize, usize),
    /// The part with all pixels that are repainted; `None` if there are none.
    pub repainted: Option<Region>,
}

/// Reads the image file of a client; its size is checked first.
fn open(bytes: &[u8], parameter: &str) -> Result<ImageFile, Fault> {
    size_of(bytes, parameter)?;
    ImageFile::of(bytes.to_vec()).map_err(|e| Fault::from(e).parameter(parameter))
}

/// Waits until no other image is decoded.
///
/// # Errors
/// 503 if many wait: each of them blocks a thread.
pub fn decoding() -> Result<MutexGuard<'static, ()>, Fault> {
    let ahead = WAITING.fetch_add(1, Ordering::Relaxed);
    let guard =
        (ahead < MAX_WAITING).then(|| DECODING.lock().unwrap_or_else(PoisonError::into_inner));
    WAITING.fetch_sub(1, Ordering::Relaxed);
    guard.ok_or_else(|| Fault::new(503, "busy", "too many images are being read").retry_after(1))
}

/// The image file `bytes`, which is the value of `parameter`, as one of `width` x `height`, cut
/// around its centre. One that has this size stays as it is.
///
/// # Errors
/// 422 for an image that cannot be read or is too large, 503 if many others are being decoded.
pub fn fitted_file(
    parameter: &str,
    bytes: &Bytes,
    (width, height): (usize, usize),
) -> Result<Bytes, Fault> {
    let (w, h) = size_of(bytes, parameter)?;
    if (w as usize, h as usize) == (width, height) {
        return Ok(bytes.clone());
    }
    let file = open(bytes, parameter)?;
    let _alone = decoding()?;
    let fitted = file.fitted(width, height);
    let fitted = fitted.map_err(|e| Fault::from(e).parameter(parameter))?;
    Ok(encode(&fitted, Format::Png, 100, "")?.into())
}

/// The pixels of the mask in an image file, which is the value of `parameter`, after `change`.
///
/// # Errors
/// 422 for a file that cannot be read or is too large, 503 if many others are being read.
pub fn read_mask(
    parameter: &str,
    bytes: &[u8],
    marks: MaskMarks,
    change: impl FnOnce(&mut Mask),
) -> Result<Mask, Fault> {
    let file = open(bytes, parameter)?;
    let _alone = decoding()?;
    let mask = file.mask_by(marks);
    let mut mask = mask.map_err(|e| Fault::from(e).parameter(parameter))?;
    change(&mut mask);
    Ok(mask)
}

impl DraftMask {
    /// The mask in an image file, which is the value of `parameter`, after `change`.
    ///
    /// # Errors
    /// 422 for a file that cannot be read or is too large.
    pub fn read(
        parameter: &str,
        bytes: &[u8],
        marks: MaskMarks,
        change: impl FnOnce(&mut Mask),
    ) -> Result<DraftMask, Fault> {
        DraftMask::of(&read_mask(parameter, bytes, marks, change)?)
    }

    /// The mask at this size, cut around its centre, after `change`; one that has it stays as it
    /// is.
    ///
    /// # Errors
    /// 500 if it cannot be written, 503 if many others are being read.
    pub fn fitted(
        self,
        (width, height): (usize, usize),
        change: impl FnOnce(&mut Mask),
    ) -> Result<DraftMask, Fault> {
        if self.size == (width, height) {
            return Ok(self);
        }
        let file = ImageFile::of(self.png.to_vec())?;
        let _alone = decoding()?;
        let mut mask = scaled(file.mask()?, |image| fit(image, width, height));
        change(&mut mask);
        DraftMask::of(&mask)
    }

    /// `mask` as a file.
    ///
    /// # Errors
    /// 500 if it cannot be written.
    pub fn of(mask: &Mask) -> Result<DraftMask, Fault> {
        let png = encode_mask(mask)?.into();
        let size = (mask.width, mask.height);
        Ok(DraftMask { png, size, repainted: Region::repainted(mask) })
    }
}

/// `mask` after `scale`, which changes the size of an image.
pub fn scaled(mask: Mask, scale: impl FnOnce(&Image) -> Image) -> Mask {
    let Mask { width, height, values } = mask;
    let rgb = values.iter().flat_map(|v| [*v; 3]).collect();
    let Image { width, height, rgb } = scale(&Image { width, height, rgb });
    Mask { width, height, values: rgb.chunks_exact(3).map(|pixel| pixel[0]).collect() }
}

/// Keeps what was to be repainted, and the other way round.
pub fn invert(mask: &mut Mask) {
    mask.values.iter_mut().for_each(|value| *value = 255 - *value);
}

/// Makes every pixel of a mask black or white.
pub fn round(mask: &mut Mask) {
    mask.values.iter_mut().for_each(|value| *value = if *value > HALF { 255 } else { 0 });
}

impl Draft {
    /// Repaints the transparent pixels of the image to start from, which is the value of
    /// `parameter`, if it has some and there is no mask. There is nothing in them to keep.
    ///
    /// # Errors
    /// 422 for an image that cannot be read or is too large.
    pub fn repaint_transparent(&mut self, parameter: &str) -> Result<(), Fault> {
        let Some(bytes) = self.input.as_ref().filter(|_| self.mask.is_none()) else {
            return Ok(());
        };
        let file = open(bytes, parameter)?;
        if !file.has_alpha() {
            return Ok(());
        }
        let _alone = decoding()?;
        let decoded = file.decode_with_mask();
        let (_, mask) = decoded.map_err(|e| Fault::from(e).parameter(parameter))?;
        if let Some(mask) = mask {
            self.mask = Some(DraftMask::of(&mask)?);
            self.request.strength.get_or_insert(1.0);
        }
        Ok(())
    }

    /// Scales the image to start from and its mask, each cut around its centre, to `width` x
    /// `height`, for clients that expect a result of this size. What has it stays as it is.
    ///
    /// # Errors
    /// 422 for an image that cannot be read or is too large.
    pub fn fit_masked(
        &mut self,
        parameter: &str,
        (width, height): (usize, usize),
        change: impl FnOnce(&mut Mask),
    ) -> Result<(), Fault> {
        let Some(input) = &self.input else { return Ok(()) };
        let Some(mask) = self.mask.take() else { return Ok(()) };
        self.mask = Some(mask.fitted((width, height), change)?);
        self.input = Some(fitted_file(parameter, input, (width, height))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};

    use super::*;
    use crate::pipeline::request::Request;

    fn png(image: impl Into<DynamicImage>) -> Bytes {
        let mut bytes = Vec::new();
        image.into().write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes.into()
    }

    /// Transparent from column 4 on.
    fn photo() -> Bytes {
        png(RgbaImage::from_fn(8, 6, |x, y| Rgba([x as u8, y as u8, 0, 255 * u8::from(x < 4)])))
    }

    #[test]
    fn transparent_pixels_of_an_image_are_its_mask() {
        let mut draft = Draft::new(Request::new(""), "native");
        draft.repaint_transparent("init").unwrap();
        assert!(draft.mask.is_none());
        draft.input = Some(photo());
        draft.repaint_transparent("init").unwrap();
        let mask = draft.mask.clone().unwrap();
        let part = mask.repainted.unwrap();
        assert_eq!((mask.size, part.x, part.width, part.height), ((8, 6), 4, 4, 6));
        assert_eq!(draft.request.strength, Some(1.0));
        // What was asked for stays.
        draft.mask = None;
        draft.request.strength = Some(0.5);
        draft.repaint_transparent("init").unwrap();
        assert_eq!((draft.mask.is_some(), draft.request.strength), (true, Some(0.5)));
        draft.input = Some(png(RgbaImage::from_pixel(8, 6, Rgba([1, 2, 3, 255]))));
        draft.mask = None;
        draft.repaint_transparent("init").unwrap();
        assert!(draft.mask.is_none());
    }

    #[test]
    fn an_image_is_scaled_only_while_no_other_is_decoded() {
        let other = decoding().unwrap();
        let scaled = std::thread::spawn(|| fitted_file("image", &photo(), (16, 16)));
        // One that has the size already is not decoded.
        assert_eq!(fitted_file("image", &photo(), (8, 6)).unwrap(), photo());
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!scaled.is_finished());
        drop(other);
        let scaled = scaled.join().unwrap().unwrap();
        assert_eq!(size_of(&scaled, "image").unwrap(), (16, 16));
        assert_eq!(fitted_file("x", &Bytes::from_static(b"x"), (1, 1)).unwrap_err().status, 422);
    }

    #[test]
    fn masks_are_turned_round_and_fitted() {
        let read = |change: fn(&mut Mask)| {
            DraftMask::read("mask", &photo(), MaskMarks::Transparent, change).unwrap()
        };
        assert_eq!(read(invert).repainted.unwrap().width, 4);
        assert_eq!(read(invert).repainted.unwrap().x, 0);
        let none = DraftMask::read("mask", &photo(), MaskMarks::Channel(2), |_| ()).unwrap();
        assert!(none.repainted.is_none());
        let mut draft = Draft::new(Request::new(""), "a1111");
        (draft.input, draft.mask) = (Some(photo()), Some(read(|_| ())));
        draft.fit_masked("init_images", (16, 12), round).unwrap();
        let mask = draft.mask.clone().unwrap();
        assert_eq!(size_of(draft.input.as_ref().unwrap(), "x").unwrap(), (16, 12));
        assert_eq!((mask.size, mask.repainted.unwrap().x), ((16, 12), 8));
        let before = draft.input.clone();
        draft.fit_masked("init_images", (16, 12), round).unwrap();
        assert_eq!(draft.input, before);
        assert!(DraftMask::read("mask", b"none", MaskMarks::Transparent, |_| ()).is_err());
    }
}
