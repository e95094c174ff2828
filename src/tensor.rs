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
    /// One for each block of a type that is stored in blocks, where the file keeps them beside the elements.
    Blocks(BlockScales),
}

impl Scale {
    /// The factor of `row` (counted within the part); of blocks, the one that all have in common.
    pub fn of(&self, row: usize) -> f32 {
        match self {
            Scale::One => 1.0,
            Scale::Tensor(s) => *s,
            Scale::Rows(s) => s[row],
            Scale::Blocks(s) => s.factor,
        }
    }

    /// Whether nothing is multiplied with anything.
    pub fn is_one(&self) -> bool {
        matches!(self, Scale::One)
    }
}

/// How a file stores the scales of blocks.
#[derive(Debug, Clone)]
pub enum BlockScale {
    /// Powers of two: `2^(byte - 127)`; 0 is 0.
    E8M0,
    E4M3,
    F32,
    /// 8-bit codes that have scales of their own (bitsandbytes' double quantisation): `codes[byte] * absmax[i / group] + offset`, i counted over the whole tensor.
    Nested {
        codes: Arc<[f32; 256]>,
        absmax: Arc<[f32]>,
        group: usize,
        offset: f32,
    },
}

/// The scales of a matrix of blocks, in the tensor that a file keeps them in.
#[derive(Clone)]
pub struct BlockScales {
    pub source: Arc<dyn ByteSource>,
    /// Byte at which the scales of the whole stored matrix begin.
    pub offset: usize,
    pub stored: BlockScale,
    /// Blocks in a row.
    pub per_row: usize,
    /// Row of the stored matrix that is the part's first.
    pub first_row: usize,
    /// In tiles of 128 rows by 4 blocks as cuBLAS reads them (both rounded up), within a tile row r of column c at byte `r % 32 * 16 + r / 32 * 4 + c`; otherwise row by row.
    pub tiled: bool,
    /// What all blocks are multiplied with besides (nvfp4's second scale).
    pub factor: f32,
}

impl BlockScales {
    fn index(&self, row: usize, block: usize) -> usize {
        let row = self.first_row + row;
        if !self.tiled {
            return row * self.per_row + block;
        }
        let (r, c) = (row % 128, block % 4);
        (row / 128 * self.per_row.div_ceil(4) + block / 4) * 512 + r % 32 * 16 + r / 32 * 4 + c
    }

    /// The scales of the blocks from `first` on of `row` (counted within the part), `factor` left out.
    pub fn row(&self, row: usize, first: usize, out: &mut [f32]) {
        let bytes = &self.source.bytes()[self.offset..];
        for (block, out) in out.iter_mut().enumerate() {
            let i = self.index(row, first + block);
            *out = match &self.stored {
                BlockScale::E8M0 => e8m0(bytes[i]),
                BlockScale::E4M3 => crate::dtype::f8e4m3_to_f32(bytes[i]),
                BlockScale::F32 => DType::F32.decode(&bytes[4 * i..]),
                BlockScale::Nested { codes, absmax, group, offset } => {
                    codes[usize::from(bytes[i])] * absmax[i / group] + offset
                }
            };
        }
    }

    /// The same as a device keeps them: one byte where the file has one with a meaning of its own, else f32.
    pub fn stored_row(&self, row: usize, out: &mut Vec<u8>) {
        let bytes = &self.source.bytes()[self.offset..];
        match &self.stored {
            BlockScale::E8M0 | BlockScale::E4M3 => {
                out.extend((0..self.per_row).map(|block| bytes[self.index(row, block)]));
            }
            BlockScale::F32 | BlockScale::Nested { .. } => {
                let mut scales = vec![0.0; self.per_row];
                self.row(row, 0, &mut scales);
                out.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
            }
        }
    }

    /// Where the scales of rows `first .. first + rows` (counted within the part) lie in the source: all that is read for them.
    pub fn range(&self, first: usize, rows: usize) -> Range<usize> {
        let size = if matches!(self.stored, BlockScale::F32) { 4 } else { 1 };
        let (from, to) = (self.first_row + first, self.first_row + first + rows);
        let (from, to) = match self.tiled {
            true => (
                from / 128 * 512 * self.per_row.div_ceil(4),
                to.div_ceil(128) * 512 * self.per_row.div_ceil(4),
            ),
            false => (from * self.per_row, to * self.per_row),
        };
        self.offset + from * size..self.offset + to * size
    }
}

/// 2^(q - 127); 0 is 0, as Comfy's writers have it for blocks of zeros, and what should be NaN is infinite.
fn e8m0(q: u8) -> f32 {
    f32::from_bits(u32::from(q) << 23)
}

impl fmt::Debug for BlockScales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} scales a row at byte {}", self.per_row, self.offset)
    }
}

/// Some consecutive rows of a weight as one file stores them: dense, row-major, `rows x cols` of `dtype` from byte `offset` of `source`. Of types stored in
/// blocks, `cols` is a multiple of the block.
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
        self.offset..self.offset + self.rows * self.row_bytes()
    }

    /// Bytes from one stored row to the next, scales beside not counted.
    pub fn row_bytes(&self) -> usize {
        self.dtype.bytes(self.cols)
    }

    /// The ranges of all bytes that the part is made of, each with its source: the elements', and the block scales'.
    pub fn ranges(&self) -> impl Iterator<Item = (&Arc<dyn ByteSource>, Range<usize>)> {
        let scales = match &self.scale {
            Scale::Blocks(s) => Some((&s.source, s.range(0, self.rows))),
            _ => None,
        };
        [(&self.source, self.range())].into_iter().chain(scales)
    }

    /// Row `row` as f32, scales applied, from its stored `bytes`: for rows that are made one at a time (vectors, tables, convolutions).
    pub fn decode_row(&self, row: usize, bytes: &[u8], out: &mut [f32]) {
        let factor = self.scale.of(row);
        match self.dtype.format() {
            None => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(self.dtype.size())) {
                    *o = self.dtype.decode(b) * factor;
                }
            }
            Some(format) => {
                let mut scales = vec![];
                if let Scale::Blocks(s) = &self.scale {
                    scales.resize(s.per_row, 0.0);
                    s.row(row, 0, &mut scales);
                }
                format.decode(bytes, &scales, 0, out);
                if factor != 1.0 {
                    out.iter_mut().for_each(|o| *o *= factor);
                }
            }
        }
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
            Scale::Blocks(s) => {
                Scale::Blocks(BlockScales { first_row: s.first_row + first, ..s.clone() })
            }
            other => other.clone(),
        };
        HostPart {
            offset: self.offset + first * self.row_bytes(),
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
    /// Bytes of all parts as stored, block scales included.
    pub fn bytes(&self) -> usize {
        self.parts.iter().flat_map(|p| p.ranges()).map(|(_, range)| range.len()).sum()
    }

    /// The whole weight as f32, row-major: for vectors, small tensors and tests, never for a large matrix.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        let mut rows = out.chunks_exact_mut(self.cols.max(1));
        for part in &self.parts {
            for (row, bytes) in part.bytes().chunks_exact(part.row_bytes().max(1)).enumerate() {
                part.decode_row(row, bytes, rows.next().expect("parts add up to the rows"));
            }
        }
        out
    }
}

/// A small set of element types (those in which the parts of one weight are stored).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DTypes(u32);

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
