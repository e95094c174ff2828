//! Repainting a part of an image: what is drawn, in which size, and how it is put back.
//!
//! The part that is drawn is a [`Region`] of the photo: all of it, or the surroundings of the mask.
//! It is scaled to the size of the request, drawn, scaled back, and blended with the photo by the
//! mask, so that the result has the size of the photo and every pixel outside of the mask is equal.

use image::{GrayImage, ImageBuffer, Luma, imageops};

use super::resize::{fit, fit_bytes, scaled};
use crate::error::{Error, Result};
use crate::pipeline::request::{Image, Margins, Mask, Request};

/// The most pixels that are drawn unless a request gives a size.
const MAX_DRAWN: f64 = 2.0 * 1024.0 * 1024.0;
/// How far the seam between an image and its margins reaches into the image, in pixels (as in
/// ComfyUI's `ImagePadForOutpaint`).
const FEATHER: usize = 40;
/// The fourth and last byte of values that compression may have left of black and of white.
const NEARLY: u8 = 8;

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub x: usize,
    /// First row.
    pub y: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// The parts of an image that a request with a mask draws and keeps.
#[derive(Debug, Clone)]
pub struct Masking {
    /// The image, with its margins.
    photo: Image,
    /// Which of its pixels are repainted.
    mask: Mask,
    /// The part that is drawn.
    region: Region,
    /// The size in which it is drawn.
    pub width: usize,
    /// See `width`.
    pub height: usize,
}

impl Masking {
    /// That of `request`, for a model with tokens of `unit` pixels that draws images of `area`
    /// pixels best; `None` if it has no mask.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the size of the request has another
    /// shape than the image.
    pub fn of(request: &Request, unit: usize, area: usize) -> Result<Option<Masking>> {
        let (Some(init), true) = (&request.init, request.is_masked()) else { return Ok(None) };
        let mask = match &request.mask {
            Some(mask) => snapped(mask),
            None => Mask { width: init.width, height: init.height, values: vec![0; pixels(init)] },
        };
        let (photo, mask) = match request.outpaint {
            Some(margins) => extended(init, &mask, margins),
            None => (init.clone(), mask),
        };
        let mask = match request.mask_blur {
            Some(sigma) if sigma > 0.0 => blurred(mask, sigma),
            _ => mask,
        };
        let whole = Region { x: 0, y: 0, width: photo.width, height: photo.height };
        let wanted = (request.width, request.height);
        let (region, width, height) = match request.mask_padding {
            None => {
                let (width, height) = whole.drawn_size(wanted, unit, 0);
                check_shape(&whole, (width, height), unit)?;
                (whole, width, height)
            }
            Some(padding) => {
                let part = surroundings(&mask, padding);
                let (width, height) = part.drawn_size(wanted, unit, area);
                // In the shape of that size, so that the size alone gives the same region again.
                (part.shaped(width as f64 / height as f64, &whole), width, height)
            }
        };
        Ok(Some(Masking { photo, mask, region, width, height }))
    }

    /// Width and height of the drawn part of `request`; `None` if it has no mask.
    ///
    /// # Errors
    /// Those of [`Masking::of`].
    pub fn size(request: &Request, unit: usize, area: usize) -> Result<Option<(usize, usize)>> {
        let (Some(init), true) = (&request.init, request.is_masked()) else { return Ok(None) };
        if request.mask_padding.is_some() {
            let masking = Masking::of(request, unit, area)?;
            return Ok(masking.map(|m| (m.width, m.height)));
        }
        // The mask itself does not matter, and may be large.
        let whole = with_margins((init.width, init.height), request);
        let drawn = whole.drawn_size((request.width, request.height), unit, 0);
        check_shape(&whole, drawn, unit)?;
        Ok(Some(drawn))
    }

    /// About the size in which a masked request is drawn, without its pixels: for an image of
    /// `size`, of which the part `repainted` is repainted. A blur, which makes the part somewhat
    /// larger, is not counted.
    #[cfg(feature = "server")]
    pub fn estimated_size(
        request: &Request,
        size: (usize, usize),
        repainted: Option<Region>,
        unit: usize,
        area: usize,
    ) -> (usize, usize) {
        let whole = with_margins(size, request);
        let wanted = (request.width, request.height);
        let Some(padding) = request.mask_padding else { return whole.drawn_size(wanted, unit, 0) };
        let [left, top, right, bottom] = request.outpaint.unwrap_or_default().sides();
        // Margins are repainted over the whole length of their side.
        let part = match repainted.filter(|_| left + top + right + bottom == 0) {
            Some(part) => part.padded(padding, &whole),
            None => whole,
        };
        part.drawn_size(wanted, unit, area)
    }

    /// The region of the photo that is drawn over, in the drawn size.
    pub fn start(&self) -> Image {
        scaled(&cut(&self.photo, &self.region), self.width, self.height).into_owned()
    }

    /// The same part of `image`, which belongs to the photo, in the drawn size: an image of another
    /// size is first fitted to that of the photo.
    pub fn drawn_part(&self, image: &Image) -> Image {
        let fitted = fit(image, self.photo.width, self.photo.height);
        scaled(&cut(&fitted, &self.region), self.width, self.height).into_owned()
    }

    /// Upper bound of the memory that [`drawn_part`](Masking::drawn_part) of an image of `size`
    /// needs, in bytes.
    pub fn part_bytes(&self, size: (usize, usize)) -> u64 {
        let part = self.region.width * self.region.height + self.width * self.height;
        fit_bytes(size, self.photo.width, self.photo.height) + 3 * part as u64
    }

    /// The mask of the drawn pixels. It has values between 0 and 255 only if the request's has.
    pub fn drawn_mask(&self) -> Mask {
        let Region { x, y, width, height } = self.region;
        let rows = self.mask.values.chunks_exact(self.mask.width).skip(y).take(height);
        let values: Vec<u8> = rows.flat_map(|row| &row[x..x + width]).copied().collect();
        if (width, height) == (self.width, self.height) {
            return Mask { width, height, values };
        }
        let is_hard = is_hard(&values);
        let part = gray(Mask { width, height, values });
        let (w, h) = (self.width as u32, self.height as u32);
        let mut values = imageops::resize(&part, w, h, imageops::FilterType::Triangle).into_raw();
        if is_hard {
            values.iter_mut().for_each(|v| *v = if *v < 128 { 0 } else { 255 });
        }
        Mask { width: self.width, height: self.height, values }
    }

    /// The photo with `drawn` in its place; the photo itself if nothing was drawn.
    pub fn put_back(&self, drawn: Option<&Image>) -> Image {
        let mut result = self.photo.clone();
        let Some(drawn) = drawn else { return result };
        let Region { x, y, width, height } = self.region;
        let drawn = scaled(drawn, width, height);
        for row in 0..height {
            let at = (y + row) * self.photo.width + x;
            let masks = &self.mask.values[at..at + width];
            let new = drawn.rgb[3 * row * width..].chunks_exact(3);
            let old = result.rgb[3 * at..3 * (at + width)].chunks_exact_mut(3);
            for ((old, new), &mask) in old.zip(new).zip(masks) {
                let (m, keep) = (u32::from(mask), u32::from(255 - mask));
                for (o, n) in old.iter_mut().zip(new) {
                    *o = ((u32::from(*n) * m + u32::from(*o) * keep + 127) / 255) as u8;
                }
            }
        }
        result
    }

    /// Host memory that a request with an image of `width x height` pixels and `images` results
    /// needs for all of this, in bytes.
    pub fn bytes(&self, images: usize) -> u64 {
        let photo = pixels(&self.photo) as u64;
        let drawn = (self.width * self.height) as u64;
        // The photo twice and its mask, the region in f32 while it is scaled, and the results.
        photo * (2 * 3 + 2 + 3 * images as u64) + 16 * (photo + drawn)
    }
}

impl Region {
    /// The region with `padding` pixels around it, as far as they are in `whole`.
    #[cfg(feature = "server")]
    fn padded(self, padding: usize, whole: &Region) -> Region {
        let (x, y) = (self.x.saturating_sub(padding), self.y.saturating_sub(padding));
        let right = (self.x + self.width + padding).min(whole.width);
        let bottom = (self.y + self.height + padding).min(whole.height);
        Region { x, y, width: right - x, height: bottom - y }
    }

    /// The smallest region with every pixel of `mask` that is repainted; `None` if there is none.
    #[cfg(feature = "server")]
    pub fn repainted(mask: &Mask) -> Option<Region> {
        let is_used = mask.values.iter().any(|v| *v >= NEARLY);
        is_used.then(|| surroundings(&snapped(mask), 0))
    }

    /// The smallest region around this one with about this ratio of width to height, moved and cut
    /// so that it is in `whole` (as AUTOMATIC1111 and diffusers do).
    fn shaped(self, ratio: f64, whole: &Region) -> Region {
        let Region { x, y, width, height } = self;
        if width as f64 / height as f64 > ratio {
            let wanted = (width as f64 / ratio) as usize;
            let (y, height) = widened(y, height, wanted, whole.height);
            Region { x, y, width, height }
        } else {
            let wanted = (height as f64 * ratio) as usize;
            let (x, width) = widened(x, width, wanted, whole.width);
            Region { x, y, width, height }
        }
    }

    /// The size in which the region is drawn: what a request `wanted`, and else its own, made
    /// smaller to what models can draw, and enlarged to `least` pixels.
    fn drawn_size(
        &self,
        wanted: (Option<usize>, Option<usize>),
        unit: usize,
        least: usize,
    ) -> (usize, usize) {
        let ratio = self.width as f64 / self.height as f64;
        let round = |side: f64| ((side / unit as f64).round() as usize).max(1) * unit;
        match wanted {
            (Some(w), Some(h)) => (w, h),
            (Some(w), None) => (w, round(w as f64 / ratio)),
            (None, Some(h)) => (round(h as f64 * ratio), h),
            (None, None) => {
                let own = (self.width * self.height) as f64;
                let scale = (own.max(least as f64).min(MAX_DRAWN) / own).sqrt();
                (round(self.width as f64 * scale), round(self.height as f64 * scale))
            }
        }
    }
}

/// `length` positions from `start`, widened on both sides to `wanted` of `limit`.
fn widened(start: usize, length: usize, wanted: usize, limit: usize) -> (usize, usize) {
    let wanted = wanted.clamp(length, limit);
    let start = start.saturating_sub((wanted - length) / 2);
    (start.min(limit - wanted), wanted)
}

/// A region that is not enlarged must be drawn in its own shape, or the result would be squeezed.
fn check_shape(region: &Region, drawn: (usize, usize), unit: usize) -> Result<()> {
    let ratio = region.width as f64 / region.height as f64;
    let (w, h) = (drawn.0 as f64, drawn.1 as f64);
    let off = (w - h * ratio).abs().min((h - w / ratio).abs());
    if off <= unit as f64 {
        return Ok(());
    }
    Err(Error::argument("the size has another shape than the image to repaint")
        .at_parameter("size")
        .found(format!("{}x{}", drawn.0, drawn.1))
        .expected(format!("the shape of {}x{}", region.width, region.height))
        .try_("leave the size out: the result has the size of the image in any case"))
}

/// All of an image of this size with the margins of `request`.
fn with_margins((width, height): (usize, usize), request: &Request) -> Region {
    let [left, top, right, bottom] = request.outpaint.unwrap_or_default().sides();
    Region { x: 0, y: 0, width: width + left + right, height: height + top + bottom }
}

/// The smallest region with every repainted pixel, and `padding` pixels around it.
fn surroundings(mask: &Mask, padding: usize) -> Region {
    let is_set = |v: &u8| *v > 0;
    let rows = || mask.values.chunks_exact(mask.width);
    let bounds = |mut set: Box<dyn Iterator<Item = usize> + '_>, limit: usize| {
        let first = set.next().unwrap_or(0);
        let last = set.last().unwrap_or(first);
        (first.saturating_sub(padding), (last + 1 + padding).min(limit))
    };
    let set_rows = rows().enumerate().filter(|(_, row)| row.iter().any(is_set)).map(|(y, _)| y);
    let (top, bottom) = bounds(Box::new(set_rows), mask.height);
    let set_columns = (0..mask.width).filter(|&x| rows().any(|row| is_set(&row[x])));
    let (left, right) = bounds(Box::new(set_columns), mask.width);
    Region { x: left, y: top, width: right - left, height: bottom - top }
}

/// The mask with nearly black and nearly white made black and white: lossy formats change both a
/// little, and a pixel that is kept must be kept to the bit.
fn snapped(mask: &Mask) -> Mask {
    let snap = |v: &u8| match *v {
        v if v < NEARLY => 0,
        v if v > 255 - NEARLY => 255,
        v => v,
    };
    Mask { values: mask.values.iter().map(snap).collect(), ..*mask }
}

/// `mask` at `width` x `height`, as [`fit`] makes images.
pub fn fit_mask(mask: &Mask, width: usize, height: usize) -> Mask {
    let rgb = mask.values.iter().flat_map(|v| [*v; 3]).collect();
    let fitted = fit(&Image { width: mask.width, height: mask.height, rgb }, width, height);
    Mask { width, height, values: fitted.rgb.chunks_exact(3).map(|p| p[0]).collect() }
}

/// Whether every pixel is either kept or repainted.
pub fn is_hard(values: &[u8]) -> bool {
    values.iter().all(|v| matches!(v, 0 | 255))
}

/// `image` and its mask with `margins` around it, which are repainted and repeat the pixels at the
/// edges. Where the image is large enough, the mask fades out within it.
fn extended(image: &Image, mask: &Mask, margins: Margins) -> (Image, Mask) {
    let [left, top, right, bottom] = margins.sides();
    let (w, h) = (image.width, image.height);
    let (width, height) = (w + left + right, h + top + bottom);
    let feather = if 2 * FEATHER < w.min(h) { FEATHER } else { 0 };
    let mut rgb = Vec::with_capacity(3 * width * height);
    let mut values = Vec::with_capacity(width * height);
    for row in 0..height {
        let y = row.saturating_sub(top).min(h - 1);
        for column in 0..width {
            let x = column.saturating_sub(left).min(w - 1);
            let at = y * w + x;
            rgb.extend_from_slice(&image.rgb[3 * at..3 * at + 3]);
            let inside = (top..top + h).contains(&row) && (left..left + w).contains(&column);
            values.push(match inside {
                true => mask.values[at].max(seam(x, y, (w, h), margins, feather)),
                false => 255,
            });
        }
    }
    (Image { width, height, rgb }, Mask { width, height, values })
}

/// The mask of the pixel `x`, `y` of an image with `margins`, by its distance to the nearest of
/// them.
fn seam(x: usize, y: usize, (w, h): (usize, usize), margins: Margins, feather: usize) -> u8 {
    let distances = [x, y, w - 1 - x, h - 1 - y];
    let near = distances.into_iter().zip(margins.sides()).filter(|(_, margin)| *margin > 0);
    match near.map(|(distance, _)| distance).min() {
        Some(distance) if distance < feather => {
            let part = (feather - distance) as f32 / feather as f32;
            (255.0 * part * part) as u8
        }
        _ => 0,
    }
}

fn blurred(mask: Mask, sigma: f32) -> Mask {
    let (width, height) = (mask.width, mask.height);
    let values = imageops::blur(&gray(mask), sigma).into_raw();
    Mask { width, height, values }
}

fn gray(mask: Mask) -> GrayImage {
    let (w, h) = (mask.width as u32, mask.height as u32);
    let Some(image) = ImageBuffer::<Luma<u8>, _>::from_raw(w, h, mask.values) else {
        // `Mask` promises as many bytes as its size needs.
        unreachable!("a mask of {w}x{h} with another number of bytes");
    };
    image
}

fn pixels(image: &Image) -> usize {
    image.width * image.height
}

fn cut(image: &Image, region: &Region) -> Image {
    let Region { x, y, width, height } = *region;
    let rows = image.rgb.chunks_exact(3 * image.width).skip(y).take(height);
    let rgb = rows.flat_map(|row| row[3 * x..3 * (x + width)].iter().copied()).collect();
    Image { width, height, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(width: usize, height: usize) -> Image {
        let rgb = (0..3 * width * height).map(|i| (i * 7919 % 251) as u8).collect();
        Image { width, height, rgb }
    }

    /// White in the given region.
    fn mask(width: usize, height: usize, white: Region) -> Mask {
        let is_white = |x, y| {
            (white.x..white.x + white.width).contains(&x)
                && (white.y..white.y + white.height).contains(&y)
        };
        let values = (0..width * height).map(|i| 255 * u8::from(is_white(i % width, i / width)));
        Mask { width, height, values: values.collect() }
    }

    fn region(x: usize, y: usize, width: usize, height: usize) -> Region {
        Region { x, y, width, height }
    }

    fn masking(request: Request) -> Masking {
        request.check().unwrap();
        Masking::of(&request, 16, 1 << 20).unwrap().unwrap()
    }

    #[test]
    fn pixels_outside_of_the_mask_are_equal_at_any_size() {
        let white = region(30, 20, 25, 31);
        for (width, height) in [(128, 96), (130, 97), (1000, 701)] {
            let request =
                Request::new("").init(photo(width, height)).mask(mask(width, height, white));
            for request in [request.clone(), request.clone().mask_padding(9)] {
                let masking = masking(request);
                assert_eq!((masking.width % 16, masking.height % 16), (0, 0));
                let start = masking.start();
                assert_eq!((start.width, start.height), (masking.width, masking.height));
                let black = Image { rgb: vec![0; start.rgb.len()], ..start };
                let result = masking.put_back(Some(&black));
                let photo = photo(width, height);
                assert_eq!((result.width, result.height), (width, height));
                let pairs = result.rgb.chunks(3).zip(photo.rgb.chunks(3)).enumerate();
                for (i, (found, kept)) in pairs {
                    let (x, y) = (i % width, i / width);
                    let inside = (30..55).contains(&x) && (20..51).contains(&y);
                    assert_eq!(found, if inside { &[0; 3] } else { kept }, "{x} {y}");
                }
                assert_eq!(masking.put_back(None), photo);
            }
        }
    }

    #[test]
    fn only_the_surroundings_of_a_mask_are_drawn_if_it_is_padded() {
        let all = mask(200, 100, region(90, 40, 10, 20));
        assert_eq!(surroundings(&all, 0), region(90, 40, 10, 20));
        assert_eq!(surroundings(&all, 5), region(85, 35, 20, 30));
        assert_eq!(surroundings(&all, 95), region(0, 0, 195, 100));
        // As `get_crop_region` of diffusers.
        let whole = region(0, 0, 200, 100);
        assert_eq!(region(85, 35, 20, 30).shaped(1.0, &whole), region(80, 35, 30, 30));
        assert_eq!(region(0, 35, 20, 30).shaped(2.0, &whole), region(0, 35, 60, 30));
        assert_eq!(region(190, 0, 10, 40).shaped(1.0, &whole), region(160, 0, 40, 40));
        assert_eq!(region(0, 10, 180, 10).shaped(1.0, &whole), region(0, 0, 180, 100));
        let request = Request::new("").init(photo(200, 100)).mask(all).mask_padding(6);
        let drawn = masking(request);
        assert_eq!(drawn.region, region(84, 34, 22, 32));
        // Enlarged to the pixels of the model.
        assert_eq!((drawn.width, drawn.height), (848, 1232));
    }

    #[test]
    fn margins_repeat_the_edges_and_fade_into_the_image() {
        let margins = Margins { left: 3, top: 0, right: 0, bottom: 5 };
        let image = photo(100, 90);
        let none = Mask { width: 100, height: 90, values: vec![0; 9000] };
        let (wide, mask) = extended(&image, &none, margins);
        assert_eq!((wide.width, wide.height, mask.width, mask.height), (103, 95, 103, 95));
        let at = |x: usize, y: usize| mask.values[y * 103 + x];
        assert_eq!(
            [at(0, 0), at(2, 94), at(50, 90), at(3, 10), at(43, 10)],
            [255, 255, 255, 255, 0]
        );
        assert_eq!((at(23, 10), at(102, 10), at(102, 69)), (63, 0, 63));
        assert_eq!(wide.rgb[..3], image.rgb[..3]);
        assert_eq!(wide.rgb[9..309], image.rgb[..300]);
        // A small image is kept whole.
        let small = Mask { width: 16, height: 16, values: vec![0; 256] };
        let (_, mask) = extended(&photo(16, 16), &small, margins);
        assert_eq!(mask.values.iter().filter(|v| **v == 0).count(), 256);
    }

    #[test]
    fn hard_masks_stay_hard_and_soft_ones_soft() {
        let nearly = Mask { width: 3, height: 1, values: vec![5, 128, 251] };
        assert_eq!(snapped(&nearly).values, [0, 128, 255]);
        let hard = mask(100, 100, region(11, 13, 50, 51));
        let request = Request::new("").init(photo(100, 100)).mask(hard).mask_padding(0);
        assert!(is_hard(&masking(request.clone()).drawn_mask().values));
        assert!(!is_hard(&masking(request.mask_blur(3.0)).drawn_mask().values));
    }

    #[test]
    fn a_size_of_another_shape_is_refused() {
        let white = mask(128, 128, region(0, 0, 64, 64));
        let request = Request::new("").init(photo(128, 128)).mask(white);
        assert!(Masking::of(&request.clone().size(128, 256), 16, 1 << 20).is_err());
        assert!(Masking::of(&request.clone().size(256, 256), 16, 1 << 20).is_ok());
        let wide = Masking::of(&request.width(64), 16, 1 << 20).unwrap().unwrap();
        assert_eq!((wide.width, wide.height), (64, 64));
    }
}
