//! Rows of matrices in any stored type, and their decoding to f32.

use std::sync::LazyLock;

use half::{bf16, f16};

use super::super::matrix::In;
use crate::dtype::int8::Rotation;
use crate::dtype::{DType, E4M3, Format, f8e5m2_to_f32};
use crate::tensor::{BlockScales, HostWeight, Scale};

/// The start of a stored row. It may be unaligned, as tensors in files are. A null pointer stands
/// for a row of zeros.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The first byte of the row.
    pub ptr: *const u8,
    /// How it is stored.
    pub dtype: DType,
}

impl Row {
    /// A row of zeros: beyond the edge of a matrix or an image.
    pub const ZEROS: Row = Row { ptr: std::ptr::null(), dtype: DType::F32 };

    /// A row of f32.
    pub fn of_f32(ptr: *const f32) -> Row {
        Row { ptr: ptr.cast(), dtype: DType::F32 }
    }

    /// Row `row` of `x`, or zeros after its end.
    pub fn of(x: In, row: usize) -> Row {
        if row < x.rows() { Row::of_f32(x.row_ptr(row)) } else { Row::ZEROS }
    }

    /// The same row from element `k` on.
    pub fn from(self, k: usize) -> Row {
        if k == 0 || self.ptr.is_null() || !loadable(self.dtype) {
            self
        } else {
            Row { ptr: self.at(k), ..self }
        }
    }

    /// The address of element `k`.
    #[inline(always)]
    pub fn at(&self, k: usize) -> *const u8 {
        self.ptr.wrapping_add(k * self.dtype.size())
    }
}

/// The rows of a weight by number, in whichever part they are stored.
pub struct WeightRows<'a> {
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    first: usize,
    rows: usize,
    bytes: &'a [u8],
    row_bytes: usize,
    dtype: DType,
    scale: &'a Scale,
    rotation: Option<Rotation>,
}

impl<'a> WeightRows<'a> {
    /// The rows of `w`.
    pub fn new(w: &'a HostWeight) -> Self {
        let mut first = 0;
        let parts = w
            .parts
            .iter()
            .map(|p| {
                assert_eq!(
                    p.cols, w.cols,
                    "a part of the weight has a different number of columns"
                );
                let part = Part {
                    first,
                    rows: p.rows,
                    bytes: p.bytes(),
                    row_bytes: p.row_bytes(),
                    dtype: p.dtype,
                    scale: &p.scale,
                    rotation: p.rotation,
                };
                first += p.rows;
                part
            })
            .collect();
        assert_eq!(first, w.rows, "the rows of the parts do not add up to those of the weight");
        WeightRows { parts }
    }

    fn part(&self, row: usize) -> Option<&Part<'a>> {
        self.parts.iter().find(|p| (p.first..p.first + p.rows).contains(&row))
    }

    /// Row `row`, or zeros after the last one.
    pub fn row(&self, row: usize) -> Row {
        match self.part(row) {
            Some(p) => {
                Row { ptr: p.bytes[(row - p.first) * p.row_bytes..].as_ptr(), dtype: p.dtype }
            }
            None => Row::ZEROS,
        }
    }

    /// Row `row`, if it is stored in a type that the kernels cannot load: it must be expanded to
    /// f32 first.
    pub fn expanded(&self, row: usize) -> Option<Expanded<'a>> {
        let p = self.part(row).filter(|p| !loadable(p.dtype))?;
        let local = row - p.first;
        let scales = match p.scale {
            Scale::Blocks(scales) => Some((scales, local)),
            _ => None,
        };
        Some(Expanded {
            bytes: &p.bytes[local * p.row_bytes..][..p.row_bytes],
            format: p.dtype.format(),
            scales,
            rotation: p.rotation,
        })
    }

    /// Whether any row must be expanded.
    pub fn any_expanded(&self) -> bool {
        self.parts.iter().any(|p| !loadable(p.dtype))
    }

    /// The factor of row `row`, or 1 after the last one.
    pub fn scale(&self, row: usize) -> f32 {
        self.part(row).map_or(1.0, |p| p.scale.of(row - p.first))
    }
}

/// Whether the kernels can load `dtype`.
fn loadable(dtype: DType) -> bool {
    dtype.is_plain() && dtype != DType::I8
}

/// A stored row that is expanded to f32 before it is packed.
pub struct Expanded<'a> {
    bytes: &'a [u8],
    /// The block format; `None` if elements are I8.
    format: Option<&'static Format>,
    /// Scales that are stored elsewhere, and the row's number among them.
    scales: Option<(&'a BlockScales, usize)>,
    /// The rotation of the stored row.
    rotation: Option<Rotation>,
}

impl Expanded<'_> {
    /// Writes elements `k .. k + out.len()` to `out`; `k` is a multiple of
    /// [`GROUP`](crate::dtype::GROUP).
    #[inline(always)]
    pub fn expand(&self, k: usize, out: &mut [f32]) {
        match self.rotation {
            Some(rotation) => self.rotate_back(rotation, k, out),
            None => self.expand_stored(k, out),
        }
    }

    /// The same without rotating back.
    #[inline(always)]
    fn expand_stored(&self, k: usize, out: &mut [f32]) {
        let Some(format) = self.format else {
            let stored = &self.bytes[k..k + out.len()];
            return out.iter_mut().zip(stored).for_each(|(o, q)| *o = f32::from(*q as i8));
        };
        let Some((scales, row)) = self.scales else {
            return format.decode(self.bytes, &[], k, out);
        };
        // The scales of some blocks at a time.
        const BLOCKS: usize = 32;
        let mut at = k;
        for out in out.chunks_mut(BLOCKS * format.block - k % format.block) {
            let mut values = [0.0; BLOCKS];
            let first = at / format.block;
            let count = (at + out.len()).div_ceil(format.block) - first;
            scales.row(row, first, &mut values[..count]);
            format.decode(
                &self.bytes[first * format.bytes..],
                &values[..count],
                at - first * format.block,
                out,
            );
            at += out.len();
        }
    }
}

impl Expanded<'_> {
    /// Writes elements from `k` on of a row that is stored rotated: whole groups are rotated back.
    #[cold]
    fn rotate_back(&self, rotation: Rotation, k: usize, out: &mut [f32]) {
        let group = rotation.group();
        let first = k / group * group;
        let cols = self.format.map_or(1, |f| f.block) * self.bytes.len()
            / self.format.map_or(1, |f| f.bytes);
        let end = (k + out.len()).next_multiple_of(group).min(cols);
        let mut values = vec![0.0; end - first];
        self.expand_stored(first, &mut values);
        rotation.apply(&mut values);
        out.copy_from_slice(&values[k - first..][..out.len()]);
    }
}

static E5M2: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|q| f8e5m2_to_f32(q as u8)));

/// Writes elements `k .. k + out.len()` of `row` to `out` as f32.
///
/// # Safety
/// The elements must be readable.
#[inline(always)]
pub unsafe fn decode(row: Row, k: usize, out: &mut [f32]) {
    if row.ptr.is_null() {
        return out.fill(0.0);
    }
    // SAFETY: guaranteed by the caller; bytes have no alignment.
    let bytes = unsafe { std::slice::from_raw_parts(row.at(k), out.len() * row.dtype.size()) };
    match row.dtype {
        DType::F32 | DType::I32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        DType::BF16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = bf16::from_le_bytes(*b).to_f32();
            }
        }
        DType::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f16::from_le_bytes(*b).to_f32();
            }
        }
        DType::F8E4M3 => {
            let table = &E4M3;
            for (o, b) in out.iter_mut().zip(bytes) {
                *o = table[usize::from(*b)];
            }
        }
        DType::F8E5M2 => {
            let table: &[f32; 256] = &E5M2;
            for (o, b) in out.iter_mut().zip(bytes) {
                *o = table[usize::from(*b)];
            }
        }
        _ => unreachable!("expanded before it is packed"),
    }
}
