//! A LoRA that was read, and several of them put together.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::summary::Summary;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::spec::Component;
use crate::spec::lora::Block;
use crate::tensor::{HostPart, Scale};

/// A LoRA file that was checked whole against a model.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub path: PathBuf,
    pub summary: Summary,
    /// By component, weight and rows.
    pub(super) pairs: Vec<Pair>,
}

/// `factor * B A`, added to some rows of a weight; the matrices lie in the file.
#[derive(Debug, Clone)]
pub struct Pair {
    pub component: Component,
    /// The canonical weight.
    pub weight: String,
    /// What the file calls it.
    pub key: String,
    /// `rank x columns`.
    pub a: HostPart,
    /// `rows x rank`.
    pub b: HostPart,
    /// Where the rows of `b` go.
    pub blocks: Vec<Block>,
    pub alpha: Option<f64>,
    /// alpha / rank; 1 without alpha.
    pub factor: f64,
}

impl Adapter {
    /// All pairs, by component, weight and rows.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// The pairs beside a weight.
    pub fn of(&self, component: Component, weight: &str) -> &[Pair] {
        let key = |p: &Pair| (p.component, p.weight.as_str()).cmp(&(component, weight));
        let first = self.pairs.partition_point(|p| key(p).is_lt());
        let count = self.pairs[first..].partition_point(|p| key(p).is_eq());
        &self.pairs[first..first + count]
    }

    /// The weights that it is beside, each once.
    pub fn weights(&self) -> impl Iterator<Item = (Component, &str)> {
        self.pairs.chunk_by(|a, b| (a.component, &a.weight) == (b.component, &b.weight)).map(
            |run| {
                let first = &run[0];
                (first.component, first.weight.as_str())
            },
        )
    }
}

/// One pair that stands for several: `B A` is the whole change of some rows of a weight, scales included.
#[derive(Debug, Clone)]
pub struct Combined {
    /// `rank x columns`: the ranks of all, stacked.
    pub a: HostPart,
    /// `rows x rank`, zero outside of the blocks.
    pub b: HostPart,
    /// The blocks of `b` that are not zero; those of one run of ranks follow each other.
    pub blocks: Vec<Span>,
}

/// A block of a combined B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row, counted from the first row of the range.
    pub row: usize,
    pub rows: usize,
    /// First column.
    pub rank_first: usize,
    /// Columns.
    pub rank: usize,
}

impl Combined {
    /// How many ranks there are in all.
    pub fn rank(&self) -> usize {
        self.a.rows
    }
}

/// One run of ranks: an A and all that B makes of it.
struct Run<'a> {
    adapter: usize,
    a: &'a HostPart,
    /// B, its factor, its rows, and where they go within the range.
    parts: Vec<(&'a HostPart, f64, Block)>,
}

/// One pair, in F32 or BF16, of all that `loras` (each with its weight) have beside rows `rows` of a weight; `None` if that is nothing. A LoRA of
/// weight 0 takes no part. Within a file, pairs of the same A (q, k and v that were split from a fused matrix) share its ranks.
pub fn combine(
    loras: &[(&Adapter, f32)],
    component: Component,
    weight: &str,
    rows: Range<usize>,
    dtype: DType,
) -> Result<Option<Combined>> {
    if !matches!(dtype, DType::F32 | DType::BF16) {
        return Err(Error::argument("LoRAs are put together in F32 or BF16").found(dtype.name()));
    }
    if let Some((adapter, strength)) = loras.iter().find(|(_, s)| !s.is_finite()) {
        return Err(Error::argument("the weight of a LoRA is not a finite number")
            .at_path(&adapter.path)
            .found(strength));
    }
    let mut runs: Vec<Run> = vec![];
    for (i, (adapter, strength)) in loras.iter().enumerate() {
        for pair in adapter.of(component, weight) {
            let factor = pair.factor * f64::from(*strength);
            let blocks: Vec<Block> = pair.blocks.iter().filter_map(|b| cut(b, &rows)).collect();
            if factor == 0.0 || blocks.is_empty() {
                continue;
            }
            let same = |r: &Run| {
                r.adapter == i && r.a.dtype == pair.a.dtype && r.a.bytes() == pair.a.bytes()
            };
            let run = runs.iter().position(same).unwrap_or_else(|| {
                runs.push(Run { adapter: i, a: &pair.a, parts: vec![] });
                runs.len() - 1
            });
            runs[run].parts.extend(blocks.into_iter().map(|block| (&pair.b, factor, block)));
        }
    }
    let Some(cols) = runs.first().map(|r| r.a.cols) else { return Ok(None) };
    if let Some(other) = runs.iter().find(|r| r.a.cols != cols) {
        return Err(Error::model("two LoRAs were read for different models")
            .at_path(&loras[other.adapter].0.path)
            .found(format!("{} columns beside {weight}", other.a.cols))
            .expected(format!("{cols}")));
    }
    let rank = runs.iter().map(|r| r.a.rows).sum();
    let (mut a, mut b) = (Matrix::new(rank, cols, dtype), Matrix::new(rows.len(), rank, dtype));
    let (mut rank_first, mut blocks) = (0, vec![]);
    for run in &runs {
        let too_large = |factor: f64| {
            Error::model("a LoRA times its weight exceeds what numbers can hold")
                .at(weight)
                .at_path(&loras[run.adapter].0.path)
                .found(format!("a factor of {factor}"))
        };
        run.a.source.check()?;
        if !a.put(rank_first, 0, run.a, 0..run.a.rows, 1.0) {
            return Err(too_large(1.0));
        }
        for (part, factor, block) in &run.parts {
            if !b.put(block.row, rank_first, part, block.from..block.from + block.rows, *factor) {
                return Err(too_large(*factor));
            }
            blocks.push(Span { row: block.row, rows: block.rows, rank_first, rank: run.a.rows });
        }
        rank_first += run.a.rows;
        // The file's pages are not needed beside the copy.
        run.a.source.let_go(run.a.range());
        run.parts.iter().for_each(|(part, ..)| part.source.let_go(part.range()));
    }
    Ok(Some(Combined { a: a.done(), b: b.done(), blocks }))
}

/// What of a block lies within the range, counted from its start.
fn cut(block: &Block, range: &Range<usize>) -> Option<Block> {
    let first = block.row.max(range.start);
    let last = (block.row + block.rows).min(range.end);
    (first < last).then(|| Block {
        row: first - range.start,
        from: block.from + first - block.row,
        rows: last - first,
    })
}

/// A matrix of zeros that is being filled.
struct Matrix {
    bytes: Vec<u8>,
    offset: usize,
    rows: usize,
    cols: usize,
    dtype: DType,
}

/// At which multiple of bytes it begins.
const ALIGN: usize = 64;

impl Matrix {
    fn new(rows: usize, cols: usize, dtype: DType) -> Self {
        let bytes = vec![0; rows * cols * dtype.size() + ALIGN];
        let offset = bytes.as_ptr().align_offset(ALIGN);
        Matrix { bytes, offset: if offset < ALIGN { offset } else { 0 }, rows, cols, dtype }
    }

    /// Writes `factor` times the rows `from` of `part` with its first element at `(row, col)`; false if a value is not finite any more.
    fn put(
        &mut self,
        row: usize,
        col: usize,
        part: &HostPart,
        from: Range<usize>,
        factor: f64,
    ) -> bool {
        let (size, stored) = (self.dtype.size(), part.dtype.size());
        // Whole rows follow each other in both, so they are one.
        let (steps, length) = if part.cols == self.cols {
            (1, from.len() * part.cols)
        } else {
            (from.len(), part.cols)
        };
        (0..steps).fold(true, |finite, i| {
            let values = &part.bytes()[(from.start + i) * part.cols * stored..][..length * stored];
            let at = self.offset + ((row + i) * self.cols + col) * size;
            let to = &mut self.bytes[at..at + length * size];
            if factor == 1.0 && part.dtype == self.dtype {
                to.copy_from_slice(values);
                return finite;
            }
            finite
                & match self.dtype {
                    DType::F32 => scaled(part.dtype, values, to, factor, f32::to_le_bytes),
                    _ => scaled(part.dtype, values, to, factor, |v| bf16_bits(v).to_le_bytes()),
                }
        })
    }

    fn done(self) -> HostPart {
        let Matrix { bytes, offset, rows, cols, dtype } = self;
        HostPart { source: Arc::new(bytes), offset, rows, cols, dtype, scale: Scale::One }
    }
}

/// `factor` times `values`, which are of type `dtype`; false if one is not finite.
fn scaled<const N: usize>(
    dtype: DType,
    values: &[u8],
    to: &mut [u8],
    factor: f64,
    encode: impl Fn(f32) -> [u8; N],
) -> bool {
    let to = to.as_chunks_mut::<N>().0;
    match dtype {
        DType::F32 => each(values.as_chunks().0, to, factor, f32::from_le_bytes, encode),
        DType::BF16 => each(
            values.as_chunks().0,
            to,
            factor,
            |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16),
            encode,
        ),
        DType::F16 => {
            each(values.as_chunks().0, to, factor, |b| f16_value(u16::from_le_bytes(b)), encode)
        }
        _ => each(values.as_chunks::<1>().0, to, factor, |b| dtype.decode(&b), encode),
    }
}

/// The loop of `scaled`, without branches, so that the compiler can take many elements at once.
fn each<const M: usize, const N: usize>(
    values: &[[u8; M]],
    to: &mut [[u8; N]],
    factor: f64,
    decode: impl Fn([u8; M]) -> f32,
    encode: impl Fn(f32) -> [u8; N],
) -> bool {
    // What rounds to infinity in BF16 is near enough to the end of F32 to be refused in both.
    const LARGEST: f32 = 3.38e38;
    let mut finite = true;
    for (to, value) in to.iter_mut().zip(values) {
        let value = (f64::from(decode(*value)) * factor) as f32;
        finite &= value.abs() <= LARGEST;
        *to = encode(value);
    }
    finite
}

/// The nearest BF16 of a finite number, ties to even.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16) as u16
}

/// The value of an F16: its bits, read as an F32's, are 2^112 too small. NaN for infinity too, which no checked file holds.
fn f16_value(bits: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * 2f32.powi(112);
    let value = if bits & 0x7c00 == 0x7c00 { f32::NAN } else { magnitude };
    f32::from_bits(value.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conversions_are_those_of_the_types() {
        for bits in 0..=u16::MAX {
            let right = half::f16::from_bits(bits);
            let value = f16_value(bits);
            assert!(
                value.to_bits() == right.to_f32().to_bits() || !right.is_finite() && value.is_nan(),
                "{bits:#x}"
            );
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(bits) << 16 | low);
                if value.is_finite() {
                    assert_eq!(bf16_bits(value), half::bf16::from_f32(value).to_bits(), "{value}");
                }
            }
        }
    }
}
