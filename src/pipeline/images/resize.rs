//! Cuts and scales an image while its rows arrive, so that the whole of it need not be in memory.

use std::borrow::Cow;
use std::collections::VecDeque;

use crate::pipeline::request::Image;

/// How far the filter reaches: Lanczos with three lobes.
const LOBES: f32 = 3.0;
/// Red, green, blue.
const CHANNELS: usize = 3;

/// The part of a row or column of the source that one pixel of the result is made of.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

impl Taps {
    /// Those of all pixels of a line of `from` pixels that becomes one of `to`.
    fn all(from: usize, to: usize) -> Vec<Taps> {
        let ratio = from as f32 / to as f32;
        let stretch = ratio.max(1.0);
        let taps = |i: usize| {
            let centre = (i as f32 + 0.5) * ratio;
            let first = ((centre - LOBES * stretch).floor().max(0.0) as usize).min(from - 1);
            let end = ((centre + LOBES * stretch).ceil() as usize).clamp(first + 1, from);
            let kernel = |x: usize| lanczos((x as f32 - (centre - 0.5)) / stretch);
            let mut weights: Vec<f32> = (first..end).map(kernel).collect();
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
            Taps { first, weights }
        };
        (0..to).map(taps).collect()
    }

    fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

fn lanczos(x: f32) -> f32 {
    let sinc = |t: f32| match t * std::f32::consts::PI {
        0.0 => 1.0,
        a => a.sin() / a,
    };
    if x.abs() < LOBES { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

/// The largest part around the centre of an image of `size` that has the shape of `width` x
/// `height`.
struct Crop {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl Crop {
    fn of((w, h): (usize, usize), width: usize, height: usize) -> Crop {
        let (wide, high) = (w as u64 * height as u64, h as u64 * width as u64);
        let (crop_w, crop_h) = if wide > high {
            ((high / height as u64).max(1) as usize, h)
        } else {
            (w, (wide / width as u64).max(1) as usize)
        };
        Crop { left: (w - crop_w) / 2, top: (h - crop_h) / 2, width: crop_w, height: crop_h }
    }
}

/// Makes an image of another size from the rows of one. The result depends on the pixels alone.
pub struct Resizer {
    size: (usize, usize),
    crop: Crop,
    columns: Vec<Taps>,
    rows: Vec<Taps>,
    /// Rows that are still needed, scaled to the new width; the first is row `first` of the part.
    window: VecDeque<Vec<f32>>,
    first: usize,
    /// The number of rows that arrived.
    arrived: usize,
    result: Image,
}

impl Resizer {
    /// For an image of `size` columns and rows that becomes one of `width` x `height`. None of them
    /// may be 0.
    pub fn new(size: (usize, usize), width: usize, height: usize) -> Resizer {
        Resizer::of_part(Crop::of(size, width, height), size, width, height)
    }

    /// The same without a cut: the whole image is scaled, each side by its own factor.
    pub fn whole(size: (usize, usize), width: usize, height: usize) -> Resizer {
        let all = Crop { left: 0, top: 0, width: size.0, height: size.1 };
        Resizer::of_part(all, size, width, height)
    }

    fn of_part(crop: Crop, size: (usize, usize), width: usize, height: usize) -> Resizer {
        let is_same = size == (width, height);
        let taps = |from, to| if is_same { vec![] } else { Taps::all(from, to) };
        Resizer {
            size,
            columns: taps(crop.width, width),
            rows: taps(crop.height, height),
            crop,
            window: VecDeque::new(),
            first: 0,
            arrived: 0,
            result: Image { width, height, rgb: Vec::with_capacity(CHANNELS * width * height) },
        }
    }

    /// Whether [`Resizer::new`] makes both sides at most half as long.
    pub fn halves(size: (usize, usize), width: usize, height: usize) -> bool {
        let part = Crop::of(size, width, height);
        part.width >= 2 * width && part.height >= 2 * height
    }

    /// Upper bound of the memory of such a resizer and its result, in bytes.
    pub fn bytes(size: (usize, usize), width: usize, height: usize) -> u64 {
        let Crop { width: columns, height: rows, .. } = Crop::of(size, width, height);
        Resizer::bytes_of_part((columns, rows), width, height)
    }

    /// The same for [`Resizer::whole`].
    pub fn bytes_of_part(part: (usize, usize), width: usize, height: usize) -> u64 {
        let taps = |from: usize, to: usize| {
            let reach = 2.0 * f64::from(LOBES) * (from as f64 / to as f64).max(1.0) + 2.0;
            (to as f64 * (32.0 + 4.0 * reach), reach.min(from as f64 + 1.0))
        };
        let (columns, _) = taps(part.0, width);
        let (rows, window) = taps(part.1, height);
        let row = (CHANNELS * width) as f64;
        (columns + rows + window * (4.0 * row + 32.0) + row * (4.0 + height as f64)) as u64
    }

    /// Takes the next row, in 8-bit RGB.
    pub fn push(&mut self, rgb: &[u8]) {
        assert!(rgb.len() == CHANNELS * self.size.0 && self.arrived < self.size.1);
        let row = self.arrived;
        self.arrived += 1;
        if self.columns.is_empty() {
            self.result.rgb.extend_from_slice(rgb);
            return;
        }
        let Crop { left, top, width, height } = self.crop;
        if !(top..top + height).contains(&row) {
            return;
        }
        let row = row - top;
        self.make_room();
        if row < self.first {
            return;
        }
        let part = &rgb[CHANNELS * left..][..CHANNELS * width];
        let scaled = self.columns.iter().flat_map(|taps| {
            let mut sum = [0f32; CHANNELS];
            let pixels = part[CHANNELS * taps.first..].as_chunks::<CHANNELS>().0;
            for (weight, pixel) in taps.weights.iter().zip(pixels) {
                sum.iter_mut().zip(pixel).for_each(|(s, p)| *s += f32::from(*p) * weight);
            }
            sum
        });
        self.window.push_back(scaled.collect());
        self.advance(row + 1);
    }

    /// Drops rows that no row of the result needs any more.
    fn make_room(&mut self) {
        let done = self.result.rgb.len() / (CHANNELS * self.result.width);
        let Some(next) = self.rows.get(done) else {
            self.window.clear();
            self.first = usize::MAX;
            return;
        };
        while self.first < next.first && self.window.pop_front().is_some() {
            self.first += 1;
        }
        if self.window.is_empty() {
            self.first = self.first.max(next.first);
        }
    }

    /// Makes the rows of the result that need only the first `there` rows of the part.
    fn advance(&mut self, there: usize) {
        loop {
            let done = self.result.rgb.len() / (CHANNELS * self.result.width);
            let Some(taps) = self.rows.get(done).filter(|taps| taps.end() <= there) else { return };
            let mut sum = vec![0f32; CHANNELS * self.result.width];
            let needed = self.window.iter().skip(taps.first - self.first);
            for (weight, row) in taps.weights.iter().zip(needed) {
                sum.iter_mut().zip(row).for_each(|(s, v)| *s += v * weight);
            }
            self.result.rgb.extend(sum.iter().map(|v| v.clamp(0.0, 255.0).round() as u8));
        }
    }

    /// The result, once all rows were pushed.
    pub fn finish(self) -> Image {
        assert_eq!(self.arrived, self.size.1);
        self.result
    }
}

/// `image` stretched to `width x height` pixels with a Lanczos filter.
pub fn scaled(image: &Image, width: usize, height: usize) -> Cow<'_, Image> {
    let size = (image.width, image.height);
    if size == (width, height) {
        return Cow::Borrowed(image);
    }
    let mut resizer = Resizer::whole(size, width, height);
    image.rgb.chunks_exact(CHANNELS * image.width).for_each(|row| resizer.push(row));
    Cow::Owned(resizer.finish())
}

/// Upper bound of the memory that [`fit`] needs for its result and its work, in bytes.
pub fn fit_bytes(size: (usize, usize), width: usize, height: usize) -> u64 {
    Resizer::bytes(size, width, height)
}

/// Returns `picture` at `width` x `height`: cuts the largest part around its centre with that
/// aspect ratio, then resizes it with a Lanczos filter. An image that has this size already is not
/// changed.
pub fn fit(picture: &Image, width: usize, height: usize) -> Image {
    if (picture.width, picture.height) == (width, height) {
        return picture.clone();
    }
    let mut resizer = Resizer::new((picture.width, picture.height), width, height);
    picture.rgb.chunks_exact(3 * picture.width).for_each(|row| resizer.push(row));
    resizer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> Vec<u8> {
        (0..width * height * CHANNELS).map(|i| (i * 7919 % 251) as u8).collect()
    }

    fn resize(size: (usize, usize), width: usize, height: usize) -> (Image, usize) {
        let rgb = noise(size.0, size.1);
        let mut resizer = Resizer::new(size, width, height);
        let mut most = 0;
        for row in rgb.chunks(CHANNELS * size.0) {
            resizer.push(row);
            most = most.max(resizer.window.len());
        }
        (resizer.finish(), most)
    }

    #[test]
    fn it_is_lanczos_of_the_part_around_the_centre() {
        for (size, width, height) in [
            ((40, 30), 16, 16),
            ((30, 50), 64, 32),
            ((100, 100), 16, 16),
            ((7, 5), 48, 16),
            ((1, 1), 16, 48),
            ((1, 90), 32, 16),
            ((16, 33), 16, 32),
        ] {
            let (got, _) = resize(size, width, height);
            let (w, h) = (size.0 as u32, size.1 as u32);
            let image = image::RgbImage::from_raw(w, h, noise(size.0, size.1)).unwrap();
            let Crop { left, top, width: cw, height: ch } = Crop::of(size, width, height);
            let part =
                image::imageops::crop_imm(&image, left as u32, top as u32, cw as u32, ch as u32);
            let filter = image::imageops::FilterType::Lanczos3;
            let want = image::imageops::resize(&*part, width as u32, height as u32, filter);
            let off = got.rgb.iter().zip(want.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(off.unwrap() <= 1, "{size:?} to {width}x{height}: off by {off:?}");
        }
    }

    #[test]
    fn the_whole_image_is_scaled_where_nothing_is_cut() {
        for (size, width, height) in [((40, 30), 16, 16), ((100, 30), 33, 9), ((20, 20), 20, 20)] {
            let rgb = noise(size.0, size.1);
            let mut resizer = Resizer::whole(size, width, height);
            rgb.chunks(CHANNELS * size.0).for_each(|row| resizer.push(row));
            let got = resizer.finish();
            let image = image::RgbImage::from_raw(size.0 as u32, size.1 as u32, rgb).unwrap();
            let filter = image::imageops::FilterType::Lanczos3;
            let want = image::imageops::resize(&image, width as u32, height as u32, filter);
            let off = got.rgb.iter().zip(want.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(off.unwrap() <= 1, "{size:?} to {width}x{height}: off by {off:?}");
        }
    }

    #[test]
    fn few_rows_are_kept_and_their_memory_is_bounded() {
        for (size, width, height, rows) in [
            ((300, 400), 48, 64, 41),
            ((20, 20), 320, 320, 9),
            ((64, 64), 64, 64, 0),
            ((2, 2000), 16, 16, 2),
        ] {
            let (image, most) = resize(size, width, height);
            assert_eq!(image.rgb.len(), CHANNELS * width * height);
            assert!(most <= rows, "{most} rows of {size:?}");
            let bound = Resizer::bytes(size, width, height);
            let used = 12 * most * width + image.rgb.len();
            assert!(used as u64 <= bound && bound < 4_000_000, "{used}, {bound}");
        }
        // A photo of 64 million pixels.
        assert!(Resizer::bytes((8000, 8000), 1024, 1024) < 5_000_000);
        assert!(Resizer::bytes((64_000_000, 1), 1024, 1024) < 5_000_000);
    }
}
