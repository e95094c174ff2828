//! Selects rows or elements of stored parts. The few cases in which bytes are copied are here.

use std::sync::Arc;

use crate::dtype::DType;
use crate::tensor::{HostPart, Scale};

/// Rows `first .. first + rows` of the stacked `parts`, without a copy: they may start at any byte
/// of a file. 8-bit parts are returned as they are only for a `matrix`; those of convolutions are
/// widened to f32.
pub fn rows(parts: &[HostPart], first: usize, rows: usize, matrix: bool) -> Vec<HostPart> {
    overlaps(parts.iter().map(|p| p.rows), first, rows)
        .map(|(i, from, count)| {
            let part = parts[i].slice(from, count);
            if matrix || part.dtype.is_wide() { part } else { widened(&[part]) }
        })
        .collect()
}

/// Elements `first .. first + count` of the vector that is stored as `parts` (each `1 x n`), as one
/// part.
pub fn elements(parts: &[HostPart], first: usize, count: usize) -> Vec<HostPart> {
    if parts.iter().any(|p| !p.dtype.is_plain()) {
        return elements(&[widened(parts)], first, count);
    }
    let mut cut: Vec<HostPart> = overlaps(parts.iter().map(|p| p.cols), first, count)
        .map(|(i, from, n)| HostPart {
            offset: parts[i].offset + from * parts[i].dtype.size(),
            cols: n,
            ..parts[i].clone()
        })
        .collect();
    match cut.len() {
        1 if cut[0].dtype.is_wide() => vec![aligned(cut.remove(0))],
        _ => vec![widened(&cut)],
    }
}

/// The pieces that overlap `first .. first + count`, where the pieces have these lengths and follow
/// one another: (index, start within the piece, length).
fn overlaps(
    lengths: impl Iterator<Item = usize>,
    first: usize,
    count: usize,
) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut start = 0;
    lengths.enumerate().filter_map(move |(i, length)| {
        let from = first.clamp(start, start + length);
        let to = (first + count).clamp(start, start + length);
        let local = from - start;
        start += length;
        (from < to).then_some((i, local, to - from))
    })
}

/// The part itself if its elements are at multiples of their size, else an aligned copy.
fn aligned(part: HostPart) -> HostPart {
    // The address alone, since a part of a model that is shapes only has no bytes.
    let address = part.source.bytes().as_ptr() as usize + part.offset;
    if address.is_multiple_of(part.dtype.size()) {
        return part;
    }
    let bytes = part.bytes();
    // Vec<u8> guarantees no alignment: reserve space to start at a multiple of 8.
    let mut copy = vec![0u8; bytes.len() + 8];
    let offset = copy.as_ptr().align_offset(8);
    copy[offset..offset + bytes.len()].copy_from_slice(bytes);
    HostPart { source: Arc::new(copy), offset, ..part }
}

/// The values of all parts in sequence, scales applied, as a single f32 part. The parts have the
/// same number of columns, or are vectors.
fn widened(parts: &[HostPart]) -> HostPart {
    let mut values = Vec::new();
    for part in parts {
        let mut decoded = vec![0.0; part.cols];
        for (row, bytes) in part.bytes().chunks_exact(part.row_bytes()).enumerate() {
            part.decode_row(row, bytes, &mut decoded);
            values.extend(decoded.iter().flat_map(|v| v.to_le_bytes()));
        }
    }
    let rows: usize = parts.iter().map(|p| p.rows).sum();
    let (rows, cols) = if parts.len() > 1 { (1, values.len() / 4) } else { (rows, parts[0].cols) };
    aligned(HostPart {
        rotation: None,
        source: Arc::new(values),
        offset: 0,
        rows,
        cols,
        dtype: DType::F32,
        scale: Scale::One,
    })
}
