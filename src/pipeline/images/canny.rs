//! The edges of an image, as OpenCV's `Canny(image, 50, 200)` finds them: the control images that
//! FLUX.1 Canny was trained with.

use crate::pipeline::request::Image;

/// The thresholds that FLUX.1 Canny was trained with: a gradient above the second one is an edge,
/// and one above the first is if it is next to an edge.
pub const THRESHOLDS: [u16; 2] = [50, 200];
/// tan(22.5 degrees) in units of 2^-15.
const TAN_22_5: i32 = 13573;
const SHIFT: i32 = 15;

/// White edges on black, in the size of `image`.
///
/// As OpenCV does for colours: 3x3 Sobel filters, with the pixels at the edges repeated, the
/// channel with the largest |dx| + |dy| of each pixel, and two `thresholds`: see [`THRESHOLDS`].
pub fn canny(image: &Image, thresholds: [u16; 2]) -> Image {
    let [low, high] = thresholds.map(i32::from);
    let (width, height) = (image.width, image.height);
    let gradients = gradients(image);
    // A border of zeros, so that every pixel has eight neighbours.
    let stride = width + 2;
    let mut magnitude = vec![0i32; stride * (height + 2)];
    for (row, gradients) in magnitude.chunks_exact_mut(stride).skip(1).zip(gradients.chunks(width))
    {
        let sizes = gradients.iter().map(|(dx, dy)| dx.abs() + dy.abs());
        row[1..].iter_mut().zip(sizes).for_each(|(m, size)| *m = size);
    }
    // 0: not an edge, 1: perhaps, 2: an edge.
    let mut state = vec![0u8; magnitude.len()];
    let mut found = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let at = (y + 1) * stride + x + 1;
            if is_ridge(&magnitude, low, at, stride, gradients[y * width + x]) {
                state[at] = 1;
                if magnitude[at] > high {
                    state[at] = 2;
                    found.push(at);
                }
            }
        }
    }
    while let Some(at) = found.pop() {
        for middle in [at - stride, at, at + stride] {
            for neighbour in [middle - 1, middle, middle + 1] {
                if state[neighbour] == 1 {
                    state[neighbour] = 2;
                    found.push(neighbour);
                }
            }
        }
    }
    let rows = state.chunks_exact(stride).skip(1).take(height);
    let values = rows.flat_map(|row| &row[1..=width]);
    let rgb = values.flat_map(|state| [255 * u8::from(*state == 2); 3]).collect();
    Image { width, height, rgb }
}

/// The horizontal and vertical gradient of each pixel, of the channel in which it is largest.
fn gradients(image: &Image) -> Vec<(i32, i32)> {
    let (width, height) = (image.width, image.height);
    let value = |x: usize, y: usize, c: usize| i32::from(image.rgb[3 * (y * width + x) + c]);
    let mut all = Vec::with_capacity(width * height);
    for y in 0..height {
        let (up, down) = (y.saturating_sub(1), (y + 1).min(height - 1));
        for x in 0..width {
            let (left, right) = (x.saturating_sub(1), (x + 1).min(width - 1));
            let gradient = |c: usize| {
                let column = |x: usize| value(x, up, c) + 2 * value(x, y, c) + value(x, down, c);
                let row = |y: usize| value(left, y, c) + 2 * value(x, y, c) + value(right, y, c);
                (column(right) - column(left), row(down) - row(up))
            };
            let size = |(dx, dy): (i32, i32)| dx.abs() + dy.abs();
            // The first of equal ones.
            let mut largest = gradient(0);
            for c in 1..3 {
                let other = gradient(c);
                if size(other) > size(largest) {
                    largest = other;
                }
            }
            all.push(largest);
        }
    }
    all
}

/// Whether the magnitude at `at` is above `low`, and a maximum across its edge.
fn is_ridge(magnitude: &[i32], low: i32, at: usize, stride: usize, (dx, dy): (i32, i32)) -> bool {
    let m = magnitude[at];
    if m <= low {
        return false;
    }
    let (x, y) = (dx.abs(), dy.abs() << SHIFT);
    let tan_22 = x * TAN_22_5;
    if y < tan_22 {
        m > magnitude[at - 1] && m >= magnitude[at + 1]
    } else if y > tan_22 + (x << (SHIFT + 1)) {
        m > magnitude[at - stride] && m >= magnitude[at + stride]
    } else {
        // Along the diagonal that the gradient follows.
        let (before, after) = match (dx ^ dy) < 0 {
            true => (at - stride + 1, at + stride - 1),
            false => (at - stride - 1, at + stride + 1),
        };
        m > magnitude[before] && m > magnitude[after]
    }
}

/// Whether `image` has black and white pixels only, nearly: it is a drawing of edges already.
pub fn is_drawing_of_edges(image: &Image) -> bool {
    let is_plain = |p: &&[u8]| p.iter().all(|v| *v < 16) || p.iter().all(|v| *v > 239);
    let plain = image.rgb.chunks_exact(3).filter(is_plain).count();
    100 * plain >= 98 * image.width * image.height
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// Pictures with straight edges, noise and smooth noise, and what OpenCV finds in them.
    #[test]
    fn edges_are_those_of_opencv() {
        let golden = include_bytes!("../../../tests/golden/canny.safetensors");
        let golden = SafeTensors::deserialize(golden).unwrap();
        for i in 0..3 {
            let picture = golden.tensor(&format!("{i}.picture")).unwrap();
            let edges = golden.tensor(&format!("{i}.edges")).unwrap();
            let (height, width) = (picture.shape()[0], picture.shape()[1]);
            let image = Image { width, height, rgb: picture.data().to_vec() };
            let found = canny(&image, THRESHOLDS);
            assert_eq!((found.width, found.height), (width, height));
            let differ = found.rgb.chunks(3).zip(edges.data()).filter(|(p, e)| p[0] != **e).count();
            assert_eq!(differ, 0, "picture {i}");
            assert!(found.rgb.contains(&255) && !is_drawing_of_edges(&image));
            assert!(is_drawing_of_edges(&found));
            // A higher threshold leaves fewer edges, all of which were there before.
            let white = |image: &Image| image.rgb.iter().filter(|v| **v == 255).count();
            let fewer = canny(&image, [50, 600]);
            assert!(white(&fewer) < white(&found), "picture {i}");
            assert!(fewer.rgb.iter().zip(&found.rgb).all(|(few, all)| few <= all));
        }
    }
}
