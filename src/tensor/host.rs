//! Weights as the host stores them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::{BlockScales, ByteSource, Scale};
use crate::dtype::int8::{Int8, Rotation};
use crate::dtype::{DType, Format};
use crate::error::Result;

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

    /// Decodes a row that is stored in blocks, without its factor.
    fn decode_blocks(&self, format: &Format, (row, bytes): (usize, &[u8]), out: &mut [f32]) {
        let mut scales = vec![];
        if let Scale::Blocks(s) = &self.scale {
            scales.resize(s.per_row, 0.0);
            s.row(row, 0, &mut scales);
        }
        format.decode(bytes, &scales, 0, out);
    }

    /// Whether rows are stored as codes for the integers of products in `int8`, in its rotation.
    pub fn is_packed_for(&self, int8: Int8) -> bool {
        self.dtype == DType::W4A8 && self.rotation == int8.rotation
    }

    /// Writes the integers of row `row` to `out`, and returns their factor, if the part
    /// [is packed](HostPart::is_packed_for) for `int8`. `values` is as long as the row, and is
    /// overwritten. A scale that is not a number makes the factor one that is not.
    pub fn unpack_integers(
        &self,
        int8: Int8,
        (row, bytes): (usize, &[u8]),
        values: &mut [f32],
        out: &mut [i8],
    ) -> Option<f32> {
        let format = self.dtype.format().filter(|_| self.is_packed_for(int8))?;
        self.decode_blocks(format, (row, bytes), values);
        out.iter_mut().zip(values.iter()).for_each(|(q, v)| *q = *v as i8);
        let is_number = values.iter().all(|v| !v.is_nan());
        Some(if is_number { self.scale.of(row) } else { f32::NAN })
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
                self.decode_blocks(format, (row, bytes), out);
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
    /// A weight of one part: all of `source`, which has `rows x cols` elements of `dtype`.
    pub fn whole(
        source: Arc<dyn ByteSource>,
        (rows, cols): (usize, usize),
        dtype: DType,
        scale: Scale,
    ) -> HostWeight {
        let part = HostPart { source, offset: 0, rows, cols, dtype, scale, rotation: None };
        HostWeight { rows, cols, parts: vec![part], int8: None }
    }

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
    pub fn rows_to_f32(&self, rows: &[usize]) -> Result<Vec<f32>> {
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

    /// The set of the types of all parts.
    pub fn stored(&self) -> DTypes {
        let none = DTypes { types: 0, int8: self.int8.is_some() };
        self.parts.iter().fold(none, |set, p| set.with(p.dtype))
    }

    /// Whether its parts are stored as the integers of products in `int8`, in its rotation.
    pub fn is_stored_as(&self, int8: Int8) -> bool {
        self.parts.iter().all(|p| p.dtype == DType::I8 && p.rotation == int8.rotation)
    }

    /// The same, also if they are stored as codes for such integers.
    pub fn has_integers_of(&self, int8: Int8) -> bool {
        self.is_stored_as(int8) || self.parts.iter().all(|p| p.is_packed_for(int8))
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
