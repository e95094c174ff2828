//! Rows of integers for products in int8, made at the speed of vectors.
//!
//! [`Int8::quantise`] defines the integers. The code here gives the same ones, and is compiled for
//! each instruction set: sums and products of f32 round alike in all of them.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::cpu::gemm::rows::{Row, decode};
use super::cpu::isa::Isa;
use crate::dtype::DType;
use crate::dtype::int8::{Int8, Rotation, nearest, scale_of};
use crate::tensor::HostPart;

/// Columns that one vector operation spans.
const WIDTH: usize = 16;

/// Rotates `row` in place, writes its integers to `out`, and returns their scale.
pub(super) fn quantise(int8: Int8, row: &mut [f32], out: &mut [i8]) -> f32 {
    match Isa::detect() {
        // SAFETY: the processor has the features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx => unsafe {
            x86::quantise_avx512(int8, row, out)
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::quantise_avx2(int8, row, out) },
        _ => quantise_any(int8, row, out),
    }
}

/// The same for the values `from`. `values` is as long, and is overwritten.
pub(super) fn quantise_from(int8: Int8, from: &[f32], values: &mut [f32], out: &mut [i8]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() >= Isa::Avx512 && avx512::suits(int8, values.len()) {
        assert_eq!(from.len(), values.len());
        let from = (from.as_ptr().cast(), DType::F32, 1.0);
        // SAFETY: the processor has the features.
        return unsafe { avx512::quantise(int8, from, values, out) };
    }
    values.copy_from_slice(from);
    quantise(int8, values, out)
}

/// The same for row `r` of `part`, whose stored bytes are `bytes`. `values` is as long as the row,
/// and is overwritten.
pub(super) fn quantise_stored(
    int8: Int8,
    (part, r, bytes): (&HostPart, usize, &[u8]),
    values: &mut [f32],
    out: &mut [i8],
) -> f32 {
    if let Some(scale) = part.unpack_integers(int8, (r, bytes), values, out) {
        return scale;
    }
    match Isa::detect() {
        // SAFETY: the processor has the features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 | Isa::Amx => unsafe {
            x86::stored_avx512(int8, (part, r, bytes), values, out)
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::stored_avx2(int8, (part, r, bytes), values, out) },
        _ => {
            decode_any((part, r, bytes), values);
            quantise_any(int8, values, out)
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{DType, HostPart, Int8, avx512, decode_any, is_read_directly, quantise_any};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn quantise_avx512(int8: Int8, row: &mut [f32], out: &mut [i8]) -> f32 {
        match avx512::suits(int8, row.len()) {
            // SAFETY: the row is read where it is.
            true => unsafe {
                avx512::quantise(int8, (row.as_ptr().cast(), DType::F32, 1.0), row, out)
            },
            false => quantise_any(int8, row, out),
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn quantise_avx2(int8: Int8, row: &mut [f32], out: &mut [i8]) -> f32 {
        quantise_any(int8, row, out)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn stored_avx512(
        int8: Int8,
        row: (&HostPart, usize, &[u8]),
        values: &mut [f32],
        out: &mut [i8],
    ) -> f32 {
        let (part, r, bytes) = row;
        if !is_read_directly(part) || !avx512::suits(int8, values.len()) {
            decode_any(row, values);
            return quantise_avx512(int8, values, out);
        }
        assert_eq!(bytes.len(), values.len() * part.dtype.size());
        // SAFETY: the bytes are those of the row.
        unsafe {
            let from = (bytes.as_ptr(), part.dtype, part.scale.of(r));
            avx512::quantise(int8, from, values, out)
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn stored_avx2(
        int8: Int8,
        row: (&HostPart, usize, &[u8]),
        values: &mut [f32],
        out: &mut [i8],
    ) -> f32 {
        decode_any(row, values);
        quantise_any(int8, values, out)
    }
}

/// Whether the elements are loaded as they are stored, and times one factor are the values.
fn is_read_directly(part: &HostPart) -> bool {
    part.dtype.is_plain()
        && !matches!(part.dtype, DType::I8 | DType::I32)
        && part.rotation.is_none()
}

/// The values of a stored row.
#[inline(always)]
fn decode_any((part, r, bytes): (&HostPart, usize, &[u8]), values: &mut [f32]) {
    if is_read_directly(part) {
        assert_eq!(bytes.len(), values.len() * part.dtype.size());
        // SAFETY: the bytes are those of the row.
        unsafe { decode(Row { ptr: bytes.as_ptr(), dtype: part.dtype }, 0, values) };
        let factor = part.scale.of(r);
        if factor != 1.0 {
            values.iter_mut().for_each(|v| *v *= factor);
        }
    } else {
        part.decode_row(r, bytes, values);
    }
}

#[inline(always)]
fn quantise_any(int8: Int8, row: &mut [f32], out: &mut [i8]) -> f32 {
    match int8.rotation {
        None => {}
        Some(rotation) if rotation.group() == 256 => {
            row.as_chunks_mut::<256>().0.iter_mut().for_each(rotate_256);
        }
        Some(rotation) => rotate(rotation, row),
    }
    let bits = row.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let scale = scale_of(f32::from_bits(bits));
    for (q, v) in out.iter_mut().zip(row.iter()) {
        *q = nearest(*v / scale);
    }
    scale
}

/// Any other rotation: few models need it.
#[cold]
fn rotate(rotation: Rotation, row: &mut [f32]) {
    rotation.apply(row);
}

/// The rotation of 256 columns, with the associations of [`Rotation::apply`].
#[inline(always)]
fn rotate_256(group: &mut [f32; 256]) {
    let rows: &mut [[f32; WIDTH]] = group.as_chunks_mut().0;
    for first in [0, 4, 8, 12] {
        for row in &mut rows[first..first + 4] {
            *row = within(*row);
        }
        across(rows, first, 1);
    }
    (0..4).for_each(|first| across(rows, first, 4));
}

/// The stages of strides 1 and 4 of 16 columns. For inputs a, b, c, d, the sums of neighbours are
/// `x = [a+b, b+a, c+d, d+c]` and the differences `y = [a-b, b-a, c-d, d-c]`; the four results are
/// `x` plus the pairs of `y` in reverse order, as `(a+b) + (c-d)` and `(c+d) + (b-a)`.
#[inline(always)]
fn within(v: [f32; WIDTH]) -> [f32; WIDTH] {
    let x: [f32; WIDTH] = std::array::from_fn(|i| v[i] + v[i ^ 1]);
    let y: [f32; WIDTH] = std::array::from_fn(|i| v[i] - v[i ^ 1]);
    let v: [f32; WIDTH] = std::array::from_fn(|i| (x[i] + y[i ^ 2]) * 0.5);
    let x: [f32; WIDTH] = std::array::from_fn(|i| v[i] + v[i ^ 4]);
    let y: [f32; WIDTH] = std::array::from_fn(|i| v[i] - v[i ^ 4]);
    std::array::from_fn(|i| (x[i] + y[i ^ 8]) * 0.5)
}

/// The stage across the rows `first`, `first + step` ... of 16 columns each.
#[inline(always)]
fn across(rows: &mut [[f32; WIDTH]], first: usize, step: usize) {
    let at = |i| first + i * step;
    let (a, b, c, d) = (rows[at(0)], rows[at(1)], rows[at(2)], rows[at(3)]);
    for i in 0..WIDTH {
        let (s, t, u, v) = (a[i] + b[i], c[i] - d[i], a[i] - b[i], c[i] + d[i]);
        rows[at(0)][i] = (s + t) * 0.5;
        rows[at(1)][i] = (s - t) * 0.5;
        rows[at(2)][i] = (u + v) * 0.5;
        rows[at(3)][i] = (v - u) * 0.5;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tensor::Scale;

    fn numbers(n: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|i| next() * if i % 97 == 0 { 40.0 } else { 1.0 }).collect()
    }

    fn all() -> [Int8; 4] {
        [None, Rotation::new(16), Rotation::new(64), Rotation::new(256)]
            .map(|rotation| Int8 { rotation })
    }

    #[test]
    fn every_instruction_set_gives_the_integers_of_the_definition() {
        let sizes = [(256, 1.0), (3072, 1.0), (768, 1e-33), (768, 1e-29), (256, 1e33)];
        for (int8, (n, size)) in all().into_iter().flat_map(|i| sizes.map(|s| (i, s))) {
            let row: Vec<f32> = numbers(n).iter().map(|v| v * size).collect();
            let (mut want, mut got) = (vec![0i8; n], vec![1i8; n]);
            let scale = int8.quantise(&mut row.clone(), &mut want);
            type Quantise = unsafe fn(Int8, &mut [f32], &mut [i8]) -> f32;
            let plain: Quantise = |i, row, out| quantise_any(i, row, out);
            let mut ways = vec![plain];
            #[cfg(target_arch = "x86_64")]
            {
                let has = Isa::available();
                ways.extend(has.contains(&Isa::Avx2).then_some(x86::quantise_avx2 as Quantise));
                ways.extend(has.contains(&Isa::Avx512).then_some(x86::quantise_avx512 as Quantise));
            }
            for way in ways {
                // SAFETY: the processor has the features of this way.
                let found = unsafe { way(int8, &mut row.clone(), &mut got) };
                assert_eq!((found, &got), (scale, &want), "{int8:?}");
            }
            let (mut values, mut from_row) = (vec![0.0; n], vec![1; n]);
            let found = quantise_from(int8, &row, &mut values, &mut from_row);
            assert_eq!((found, &from_row), (scale, &want), "{int8:?}");
            let mut bad = row;
            bad[n / 2] = f32::NAN;
            assert!(quantise(int8, &mut bad, &mut got).is_nan());
        }
        let mut q = [7; 256];
        assert_eq!(quantise(all()[3], &mut [0.0; 256], &mut q), 1e-30);
        assert_eq!(q, [0; 256]);
    }

    #[test]
    fn stored_rows_of_every_type_give_the_integers_of_their_values() {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::I8] {
            for rotation in [None, Rotation::new(64)] {
                let mut bytes = vec![];
                numbers(512).iter().for_each(|v| dtype.encode(v * 2.0, &mut bytes));
                let part = HostPart {
                    source: Arc::new(bytes.clone()),
                    offset: 0,
                    rows: 1,
                    cols: 512,
                    dtype,
                    scale: Scale::Tensor(0.3),
                    rotation,
                };
                for int8 in all() {
                    let (mut row, mut want) = (vec![0.0; 512], vec![0; 512]);
                    part.decode_row(0, &bytes, &mut row);
                    let scale = int8.quantise(&mut row.clone(), &mut want);
                    let mut got = vec![1; 512];
                    let found = quantise_stored(int8, (&part, 0, &bytes), &mut row, &mut got);
                    assert_eq!((found, got), (scale, want), "{dtype:?} {int8:?}");
                }
            }
        }
    }
}
