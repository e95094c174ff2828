//! Windows of f32 matrices as kernels see them: a pointer, a size and a row stride.
//!
//! They are raw pointers because a residual may be the same memory as the output (each element is
//! read by the thread that writes it, just before the write), which Rust references cannot express.

/// A window for reading: `rows x cols` f32, `stride` elements from one row to the next.
#[derive(Debug, Clone, Copy)]
pub struct In {
    ptr: *const f32,
    rows: usize,
    cols: usize,
    stride: usize,
}

/// A window for writing: `rows x cols` f32, `stride` elements from one row to the next. The
/// elements between two rows are not changed.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
}

// SAFETY: a window is only an address; its creator guarantees that any thread may read the memory.
unsafe impl Send for In {}
// SAFETY: as above.
unsafe impl Sync for In {}
// SAFETY: as above; kernels write every element from one thread only.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl In {
    /// A window at `ptr`.
    ///
    /// # Safety
    /// All `rows` rows of `cols` elements must be readable while the window is used, and
    /// only the kernel that gets the window may write to them.
    pub unsafe fn new(ptr: *const f32, rows: usize, cols: usize, stride: usize) -> In {
        debug_assert!(rows <= 1 || stride >= cols);
        In { ptr, rows, cols, stride }
    }

    /// The columns `col .. col + cols` of a dense matrix with `stride` columns. The window must not
    /// outlive `data`.
    pub fn window(data: &[f32], stride: usize, col: usize, cols: usize) -> In {
        assert!(
            col + cols <= stride && data.len().is_multiple_of(stride.max(1)),
            "columns {col}+{cols} of {stride}"
        );
        In {
            ptr: data[col.min(data.len())..].as_ptr(),
            rows: data.len() / stride.max(1),
            cols,
            stride,
        }
    }

    /// A whole dense matrix with `cols` columns. The window must not outlive `data`.
    pub fn dense(data: &[f32], cols: usize) -> In {
        Self::window(data, cols, 0, cols)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The address of row `row`.
    #[inline(always)]
    pub fn row_ptr(&self, row: usize) -> *const f32 {
        debug_assert!(row < self.rows);
        self.ptr.wrapping_add(row * self.stride)
    }

    /// Row `row` as a slice.
    ///
    /// # Safety
    /// Nothing may write to the row while the slice exists.
    #[inline(always)]
    pub unsafe fn row<'a>(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows);
        // SAFETY: the constructor's contract covers the row, and the caller ensures that nothing
        // writes.
        unsafe { std::slice::from_raw_parts(self.row_ptr(row), self.cols) }
    }

    /// The rows `first .. first + rows`.
    pub fn rows_from(&self, first: usize, rows: usize) -> In {
        assert!(first + rows <= self.rows);
        In { ptr: self.ptr.wrapping_add(first * self.stride), rows, ..*self }
    }
}

impl Out {
    /// A window at `ptr`.
    ///
    /// # Safety
    /// All `rows` rows of `cols` elements must be writable while the window is used, and
    /// only the kernel that gets the window may use them.
    pub unsafe fn new(ptr: *mut f32, rows: usize, cols: usize, stride: usize) -> Out {
        debug_assert!(rows <= 1 || stride >= cols);
        Out { ptr, rows, cols, stride }
    }

    /// The columns `col .. col + cols` of a dense matrix with `stride` columns. The window must not
    /// outlive `data`.
    pub fn window(data: &mut [f32], stride: usize, col: usize, cols: usize) -> Out {
        assert!(
            col + cols <= stride && data.len().is_multiple_of(stride.max(1)),
            "columns {col}+{cols} of {stride}"
        );
        let rows = data.len() / stride.max(1);
        let col = col.min(data.len());
        Out { ptr: data[col..].as_mut_ptr(), rows, cols, stride }
    }

    /// A whole dense matrix with `cols` columns. The window must not outlive `data`.
    pub fn dense(data: &mut [f32], cols: usize) -> Out {
        Self::window(data, cols, 0, cols)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The address of row `row`.
    #[inline(always)]
    pub fn row_ptr(&self, row: usize) -> *mut f32 {
        debug_assert!(row < self.rows);
        self.ptr.wrapping_add(row * self.stride)
    }

    /// Row `row` as a slice.
    ///
    /// # Safety
    /// Nothing else may access the row while the slice exists.
    #[inline(always)]
    pub unsafe fn row<'a>(&self, row: usize) -> &'a mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the constructor's contract covers the row, and the caller ensures that nothing
        // else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.row_ptr(row), self.cols) }
    }

    /// The same window for reading: for an operation in place.
    pub fn read(&self) -> In {
        In { ptr: self.ptr, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// The rows `first .. first + rows`.
    pub fn rows_from(&self, first: usize, rows: usize) -> Out {
        assert!(first + rows <= self.rows);
        Out { ptr: self.ptr.wrapping_add(first * self.stride), rows, ..*self }
    }
}
