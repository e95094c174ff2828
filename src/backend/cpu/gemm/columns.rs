//! Scales and biases of the columns of an output.

use super::super::matrix::Out;
use super::NC;
use super::finish::{Finish, Tail};
use super::rows::WeightRows;

/// Scales and biases of some columns of the output.
pub struct Columns {
    /// The number of the first one.
    pub first: usize,
    /// A factor for each of them.
    pub scale: [f32; NC],
    /// The bias of each of them, 0 if there is none.
    pub bias: [f32; NC],
}

impl Columns {
    /// The biases of the columns `first .. first + cols`, with scales of 1.
    pub fn of_ones(bias: Option<&[f32]>, first: usize, cols: usize) -> Columns {
        let mut columns = Columns { first, scale: [1.0; NC], bias: [0.0; NC] };
        if let Some(bias) = bias {
            columns.bias[..cols].copy_from_slice(&bias[first..first + cols]);
        }
        columns
    }

    /// The scales and biases of the columns `first .. first + cols`, at most `NC`.
    pub fn new(w: &WeightRows, bias: Option<&[f32]>, first: usize, cols: usize) -> Columns {
        let mut columns = Columns::of_ones(bias, first, cols);
        for (i, s) in columns.scale[..cols].iter_mut().enumerate() {
            *s = w.scale(first + i);
        }
        columns
    }

    /// Whether any scale is not 1.
    pub fn scaled(&self) -> bool {
        self.scale.iter().any(|s| *s != 1.0)
    }

    /// Multiplies a tile of `width` columns with its scales. `col` is its first column among these.
    /// With `turned`, the tile has them as rows.
    pub fn scale_tile(&self, tile: &mut [f32], width: usize, col: usize, turned: bool) {
        let scales = &self.scale[col..];
        for (i, row) in tile.chunks_exact_mut(width).enumerate() {
            match turned {
                true => row.iter_mut().for_each(|sum| *sum *= scales[i]),
                false => row.iter_mut().zip(scales).for_each(|(sum, scale)| *sum *= scale),
            }
        }
    }

    /// How to finish a tile of `rows` rows from `row` on, and of `cols` columns from `col` of these
    /// on.
    pub fn finish(
        &self,
        tail: Tail,
        out: Out,
        row: usize,
        rows: usize,
        col: usize,
        cols: usize,
    ) -> Finish<'_> {
        let range = col..col + cols;
        Finish {
            scale: &self.scale[range.clone()],
            bias: &self.bias[range],
            tail,
            out,
            row,
            col: self.first + col,
            rows,
            cols,
        }
    }
}
