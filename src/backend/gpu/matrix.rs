//! Operands in device memory.

use std::fmt;

use crate::backend::form::Segment;
use crate::dtype::DType;

/// Where a tensor or a weight begins in device memory: an address, or a buffer and a byte in it.
pub trait Location: Copy + Default + PartialEq + fmt::Debug + 'static {
    /// The unit, in bytes, in which the strides of block-quantised matrices are counted.
    const BLOCK_UNIT: usize;

    /// The place `bytes` after this one.
    fn after(self, bytes: usize) -> Self;
}

/// A dense matrix in device memory, or a window of its columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix<P> {
    /// Where the first element of the window is.
    pub place: P,
    pub rows: usize,
    pub cols: usize,
    /// Distance from row to row: elements, or units of [`Location::BLOCK_UNIT`] bytes where `dtype`
    /// is block-quantised.
    pub stride: usize,
    pub dtype: DType,
}

impl<P: Location> Matrix<P> {
    /// The rows of one segment of a weight that is loaded at `place`.
    pub(in crate::backend) fn of_segment(segment: &Segment, place: P) -> Matrix<P> {
        let unit = if segment.dtype.is_plain() { 1 } else { P::BLOCK_UNIT };
        Matrix {
            place: place.after(segment.offset),
            rows: segment.rows,
            cols: segment.cols,
            stride: segment.stride / unit,
            dtype: segment.dtype,
        }
    }

    /// One row of `cols` f32 values at `place`.
    pub fn f32_row(place: P, cols: usize) -> Matrix<P> {
        Matrix { place, rows: 1, cols, stride: cols, dtype: DType::F32 }
    }

    /// Bytes of what `stride` counts.
    pub fn unit(&self) -> usize {
        if self.dtype.is_plain() { self.dtype.size() } else { P::BLOCK_UNIT }
    }

    /// Bytes from row to row.
    pub fn stride_bytes(&self) -> usize {
        self.stride * self.unit()
    }

    /// The rows `first .. first + rows`.
    pub fn band(&self, first: usize, rows: usize) -> Matrix<P> {
        assert!(first + rows <= self.rows);
        Matrix { place: self.place.after(first * self.stride_bytes()), rows, ..*self }
    }

    /// The columns `first .. first + cols`; not of block-quantised matrices.
    pub fn columns(&self, first: usize, cols: usize) -> Matrix<P> {
        assert!(first + cols <= self.cols);
        Matrix { place: self.place.after(first * self.dtype.size()), cols, ..*self }
    }
}
