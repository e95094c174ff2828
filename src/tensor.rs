//! Handles to matrices: what a recorded operation names, and what a weight looks like on the host.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::dtype::DType;

/// Where a tensor of a `Program` lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// Written by the host; keeps its place for the whole program, over repeated runs. An operation may update it in place.
    Input(u32),
    /// Made and used within one run of the program.
    Temp(u32),
    /// Read by the host after the run.
    Output(u32),
}

/// A handle to a dense row-major `rows x cols` matrix. Tokens are rows; pixels are rows too (channels last).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tensor {
    pub slot: Slot,
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
}

impl Tensor {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.rows * self.cols * self.dtype.size()
    }

    /// All columns.
    pub fn all(self) -> View {
        View { tensor: self, col: 0, cols: self.cols }
    }

    /// The columns `col .. col + cols`.
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

/// A window of columns of a tensor, over all its rows; the row stride is `tensor.cols`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct View {
    pub tensor: Tensor,
    pub col: usize,
    pub cols: usize,
}

impl View {
    /// Rows of the underlying tensor.
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

/// A handle to entry `id` of `Program::weights`: `rows x cols`, stored type unknown to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Weight {
    pub id: u32,
    pub rows: usize,
    pub cols: usize,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}[{}x{}]", self.id, self.rows, self.cols)
    }
}

/// Bytes that outlive every weight that points into them: a map of a file, or owned memory.
pub trait ByteSource: Send + Sync {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// Copies the bytes from `offset` on into `to`: for devices that want them elsewhere anyway. A source that is a file reads it, so that nothing is
    /// mapped in and a file that was cut short is an error.
    fn read_at(&self, offset: usize, to: &mut [u8]) -> crate::error::Result<()> {
        to.copy_from_slice(&self.bytes()[offset..offset + to.len()]);
        Ok(())
    }

    /// `range` is needed soon: brings it in. May block on the disk; callers use a helper thread. An error means that reading the bytes would fail.
    fn will_need(&self, _range: Range<usize>) -> crate::error::Result<()> {
        Ok(())
    }

    /// `range` is not needed for a while: its memory may be given back. The bytes stay readable.
    fn let_go(&self, _range: Range<usize>) {}

    /// A cheap look whether the source is still what it was when it was opened (a file edited or cut short in place).
    fn check(&self) -> crate::error::Result<()> {
        Ok(())
    }
}

impl ByteSource for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl ByteSource for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// What a stored element is multiplied with to get the weight's value.
#[derive(Debug, Clone)]
pub enum Scale {
    /// Stored values are the values.
    One,
    /// One factor for the whole part.
    Tensor(f32),
    /// One factor for each row of the part (`rows` entries).
    Rows(Arc<[f32]>),
}

impl Scale {
    /// The factor of `row` (counted within the part).
    pub fn of(&self, row: usize) -> f32 {
        match self {
            Scale::One => 1.0,
            Scale::Tensor(s) => *s,
            Scale::Rows(s) => s[row],
        }
    }
}

/// Some consecutive rows of a weight as one file stores them: dense, row-major, `rows x cols` of `dtype` from byte `offset` of `source`.
#[derive(Clone)]
pub struct HostPart {
    pub source: Arc<dyn ByteSource>,
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
    pub scale: Scale,
}

impl HostPart {
    /// The byte range within the source.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.cols * self.dtype.size()
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.source.bytes()[self.range()]
    }

    /// Rows `first .. first + rows` of this part.
    pub fn slice(&self, first: usize, rows: usize) -> HostPart {
        assert!(first + rows <= self.rows);
        let scale = match &self.scale {
            Scale::Rows(s) => Scale::Rows(s[first..first + rows].into()),
            other => other.clone(),
        };
        HostPart {
            offset: self.offset + first * self.cols * self.dtype.size(),
            rows,
            scale,
            source: self.source.clone(),
            ..*self
        }
    }
}

impl fmt::Debug for HostPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} {} at byte {}", self.rows, self.cols, self.dtype.name(), self.offset)
    }
}

/// A weight on the host, in its stored form: one part, or several stacked by rows (fused q, k, v from three tensors).
/// Vectors (bias, norm gains) are `1 x n`. Convolutions are `out x (in * kh * kw)`, the order in which files store them.
#[derive(Debug, Clone)]
pub struct HostWeight {
    pub rows: usize,
    pub cols: usize,
    pub parts: Vec<HostPart>,
}

impl HostWeight {
    /// Bytes of all parts as stored.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.range().len()).sum()
    }

    /// The whole weight as f32, row-major: for vectors, small tensors and tests, never for a large matrix.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.rows * self.cols);
        for part in &self.parts {
            let size = part.dtype.size();
            for (row, bytes) in part.bytes().chunks_exact((part.cols * size).max(1)).enumerate() {
                let s = part.scale.of(row);
                out.extend(bytes.chunks_exact(size).map(|b| part.dtype.decode(b) * s));
            }
        }
        out
    }
}

/// A small set of element types (those in which the parts of one weight are stored).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DTypes(u8);

impl DTypes {
    /// The set with `dtype` added.
    pub fn with(self, dtype: DType) -> Self {
        DTypes(self.0 | 1 << dtype as u8)
    }

    /// Whether `dtype` is in the set.
    pub fn has(self, dtype: DType) -> bool {
        self.0 & (1 << dtype as u8) != 0
    }
}

impl HostWeight {
    /// The types in which the parts are stored.
    pub fn stored(&self) -> DTypes {
        self.parts.iter().fold(DTypes::default(), |set, p| set.with(p.dtype))
    }
}
