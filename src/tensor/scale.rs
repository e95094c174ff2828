//! The factors between stored elements and the values of weights.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::ByteSource;
use crate::dtype::{DType, f8e4m3_to_f32};

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
                BlockScale::E4M3 => f8e4m3_to_f32(bytes[i]),
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
