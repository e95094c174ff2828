//! What is done to a tile of sums before it is stored: `out = tail(sum * scale + bias)`.

use super::super::matrix::{In, Out};

/// The last step of a matrix product; see `op::Epilogue`. A residual may be the same memory as
/// `out`.
#[derive(Debug, Clone, Copy)]
pub enum Tail {
    /// `y`
    None,
    /// `y / (1 + e^-y)`
    Silu,
    /// `y/2 (1 + tanh(sqrt(2/pi) (y + 0.044715 y^3)))`
    GeluTanh,
    /// `y / (1 + e^(-1.702 y))`
    QuickGelu,
    /// `residual + y`; the residual has the shape of `out`.
    Add {
        /// What is added.
        residual: In,
    },
    /// `residual + gate[group] * y`; the gate has one row per group and as many columns as `out`.
    GatedAdd {
        /// What is added.
        residual: In,
        /// The factors: a row for each group.
        gate: In,
    },
}

impl Tail {
    /// Panics unless its operands fit `out`.
    pub(in crate::backend::cpu) fn check(self, out: Out) {
        if let Tail::Add { residual } | Tail::GatedAdd { residual, .. } = self {
            assert_eq!(
                (residual.rows(), residual.cols()),
                (out.rows(), out.cols()),
                "the residual does not fit"
            );
        }
        if let Tail::GatedAdd { gate, .. } = self {
            let groups = gate.rows();
            assert!(
                gate.cols() == out.cols() && groups > 0 && out.rows().is_multiple_of(groups),
                "the gate does not fit"
            );
        }
    }
}

/// Everything that finishing a tile needs besides the sums.
#[derive(Clone, Copy)]
pub struct Finish<'a> {
    /// One factor for each column of the tile.
    pub scale: &'a [f32],
    /// One summand for each column of the tile; zeros without a bias.
    pub bias: &'a [f32],
    /// The operation on the sums.
    pub tail: Tail,
    /// Where the result is written.
    pub out: Out,
    /// The first row and column of the tile in `out`.
    pub row: usize,
    /// The first column.
    pub col: usize,
    /// The valid rows and columns of the tile.
    pub rows: usize,
    /// The number of columns.
    pub cols: usize,
}

/// Columns that are processed together.
const WIDTH: usize = 16;

/// Finishes the tile of sums at `tile`, with `width` elements from one row to the next.
///
/// # Safety
/// `tile` must have `rows` rows of `width` elements, the matrices must be valid as
/// `Out::new` and `In::new` require, and with `FMA` the processor must have it.
#[inline(always)]
pub unsafe fn finish<const FMA: bool>(tile: *const f32, width: usize, f: Finish) {
    debug_assert!(f.row + f.rows <= f.out.rows() && f.col + f.cols <= f.out.cols());
    for r in 0..f.rows {
        let row = f.row + r;
        let sums = tile.wrapping_add(r * width);
        let mut c = 0;
        while c < f.cols {
            let n = (f.cols - c).min(WIDTH);
            // SAFETY: the columns `c .. c + n` of row `r` are within the tile and within the
            // matrices.
            unsafe {
                if n == WIDTH {
                    // A separate copy with a constant count, so that it is compiled to whole
                    // vectors.
                    finish_some::<FMA>(sums.add(c), f, row, c, WIDTH);
                } else {
                    finish_some::<FMA>(sums.add(c), f, row, c, n);
                }
            }
            c += n;
        }
    }
}

/// Finishes `n` sums of row `row`, from column `c` of the tile.
#[inline(always)]
unsafe fn finish_some<const FMA: bool>(
    sums: *const f32,
    f: Finish,
    row: usize,
    c: usize,
    n: usize,
) {
    let mut y = [0f32; WIDTH];
    let mut other = [0f32; WIDTH];
    // SAFETY: guaranteed by the caller; the arrays are wide enough for any `n`. All inputs are read
    // before the output is written, so the output may be the residual.
    unsafe {
        let load = |from: In, row: usize, to: &mut [f32; WIDTH]| {
            std::ptr::copy_nonoverlapping(from.row_ptr(row).add(f.col + c), to.as_mut_ptr(), n);
        };
        std::ptr::copy_nonoverlapping(sums, y.as_mut_ptr(), n);
        let (mut scale, mut bias) = ([1f32; WIDTH], [0f32; WIDTH]);
        std::ptr::copy_nonoverlapping(f.scale[c..c + n].as_ptr(), scale.as_mut_ptr(), n);
        std::ptr::copy_nonoverlapping(f.bias[c..c + n].as_ptr(), bias.as_mut_ptr(), n);
        for j in 0..WIDTH {
            y[j] = y[j] * scale[j] + bias[j];
        }
        match f.tail {
            Tail::None => {}
            Tail::Silu => {
                for v in &mut y {
                    *v = times_sigmoid::<FMA>(*v, *v);
                }
            }
            Tail::GeluTanh => {
                // (1 + tanh u) / 2 = sigmoid(2u)
                const A: f32 = 1.595_769;
                for v in &mut y {
                    *v = times_sigmoid::<FMA>(*v, A * (*v + 0.044715 * (*v * *v * *v)));
                }
            }
            Tail::QuickGelu => {
                for v in &mut y {
                    *v = times_sigmoid::<FMA>(*v, 1.702 * *v);
                }
            }
            Tail::Add { residual } => {
                load(residual, row, &mut other);
                for j in 0..WIDTH {
                    y[j] += other[j];
                }
            }
            Tail::GatedAdd { residual, gate } => {
                let mut gates = [0f32; WIDTH];
                load(residual, row, &mut other);
                load(gate, row / (f.out.rows() / gate.rows()), &mut gates);
                for j in 0..WIDTH {
                    y[j] = mul_add::<FMA>(gates[j], y[j], other[j]);
                }
            }
        }
        std::ptr::copy_nonoverlapping(y.as_ptr(), f.out.row_ptr(row).add(f.col + c), n);
    }
}

/// `a * b + c`, fused if the processor has an instruction for it (elsewhere a fused one would be a
/// slow library call).
#[inline(always)]
pub fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `y / (1 + e^-t)`.
#[inline(always)]
fn times_sigmoid<const FMA: bool>(y: f32, t: f32) -> f32 {
    y / (1.0 + exp::<FMA>(-t))
}

/// `e^x` with an error of about one unit in the last place. x is clamped to -87 ..= 88. There are
/// no branches, so that loops over it become vector code.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer, which is then in
    // the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts; the first has few enough bits that n times it is exact.
    let r = mul_add::<FMA>(n, -0.693_359_4, x);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    // e^r by its Taylor series up to r^7.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = mul_add::<FMA>(p, r, c);
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    p * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_units_of_the_last_place() {
        for i in -8700..=8800 {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            for got in [exp::<false>(x), exp::<true>(x)] {
                let error = (f64::from(got) - want).abs() / want;
                assert!(error < 3e-7, "exp({x}) = {got}, error {error}");
            }
        }
        assert!(exp::<true>(f32::NAN).is_nan() && exp::<false>(f32::NAN).is_nan());
    }
}
