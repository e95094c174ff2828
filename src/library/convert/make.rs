//! Makes the bytes of one stored tensor from the values of a canonical one, some rows at a time.

use std::sync::Arc;

use rayon::prelude::*;

use crate::dtype::int8::Int8;
use crate::dtype::{DType, Format};
use crate::error::{Error, Result};
use crate::weights::ComponentWeights;

/// The number of elements that are in memory at a time, approximately.
const ELEMENTS: usize = 4 << 20;
/// The number of rows that one thread makes at a time.
const ROWS: usize = 16;

/// Appends the bytes of one row to its last argument. The others are the number of the row and its
/// values.
type MakeRow<'a> = dyn Fn(usize, &[f32], &mut Vec<u8>) + Sync + 'a;

/// A canonical tensor that is converted.
#[derive(Clone)]
pub struct Source<'a> {
    weights: &'a ComponentWeights,
    name: String,
    pub shape: Vec<usize>,
    /// As a matrix; vectors are one row.
    pub rows: usize,
    pub cols: usize,
}

impl<'a> Source<'a> {
    pub fn new(weights: &'a ComponentWeights, name: &str) -> Result<Self> {
        let there = weights.full_shape(name).zip(weights.shape(name));
        let (shape, (rows, cols)) =
            there.ok_or_else(|| Error::model("tensor is missing").at(name))?;
        Ok(Source { weights, name: name.into(), shape: shape.to_vec(), rows, cols })
    }

    /// The type of all its parts, if it is the same and there are no scales.
    pub fn stored(&self) -> Option<DType> {
        let weight = self.weights.get(&self.name, 0, self.rows, self.cols).ok()?;
        let dtype = weight.parts.first()?.dtype;
        weight.parts.iter().all(|p| p.dtype == dtype && p.scale.is_one()).then_some(dtype)
    }

    pub fn stored_bytes(&self) -> u64 {
        self.weights.get(&self.name, 0, self.rows, self.cols).map_or(0, |w| w.bytes() as u64)
    }

    /// Rows `first .. first + rows` as f32. A value that is not finite is an error, since no target
    /// type can store it.
    fn values(&self, first: usize, rows: usize) -> Result<Vec<f32>> {
        if first.is_multiple_of(16 * ROWS) {
            // If the file is edited while it is converted, the result would be a mixture.
            self.weights.unchanged()?;
        }
        let values = self.weights.get(&self.name, first, rows, self.cols)?.to_f32();
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(at) => Err(Error::model("a weight is not a finite number, the file is damaged")
                .at(&self.name)
                .at(format!("row {}", first + at / self.cols))
                .found(values[at])
                .try_("download it again")),
        }
    }

    /// The largest magnitude of each row.
    pub fn largest(&self) -> Result<Vec<f32>> {
        let runs: Vec<usize> = (0..self.rows).step_by(ROWS).collect();
        let largest = runs.par_iter().map(|&first| {
            let values = self.values(first, ROWS.min(self.rows - first))?;
            Ok(values
                .chunks_exact(self.cols)
                .map(|r| r.iter().fold(0f32, |m, v| m.max(v.abs())))
                .collect::<Vec<_>>())
        });
        let largest = largest.collect::<Result<Vec<_>>>()?.concat();
        self.let_go();
        Ok(largest)
    }

    /// The scale of each row as integers.
    pub fn scales(&self, int8: Int8) -> Result<Vec<f32>> {
        let mut scales = Vec::with_capacity(self.rows);
        let scale = |_: usize, row: &[f32], out: &mut Vec<u8>| {
            let mut q = vec![0; row.len()];
            out.extend(int8.quantise(&mut row.to_vec(), &mut q).to_le_bytes());
        };
        self.each(&scale, &mut |bytes| {
            scales.extend(bytes.chunks_exact(4).map(|b| DType::F32.decode(b)));
            Ok(())
        })?;
        Ok(scales)
    }

    /// Calls `use_it` with the bytes that `make` returns for each row, in order.
    fn each(&self, make: &MakeRow, use_it: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let most = (ELEMENTS / self.cols.max(1)).max(ROWS) / ROWS * ROWS;
        for from in (0..self.rows).step_by(most) {
            let runs: Vec<usize> = (from..self.rows.min(from + most)).step_by(ROWS).collect();
            let made = runs.par_iter().map(|&first| {
                let values = self.values(first, ROWS.min(self.rows - first))?;
                let mut bytes = Vec::new();
                for (i, row) in values.chunks_exact(self.cols).enumerate() {
                    make(first + i, row, &mut bytes);
                }
                Ok(bytes)
            });
            for bytes in made.collect::<Result<Vec<_>>>()? {
                use_it(&bytes)?;
            }
        }
        self.let_go();
        Ok(())
    }

    /// Releases the pages that were read, since they are not needed again soon.
    fn let_go(&self) {
        if let Ok(weight) = self.weights.get(&self.name, 0, self.rows, self.cols) {
            weight
                .parts
                .iter()
                .flat_map(|p| p.ranges())
                .for_each(|(source, range)| source.let_go(range));
        }
    }
}

/// A tensor of the file that is written.
pub struct OutputTensor<'a> {
    pub name: String,
    /// The container's name of its type.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub make: Make<'a>,
}

impl OutputTensor<'_> {
    pub fn bytes(&self) -> u64 {
        let bytes = match &self.make {
            Make::Bytes(bytes) => bytes.len(),
            Make::Plain { source, dtype } => source.rows * source.cols * dtype.size(),
            Make::Eight { source, .. } | Make::Integers { source, .. } => source.rows * source.cols,
            Make::Blocks { source, format, .. } => source.rows * format.bytes_of(source.cols),
            Make::BlockScales { source, format, tiled, .. } => match tiled {
                true => {
                    source.rows.next_multiple_of(128)
                        * format.blocks(source.cols).next_multiple_of(4)
                }
                false => source.rows * format.blocks(source.cols) * format.scale_bytes,
            },
        };
        bytes as u64
    }
}

/// How a tensor's bytes are made.
pub enum Make<'a> {
    Bytes(Vec<u8>),
    /// Element by element in a wide type.
    Plain {
        source: Source<'a>,
        dtype: DType,
    },
    /// Element by element in a type of one byte, divided by one scale or by the scale of the row.
    Eight {
        source: Source<'a>,
        dtype: DType,
        scales: Arc<[f32]>,
    },
    /// Rows of integers, rotated.
    Integers {
        source: Source<'a>,
        int8: Int8,
    },
    Blocks {
        source: Source<'a>,
        format: &'static Format,
        whole: f32,
    },
    /// The scales of blocks, row by row or in cuBLAS's tiles.
    BlockScales {
        source: Source<'a>,
        format: &'static Format,
        whole: f32,
        tiled: bool,
    },
}

impl Make<'_> {
    /// Calls `use_it` with all bytes, piece by piece.
    pub fn each(&self, use_it: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            Make::Bytes(bytes) => use_it(bytes),
            Make::Plain { source, dtype } => {
                source.each(&|_, row, out| row.iter().for_each(|v| dtype.encode(*v, out)), use_it)
            }
            Make::Eight { source, dtype, scales } => source.each(
                &|r, row, out| {
                    let scale = scales[r % scales.len()];
                    row.iter().for_each(|v| dtype.encode(v / scale, out));
                },
                use_it,
            ),
            Make::Integers { source, int8 } => source.each(
                &|_, row, out| {
                    let mut q = vec![0; row.len()];
                    int8.quantise(&mut row.to_vec(), &mut q);
                    out.extend(q.iter().map(|q| *q as u8));
                },
                use_it,
            ),
            Make::Blocks { source, format, whole } => {
                source.each(&|_, row, out| format.encode(row, *whole, out, &mut vec![]), use_it)
            }
            Make::BlockScales { source, format, whole, tiled } => {
                let scales = |_: usize, row: &[f32], out: &mut Vec<u8>| {
                    format.encode(row, *whole, &mut vec![], out)
                };
                if !tiled {
                    return source.each(&scales, use_it);
                }
                let per_row = format.blocks(source.cols);
                let tiles = per_row.div_ceil(4);
                let mut band = vec![0u8; tiles * 512];
                let (mut row, mut rows) = (0, Vec::new());
                source.each(&scales, &mut |bytes| {
                    rows.extend_from_slice(bytes);
                    let whole = rows.len() / per_row;
                    for scales in rows.chunks_exact(per_row).take(whole) {
                        let r = row % 128;
                        for (c, s) in scales.iter().enumerate() {
                            band[c / 4 * 512 + r % 32 * 16 + r / 32 * 4 + c % 4] = *s;
                        }
                        row += 1;
                        if row % 128 == 0 {
                            use_it(&band)?;
                            band.fill(0);
                        }
                    }
                    rows.drain(..whole * per_row);
                    Ok(())
                })?;
                if row % 128 != 0 { use_it(&band) } else { Ok(()) }
            }
        }
    }
}
