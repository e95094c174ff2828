//! Windows of f32 matrices, as kernels see them: a pointer, a size and a row stride.
//!
//! They are raw pointers because a residual may be the very memory of the output (each element is read by the thread that
//! writes it, just before), which no pair of Rust references can say.

/// A window that is read: `rows x cols` f32, `stride` elements from one row to the next.
#[derive(Debug, Clone, Copy)]
pub struct In {
    ptr: *const f32,
    rows: usize,
    cols: usize,
    stride: usize,
}

/// A window that is written: `rows x cols` f32, `stride` elements from one row to the next. Elements between windows stay untouched.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
}

// SAFETY: a window is only an address; whoever made it promised that the memory may be read from any thread.
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
    /// All `rows` rows of `cols` elements must be readable, and not written by anybody but the kernel that gets
    /// the window, as long as the window is used.
    pub unsafe fn new(ptr: *const f32, rows: usize, cols: usize, stride: usize) -> In {
        debug_assert!(rows <= 1 || stride >= cols);
        In { ptr, rows, cols, stride }
    }

    /// The columns `col .. col + cols` of a dense matrix with `stride` columns. The window must not outlive `data`.
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

    pub fn rows(&self) -> usize {
        self.rows
    }

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
    /// Nothing may write to the row while the slice lives.
    #[inline(always)]
    pub unsafe fn row<'a>(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows);
        // SAFETY: the constructor's promise covers the row; the caller keeps writers away.
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
    /// All `rows` rows of `cols` elements must be writable, and not used by anybody but the kernel that gets the
    /// window, as long as the window is used.
    pub unsafe fn new(ptr: *mut f32, rows: usize, cols: usize, stride: usize) -> Out {
        debug_assert!(rows <= 1 || stride >= cols);
        Out { ptr, rows, cols, stride }
    }

    /// The columns `col .. col + cols` of a dense matrix with `stride` columns. The window must not outlive `data`.
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

    pub fn rows(&self) -> usize {
        self.rows
    }

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
    /// Nothing else may use the row while the slice lives.
    #[inline(always)]
    pub unsafe fn row<'a>(&self, row: usize) -> &'a mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the constructor's promise covers the row; the caller keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.row_ptr(row), self.cols) }
    }

    /// The same window, to be read: for an operation in place.
    pub fn read(&self) -> In {
        In { ptr: self.ptr, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// The rows `first .. first + rows`.
    pub fn rows_from(&self, first: usize, rows: usize) -> Out {
        assert!(first + rows <= self.rows);
        Out { ptr: self.ptr.wrapping_add(first * self.stride), rows, ..*self }
    }
}
