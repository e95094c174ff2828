//! Resizing to the bit as Pillow does it, for images that reference code resizes before a model
//! reads them.

use crate::pipeline::request::Image;

/// How far the filter reaches: Lanczos with three lobes.
const LOBES: f64 = 3.0;
/// Bits behind the point of a weight.
const BITS: u32 = 22;
/// Red, green, blue.
const CHANNELS: usize = 3;

/// `image` stretched to `width x height` with a Lanczos filter: columns first, then rows, with
/// weights of 22 bits and 8-bit values between the two, as `Image.resize` of Pillow computes it.
pub fn stretched(image: &Image, width: usize, height: usize) -> Image {
    let mut result = image.clone();
    if width != image.width {
        let taps = taps(image.width, width);
        let rows = result.rgb.chunks_exact(CHANNELS * image.width);
        let rgb = rows.flat_map(|row| {
            taps.iter().flat_map(move |(first, weights)| {
                sum(weights, |i, c| row[CHANNELS * (first + i) + c])
            })
        });
        result = Image { width, height: image.height, rgb: rgb.collect() };
    }
    if height != image.height {
        let source = &result.rgb;
        let rgb = taps(image.height, height).into_iter().flat_map(|(first, weights)| {
            (0..width).flat_map(move |x| {
                sum(&weights, |i, c| source[CHANNELS * ((first + i) * width + x) + c])
            })
        });
        result = Image { width, height, rgb: rgb.collect() };
    }
    result
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
fn taps(from: usize, to: usize) -> Vec<(usize, Vec<i64>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = LOBES * stretch;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..end).map(|x| lanczos((x as f64 - centre + 0.5) / stretch)).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |w: &f64| (w / total * f64::from(1u32 << BITS)).round() as i64;
        (first, weights.iter().map(fixed).collect())
    };
    (0..to).map(of).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |t: f64| match t * std::f64::consts::PI {
        0.0 => 1.0,
        a => a.sin() / a,
    };
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

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
                let found = stretched(&image(&format!("{i}.picture")), want.width, want.height);
                assert!(found == want, "picture {i}, {to}");
            }
        }
    }
}
