//! Operands that are not plain f32 windows: windows of any stored type, and tables whose rows are
//! looked up.

use half::{bf16, f16};

use crate::dtype::DType;
use crate::tensor::HostWeight;

/// A window of `rows x cols` elements of `dtype`, with `stride` elements from one row to the next,
/// for reading or writing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    ptr: *mut u8,
    rows: usize,
    cols: usize,
    stride: usize,
    dtype: DType,
}

// SAFETY: a window is only an address; kernels write each row from one thread only.
unsafe impl Send for Stored {}
// SAFETY: as above.
unsafe impl Sync for Stored {}

impl Stored {
    /// A window at `ptr`.
    ///
    /// # Safety
    /// While the window is used, all rows must be readable (and writable, if the window is
    /// used for writing), and nothing else may use them.
    pub(crate) unsafe fn new(
        ptr: *mut u8,
        rows: usize,
        cols: usize,
        stride: usize,
        dtype: DType,
    ) -> Stored {
        Stored { ptr, rows, cols, stride, dtype }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The address of the first element.
    pub(crate) fn start(&self) -> *mut u8 {
        self.ptr
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    fn row_ptr(&self, row: usize) -> *mut u8 {
        assert!(row < self.rows);
        self.ptr.wrapping_add(row * self.stride * self.dtype.size())
    }

    /// The bytes of row `row`.
    ///
    /// # Safety
    /// Nothing may write to the row while the slice exists.
    pub(crate) unsafe fn row<'a>(&self, row: usize) -> &'a [u8] {
        // SAFETY: the constructor's contract covers the row, and the caller ensures that nothing
        // writes.
        unsafe { std::slice::from_raw_parts(self.row_ptr(row), self.cols * self.dtype.size()) }
    }

    /// The bytes of row `row`, for writing.
    ///
    /// # Safety
    /// Nothing else may access the row while the slice exists.
    pub(crate) unsafe fn row_mut<'a>(&self, row: usize) -> &'a mut [u8] {
        // SAFETY: the constructor's contract covers the row, and the caller ensures that nothing
        // else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.row_ptr(row), self.cols * self.dtype.size()) }
    }

    /// Element (row, col) as f32.
    pub(crate) fn get(&self, row: usize, col: usize) -> f32 {
        let size = self.dtype.size();
        // SAFETY: single elements are read by the single-threaded loops of the reference.
        self.dtype.decode(&unsafe { self.row(row) }[col * size..(col + 1) * size])
    }

    /// Sets element (row, col), rounded to the type of the window.
    pub(crate) fn put(&self, row: usize, col: usize, value: f32) {
        let mut bytes = Vec::with_capacity(4);
        self.dtype.encode(value, &mut bytes);
        // SAFETY: single elements are written by the single-threaded loops of the reference.
        let row = unsafe { self.row_mut(row) };
        row[col * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
    }

    /// Copies row `from` of `x` to row `to`. `x` has the same type and width, and is other memory.
    pub(crate) fn copy_row(&self, to: usize, x: &Stored, from: usize) {
        assert_eq!((self.cols, self.dtype), (x.cols, x.dtype));
        // SAFETY: the rows are in different tensors, and each row of the output is written by one
        // thread.
        unsafe { self.row_mut(to).copy_from_slice(x.row(from)) }
    }
}

/// A weight whose rows are looked up one at a time, in any stored type.
pub(crate) struct Table<'a> {
    weight: &'a HostWeight,
}

impl<'a> Table<'a> {
    pub(crate) fn new(weight: &'a HostWeight) -> Self {
        Table { weight }
    }

    pub(crate) fn rows(&self) -> usize {
        self.weight.rows
    }

    /// Decodes row `row` as f32 into `out`, which has as many elements as the table has columns.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.weight.cols);
        let mut row = row;
        for part in &self.weight.parts {
            if row < part.rows {
                let bytes = &part.bytes()[row * part.row_bytes()..(row + 1) * part.row_bytes()];
                if !part.dtype.is_plain() || part.rotation.is_some() {
                    return part.decode_row(row, bytes, out);
                }
                let scale = part.scale.of(row);
                decode(part.dtype, bytes, out);
                if scale != 1.0 {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
                return;
            }
            row -= part.rows;
        }
        panic!("the row is not in a table of {} rows", self.weight.rows);
    }
}

/// Decodes all of `bytes`, elements of `dtype`, as f32.
pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::BF16 => {
            out.iter_mut().zip(pairs()).for_each(|(o, b)| *o = bf16::from_le_bytes(b).to_f32())
        }
        DType::F16 => {
            out.iter_mut().zip(pairs()).for_each(|(o, b)| *o = f16::from_le_bytes(b).to_f32())
        }
        _ => out
            .iter_mut()
            .zip(bytes.chunks_exact(dtype.size()))
            .for_each(|(o, b)| *o = dtype.decode(b)),
    }
}

/// Encodes all of `values` as `dtype`, rounded to nearest even.
pub(crate) fn encode(dtype: DType, values: &[f32], bytes: &mut [u8]) {
    match dtype {
        DType::F32 => bytes
            .chunks_exact_mut(4)
            .zip(values)
            .for_each(|(b, v)| b.copy_from_slice(&v.to_le_bytes())),
        DType::BF16 => {
            bytes
                .chunks_exact_mut(2)
                .zip(values)
                .for_each(|(b, v)| b.copy_from_slice(&bf16::from_f32(*v).to_le_bytes()));
        }
        DType::F16 => {
            bytes
                .chunks_exact_mut(2)
                .zip(values)
                .for_each(|(b, v)| b.copy_from_slice(&f16::from_f32(*v).to_le_bytes()));
        }
        _ => {
            let mut one = Vec::with_capacity(4);
            for (b, v) in bytes.chunks_exact_mut(dtype.size()).zip(values) {
                one.clear();
                dtype.encode(*v, &mut one);
                b.copy_from_slice(&one);
            }
        }
    }
}
