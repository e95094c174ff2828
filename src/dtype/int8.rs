//! Products in 8-bit integers, as ComfyUI's ConvRot files define them: a rotation of the columns
//! that spreads outliers over many columns, and rows of integers with one scale each.
//!
//! With the block-diagonal rotation R (R = R^T = R^-1), `x . w^T = (x R) . (w R)^T`. Rows of `x R`
//! and of `w R` become integers from -127 to 127 times a scale, their products are summed exactly,
//! and `y = s_x s_w sum(q_x q_w)`. Everything here is plain code that every device equals; sums and
//! differences are associated in one way, so that all get the same integers.

pub mod attention;

/// The largest group of columns that a file may rotate together.
const MOST: usize = 4096;

/// Rotates groups of consecutive columns: the number of columns in a group, a power of 4. The
/// matrix of a group is the normalised Kronecker power of
/// `[[1,1,1,-1],[1,1,-1,1],[1,-1,1,1],[-1,1,1,1]] / 2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rotation(u16);

impl Rotation {
    /// Groups of `group` columns; `None` if it is no power of 4 from 4 to 4096.
    pub fn new(group: usize) -> Option<Rotation> {
        let power = group.is_power_of_two() && group.trailing_zeros().is_multiple_of(2);
        (power && (4..=MOST).contains(&group)).then_some(Rotation(group as u16))
    }

    /// The rotation that is used for a product over `k` columns: groups of 256, or of the largest
    /// smaller power of 4 that divides `k`; `None` if that is below 16.
    pub fn of_columns(k: usize) -> Option<Rotation> {
        [256, 64, 16].into_iter().find(|g| k > 0 && k.is_multiple_of(*g)).and_then(Rotation::new)
    }

    /// Columns in a group.
    pub fn group(self) -> usize {
        usize::from(self.0)
    }

    /// Whether kernels compute products with it: groups of 16, 64 or 256 columns. Weights that are
    /// rotated in other groups are rotated back first.
    pub fn has_kernels(self) -> bool {
        matches!(self.0, 16 | 64 | 256)
    }

    /// Rotates a row in place. Its length is a multiple of the group. Twice gives the row back, but
    /// for rounding.
    pub fn apply(self, row: &mut [f32]) {
        for group in row.chunks_exact_mut(self.group()) {
            let mut stride = 1;
            while stride < group.len() {
                for part in group.chunks_exact_mut(4 * stride) {
                    stage(part, stride);
                }
                stride *= 4;
            }
        }
    }
}

/// One stage of a rotation, for elements that are `stride` apart.
#[inline(always)]
fn stage(part: &mut [f32], stride: usize) {
    let (ab, cd) = part.split_at_mut(2 * stride);
    let (a, b) = ab.split_at_mut(stride);
    let (c, d) = cd.split_at_mut(stride);
    for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
        [*a, *b, *c, *d] = butterfly([*a, *b, *c, *d]);
    }
}

/// `v` times the matrix of four columns.
#[inline(always)]
fn butterfly([a, b, c, d]: [f32; 4]) -> [f32; 4] {
    let (s, t, u, v) = (a + b, c - d, a - b, c + d);
    [(s + t) * 0.5, (s - t) * 0.5, (u + v) * 0.5, (v - u) * 0.5]
}

/// How a product with a weight is computed in 8-bit integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Int8 {
    /// The rotation of both operands, if they are rotated.
    pub rotation: Option<Rotation>,
}

impl Int8 {
    /// The integers of a row and their scale, which is the result. `row` is rotated in place.
    ///
    /// The scale is the largest magnitude / 127, at least 1e-30. If a value is not finite, neither
    /// is the scale, so that nothing hides it; then the integers mean nothing.
    pub fn quantise(self, row: &mut [f32], out: &mut [i8]) -> f32 {
        if let Some(rotation) = self.rotation {
            rotation.apply(row);
        }
        let scale = scale_of(largest(row));
        for (q, v) in out.iter_mut().zip(row) {
            *q = nearest(*v / scale);
        }
        scale
    }
}

/// The nearest integer of a number from -127 to 127, ties to even: adding 1.5 * 2^23 leaves it in
/// the low bits.
#[inline(always)]
pub(crate) fn nearest(v: f32) -> i8 {
    (v + 12_582_912.0).to_bits() as i8
}

/// The largest magnitude of a row: the largest pattern of bits, in which anything that is not
/// finite wins.
fn largest(row: &[f32]) -> f32 {
    f32::from_bits(row.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0))
}

/// The scale of a row whose largest magnitude is `largest`.
pub fn scale_of(largest: f32) -> f32 {
    let scale = largest / 127.0;
    if scale < 1e-30 { 1e-30 } else { scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix of a group, by its definition.
    fn matrix(group: usize) -> Vec<f64> {
        const H4: [[f64; 4]; 4] =
            [[1., 1., 1., -1.], [1., 1., -1., 1.], [1., -1., 1., 1.], [-1., 1., 1., 1.]];
        let (mut h, mut size) = (vec![1.0], 1);
        while size < group {
            let next = 4 * size;
            h = (0..next * next)
                .map(|i| {
                    let (r, c) = (i / next, i % next);
                    h[r / 4 * size + c / 4] * H4[r % 4][c % 4] / 2.0
                })
                .collect();
            size = next;
        }
        h
    }

    #[test]
    fn the_stages_are_the_matrix_and_twice_is_nothing() {
        for group in [4, 16, 64, 256, 1024] {
            let rotation = Rotation::new(group).unwrap();
            let row: Vec<f32> =
                (0..2 * group).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let mut rotated = row.clone();
            rotation.apply(&mut rotated);
            let h = matrix(group);
            for (i, got) in rotated.iter().enumerate() {
                let (first, c) = (i / group * group, i % group);
                let want: f64 =
                    (0..group).map(|r| f64::from(row[first + r]) * h[r * group + c]).sum();
                assert!((f64::from(*got) - want).abs() < 1e-4, "{group}: {got} is not {want}");
            }
            rotation.apply(&mut rotated);
            assert!(rotated.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-5));
        }
        assert!([0, 1, 2, 8, 32, 128, 48, 16384].iter().all(|g| Rotation::new(*g).is_none()));
    }

    #[test]
    fn columns_are_rotated_in_the_largest_groups_that_divide_them() {
        let group = |k| Rotation::of_columns(k).map(Rotation::group);
        assert_eq!([3072, 12288, 15360, 4096, 192, 48].map(group)[..4], [Some(256); 4]);
        assert_eq!([192, 48, 128, 40, 0].map(group), [Some(64), Some(16), Some(64), None, None]);
    }

    #[test]
    fn rows_of_zeros_and_rows_that_are_not_finite_have_the_scales_of_the_definition() {
        let mut q = [1i8; 16];
        let plain = Int8 { rotation: None };
        let rotated = Int8 { rotation: Rotation::new(16) };
        assert_eq!(rotated.quantise(&mut [0.0; 16], &mut q), 1e-30);
        assert_eq!(q, [0; 16]);
        // Ties go to even numbers, and the largest magnitude becomes 127.
        let quarters = (-508..=508).map(|i| i as f32 / 4.0);
        assert!(quarters.into_iter().all(|v| f32::from(nearest(v)) == v.round_ties_even()));
        let mut row = [0.0; 16];
        row[..5].copy_from_slice(&[127.0, -127.0, 0.5, 1.5, -2.5]);
        assert_eq!(plain.quantise(&mut row, &mut q), 1.0);
        assert_eq!(q[..6], [127, -127, 0, 2, -2, 0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            row[3] = bad;
            assert!(!plain.quantise(&mut row.clone(), &mut q).is_finite());
            assert!(!rotated.quantise(&mut row.clone(), &mut q).is_finite());
        }
    }
}
