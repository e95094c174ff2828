//! The form of a weight in device memory, and how its bytes are made from those of the file.
//!
//! Matrices keep their stored type. Consecutive parts of one type are joined, so that a fused q, k,
//! v is one matrix. Rows begin at multiples of 16 bytes, as `cp.async`, TMA and vector loads
//! require; FLUX's own shapes need no padding for that, so their bytes are copied from the file
//! unchanged. Block-quantised types keep their bits, but the quants of a row come before its scales
//! ([`Format::layout`](crate::dtype::blocks::Format::layout)): in blocks of 18 or 210 bytes,
//! nothing would be aligned. Vectors become F32. In convolution kernels, the input channel varies
//! fastest. Which type F32 matrices and convolution kernels get is the device's choice ([`Types`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::int8::quantise_stored;
use crate::dtype::DType;
use crate::dtype::int8::Int8;
use crate::error::{Error, Result};
use crate::op::Use;
use crate::tensor::{HostPart, HostWeight, Scale};

/// Segments and scales begin at multiples of this many bytes.
pub(super) const ALIGN: usize = 256;

/// The element types that a device needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types {
    /// For matrices and tables that are stored as F32: BF16 where the device multiplies in BF16
    /// anyway.
    pub f32: DType,
    /// For convolution kernels.
    pub kernel: DType,
}

/// Consecutive rows of one element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its first row within the weight.
    pub first: usize,
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
    /// Distance from row to row: elements, or bytes where `dtype` is block-quantised.
    pub stride: usize,
    /// Byte offset from the place of the weight.
    pub offset: usize,
    /// Byte offset of `rows` f32 factors, if the rows have factors.
    pub scales: Option<usize>,
    /// The rows are the integers of products in int8, `dtype` is I8, and they have factors.
    pub int8: Option<Int8>,
}

impl Segment {
    /// Bytes from row to row.
    pub fn row_bytes(&self) -> usize {
        if self.dtype.is_plain() { self.stride * self.dtype.size() } else { self.stride }
    }
}

/// The form of one weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    pub segments: Vec<Segment>,
    pub bytes: usize,
}

/// Bytes of a weight that are placed `to` bytes after the place of the weight.
pub(super) struct Piece {
    pub to: usize,
    pub bytes: usize,
    /// [`Piece::read`] makes multiples of this many bytes.
    pub unit: usize,
    pub source: Source,
}

/// The source of the bytes of a piece.
pub(super) enum Source {
    /// The stored bytes of a part, unchanged.
    Stored(HostPart),
    /// The rows of `part`, each converted to a row of `segment`: to another type, padded, scaled or
    /// reordered.
    Rows { part: HostPart, segment: Segment, how: Use },
    /// The rows of `part` as integers for products in int8. `made` takes the bits of their factors.
    Integers { part: HostPart, segment: Segment, int8: Int8, made: Arc<[AtomicU32]> },
    /// The factors of the rows of integers that are made of `part`. `made` has the bits of those
    /// that were made together with the integers; the others are 0.
    IntegerScales { part: HostPart, int8: Int8, made: Arc<[AtomicU32]> },
    /// All elements as F32.
    Vector(HostWeight),
    /// Scales, which are small and already in memory.
    Made(Vec<u8>),
}

impl Piece {
    /// Makes the bytes from byte `from` on; `from` and the length of `out` are multiples of `unit`.
    /// Files are read, not accessed through their memory map, so that a file that was truncated is
    /// an error and not a signal.
    pub fn read(&self, from: usize, out: &mut [u8]) -> Result<()> {
        match &self.source {
            Source::Stored(part) => part.source.read_at(part.offset + from, out)?,
            Source::Made(bytes) => out.copy_from_slice(&bytes[from..from + out.len()]),
            Source::Vector(weight) => out.copy_from_slice(&vector(weight)?[from..from + out.len()]),
            Source::Integers { part, segment, int8, made } => {
                let width = segment.row_bytes();
                integers(part, *int8, from / width, made, width, out)?;
            }
            Source::IntegerScales { part, int8, made } => {
                let first = from / 4;
                for (i, out) in out.chunks_exact_mut(4).enumerate() {
                    let row = first + i;
                    if made[row].load(Ordering::Relaxed) == 0 {
                        // The rows came from a copy that was made before.
                        let mut q = vec![0; part.cols];
                        integers(part, *int8, row, made, part.cols, &mut q)?;
                    }
                    out.copy_from_slice(&made[row].load(Ordering::Relaxed).to_le_bytes());
                }
            }
            Source::Rows { part, segment, how } => {
                let (stored_row, width) = (part.row_bytes(), segment.row_bytes());
                let (first, count) = (from / width, out.len() / width);
                let mut stored = vec![0; count * stored_row];
                part.source.read_at(part.offset + first * stored_row, &mut stored)?;
                let mut made = Vec::with_capacity(out.len());
                for (i, bytes) in stored.chunks_exact(stored_row.max(1)).enumerate() {
                    row(part, first + i, bytes, segment, *how, &mut made);
                }
                out.copy_from_slice(&made);
            }
        }
        Ok(())
    }
}

impl Form {
    pub fn of(weight: &HostWeight, how: Use, types: Types) -> Form {
        let mut segments: Vec<Segment> = Vec::new();
        match how {
            Use::Vector => {
                let cols = weight.rows * weight.cols;
                segments.push(Segment { stride: cols, ..segment(0, 1, cols, DType::F32) });
            }
            Use::Kernel { .. } => segments.push(segment(0, weight.rows, weight.cols, types.kernel)),
            Use::Matrix if weight.int8.is_some() => {
                let whole = segment(0, weight.rows, weight.cols, DType::I8);
                segments.push(Segment { scales: Some(0), int8: weight.int8, ..whole });
            }
            Use::Matrix | Use::Table => {
                let mut first = 0;
                let table = (how == Use::Table).then(|| table(weight, types));
                for part in &weight.parts {
                    let dtype = table.unwrap_or(match part.dtype {
                        // Rotated back.
                        _ if part.rotation.is_some() => types.kernel,
                        DType::F32 => types.f32,
                        stored => stored,
                    });
                    let scaled = how == Use::Matrix && !is_one(part) && part.rotation.is_none();
                    match segments.last_mut() {
                        Some(last) if last.dtype == dtype => last.rows += part.rows,
                        _ => segments.push(segment(first, part.rows, weight.cols, dtype)),
                    }
                    let last = segments.last_mut().expect("one was just pushed");
                    last.scales = last.scales.or(scaled.then_some(0));
                    first += part.rows;
                }
            }
        }
        let mut bytes = 0usize;
        let mut take = |n: usize| {
            let at = bytes.next_multiple_of(ALIGN);
            bytes = at + n;
            at
        };
        for s in &mut segments {
            s.offset = take(s.rows * s.row_bytes());
            if s.scales.is_some() {
                s.scales = Some(take(4 * s.rows));
            }
        }
        Form { segments, bytes }
    }

    /// The pieces that must be copied. Nothing large is kept in memory: rows are converted when
    /// they are copied.
    pub fn pieces(&self, weight: &HostWeight, how: Use) -> Vec<Piece> {
        if how == Use::Vector {
            let bytes = 4 * weight.rows * weight.cols;
            return vec![Piece {
                to: 0,
                bytes,
                unit: bytes.max(1),
                source: Source::Vector(weight.clone()),
            }];
        }
        let mut pieces = Vec::new();
        if let (Some(int8), [segment], Use::Matrix) = (weight.int8, &self.segments[..], how)
            && !weight.is_stored_as(int8)
        {
            return integer_pieces(weight, segment, int8);
        }
        for s in &self.segments {
            let mut row = 0;
            let mut scales = Vec::new();
            for part in parts_of(weight, s) {
                let to = s.offset + row * s.row_bytes();
                let alike = s.dtype.is_plain()
                    && s.stride == s.cols
                    && part.dtype == s.dtype
                    && (part.rotation.is_none() || s.int8.is_some());
                let as_stored =
                    alike && (how == Use::Matrix || (how == Use::Table && is_one(part)));
                let width = s.row_bytes();
                let (unit, source) = match as_stored {
                    true => (1, Source::Stored(part.clone())),
                    false => (width.max(1), Source::Rows { part: part.clone(), segment: *s, how }),
                };
                pieces.push(Piece { to, bytes: part.rows * width, unit, source });
                // Rows that are rotated back include their scales.
                let own = part.rotation.is_none() || s.int8.is_some();
                let scale = |r| if own { part.scale.of(r) } else { 1.0 };
                scales.extend((0..part.rows).flat_map(|r| scale(r).to_le_bytes()));
                row += part.rows;
            }
            if let Some(to) = s.scales {
                pieces.push(Piece {
                    to,
                    bytes: scales.len(),
                    unit: 1,
                    source: Source::Made(scales),
                });
            }
        }
        pieces
    }
}

/// The pieces of a weight that becomes integers. The factors of all rows come after all rows.
fn integer_pieces(weight: &HostWeight, segment: &Segment, int8: Int8) -> Vec<Piece> {
    let scales = segment.scales.expect("rows of integers have factors");
    let (mut rows, mut factors) = (Vec::new(), Vec::new());
    let mut row = 0;
    for part in &weight.parts {
        let made: Arc<[AtomicU32]> = (0..part.rows).map(|_| AtomicU32::new(0)).collect();
        let width = segment.row_bytes();
        rows.push(Piece {
            to: segment.offset + row * width,
            bytes: part.rows * width,
            unit: width.max(1),
            source: Source::Integers {
                part: part.clone(),
                segment: *segment,
                int8,
                made: made.clone(),
            },
        });
        factors.push(Piece {
            to: scales + 4 * row,
            bytes: 4 * part.rows,
            unit: 4,
            source: Source::IntegerScales { part: part.clone(), int8, made },
        });
        row += part.rows;
    }
    rows.extend(factors);
    rows
}

/// Makes the integers of rows of `part` from `first` on, in rows of `width` bytes, and the bits of
/// their factors.
fn integers(
    part: &HostPart,
    int8: Int8,
    first: usize,
    made: &[AtomicU32],
    width: usize,
    out: &mut [u8],
) -> Result<()> {
    let stored_row = part.row_bytes();
    let mut stored = vec![0; out.len() / width.max(1) * stored_row];
    part.source.read_at(part.offset + first * stored_row, &mut stored)?;
    let (mut values, mut q) = (vec![0.0; part.cols], vec![0i8; part.cols]);
    let rows = stored.chunks_exact(stored_row.max(1)).zip(out.chunks_exact_mut(width.max(1)));
    for (i, (bytes, out)) in rows.enumerate() {
        let scale = quantise_stored(int8, (part, first + i, bytes), &mut values, &mut q);
        let (integers, padding) = out.split_at_mut(part.cols);
        integers.iter_mut().zip(&q).for_each(|(o, q)| *o = *q as u8);
        padding.fill(0);
        made[first + i].store(scale.to_bits(), Ordering::Relaxed);
    }
    Ok(())
}

/// Checks that the parts of `weight` have its shape and are within their files.
pub(super) fn check(weight: &HostWeight) -> Result<()> {
    let rows: usize = weight.parts.iter().map(|p| p.rows).sum();
    if rows != weight.rows || weight.parts.iter().any(|p| p.cols != weight.cols) {
        return Err(Error::model("the parts of a weight do not add up")
            .found(format!("{:?}", weight.parts))
            .expected(format!("{} x {}", weight.rows, weight.cols)));
    }
    for part in &weight.parts {
        part.source.check()?;
        within(part)?;
    }
    Ok(())
}

/// Checks that all bytes of `part` are within their files.
fn within(part: &HostPart) -> Result<()> {
    for (source, range) in part.ranges() {
        let bytes = source.bytes().len();
        if range.end > bytes {
            return Err(Error::model("a weight ends beyond its file")
                .found(format!("an end at byte {}", range.end))
                .expected(format!("at most {bytes}")));
        }
    }
    Ok(())
}

/// Whether all factors are 1.
fn is_one(part: &HostPart) -> bool {
    match &part.scale {
        Scale::One => true,
        Scale::Blocks(s) => s.factor == 1.0 && s.factors.is_none(),
        _ => false,
    }
}

/// The parts that make up `segment`.
fn parts_of<'a>(weight: &'a HostWeight, segment: &Segment) -> impl Iterator<Item = &'a HostPart> {
    let mut first = 0;
    let within = segment.first..segment.first + segment.rows;
    weight.parts.iter().filter(move |part| {
        let at = first;
        first += part.rows;
        within.contains(&at)
    })
}

/// The element type of a table on the device: the kernel of `embed` supports neither scales nor
/// several types.
fn table(weight: &HostWeight, types: Types) -> DType {
    let all = |dtype| weight.parts.iter().all(|p| p.dtype == dtype && is_one(p));
    match () {
        () if all(DType::F16) => DType::F16,
        () if all(DType::BF16) => DType::BF16,
        () => types.f32,
    }
}

fn segment(first: usize, rows: usize, cols: usize, dtype: DType) -> Segment {
    let stride = match dtype.format() {
        None => (cols * dtype.size()).next_multiple_of(16) / dtype.size(),
        Some(format) => format.layout(cols).bytes,
    };
    Segment { first, rows, cols, dtype, stride, offset: 0, scales: None, int8: None }
}

/// All elements of a vector as F32. The file is read, not accessed through its memory map; see
/// [`Piece::read`].
fn vector(weight: &HostWeight) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(4 * weight.rows * weight.cols);
    for part in &weight.parts {
        let mut stored = vec![0; part.range().len()];
        part.source.read_at(part.offset, &mut stored)?;
        let mut values = vec![0.0; part.cols];
        for (r, row) in stored.chunks_exact(part.row_bytes().max(1)).enumerate() {
            part.decode_row(r, row, &mut values);
            out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
    }
    Ok(out)
}

/// Appends row `r` of `part`, whose stored bytes are `from`, to `out` as a row of `segment`.
fn row(part: &HostPart, r: usize, from: &[u8], segment: &Segment, how: Use, out: &mut Vec<u8>) {
    if let (Some(format), true) = (segment.dtype.format(), part.dtype == segment.dtype) {
        let layout = format.layout(segment.cols);
        let start = out.len();
        out.resize(start + layout.bytes, 0);
        format.split(from, &mut out[start..], &layout);
        if let Scale::Blocks(scales) = &part.scale {
            let mut bytes = vec![];
            scales.stored_row(r, &mut bytes);
            out[start + layout.planes[format.planes.len()]..][..bytes.len()]
                .copy_from_slice(&bytes);
        }
        return;
    }
    if !part.dtype.is_plain() || (part.rotation.is_some() && segment.int8.is_none()) {
        let mut values = vec![0.0f32; part.cols];
        part.decode_row(r, from, &mut values);
        let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let plain =
            HostPart { rotation: None, dtype: DType::F32, scale: Scale::One, ..part.clone() };
        return row(&plain, 0, &values, segment, how, out);
    }
    let size = part.dtype.size();
    // The scales of a matrix are stored separately.
    let scale = if how == Use::Matrix { 1.0 } else { part.scale.of(r) };
    let mut put = |b: &[u8]| match part.dtype == segment.dtype && scale == 1.0 {
        true => out.extend_from_slice(b),
        false => segment.dtype.encode(part.dtype.decode(b) * scale, out),
    };
    match how {
        // From `in x taps` to `taps x in`.
        Use::Kernel { taps } => {
            let channels = part.cols / taps;
            (0..taps).for_each(|tap| {
                (0..channels).for_each(|c| put(&from[(c * taps + tap) * size..][..size]))
            });
        }
        _ => from.chunks_exact(size).for_each(put),
    }
    out.resize(out.len() + (segment.stride - segment.cols) * segment.dtype.size(), 0);
}

#[cfg(test)]
mod tests;
