//! Handles to matrices, which recorded operations name, and weights as the host stores them.

mod bytes;
mod host;
mod scale;

use std::fmt;

use crate::dtype::DType;

pub use bytes::ByteSource;
pub use host::{DTypes, HostPart, HostWeight};
pub use scale::{BlockScale, BlockScales, Scale};

/// What kind of tensor of a `Program` a handle names, and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// Written by the host. It keeps its value over repeated runs, unless an operation updates it
    /// in place.
    Input(u32),
    /// Written and read within one run of the program.
    Temp(u32),
    /// Read by the host after the run.
    Output(u32),
}

/// A handle to a dense row-major matrix of `rows x cols` elements. Each token is a row, and so is
/// each pixel (channels last).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tensor {
    /// Which tensor of the program.
    pub slot: Slot,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Element type.
    pub dtype: DType,
}

impl Tensor {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size()
    }

    /// The window of all columns.
    pub fn all(self) -> View {
        View { tensor: self, col: 0, cols: self.cols }
    }

    /// The window of the columns `col .. col + cols`.
    ///
    /// # Panics
    /// If the tensor has fewer columns.
    pub fn columns(self, col: usize, cols: usize) -> View {
        assert!(col + cols <= self.cols, "columns {col}..{} of {self}", col + cols);
        View { tensor: self, col, cols }
    }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (letter, id) = match self.slot {
            Slot::Input(id) => ("in", id),
            Slot::Temp(id) => ("t", id),
            Slot::Output(id) => ("out", id),
        };
        write!(f, "{letter}{id}[{}x{} {}]", self.rows, self.cols, self.dtype.name().to_lowercase())
    }
}

/// A window of columns of a tensor, over all its rows. The row stride is `tensor.cols`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    /// The tensor.
    pub tensor: Tensor,
    /// First column.
    pub col: usize,
    /// Number of columns.
    pub cols: usize,
}

impl View {
    /// The number of rows of the underlying tensor.
    pub fn rows(&self) -> usize {
        self.tensor.rows
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cols == self.tensor.cols {
            self.tensor.fmt(f)
        } else {
            write!(f, "{}:{}..{}", self.tensor, self.col, self.col + self.cols)
        }
    }
}

/// A handle to entry `id` of `Program::weights`, a matrix of `rows x cols`. How it is stored
/// depends on the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Weight {
    /// Index in the list of weights.
    pub id: u32,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}[{}x{}]", self.id, self.rows, self.cols)
    }
}
