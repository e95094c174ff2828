//! DoRA: the changed weight gets given lengths of its rows or columns,
//! `W' = m / |W + D| * (W + D)`. The lengths of `W + D` are computed once for each file and model;
//! the base weight is read for that, some rows at a time, and does not change.
//!
//! The lengths are those of the changed weight, as in PEFT and LyCORIS, and `D` is the change at
//! strength 1.

use std::sync::Arc;

use rayon::prelude::*;

use super::adapter::{Axis, BaseRows, Change};
use super::delta::{Delta, values};
use crate::error::{Error, Result};
use crate::tensor::{HostPart, HostWeight};

/// Rows of the base weight that are read at a time.
const ROWS: usize = 64;

/// What the rows or columns of a change are multiplied with; `None` if it is not a DoRA.
pub fn scales_of(change: &Change, base: BaseRows) -> Result<Option<(Axis, Arc<[f32]>)>> {
    let Some(magnitude) = &change.magnitude else { return Ok(None) };
    if let Some(scales) = magnitude.scales.get() {
        return Ok(Some((magnitude.axis, scales.clone())));
    }
    let wanted = values(&magnitude.values);
    let lengths = lengths(change, magnitude.axis, base)?;
    let scale = |(wanted, length): (&f32, f64)| {
        (f64::from(*wanted) / length.max(f64::from(f32::EPSILON))) as f32
    };
    let scales: Arc<[f32]> = wanted.iter().zip(lengths).map(scale).collect();
    if let Some(i) = scales.iter().position(|s| !s.is_finite()) {
        return Err(Error::model("a DoRA stretches a row or column without end")
            .at(&change.key)
            .found(format!("a length of {} at {i}, where the weight is about 0", wanted[i])));
    }
    Ok(Some((magnitude.axis, magnitude.scales.get_or_init(|| scales).clone())))
}

/// The lengths of the rows or columns of `W + D`.
fn lengths(change: &Change, axis: Axis, base: BaseRows) -> Result<Vec<f64>> {
    let (rows, cols) = change.delta.shape();
    let delta = DeltaRows::of(&change.delta, change.factor as f32);
    // Runs of rows of both matrices. Their number does not depend on the threads, so that sums
    // over rows do not either.
    let mut pieces = vec![];
    for block in &change.blocks {
        for first in (0..block.rows).step_by(ROWS) {
            let count = ROWS.min(block.rows - first);
            pieces.push((base(block.row + first, count)?, block.from + first));
        }
    }
    let squares = |(weight, from): &(HostWeight, usize)| -> Result<Vec<f64>> {
        let mut sums = match axis {
            Axis::Rows => Vec::with_capacity(ROWS),
            Axis::Columns => vec![0.0; cols],
        };
        let mut changed = vec![0.0; cols];
        each_row(weight, &mut |i, row| {
            delta.row(from + i, &mut changed);
            changed.iter_mut().zip(row).for_each(|(d, w)| *d += w);
            let squares = changed.iter().map(|v| f64::from(*v) * f64::from(*v));
            match axis {
                Axis::Rows => sums.push(squares.sum()),
                Axis::Columns => sums.iter_mut().zip(squares).for_each(|(s, q)| *s += q),
            }
        })?;
        Ok(sums)
    };
    let sums = pieces.par_iter().map(squares).collect::<Result<Vec<_>>>()?;
    let mut total = vec![0.0; if axis == Axis::Rows { rows } else { cols }];
    for ((_, from), sums) in pieces.iter().zip(sums) {
        let first = if axis == Axis::Rows { *from } else { 0 };
        total[first..].iter_mut().zip(sums).for_each(|(t, s)| *t += s);
    }
    Ok(total.into_iter().map(f64::sqrt).collect())
}

/// Passes every row of `weight` as f32. The file is read, not accessed through its memory map.
fn each_row(weight: &HostWeight, f: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
    let mut first = 0;
    for part in &weight.parts {
        let mut stored = vec![0; part.range().len()];
        part.source.read_at(part.offset, &mut stored)?;
        let mut row = vec![0.0; part.cols];
        for (i, bytes) in stored.chunks_exact(part.row_bytes().max(1)).enumerate() {
            part.decode_row(i, bytes, &mut row);
            f(first + i, &row);
        }
        first += part.rows;
    }
    Ok(())
}

/// Computes single rows of a change.
enum DeltaRows {
    Product { a: Vec<f32>, b: Vec<f32>, rank: usize, factor: f32 },
    Hadamard { first: Box<DeltaRows>, second: Box<DeltaRows>, factor: f32 },
    Kronecker { outer: Vec<f32>, inner: Vec<f32>, inner_shape: (usize, usize), factor: f32 },
    None,
}

impl DeltaRows {
    fn of(delta: &Delta, factor: f32) -> DeltaRows {
        let product = |a, b, rank, factor| DeltaRows::Product { a, b, rank, factor };
        match delta {
            Delta::Product { a, b } => product(values(a), values(b), a.rows, factor),
            Delta::Hadamard { first, second } => {
                let one = |(a, b): &(HostPart, HostPart)| {
                    Box::new(product(values(a), values(b), a.rows, 1.0))
                };
                DeltaRows::Hadamard { first: one(first), second: one(second), factor }
            }
            Delta::Kronecker { outer, inner } => DeltaRows::Kronecker {
                outer: outer.to_f32(),
                inner: inner.to_f32(),
                inner_shape: inner.shape(),
                factor,
            },
            Delta::Difference(_) | Delta::Replacement(_) => DeltaRows::None,
        }
    }

    /// Writes row `i` to `out`.
    fn row(&self, i: usize, out: &mut [f32]) {
        match self {
            DeltaRows::Product { a, b, rank, factor } => {
                out.fill(0.0);
                for (b, a) in b[i * rank..(i + 1) * rank].iter().zip(a.chunks_exact(out.len())) {
                    let b = b * factor;
                    out.iter_mut().zip(a).for_each(|(o, a)| *o += b * a);
                }
            }
            DeltaRows::Hadamard { first, second, factor } => {
                let mut other = vec![0.0; out.len()];
                first.row(i, out);
                second.row(i, &mut other);
                out.iter_mut().zip(other).for_each(|(o, v)| *o *= v * factor);
            }
            DeltaRows::Kronecker { outer, inner, inner_shape: (rows, cols), factor } => {
                let groups = out.len() / cols;
                let inner = &inner[i % rows * cols..][..*cols];
                let outer = &outer[i / rows * groups..][..groups];
                for (out, o) in out.chunks_exact_mut(*cols).zip(outer) {
                    let o = o * factor;
                    out.iter_mut().zip(inner).for_each(|(out, v)| *out = o * v);
                }
            }
            DeltaRows::None => out.fill(0.0),
        }
    }
}
