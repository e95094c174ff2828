//! The values of stored tensors: whether all are zero, or all finite, and copies of types that
//! matrices on a device do not have.

use std::sync::Arc;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{HostPart, Scale};
use crate::weights::container::file::WeightFile;
use crate::weights::container::header::{StoredType, TensorEntry};

/// Whether every element of tensor `i` is 0 or -0, or there are none.
pub fn all_zero(file: &WeightFile, i: usize) -> Result<bool> {
    let entry = &file.header.tensors[i];
    file.source.will_need(entry.range.clone())?;
    let bytes = &file.source.bytes()[entry.range.clone()];
    // The last byte of a little-endian number has its sign.
    let size = match entry.stored {
        StoredType::Float(dtype) => dtype.size(),
        StoredType::Other("F64", _) => 8,
        StoredType::Other(..) => return Ok(bytes.iter().all(|b| *b == 0)),
    };
    Ok(bytes.chunks(size).all(|element| {
        let (sign, low) = element.split_last().unwrap_or((&0, &[]));
        sign & 0x7f == 0 && low.iter().all(|b| *b == 0)
    }))
}

/// Rows and columns of a stored matrix. A 1 x 1 convolution is a matrix, too.
pub fn matrix_shape(entry: &TensorEntry) -> Result<(usize, usize)> {
    match entry.shape.as_slice() {
        [rows, cols, rest @ ..] if rest.iter().all(|n| *n == 1) => Ok((*rows, *cols)),
        other => Err(Error::model("a LoRA matrix does not have two axes")
            .at(&entry.name)
            .found(format!("{other:?}"))),
    }
}

/// The number of elements of a stored vector: at most one axis is longer than 1.
pub fn vector_length(entry: &TensorEntry) -> Result<usize> {
    if entry.shape.iter().filter(|n| **n != 1).count() > 1 {
        return Err(Error::model("a vector of a LoRA has several axes")
            .at(&entry.name)
            .found(format!("{:?}", entry.shape)));
    }
    Ok(entry.shape.iter().product())
}

/// The elements of tensor `i` as a matrix of `rows x cols`, which must be its size. F64 is rounded
/// to F32; other types stay in the file.
pub fn part_of(file: &WeightFile, i: usize, (rows, cols): (usize, usize)) -> Result<HostPart> {
    let entry = &file.header.tensors[i];
    let (source, offset) = (file.source.clone(), entry.range.start);
    if let Some(dtype) = entry.stored.float().filter(|d| d.is_plain()) {
        return Ok(HostPart {
            rotation: None,
            source,
            offset,
            rows,
            cols,
            dtype,
            scale: Scale::One,
        });
    }
    if entry.stored != StoredType::Other("F64", 64) {
        return Err(Error::model("a LoRA matrix has an element type that cannot be read")
            .at(&entry.name)
            .found(entry.stored.name())
            .expected("F64, F32, F16 or BF16"));
    }
    file.source.will_need(entry.range.clone())?;
    let doubles = file.source.bytes()[entry.range.clone()].as_chunks::<8>().0;
    let narrow = |b: &[u8; 8]| (f64::from_le_bytes(*b) as f32).to_le_bytes();
    let bytes: Vec<u8> = doubles.iter().flat_map(narrow).collect();
    file.source.let_go(entry.range.clone());
    Ok(HostPart {
        rotation: None,
        source: Arc::new(bytes),
        offset: 0,
        rows,
        cols,
        dtype: DType::F32,
        scale: Scale::One,
    })
}

/// The first element that is NaN or infinite.
pub fn first_not_finite(part: &HostPart) -> Option<(usize, f32)> {
    let (size, dtype) = (part.dtype.size(), part.dtype);
    const CHUNK: usize = 4096;
    let bytes = part.bytes();
    // The bits of the exponent are enough, and a check without branches can be vectorised.
    let suspicious = |chunk: &[u8]| match dtype {
        DType::F32 => chunk
            .as_chunks::<4>()
            .0
            .iter()
            .fold(false, |s, b| s | (u32::from_le_bytes(*b) << 1 >= 0xff00_0000)),
        DType::BF16 => chunk
            .as_chunks::<2>()
            .0
            .iter()
            .fold(false, |s, b| s | (u16::from_le_bytes(*b) << 1 >= 0xff00)),
        DType::F16 => chunk
            .as_chunks::<2>()
            .0
            .iter()
            .fold(false, |s, b| s | (u16::from_le_bytes(*b) << 1 >= 0xf800)),
        _ => true,
    };
    bytes.chunks(CHUNK).enumerate().filter(|(_, chunk)| suspicious(chunk)).find_map(|(n, chunk)| {
        let values = chunk.chunks_exact(size).map(|b| dtype.decode(b)).enumerate();
        values.into_iter().find(|(_, v)| !v.is_finite()).map(|(i, v)| (n * (CHUNK / size) + i, v))
    })
}
