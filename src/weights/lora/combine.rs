//! The changes of low rank that several LoRAs have for one weight, combined into one pair of
//! matrices.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::adapter::{Adapter, Axis, Change};
use super::delta::{owned, values};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::spec::Component;
use crate::spec::lora::Block;
use crate::tensor::{HostPart, Scale};

/// Several changes of low rank combined into one: `B A` is the whole change of some rows of a
/// weight, including all factors.
#[derive(Debug, Clone)]
pub struct Combined {
    /// `rank x columns`: the A matrices of all changes, stacked.
    pub a: HostPart,
    /// `rows x rank`: zero where a change does not have a row.
    pub b: HostPart,
}

impl Combined {
    /// The sum of the ranks.
    pub fn rank(&self) -> usize {
        self.a.rows
    }
}

/// Changes that share one A, and their B matrices.
struct Run<'a> {
    adapter: usize,
    a: Cow<'a, HostPart>,
    /// B, its factor, and the rows of the range that it changes.
    parts: Vec<(Cow<'a, HostPart>, f64, Block)>,
}

/// Combines all changes of low rank that `loras` (each with its strength) have for the rows `rows`
/// of a weight into one pair of matrices in F32 or BF16; `None` if there are none. A LoRA of
/// strength 0 is left out. Changes of one file with the same A (q, k and v that were split from a
/// fused matrix) share its ranks. Lengths of DoRA are left out; [`merge`](super::merge::merge)
/// includes them.
///
/// # Errors
/// If a strength is not finite, if the LoRAs were read for different models, or if a product
/// exceeds the range of the numbers.
pub fn combine(
    loras: &[(&Adapter, f32)],
    component: Component,
    weight: &str,
    rows: Range<usize>,
    dtype: DType,
) -> Result<Option<Combined>> {
    combine_scaled(loras, component, weight, rows, dtype, &|_| Ok(None))
}

/// What the rows or columns of a change are multiplied with.
pub(super) type Scales<'a> = &'a dyn Fn(&Change) -> Result<Option<(Axis, Arc<[f32]>)>>;

/// [`combine`], where `scales` says what the rows or columns of each change are multiplied with.
pub(super) fn combine_scaled(
    loras: &[(&Adapter, f32)],
    component: Component,
    weight: &str,
    rows: Range<usize>,
    dtype: DType,
    scales: Scales,
) -> Result<Option<Combined>> {
    if !matches!(dtype, DType::F32 | DType::BF16) {
        return Err(Error::argument("LoRAs are combined in F32 or BF16 only").found(dtype.name()));
    }
    if let Some((adapter, strength)) = loras.iter().find(|(_, s)| !s.is_finite()) {
        return Err(Error::argument("the strength of a LoRA is not a finite number")
            .at_path(&adapter.path)
            .found(strength));
    }
    let mut runs: Vec<Run> = vec![];
    for (i, (adapter, strength)) in loras.iter().enumerate() {
        for change in adapter.of(component, weight) {
            let factor = change.factor * f64::from(*strength);
            let blocks: Vec<Block> = change.blocks.iter().filter_map(|b| cut(b, &rows)).collect();
            if factor == 0.0 || blocks.is_empty() {
                continue;
            }
            let Some((mut a, mut b)) = change.delta.low_rank() else { continue };
            match scales(change)? {
                Some((Axis::Rows, by)) => b = Cow::Owned(scale_rows(&b, &by)),
                Some((Axis::Columns, by)) => a = Cow::Owned(scale_columns(&a, &by)),
                None => {}
            }
            let same = |r: &Run| r.adapter == i && r.a.dtype == a.dtype && r.a.bytes() == a.bytes();
            let run = runs.iter().position(same).unwrap_or_else(|| {
                runs.push(Run { adapter: i, a, parts: vec![] });
                runs.len() - 1
            });
            let parts = blocks.into_iter().map(|block| (b.clone(), factor, block));
            runs[run].parts.extend(parts);
        }
    }
    let Some(cols) = runs.first().map(|r| r.a.cols) else { return Ok(None) };
    if let Some(other) = runs.iter().find(|r| r.a.cols != cols) {
        return Err(Error::model("two LoRAs were read for different models")
            .at_path(&loras[other.adapter].0.path)
            .found(format!("{} columns for {weight}", other.a.cols))
            .expected(format!("{cols}")));
    }
    let rank = runs.iter().map(|r| r.a.rows).sum();
    let (mut a, mut b) =
        (MatrixBuilder::new(rank, cols, dtype), MatrixBuilder::new(rows.len(), rank, dtype));
    let mut rank_first = 0;
    for run in &runs {
        let too_large = |factor: f64| {
            Error::model("a LoRA times its strength exceeds the range of the numbers")
                .at(weight)
                .at_path(&loras[run.adapter].0.path)
                .found(format!("a factor of {factor}"))
        };
        run.a.source.check()?;
        if !a.put(rank_first, 0, &run.a, 0..run.a.rows, 1.0) {
            return Err(too_large(1.0));
        }
        for (part, factor, block) in &run.parts {
            if !b.put(block.row, rank_first, part, block.from..block.from + block.rows, *factor) {
                return Err(too_large(*factor));
            }
        }
        rank_first += run.a.rows;
        // The pages of the file are not needed after the copy.
        run.a.source.let_go(run.a.range());
        run.parts.iter().for_each(|(part, ..)| part.source.let_go(part.range()));
    }
    Ok(Some(Combined { a: a.done(), b: b.done() }))
}

/// A matrix whose rows are multiplied with `by`.
fn scale_rows(part: &HostPart, by: &[f32]) -> HostPart {
    let mut all = values(part);
    for (row, by) in all.chunks_exact_mut(part.cols.max(1)).zip(by) {
        row.iter_mut().for_each(|v| *v *= by);
    }
    owned(&all, part.rows, part.cols)
}

/// A matrix whose columns are multiplied with `by`.
fn scale_columns(part: &HostPart, by: &[f32]) -> HostPart {
    let mut all = values(part);
    for row in all.chunks_exact_mut(part.cols.max(1)) {
        row.iter_mut().zip(by).for_each(|(v, by)| *v *= by);
    }
    owned(&all, part.rows, part.cols)
}

/// The part of a block that is inside the range, counted from the start of the range.
pub(super) fn cut(block: &Block, range: &Range<usize>) -> Option<Block> {
    let first = block.row.max(range.start);
    let last = (block.row + block.rows).min(range.end);
    (first < last).then(|| Block {
        row: first - range.start,
        from: block.from + first - block.row,
        rows: last - first,
    })
}

/// A matrix that starts with zeros and is filled block by block.
pub(super) struct MatrixBuilder {
    bytes: Vec<u8>,
    offset: usize,
    rows: usize,
    cols: usize,
    dtype: DType,
}

/// The alignment of a combined matrix in bytes.
const ALIGN: usize = 64;

impl MatrixBuilder {
    pub fn new(rows: usize, cols: usize, dtype: DType) -> Self {
        let bytes = vec![0; rows * cols * dtype.size() + ALIGN];
        let offset = bytes.as_ptr().align_offset(ALIGN);
        MatrixBuilder { bytes, offset: if offset < ALIGN { offset } else { 0 }, rows, cols, dtype }
    }

    /// Writes `factor` times the rows `from` of `part`, with the first element at `(row, col)`.
    /// Returns false if a product is not finite.
    pub fn put(
        &mut self,
        row: usize,
        col: usize,
        part: &HostPart,
        from: Range<usize>,
        factor: f64,
    ) -> bool {
        let (size, stored) = (self.dtype.size(), part.dtype.size());
        // Whole rows follow each other in both, so all of them are one run.
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

    pub fn done(self) -> HostPart {
        let MatrixBuilder { bytes, offset, rows, cols, dtype } = self;
        HostPart {
            rotation: None,
            source: Arc::new(bytes),
            offset,
            rows,
            cols,
            dtype,
            scale: Scale::One,
        }
    }
}

/// Writes `factor` times `values`, which have type `dtype`; returns false if a product is not
/// finite.
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

/// The loop of `scaled`, without branches, so that the compiler can vectorise it.
fn each<const M: usize, const N: usize>(
    values: &[[u8; M]],
    to: &mut [[u8; N]],
    factor: f64,
    decode: impl Fn([u8; M]) -> f32,
    encode: impl Fn(f32) -> [u8; N],
) -> bool {
    // A value that rounds to infinity in BF16 is refused in F32, too.
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

/// The value of an F16: its bits, shifted into an F32, are too small by 2^112. Infinity becomes
/// NaN; checked files contain neither.
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
