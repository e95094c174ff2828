//! Handles to matrices, which recorded operations name, and weights as the host stores them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::dtype::DType;
use crate::dtype::int8::{Int8, Rotation};

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

/// A handle to entry `id` of `Program::weights`, a matrix of
/// `rows x cols`. How it is stored depends on the file.
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

/// The bytes that weights point into: a memory-mapped file, or owned memory.
pub trait ByteSource: Send + Sync {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// Copies the bytes from `offset` on into `to`, for devices that need a copy anyway. A file is
    /// read for that: its pages are not mapped in, and a truncated file is an error.
    fn read_at(&self, offset: usize, to: &mut [u8]) -> crate::error::Result<()> {
        to.copy_from_slice(&self.bytes()[offset..offset + to.len()]);
        Ok(())
    }

    /// Reads `range` into memory, because it is needed soon. This may wait for the disk, so callers
    /// use a thread of their own. An error means that reading the bytes would fail.
    fn will_need(&self, _range: Range<usize>) -> crate::error::Result<()> {
        Ok(())
    }

    /// Allows the memory of `range` to be freed, because it is not needed for a while. The bytes
    /// stay readable.
    fn let_go(&self, _range: Range<usize>) {}

    /// Checks quickly that the source did not change since it was opened: a file could have been
    /// edited or truncated in place.
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

/// The factor between a stored element and the value of the weight.
#[derive(Debug, Clone)]
pub enum Scale {
    /// Stored elements are the values.
    One,
    /// One factor for the whole part.
    Tensor(f32),
    /// One factor for each row of the part (`rows` entries).
    Rows(Arc<[f32]>),
    /// One factor for each block of a type stored in blocks, if the file keeps them in a separate
    /// tensor.
    Blocks(BlockScales),
}

impl Scale {
    /// The factor of `row` (counted within the part). For [`Scale::Blocks`], the factor that all
    /// blocks have in common.
    pub fn of(&self, row: usize) -> f32 {
        match self {
            Scale::One => 1.0,
            Scale::Tensor(s) => *s,
            Scale::Rows(s) => s[row],
            Scale::Blocks(s) => s.factors.as_ref().map_or(s.factor, |f| f[s.first_factor + row]),
        }
    }

    /// Whether nothing is multiplied: the values are the stored elements.
    pub fn is_one(&self) -> bool {
        matches!(self, Scale::One)
    }
}

/// How a file stores the scales of blocks.
#[derive(Debug, Clone)]
pub enum BlockScale {
    /// Powers of two: `2^(byte - 127)`; 0 means 0.
    E8M0,
    /// As [`DType::F8E4M3`].
    E4M3,
    /// As [`DType::F32`].
    F32,
    /// As [`DType::BF16`].
    BF16,
    /// 8-bit codes with scales of their own (the double quantisation of bitsandbytes):
    /// `codes[byte] * absmax[i / group] + offset`, where `i` counts the scales of the whole tensor.
    Nested {
        /// The value of each code.
        codes: Arc<[f32; 256]>,
        /// The factor of each group of blocks.
        absmax: Arc<[f32]>,
        /// Blocks in a group.
        group: usize,
        /// Added to every scale.
        offset: f32,
    },
}

/// The scales of a matrix of blocks, in a tensor of their own.
#[derive(Clone)]
pub struct BlockScales {
    /// The bytes of the scales.
    pub source: Arc<dyn ByteSource>,
    /// Byte of `source` at which the scales of the whole stored matrix begin.
    pub offset: usize,
    /// How each scale is stored.
    pub stored: BlockScale,
    /// The number of blocks in a row.
    pub per_row: usize,
    /// The row of the stored matrix that is the first row of the part.
    pub first_row: usize,
    /// Whether the scales are stored in tiles of 128 rows by 4 blocks, as cuBLAS reads them (rows
    /// and blocks rounded up): the scale of row `r` and block `c` of a tile is at byte `r % 32 * 16
    /// + r / 32 * 4 + c`. Otherwise they are stored row by row.
    pub tiled: bool,
    /// How many consecutive blocks of the whole stored matrix have one stored scale: 1, or 2 for
    /// the blocks of 128 elements that bitsandbytes' 4-bit types may have. They go on in the next
    /// row.
    pub shared: usize,
    /// How many consecutive rows of the stored matrix have the same scales: 1, or 128 for FP8 in
    /// blocks.
    pub tall: usize,
    /// A factor for all blocks, besides their own (the second scale of nvfp4).
    pub factor: f32,
    /// A factor for each row of the part, in place of `factor`.
    pub factors: Option<Arc<[f32]>>,
    /// The entry of `factors` that belongs to the first row.
    pub first_factor: usize,
}

impl BlockScales {
    /// Scales that are stored row by row from byte `offset` of `source`, `per_row` in a row, for a
    /// part that begins with the first row, without a further factor.
    pub fn new(
        source: Arc<dyn ByteSource>,
        offset: usize,
        stored: BlockScale,
        per_row: usize,
    ) -> BlockScales {
        BlockScales {
            source,
            offset,
            stored,
            per_row,
            first_row: 0,
            tiled: false,
            shared: 1,
            tall: 1,
            factor: 1.0,
            factors: None,
            first_factor: 0,
        }
    }

    /// The same scales with a factor for each row of the part, in place of `factor`.
    pub fn with_factors(&self, factors: Arc<[f32]>) -> BlockScales {
        BlockScales { factors: Some(factors), first_factor: 0, ..self.clone() }
    }

    fn index(&self, row: usize, block: usize) -> usize {
        let row = self.first_row + row;
        if !self.tiled {
            return (row / self.tall * self.per_row + block) / self.shared;
        }
        let (r, c) = (row % 128, block % 4);
        (row / 128 * self.per_row.div_ceil(4) + block / 4) * 512 + r % 32 * 16 + r / 32 * 4 + c
    }

    /// Writes the scales of the blocks of `row` (counted within the part), from block `first`, to
    /// `out`. They do not include `factor`.
    pub fn row(&self, row: usize, first: usize, out: &mut [f32]) {
        let bytes = &self.source.bytes()[self.offset..];
        for (block, out) in out.iter_mut().enumerate() {
            let i = self.index(row, first + block);
            *out = match &self.stored {
                BlockScale::E8M0 => e8m0(bytes[i]),
                BlockScale::E4M3 => crate::dtype::f8e4m3_to_f32(bytes[i]),
                BlockScale::F32 => DType::F32.decode(&bytes[4 * i..]),
                BlockScale::BF16 => DType::BF16.decode(&bytes[2 * i..]),
                BlockScale::Nested { codes, absmax, group, offset } => {
                    codes[usize::from(bytes[i])] * absmax[i / group] + offset
                }
            };
        }
    }

    /// Appends the scales of `row` in the form that devices use: the byte of the file for E8M0 and
    /// E4M3, f32 otherwise.
    pub fn stored_row(&self, row: usize, out: &mut Vec<u8>) {
        let bytes = &self.source.bytes()[self.offset..];
        match &self.stored {
            BlockScale::E8M0 | BlockScale::E4M3 => {
                out.extend((0..self.per_row).map(|block| bytes[self.index(row, block)]));
            }
            BlockScale::F32 | BlockScale::BF16 | BlockScale::Nested { .. } => {
                let mut scales = vec![0.0; self.per_row];
                self.row(row, 0, &mut scales);
                out.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
            }
        }
    }

    /// The byte range of the source that contains the scales of rows `first .. first + rows`
    /// (counted within the part).
    pub fn range(&self, first: usize, rows: usize) -> Range<usize> {
        let size = match self.stored {
            BlockScale::F32 => 4,
            BlockScale::BF16 => 2,
            BlockScale::E8M0 | BlockScale::E4M3 | BlockScale::Nested { .. } => 1,
        };
        let (from, to) = (self.first_row + first, self.first_row + first + rows);
        let (from, to) = (from / self.tall, to.div_ceil(self.tall));
        let (from, to) = match self.tiled {
            true => (
                from / 128 * 512 * self.per_row.div_ceil(4),
                to.div_ceil(128) * 512 * self.per_row.div_ceil(4),
            ),
            false => (from * self.per_row / self.shared, (to * self.per_row).div_ceil(self.shared)),
        };
        self.offset + from * size..self.offset + to * size
    }
}

/// `2^(q - 127)`. 0 is 0, because ComfyUI writes it for blocks of zeros. 255, which the format
/// reserves for NaN, is infinite.
fn e8m0(q: u8) -> f32 {
    f32::from_bits(u32::from(q) << 23)
}

impl fmt::Debug for BlockScales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} scales a row at byte {}", self.per_row, self.offset)
    }
}

/// Consecutive rows of a weight as a file stores them: a dense row-major matrix of `rows x cols`
/// elements of `dtype`, from byte `offset` of `source`. For types stored in blocks, `cols` is a
/// multiple of the block.
#[derive(Clone)]
pub struct HostPart {
    /// The bytes of the elements.
    pub source: Arc<dyn ByteSource>,
    /// First byte of the part in `source`.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// How the elements are stored.
    pub dtype: DType,
    /// The factor of the elements.
    pub scale: Scale,
    /// The rotation of the stored rows: the weight is what this rotation makes of them.
    pub rotation: Option<Rotation>,
}

impl HostPart {
    /// The byte range of the elements within the source.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.row_bytes()
    }

    /// Bytes from one stored row to the next, without scales that are stored separately.
    pub fn row_bytes(&self) -> usize {
        self.dtype.bytes(self.cols)
    }

    /// The byte ranges of the elements and of the block scales, each with its source.
    pub fn ranges(&self) -> impl Iterator<Item = (&Arc<dyn ByteSource>, Range<usize>)> {
        let scales = match &self.scale {
            Scale::Blocks(s) => Some((&s.source, s.range(0, self.rows))),
            _ => None,
        };
        [(&self.source, self.range())].into_iter().chain(scales)
    }

    /// Decodes row `row` from its stored `bytes` into `out`, scales applied, and rotated back. For
    /// vectors, tables and convolutions, whose rows are decoded one at a time.
    pub fn decode_row(&self, row: usize, bytes: &[u8], out: &mut [f32]) {
        self.decode_stored(row, bytes, out);
        if let Some(rotation) = self.rotation {
            rotation.apply(out);
        }
    }

    /// The same without rotating back.
    pub fn decode_stored(&self, row: usize, bytes: &[u8], out: &mut [f32]) {
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

    /// The stored bytes of the elements.
    pub fn bytes(&self) -> &[u8] {
        &self.source.bytes()[self.range()]
    }

    /// Rows `first .. first + rows` of this part.
    ///
    /// # Panics
    /// If the part has fewer rows.
    pub fn slice(&self, first: usize, rows: usize) -> HostPart {
        assert!(first + rows <= self.rows);
        let scale = match &self.scale {
            Scale::Rows(s) => Scale::Rows(s[first..first + rows].into()),
            Scale::Blocks(s) => Scale::Blocks(BlockScales {
                first_row: s.first_row + first,
                first_factor: s.first_factor + first,
                ..s.clone()
            }),
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

/// A weight on the host, in its stored form: one part, or several that are stacked by rows (fused
/// q, k, v from three tensors).
///
/// Vectors (biases, gains of norms) are `1 x n`. Convolutions are `out x (in * kh * kw)`, in the
/// order of files.
#[derive(Debug, Clone)]
pub struct HostWeight {
    /// Number of rows of all parts.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// The parts, from the first row.
    pub parts: Vec<HostPart>,
    /// How products with it are computed, if in 8-bit integers, whatever it is stored as.
    pub int8: Option<Int8>,
}

impl HostWeight {
    /// Bytes of all parts as stored, including block scales.
    pub fn bytes(&self) -> usize {
        self.parts.iter().flat_map(|p| p.ranges()).map(|(_, range)| range.len()).sum()
    }

    /// These rows as f32, one after another. Only their bytes are read.
    ///
    /// # Errors
    /// If the file cannot be read.
    ///
    /// # Panics
    /// If the weight has fewer rows.
    pub fn rows_to_f32(&self, rows: &[usize]) -> crate::error::Result<Vec<f32>> {
        let mut out = vec![0.0; rows.len() * self.cols];
        let mut stored = vec![];
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(self.cols.max(1))) {
            let mut row = row;
            let part = self.parts.iter().find(|part| {
                let within = row < part.rows;
                row -= if within { 0 } else { part.rows };
                within
            });
            let part = part.expect("a row of the weight");
            stored.resize(part.row_bytes(), 0);
            part.source.read_at(part.offset + row * part.row_bytes(), &mut stored)?;
            part.decode_row(row, &stored, out);
        }
        Ok(out)
    }

    /// The whole weight as f32, row-major. For vectors, small tensors and tests, not for large
    /// matrices.
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

/// A set of element types: those in which the parts of a weight are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DTypes {
    types: u32,
    /// Whether products with the weight are computed in 8-bit integers.
    pub int8: bool,
}

impl DTypes {
    /// The set with `dtype` added.
    pub fn with(self, dtype: DType) -> Self {
        DTypes { types: self.types | 1 << dtype as u8, ..self }
    }

    /// Whether `dtype` is in the set.
    pub fn has(self, dtype: DType) -> bool {
        self.types & (1 << dtype as u8) != 0
    }
}

impl HostWeight {
    /// The set of the types of all parts.
    pub fn stored(&self) -> DTypes {
        let none = DTypes { types: 0, int8: self.int8.is_some() };
        self.parts.iter().fold(none, |set, p| set.with(p.dtype))
    }

    /// Whether its parts are stored as the integers of products in `int8`, in its rotation.
    pub fn is_stored_as(&self, int8: Int8) -> bool {
        self.parts.iter().all(|p| p.dtype == DType::I8 && p.rotation == int8.rotation)
    }
}
