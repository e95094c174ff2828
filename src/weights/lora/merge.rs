//! Everything that several LoRAs change in some rows of a weight, in the form in which a program
//! computes it: a pair of matrices of low rank, factors of rows or columns (DoRA), and terms that
//! have no low rank (LoKr, whole differences).
//!
//! Each LoRA is an interpolation between the base weight W and the weight W' that it makes:
//! `W + strength (W' - W)`, as in ComfyUI. The changes of several LoRAs add up.

use std::ops::Range;
use std::sync::Arc;

use super::adapter::{Adapter, Axis, BaseRows, Change};
use super::combine::{Combined, MatrixBuilder, combine_scaled, cut};
use super::delta::{Delta, owned, values};
use super::dora::scales_of;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::spec::Component;
use crate::spec::lora::Block;
use crate::tensor::{HostPart, HostWeight};

/// Everything that changes some rows of a weight.
#[derive(Debug, Clone)]
pub struct Merged {
    /// The rows of the weight.
    pub rows: Range<usize>,
    /// Added to the weight.
    pub pair: Option<Combined>,
    /// `1 x rows`: what the rows of the base weight are multiplied with.
    pub factors: Option<HostPart>,
    /// `1 x columns`: what the columns of the base weight are multiplied with, minus 1.
    pub columns: Option<HostPart>,
    /// Added to the weight.
    pub terms: Vec<Term>,
}

/// A matrix of full rank that is added to some rows of a weight.
#[derive(Debug, Clone)]
pub struct Term {
    /// The first row, counted from the first row of [`Merged::rows`].
    pub first: usize,
    /// The number of rows.
    pub rows: usize,
    /// The matrix that is added.
    pub matrix: TermMatrix,
    /// `1 x rows`: what its rows are multiplied with.
    pub factors: Option<HostPart>,
    /// `1 x columns`: what its columns are multiplied with, minus 1.
    pub columns: Option<HostPart>,
}

/// The matrix of a [`Term`].
#[derive(Debug, Clone)]
pub enum TermMatrix {
    /// `rows x columns`.
    Whole(HostPart),
    /// Some rows of a Kronecker product.
    Kronecker {
        /// `1 x (groups.0 * groups.1)` in F32: the outer factor, row by row, all factors included.
        outer: HostPart,
        /// Rows and columns of the outer factor.
        groups: (usize, usize),
        /// The inner factor.
        inner: HostPart,
        /// The number of rows of the product in front of the first row that is added.
        skip: usize,
    },
}

impl Merged {
    /// Whether nothing changes.
    fn is_empty(&self) -> bool {
        self.pair.is_none()
            && self.factors.is_none()
            && self.columns.is_none()
            && self.terms.is_empty()
    }
}

/// LoRAs with their strengths, and the matrix that they change.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Each with its strength.
    pub loras: &'a [(&'a Adapter, f32)],
    /// The component that has the weight.
    pub component: Component,
    /// The canonical name of the weight.
    pub weight: &'a str,
    /// Its columns.
    pub cols: usize,
    /// The type of matrices: F32 or BF16.
    pub dtype: DType,
    /// The base weight.
    pub base: BaseRows<'a>,
}

impl Target<'_> {
    /// The changes with their strengths; those of strength 0 are left out.
    fn changes(&self) -> impl Iterator<Item = (&Adapter, &Change, f32)> {
        let active = self.loras.iter().filter(|(_, s)| *s != 0.0);
        active.flat_map(|(adapter, s)| {
            adapter.of(self.component, self.weight).iter().map(move |c| (*adapter, c, *s))
        })
    }

    /// What the rows or columns of a change are multiplied with.
    fn scales(&self, change: &Change) -> Result<Option<(Axis, Arc<[f32]>)>> {
        scales_of(change, self.base)
    }
}

/// Everything that `target` changes in the rows `rows` of a matrix: runs of rows in their order,
/// which cover `rows`; empty if nothing changes. There are several runs only where DoRA multiplies
/// the columns of each with other numbers.
///
/// # Errors
/// As [`combine()`](super::combine()); if the base weight cannot be read; if one LoRA multiplies
/// rows /// and another one columns of the same weight.
pub fn merge(target: &Target, rows: Range<usize>) -> Result<Vec<Merged>> {
    let mut cuts = vec![rows.start, rows.end];
    for (_, change, _) in target.changes() {
        if change.magnitude.as_ref().is_some_and(|m| m.axis == Axis::Columns) {
            let ends = change.blocks.iter().flat_map(|b| [b.row, b.row + b.rows]);
            cuts.extend(ends.filter(|at| rows.contains(at)));
        }
    }
    cuts.sort();
    cuts.dedup();
    let parts = cuts.windows(2).map(|w| merge_part(target, w[0]..w[1]));
    let parts = parts.collect::<Result<Vec<_>>>()?;
    Ok(if parts.iter().all(Merged::is_empty) { vec![] } else { parts })
}

fn merge_part(target: &Target, rows: Range<usize>) -> Result<Merged> {
    let Target { loras, component, weight, dtype, .. } = *target;
    let scales = |change: &Change| target.scales(change);
    let pair = combine_scaled(loras, component, weight, rows.clone(), dtype, &scales)?;
    let (mut factors, mut columns) = (None, None);
    let mut terms = vec![];
    for (adapter, change, strength) in target.changes() {
        let blocks: Vec<Block> = change.blocks.iter().filter_map(|b| cut(b, &rows)).collect();
        if blocks.is_empty() {
            continue;
        }
        let scales = target.scales(change)?;
        match &scales {
            Some((Axis::Rows, by)) => {
                let factors = factors.get_or_insert_with(|| vec![1.0f32; rows.len()]);
                for (row, from) in
                    blocks.iter().flat_map(|b| (0..b.rows).map(|i| (b.row + i, b.from + i)))
                {
                    factors[row] += strength * (by[from] - 1.0);
                }
            }
            Some((Axis::Columns, by)) => {
                let columns = columns.get_or_insert_with(|| vec![0.0f32; target.cols]);
                columns.iter_mut().zip(by.iter()).for_each(|(c, by)| *c += strength * (by - 1.0));
            }
            None => {}
        }
        if let Delta::Replacement(_) = change.delta {
            let factors = factors.get_or_insert_with(|| vec![1.0f32; rows.len()]);
            for row in blocks.iter().flat_map(|b| b.row..b.row + b.rows) {
                factors[row] -= strength;
            }
        }
        let factor = change.factor * f64::from(strength);
        for block in blocks {
            let matrix = term(&change.delta, &block, factor, target.cols, dtype)
                .map_err(|e| e.at(weight).at_path(&adapter.path))?;
            let Some(matrix) = matrix else { continue };
            let (factors, columns) = match &scales {
                Some((Axis::Rows, by)) => (Some(&by[block.from..block.from + block.rows]), None),
                Some((Axis::Columns, by)) => (None, Some(by)),
                None => (None, None),
            };
            terms.push(Term {
                first: block.row,
                rows: block.rows,
                matrix,
                factors: factors.map(vector),
                columns: columns.map(|by| vector(&by.iter().map(|c| c - 1.0).collect::<Vec<_>>())),
            });
        }
    }
    if factors.is_some() && columns.is_some() {
        return Err(Error::model("one LoRA scales the rows of a weight, another one its columns")
            .at(weight)
            .try_("use one of these DoRAs without the other"));
    }
    let vector = |v: Vec<f32>| vector(&v);
    let (factors, columns) = (factors.map(vector), columns.map(vector));
    Ok(Merged { rows, pair, factors, columns, terms })
}

/// A vector, multiplied with `by` element by element.
pub fn times(part: &HostPart, by: &[f32]) -> HostPart {
    vector(&values(part).iter().zip(by).map(|(v, by)| v * by).collect::<Vec<_>>())
}

fn vector(values: &[f32]) -> HostPart {
    owned(values, 1, values.len())
}

/// The rows `block` of a change that has no low rank; `None` for one that has.
fn term(
    delta: &Delta,
    block: &Block,
    factor: f64,
    cols: usize,
    dtype: DType,
) -> Result<Option<TermMatrix>> {
    let too_large = || {
        Error::model("a LoRA times its strength exceeds the range of the numbers")
            .found(format!("a factor of {factor}"))
    };
    match delta {
        _ if delta.side_rank() > 0 => Ok(None),
        Delta::Product { .. } => Ok(None),
        Delta::Hadamard { .. } => {
            let Some(whole) = delta.hadamard() else { return Ok(None) };
            let mut made = MatrixBuilder::new(block.rows, cols, dtype);
            let rows = block.from..block.from + block.rows;
            match made.put(0, 0, &whole, rows, factor) {
                true => Ok(Some(TermMatrix::Whole(made.done()))),
                false => Err(too_large()),
            }
        }
        Delta::Difference(whole) | Delta::Replacement(whole) => {
            whole.source.check()?;
            let mut made = MatrixBuilder::new(block.rows, cols, dtype);
            if !made.put(0, 0, whole, block.from..block.from + block.rows, factor) {
                return Err(too_large());
            }
            whole.source.let_go(whole.range());
            Ok(Some(TermMatrix::Whole(made.done())))
        }
        Delta::Kronecker { outer, inner } => {
            let ((_, outer_cols), (inner_rows, inner_cols)) = (outer.shape(), inner.shape());
            let (first, last) =
                (block.from / inner_rows, (block.from + block.rows).div_ceil(inner_rows));
            let all = outer.to_f32();
            let scaled: Vec<f32> = all[first * outer_cols..last * outer_cols]
                .iter()
                .map(|v| (f64::from(*v) * factor) as f32)
                .collect();
            let inner = owned(&inner.to_f32(), inner_rows, inner_cols);
            let mut made = MatrixBuilder::new(inner_rows, inner_cols, dtype);
            let fits = made.put(0, 0, &inner, 0..inner_rows, 1.0);
            if !fits || scaled.iter().any(|v| !v.is_finite()) {
                return Err(too_large());
            }
            Ok(Some(TermMatrix::Kronecker {
                outer: vector(&scaled),
                groups: (last - first, outer_cols),
                inner: made.done(),
                skip: block.from - first * inner_rows,
            }))
        }
    }
}

/// Elements `range` of a vector, whose base is `base`, with all changes; `None` if nothing changes.
///
/// # Errors
/// If a result is not finite.
pub fn merge_vector(
    loras: &[(&Adapter, f32)],
    component: Component,
    name: &str,
    range: Range<usize>,
    base: &HostWeight,
) -> Result<Option<HostPart>> {
    let mut changed: Option<Vec<f32>> = None;
    let before = || base.to_f32();
    for (adapter, strength) in loras.iter().filter(|(_, s)| *s != 0.0) {
        for change in adapter.of(component, name).iter().filter(|c| c.vector) {
            let blocks: Vec<Block> = change.blocks.iter().filter_map(|b| cut(b, &range)).collect();
            let (Delta::Difference(new) | Delta::Replacement(new)) = &change.delta else {
                continue;
            };
            let replaces = matches!(change.delta, Delta::Replacement(_));
            let factor = change.factor * f64::from(*strength);
            let new = values(new);
            for (to, from) in
                blocks.iter().flat_map(|b| (0..b.rows).map(|i| (b.row + i, b.from + i)))
            {
                let changed = changed.get_or_insert_with(before);
                // What several LoRAs put in place is interpolated from the base.
                let old = if replaces { base_value(base, to) } else { 0.0 };
                changed[to] = match change.is_fixed {
                    true => new[from],
                    false => {
                        let new = f64::from(new[from]) - old;
                        (f64::from(changed[to]) + factor * new) as f32
                    }
                };
            }
            if changed.iter().flatten().any(|v| !v.is_finite()) {
                return Err(Error::model(
                    "a LoRA times its strength exceeds the range of the numbers",
                )
                .at(&change.key)
                .at_path(&adapter.path));
            }
        }
    }
    Ok(changed.map(|v| vector(&v)))
}

/// Element `i` of a vector.
fn base_value(base: &HostWeight, i: usize) -> f64 {
    let mut first = 0;
    for part in &base.parts {
        let n = part.rows * part.cols;
        if i < first + n {
            let size = part.dtype.size();
            let bytes = &part.bytes()[(i - first) * size..];
            let row = (i - first) / part.cols.max(1);
            return f64::from(part.dtype.decode(bytes) * part.scale.of(row));
        }
        first += n;
    }
    0.0
}
