//! What nodes do to the pixels of a mask.

use crate::pipeline::request::Mask;
use crate::server::masks::invert;

/// What a node does to a mask.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MaskChange {
    /// White becomes black.
    Invert,
    /// By pixels; a negative number shrinks it.
    Grow(i64),
    /// White is what is above a part of white.
    Threshold(f32),
    /// White is every pixel within so many rows and columns of one that is not black.
    Dilate(usize),
    /// White is every pixel with nothing but white within so many rows and columns.
    Erode(usize),
    /// Each pixel becomes a mean of as many rows and columns.
    Blur { size: usize, kernel: Kernel },
    /// Values that are this near to white become white.
    Stabilise(f32),
    /// A part of it, as far as there is one.
    Crop { x: usize, y: usize, width: usize, height: usize },
}

/// The weights of a mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// All alike.
    Box,
    /// Falling in a straight line.
    Linear,
    /// Falling as a bell does.
    Gaussian,
}

impl MaskChange {
    /// The number of products that the change needs in a mask of so many pixels.
    pub fn products(self, pixels: u64) -> u64 {
        match self {
            // Rows, and then columns.
            MaskChange::Blur { size, .. } => pixels.saturating_mul(2 * size as u64),
            _ => 0,
        }
    }

    /// Makes the change.
    pub fn apply(self, mask: &mut Mask) {
        match self {
            MaskChange::Invert => invert(mask),
            MaskChange::Grow(by) => {
                let shrinks = by < 0;
                if shrinks {
                    invert(mask);
                }
                grow(mask, by.unsigned_abs() as usize);
                if shrinks {
                    invert(mask);
                }
            }
            MaskChange::Threshold(part) => each(mask, |v| black_or_white(part_of_white(v) > part)),
            MaskChange::Dilate(radius) => {
                each(mask, |v| black_or_white(v > 0));
                grow(mask, radius);
            }
            MaskChange::Erode(radius) => {
                each(mask, |v| black_or_white(v < 255));
                grow(mask, radius);
                invert(mask);
            }
            MaskChange::Blur { size, kernel } => blur(mask, &kernel.weights(size)),
            MaskChange::Stabilise(epsilon) => {
                each(mask, |v| if part_of_white(v) > 1.0 - epsilon { 255 } else { v });
            }
            MaskChange::Crop { x, y, width, height } => *mask = cropped(mask, x, y, width, height),
        }
    }
}

fn each(mask: &mut Mask, change: impl Fn(u8) -> u8) {
    mask.values.iter_mut().for_each(|v| *v = change(*v));
}

fn black_or_white(is_white: bool) -> u8 {
    255 * u8::from(is_white)
}

fn part_of_white(value: u8) -> f32 {
    f32::from(value) / 255.0
}

fn cropped(mask: &Mask, x: usize, y: usize, width: usize, height: usize) -> Mask {
    // At least one pixel stays.
    let (x, y) = (x.min(mask.width - 1), y.min(mask.height - 1));
    let (width, height) = (width.clamp(1, mask.width - x), height.clamp(1, mask.height - y));
    let rows = mask.values.chunks_exact(mask.width).skip(y).take(height);
    let values = rows.flat_map(|row| &row[x..x + width]).copied().collect();
    Mask { width, height, values }
}

impl Kernel {
    /// The weights of `size` pixels, an odd number, of which the middle one is the pixel itself. As
    /// in comfyui-inpaint-nodes.
    fn weights(self, size: usize) -> Vec<f32> {
        let half = size / 2;
        let weights: Vec<f64> = match self {
            Kernel::Linear if size > 3 => {
                let (first, last) = (1.0 / half as f64, (half - 1) as f64 / half as f64);
                let step = (last - first) / (half - 1) as f64;
                let at = |i: usize| match i.abs_diff(half) {
                    0 => 1.0,
                    distance => first + step * (half - distance) as f64,
                };
                (0..size).map(at).collect()
            }
            Kernel::Box | Kernel::Linear => vec![1.0; size],
            Kernel::Gaussian => {
                let sigma = 0.3 * (size - 1) as f64 + 0.8;
                let at = |i: usize| {
                    let distance = i.abs_diff(half) as f64;
                    (-distance * distance / (2.0 * sigma * sigma)).exp()
                };
                (0..size).map(at).collect()
            }
        };
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| (weight / sum) as f32).collect()
    }
}

/// The mean of rows and then of columns. What is beyond an edge is as before it, the other way
/// round.
fn blur(mask: &mut Mask, weights: &[f32]) {
    let (w, h) = (mask.width, mask.height);
    let mut values: Vec<f32> = mask.values.iter().map(|v| f32::from(*v)).collect();
    let mut line = Vec::new();
    for row in values.chunks_exact_mut(w) {
        mean(row, weights, &mut line);
        row.copy_from_slice(&line);
    }
    let mut column = vec![0.0; h];
    for x in 0..w {
        (0..h).for_each(|y| column[y] = values[y * w + x]);
        mean(&column, weights, &mut line);
        (0..h).for_each(|y| values[y * w + x] = line[y]);
    }
    mask.values = values.iter().map(|v| v.round() as u8).collect();
}

fn mean(values: &[f32], weights: &[f32], out: &mut Vec<f32>) {
    let (count, half) = (values.len(), weights.len() / 2);
    // Where the run of equal values ends in which each value is: most of a mask is one.
    let mut ends = vec![count; count];
    for i in (0..count.saturating_sub(1)).rev() {
        ends[i] = if values[i] == values[i + 1] { ends[i + 1] } else { i + 1 };
    }
    let mirrored = |i: isize| {
        let period = 2 * (count as isize - 1).max(1);
        let i = i.rem_euclid(period);
        values[i.min(period - i).min(count as isize - 1) as usize]
    };
    let around: Vec<f32> = (-(half as isize)..(count + half) as isize).map(mirrored).collect();
    let is_even = |at: usize| ends[at.saturating_sub(half)] > (at + half).min(count - 1);
    out.clear();
    out.extend_from_slice(values);
    let mut next = 0;
    while let Some(from) = (next..count).find(|at| !is_even(*at)) {
        next = (from..count).find(|at| is_even(*at)).unwrap_or(count);
        let sums = &mut out[from..next];
        sums.fill(0.0);
        // One weight after another: the compiler makes vectors of the inner loop.
        for (shift, weight) in weights.iter().enumerate() {
            let shifted = &around[from + shift..next + shift];
            sums.iter_mut().zip(shifted).for_each(|(sum, value)| *sum += weight * value);
        }
    }
}

/// The largest value within `radius` rows and columns of every pixel.
fn grow(mask: &mut Mask, radius: usize) {
    let Mask { width, height, values } = mask;
    let (w, h) = (*width, *height);
    let mut line = Vec::new();
    for row in values.chunks_exact_mut(w) {
        largest(row, radius, &mut line);
        row.copy_from_slice(&line);
    }
    let mut column = vec![0; h];
    for x in 0..w {
        (0..h).for_each(|y| column[y] = values[y * w + x]);
        largest(&column, radius, &mut line);
        (0..h).for_each(|y| values[y * w + x] = line[y]);
    }
}

/// The largest value within `radius` of every place. The queue holds places of decreasing values.
fn largest(values: &[u8], radius: usize, out: &mut Vec<u8>) {
    out.clear();
    let mut queue = std::collections::VecDeque::new();
    let mut next = 0;
    for at in 0..values.len() {
        while next < values.len() && next <= at + radius {
            while queue.back().is_some_and(|&last: &usize| values[last] <= values[next]) {
                queue.pop_back();
            }
            queue.push_back(next);
            next += 1;
        }
        while queue.front().is_some_and(|&first| first + radius < at) {
            queue.pop_front();
        }
        out.push(queue.front().map_or(0, |&first| values[first]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_grow_and_shrink_by_whole_pixels() {
        let mut mask = Mask { width: 7, height: 5, values: vec![0; 35] };
        mask.values[2 * 7 + 3] = 200;
        MaskChange::Grow(1).apply(&mut mask);
        let white = |mask: &Mask| mask.values.iter().filter(|v| **v == 200).count();
        assert_eq!((white(&mask), mask.values[7 + 2], mask.values[7 + 1]), (9, 200, 0));
        MaskChange::Grow(-1).apply(&mut mask);
        assert_eq!(white(&mask), 1);
        MaskChange::Threshold(0.9).apply(&mut mask);
        assert_eq!(white(&mask), 0);
        MaskChange::Invert.apply(&mut mask);
        assert!(mask.values.iter().all(|v| *v == 255));
        // Any radius is as quick as one.
        let mut wide = Mask { width: 3, height: 2, values: vec![0, 0, 9, 0, 0, 0] };
        grow(&mut wide, 1000);
        assert_eq!(wide.values, [9; 6]);
    }

    /// The values of `binary_dilation`, `binary_erosion` and `mask_blur` of comfyui-inpaint-nodes.
    #[test]
    fn blurred_masks_are_those_of_comfyui_inpaint_nodes() {
        let white = |x, y| (3..8).contains(&x) && (2..7).contains(&y);
        let value = |i: usize| match (i % 11, i / 11) {
            (x, y) if white(x, y) => 255,
            (9, 7) => 120,
            _ => 0,
        };
        let start = Mask { width: 11, height: 9, values: (0..99).map(value).collect() };
        let check = |changes: &[MaskChange], want: &[u8]| {
            let mut mask = start.clone();
            changes.iter().for_each(|change| change.apply(&mut mask));
            let near = mask.values.iter().zip(want).all(|(a, b)| a.abs_diff(*b) <= 1);
            assert!(near && want.len() == 99, "{changes:?}: {:?}", mask.values);
        };
        let linear = MaskChange::Blur { size: 7, kernel: Kernel::Linear };
        #[rustfmt::skip]
        check(&[MaskChange::Dilate(1), linear], &[
            80, 88, 120, 151, 175, 191, 175, 151, 120, 88, 80,
            89, 97, 133, 168, 195, 212, 195, 168, 133, 97, 89,
            93, 102, 139, 177, 205, 223, 205, 177, 139, 102, 93,
            97, 107, 146, 185, 214, 234, 216, 189, 154, 119, 110,
            106, 117, 159, 202, 234, 255, 238, 213, 179, 146, 137,
            97, 107, 146, 185, 214, 236, 225, 209, 187, 164, 158,
            93, 102, 139, 177, 205, 226, 222, 215, 207, 197, 194,
            89, 97, 133, 168, 195, 216, 217, 217, 219, 217, 217,
            80, 88, 120, 151, 175, 197, 201, 206, 215, 219, 220,
        ]);
        let gaussian = MaskChange::Blur { size: 5, kernel: Kernel::Gaussian };
        #[rustfmt::skip]
        check(&[MaskChange::Erode(1), gaussian], &[
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 6, 15, 24, 27, 24, 15, 6, 0, 0,
            0, 0, 15, 36, 60, 66, 60, 36, 15, 0, 0,
            0, 0, 24, 60, 100, 111, 100, 60, 24, 0, 0,
            0, 0, 27, 66, 111, 123, 111, 66, 27, 0, 0,
            0, 0, 24, 60, 100, 111, 100, 60, 24, 0, 0,
            0, 0, 15, 36, 60, 66, 60, 36, 15, 0, 0,
            0, 0, 6, 15, 24, 27, 24, 15, 6, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]);
        assert_eq!((gaussian.products(99), MaskChange::Grow(9).products(99)), (990, 0));
        let mut even = start.clone();
        MaskChange::Blur { size: 3, kernel: Kernel::Box }.apply(&mut even);
        assert_eq!(even.values[11..22], [0, 0, 28, 57, 85, 85, 85, 57, 28, 0, 0]);
        let mut cut = start.clone();
        MaskChange::Crop { x: 7, y: 6, width: 9, height: 2 }.apply(&mut cut);
        assert_eq!((cut.width, cut.values), (4, vec![255, 0, 0, 0, 0, 0, 120, 0]));
        let mut nearly = Mask { values: vec![251, 253], width: 2, height: 1 };
        MaskChange::Stabilise(0.01).apply(&mut nearly);
        assert_eq!(nearly.values, [251, 255]);
    }
}
