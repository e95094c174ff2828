//! Resizing to the bit as Pillow does it, for images that reference code resizes before a model
//! reads them.

use crate::pipeline::request::Image;

/// Bits behind the point of a weight.
const BITS: u32 = 22;
/// Red, green, blue.
const CHANNELS: usize = 3;

/// How a pixel of the result is made of those around its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Lanczos with three lobes.
    Lanczos,
    /// Cubic pieces with a slope of -0.5 at the first zero.
    Bicubic,
    /// A triangle.
    #[cfg(feature = "server")]
    Bilinear,
}

impl Filter {
    /// How far it reaches, in pixels of the result or of the source, whichever are larger.
    fn reach(self) -> f64 {
        match self {
            Filter::Lanczos => 3.0,
            Filter::Bicubic => 2.0,
            #[cfg(feature = "server")]
            Filter::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const SLOPE: f64 = -0.5;
        let sinc = |t: f64| match t * std::f64::consts::PI {
            0.0 => 1.0,
            a => a.sin() / a,
        };
        let lobes = self.reach();
        match (self, x.abs()) {
            (Filter::Lanczos, _) if (-lobes..lobes).contains(&x) => sinc(x) * sinc(x / lobes),
            (Filter::Bicubic, x) if x < 1.0 => ((SLOPE + 2.0) * x - (SLOPE + 3.0)) * x * x + 1.0,
            (Filter::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * SLOPE,
            #[cfg(feature = "server")]
            (Filter::Bilinear, x) if x < 1.0 => 1.0 - x,
            _ => 0.0,
        }
    }
}

/// Stretches an image whose rows arrive one after another, as [`stretched`] does.
pub struct Stretcher {
    columns: Vec<(usize, Vec<i64>)>,
    size: (usize, usize),
    filter: Filter,
    /// The rows so far, in the new width.
    rows: Image,
}

impl Stretcher {
    /// For an image of `from` columns and rows that becomes one of `width x height`.
    pub fn new(from: (usize, usize), width: usize, height: usize, filter: Filter) -> Stretcher {
        let columns = if width == from.0 { vec![] } else { taps(from.0, width, filter) };
        let rgb = Vec::with_capacity(CHANNELS * width * from.1);
        let rows = Image { width, height: from.1, rgb };
        Stretcher { columns, size: (width, height), filter, rows }
    }

    /// Takes the next row, in 8-bit RGB.
    pub fn push(&mut self, row: &[u8]) {
        if self.columns.is_empty() {
            self.rows.rgb.extend_from_slice(row);
            return;
        }
        let pixel = |(first, weights): &(usize, Vec<i64>)| {
            sum(weights, |i, c| row[CHANNELS * (first + i) + c])
        };
        self.rows.rgb.extend(self.columns.iter().flat_map(pixel));
    }

    /// The result, once all rows were pushed.
    pub fn finish(self) -> Image {
        let Stretcher { size: (width, height), filter, rows, .. } = self;
        if height == rows.height {
            return rows;
        }
        let mut rgb = Vec::with_capacity(CHANNELS * width * height);
        for (first, weights) in taps(rows.height, height, filter) {
            let pixel =
                |x: usize| sum(&weights, |i, c| rows.rgb[CHANNELS * ((first + i) * width + x) + c]);
            rgb.extend((0..width).flat_map(pixel));
        }
        Image { width, height, rgb }
    }
}

/// `image` stretched to `width x height`: columns first, then rows, with weights of 22 bits and
/// 8-bit values between the two, as `Image.resize` of Pillow up to 12 computes it. (Pillow 13
/// begins with the rows where the image loses more than twice as many rows as columns. Values of a
/// photo then differ by at most 2. Not followed here: rows arrive one after another, and reference
/// code does not name a version.)
pub fn stretched(image: &Image, width: usize, height: usize, filter: Filter) -> Image {
    let mut stretcher = Stretcher::new((image.width, image.height), width, height, filter);
    image.rgb.chunks_exact(CHANNELS * image.width).for_each(|row| stretcher.push(row));
    stretcher.finish()
}

/// Upper bound of the memory that [`stretched`] needs for an image of `from` columns and rows
/// besides the image itself, in bytes.
pub fn stretch_bytes(from: (usize, usize), width: usize, height: usize) -> u64 {
    let taps = |from: usize, to: usize| {
        let reach = 6.0 * (from as f64 / to as f64).max(1.0) + 2.0;
        to as f64 * (32.0 + 8.0 * reach)
    };
    let work = taps(from.0, width).max(taps(from.1, height));
    (CHANNELS * width * (from.1 + height)) as u64 + work as u64
}

/// The weighted sum of the pixels that `pixel` gives by number and channel.
fn sum(weights: &[i64], pixel: impl Fn(usize, usize) -> u8) -> [u8; CHANNELS] {
    std::array::from_fn(|c| {
        let half = 1 << (BITS - 1);
        let sum: i64 = weights.iter().enumerate().map(|(i, w)| w * i64::from(pixel(i, c))).sum();
        ((sum + half) >> BITS).clamp(0, 255) as u8
    })
}

/// For each of `to` pixels that a line of `from` becomes: the first pixel that it is made of, and
/// the weights of this one and of those behind it.
fn taps(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<i64>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.reach() * stretch;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..end).map(|x| filter.weight((x as f64 - centre + 0.5) / stretch)).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |w: &f64| (w / total * f64::from(1u32 << BITS)).round() as i64;
        (first, weights.iter().map(fixed).collect())
    };
    (0..to).map(of).collect()
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// SigLIP's image processor scales by Pillow, too; its pixels are normalised afterwards.
    #[test]
    fn bicubic_is_that_of_siglip_to_the_bit() {
        for golden in [
            include_bytes!("../../../tests/golden/redux_a_dev.safetensors").as_slice(),
            include_bytes!("../../../tests/golden/redux_b_schnell.safetensors"),
        ] {
            let golden = SafeTensors::deserialize(golden).unwrap();
            let pixels = golden.tensor("siglip.pixels").unwrap();
            let side = pixels.shape()[3];
            let floats = pixels.data().as_chunks::<4>().0;
            for (i, planes) in floats.chunks_exact(3 * side * side).enumerate() {
                let picture = golden.tensor(&format!("picture.{i}")).unwrap();
                let (height, width) = (picture.shape()[0], picture.shape()[1]);
                let image = Image { width, height, rgb: picture.data().to_vec() };
                let found = stretched(&image, side, side, Filter::Bicubic);
                for (at, pixel) in found.rgb.chunks_exact(3).enumerate() {
                    let of = |c: usize| f32::from_le_bytes(planes[c * side * side + at]);
                    let want = [0, 1, 2].map(|c| ((of(c) * 0.5 + 0.5) * 255.0).round() as u8);
                    assert_eq!(pixel, want, "picture {i}, pixel {at}");
                }
            }
        }
    }

    /// `Image.resize` of Pillow with `BILINEAR`.
    #[test]
    #[cfg(feature = "server")]
    fn bilinear_is_pillow_to_the_bit() {
        let rgb = (0..5 * 3 * 3).map(|i| (i * 83 % 256) as u8).collect();
        let image = Image { width: 5, height: 3, rgb };
        let red = |width, height| -> Vec<u8> {
            let result = stretched(&image, width, height, Filter::Bilinear);
            result.rgb.chunks_exact(3).map(|pixel| pixel[0]).collect()
        };
        assert_eq!(red(3, 2), [149, 229, 218, 196, 185, 174]);
        assert_eq!(
            red(7, 4),
            [
                0, 142, 247, 242, 237, 232, 228, 138, 189, 225, 220, 215, 210, 206, 208, 204, 199,
                194, 189, 184, 180, 186, 182, 177, 172, 167, 162, 158
            ]
        );
    }

    #[test]
    fn it_is_pillow_to_the_bit() {
        let golden = include_bytes!("../../../tests/golden/canny.safetensors");
        let golden = SafeTensors::deserialize(golden).unwrap();
        let image = |name: &str| {
            let tensor = golden.tensor(name).unwrap();
            let (height, width) = (tensor.shape()[0], tensor.shape()[1]);
            Image { width, height, rgb: tensor.data().to_vec() }
        };
        for i in 0..3 {
            for to in ["larger", "smaller"] {
                let want = image(&format!("{i}.{to}"));
                let found = {
                    let (picture, filter) = (image(&format!("{i}.picture")), Filter::Lanczos);
                    stretched(&picture, want.width, want.height, filter)
                };
                assert!(found == want, "picture {i}, {to}");
            }
        }
    }
}
